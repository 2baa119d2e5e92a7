"""What a model does inside, against transformers' own forward pass; and the analysis of real small runs."""

import json

import pytest
import torch

from idp.analyze.__main__ import main
from idp.analyze.similarity import UNTRAINED, compare, eager_attention, look, untrained
from idp.finished import find_run
from idp.prompting.repaired import RepairedModel
from idp.prompting.selectors.fixed import Fixed

TOKENS = [5, 9, 2, 7, 11, 3, 8]
IDP = ("compressor=gptq3", "recovery=idp", "recovery.lengths=[3,5]", "baselines=true")


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2", "gemma2"])
def test_attention_and_hidden_states_are_the_models_own(family, open_tiny, make_bank):
    loaded = open_tiny(family)
    bank = make_bank(loaded, [4, 6])
    repaired = RepairedModel(loaded, bank, Fixed(1))
    with eager_attention(repaired):
        found = look(repaired, TOKENS)
        embedded = loaded.model.get_input_embeddings()(torch.tensor([TOKENS]))
        whole = torch.cat([bank.prompts[1][None], embedded], dim=1)
        plain = loaded.model.base_model(inputs_embeds=whole, output_attentions=True, output_hidden_states=True)
    for layer, weights in enumerate(found.attention):
        expected = plain.attentions[layer][0, :, 6:]
        torch.testing.assert_close(weights, expected[:, :, 6:], atol=1e-5, rtol=1e-4)
        assert found.prompt_share[layer] == pytest.approx(float(expected[:, :, :6].sum(-1).mean()), abs=1e-5)
        torch.testing.assert_close(found.hidden[layer], plain.hidden_states[layer + 1][0, 6:], atol=1e-4, rtol=1e-4)
    alone = RepairedModel(loaded)
    with eager_attention(alone):
        assert look(alone, TOKENS).prompt_share == [0.0, 0.0]
    assert loaded.model.config._attn_implementation != "eager"


def test_a_model_is_like_itself_and_a_prompt_changes_it(open_tiny):
    dense, inputs = RepairedModel(open_tiny("llama")), [TOKENS, list(reversed(TOKENS))]
    same = compare(dense, dense, inputs, "dense")
    assert same["attention"]["cosine"] == pytest.approx([1, 1]) and same["activation"]["cka"] == pytest.approx([1, 1])
    assert same["attention"]["jensen_shannon"] == pytest.approx([0, 0], abs=1e-9)
    prompted = untrained(dense, 5)
    assert prompted.bank.lengths == [5]
    other = compare(dense, prompted, inputs, "prompted")
    assert all(share > 0.1 for share in other["attention"]["prompt_share"])
    assert all(value < 0.999 for value in other["activation"]["cosine"][1:])
    assert compare(dense, untrained(dense, 5), inputs, "again") == other


def test_a_run(finished_run, capsys, monkeypatch):
    folder, _ = finished_run(*IDP)
    main(["similarity", f"record={folder}", "documents=4", "tokens=12"])
    assert "repaired attention cosine" in capsys.readouterr().out
    file = folder / "analysis" / "similarity.json"
    result = json.loads(file.read_text())
    assert (result["schema"], result["layers"]) == (1, [0, 1])
    assert list(result["models"]) == ["compressed", "repaired", UNTRAINED]
    assert result["inputs"]["documents"] == 4 and result["inputs"]["longest"] <= 12
    for found in result["models"].values():
        assert {"cosine", "jensen_shannon"} <= found["attention"].keys() and {"cosine", "cka"} <= found[
            "activation"
        ].keys()
        assert all(len(values) == 2 for part in found.values() for values in part.values())
    run = find_run(folder)
    shown = [run.open("dense"), run.open("repaired")]
    tokens = _inputs(run, folder)
    again = compare(*shown, tokens, "repaired")
    assert again["attention"]["cosine"] == pytest.approx(result["models"]["repaired"]["attention"]["cosine"])
    # Nothing is computed twice, by this run or by one with the same models.
    monkeypatch.setattr("idp.analyze.similarity.compare_apart", None)
    file.unlink()
    main(["similarity", f"record={folder}", "documents=4", "tokens=12"])
    assert json.loads(file.read_text()) == result


def _inputs(run, folder):
    from idp.analyze.similarity import find_inputs

    return find_inputs(run, folder, 4, 12, run.product("load")).tokens


def test_lora_has_no_prompt_to_hold_it_against(finished_run):
    folder, _ = finished_run("compressor=gptq3", "recovery=lora", "baselines=true")
    main(["similarity", f"record={folder / 'record.json'}", "documents=4"])
    result = json.loads((folder / "analysis" / "similarity.json").read_text())
    assert list(result["models"]) == ["compressed", "repaired"]
    assert result["models"]["repaired"]["attention"]["prompt_share"] == [0.0, 0.0]


def test_what_cannot_be_analysed(finished_run, capsys):
    folder, _ = finished_run("baselines=true")
    with pytest.raises(SystemExit, match="compressed nothing and repaired nothing"):
        main(["similarity", f"record={folder}"])
    oracle, _ = finished_run(*IDP, "recovery/selector=oracle")
    with pytest.raises(SystemExit, match="chosen with the answers in hand"):
        main(["similarity", f"record={oracle}"])
    with pytest.raises(SystemExit, match="tokens=2: must be at least 4"):
        main(["similarity", f"record={folder}", "tokens=2"])
