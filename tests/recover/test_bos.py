"""The token at the beginning, in training: where it is put, what is counted, and where it is part of a key."""

import json

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from idp import models
from idp.beginning import PLACES, Beginning
from idp.compress import stage as compressing
from idp.errors import UserError
from idp.prompting.bank import PromptBank
from idp.prompting.states import embedded
from idp.recover import making, opening, selection, stage
from idp.store import Store

from .conftest import METHODS

BOS = 257
ONE = ["prompt", "ptune-mlp", "prefix", "idp"]


@pytest.fixture
def begun(small, text, tmp_path, bos_folders):
    """`begun(method, *overrides, adds=)`: as `recovered`, of a model whose texts begin with a BOS of its own."""

    def make(method, *overrides, adds=True, seed=0):
        where = ["model=local", f"model.path={bos_folders('llama', adds)}", "model.dtype=float32"]
        config = small(method, *where, *overrides)
        root = Store(tmp_path / "store")
        dense = models.load(config.model, models.find_model(config.model), root)
        stage.check(config.recovery, models.open_empty(models.model_folder(dense), config.model), text)
        as_it_is = compressing.compress(config.compressor, None, config.model, dense, text, root)
        return config, dense, stage.recover(config.recovery, config.model, as_it_is, text, seed, root, dense=dense)

    return make


def rows_of(config, dense, text):
    loaded = models.open_model(models.model_folder(dense), config.model)
    return loaded, making._text(config.recovery.training, text, loaded, 0)[1]


def plain(model, rows, prompt, place):
    """Logits [rows, tokens - 1, vocabulary] that predict each row's tokens but the first, the plain way."""
    bos = embedded(model, [BOS])
    ahead = torch.cat({"before": [bos, prompt], "after": [prompt, bos], "none": [prompt], "never": [prompt]}[place])
    whole = torch.cat([ahead.expand(len(rows), -1, -1), model.get_input_embeddings()(rows)], dim=1)
    with torch.no_grad():
        return model(inputs_embeds=whole).logits[:, len(ahead) : -1].flatten(0, 1)


@pytest.mark.parametrize("objective", ["lm", "distill"])
@pytest.mark.parametrize("place", [*PLACES, "never"])
def test_the_loss_is_that_of_the_text_behind_prompt_and_bos(begun, text, place, objective):
    options = ["model.bos=never"] if place == "never" else [f"recovery.bos={place}"]
    config, dense, repair = begun("prompt", *options, f"recovery.training.objective={objective}")
    loaded, heldout = rows_of(config, dense, text)
    assert int(heldout.max()) < BOS  # blocks hold none: they are the same whatever stands before them
    prompt = PromptBank.load(repair.path / "bank").prompts[0]
    logits = plain(loaded.model, heldout, prompt, place)
    if objective == "lm":
        wanted = cross_entropy(logits, heldout[:, 1:].flatten())
    else:
        nothing = prompt[:0]
        teacher = plain(loaded.model, heldout, nothing, "never" if place == "never" else "after")
        wanted = kl_div(log_softmax(logits, -1), log_softmax(teacher, -1), reduction="batchmean", log_target=True)
    assert repair.read("history.json")["prompt_0"]["best_loss"] == pytest.approx(wanted.item(), abs=1e-5)


@pytest.mark.parametrize("method", sorted({*METHODS} - {"masked_lora"}))  # which takes a pruned model
def test_training_and_scoring_agree(begun, text, method):
    """The loss at the end of training is what perplexity's way gives of the same blocks behind the stored repair."""
    from idp.evaluate.engine import LocalEngine
    from idp.evaluate.perplexity import window_losses
    from idp.evaluate.scorer import Scorer

    whole = method in (
        "lora",
        "masked_lora",
        "norms",
        "gated_prefix",
    )  # of the weights: no prompt about which it could stand
    for place in PLACES if method in ("prefix", "idp", "prompt-dense") else ["before"]:
        options = [] if whole else [f"recovery.bos={place}"]
        config, dense, repair = begun(method, *options)
        _, heldout = rows_of(config, dense, text)
        loaded, bank = opening.open_bank(config.model, dense, repair)
        from idp.prompting.repaired import RepairedModel

        repaired = RepairedModel(loaded, bank.first() if bank is not None else None)
        losses = window_losses(Scorer(LocalEngine(repaired), 400), heldout)
        histories = repair.read("history.json")
        name = method if whole else "prompt_0"
        assert sum(losses) / len(losses) == pytest.approx(histories[name]["best_loss"], abs=1e-4)


@pytest.mark.parametrize("bank", ["specialists", "cluster"])
def test_banks_obey_it(begun, text, bank):
    from idp.recover.banks.specialists import losses

    config, dense, repair = begun("idp", f"recovery/bank={bank}", "recovery.bos=before")
    loaded, heldout = rows_of(config, dense, text)
    made = PromptBank.load(repair.path / "bank")
    assert made.beginning == Beginning((BOS,), "before")
    found = losses(loaded, made.prompts, heldout, beginning=made.beginning)
    for number, prompt in enumerate(made.prompts):
        logits = plain(loaded.model, heldout, prompt, "before")
        wanted = cross_entropy(logits, heldout[:, 1:].flatten(), reduction="none").view(len(heldout), -1).mean(1)
        torch.testing.assert_close(found[:, number], wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("place", PLACES)
def test_heldout_losses_and_fitted_selectors_obey_it(begun, text, tmp_path, place):
    fit = ["recovery.fit.blocks=4", "recovery.fit.tokens=16", "recovery.fit.context_tokens=8"]
    config, dense, repair = begun("idp", "recovery/selector=learned", f"recovery.bos={place}", *fit)
    store = Store(tmp_path / "store")
    seen = []

    def open_bank():
        return opening.open_bank(config.model, dense, repair)

    from idp.prompting.selectors import learned

    real = learned.Learned.fit

    def spy(self, contexts, losses):
        seen.append(list(contexts))
        return real(self, contexts, losses)

    learned.Learned.fit = spy
    try:
        found = selection.select(config.recovery, config.model, repair, text, open_bank, store)
    finally:
        learned.Learned.fit = real
    loaded, bank = open_bank()
    blocks = selection._blocks(config.recovery.fit, text, loaded)
    for number, prompt in enumerate(bank.prompts):
        wanted = cross_entropy(plain(loaded.model, blocks, prompt, place), blocks[:, 1:].flatten())
        assert found.heldout_loss[number] == pytest.approx(wanted.item(), abs=1e-4)
    ahead = [BOS] if place == "after" else []
    assert seen[0][0] == [*ahead, *blocks[0, :8].tolist()]


def test_keys_have_it_where_it_is_in_play(begun):
    keys = {}
    for place in PLACES:
        repair = begun("prompt", f"recovery.bos={place}")[-1]
        assert repair.manifest["config"]["bos"] == {"tokens": [BOS], "place": place}
        keys[place] = repair.key
    keys["never"] = begun("prompt", "model.bos=never")[-1].key
    assert len(set(keys.values())) == 4
    lora = begun("lora")[-1]
    assert lora.key != begun("lora", "model.bos=never")[-1].key


def test_keys_do_not_where_it_is_not(recovered, begun):
    """A model without one: `recovery.bos` changes nothing, and its key is made of what it was made of before."""
    first = recovered("prompt", "recovery.bos=before")[-1]
    for place in ("after", "none"):
        assert recovered("prompt", f"recovery.bos={place}")[-1].key == first.key
    assert first.manifest["config"].keys() == {"recovery", "dtype", "device", "seed", "corpus"}
    assert "bos" not in json.dumps(first.manifest["config"])
    without = begun("prompt", adds=False)[-1]
    assert "bos" not in json.dumps(without.manifest["config"])
    assert begun("prompt", "recovery.bos=after", adds=False)[-1].key == without.key


def test_lora_beneath_prompts_is_the_one_made_alone(begun):
    alone = begun("lora")[-1]
    begun("lora_idp", "recovery.bos=none")
    stored = alone.path.parent
    beneath = [json.loads((place / "manifest.json").read_text())["config"] for place in stored.iterdir()]
    assert sum(config["recovery"]["kind"] == "lora" for config in beneath) == 1


def test_a_transferred_bank_keeps_its_own(begun, compose, tmp_path, text, caplog):
    _, dense, repair = begun("prompt", "recovery.bos=after")
    where = ["model=local", f"model.path={models.model_folder(dense)}", "model.dtype=float32"]
    for wanted, options in {
        "after": [],
        "none": ["recovery.bos=none"],
    }.items():
        config = compose(*where, "recovery=transfer", f"recovery.from={repair.path}", *options)
        moved = stage.recover(config.recovery, config.model, dense, text, 0, Store(tmp_path / "store"), dense=dense)
        assert PromptBank.load(moved.path / "bank").beginning == Beginning((BOS,), wanted)
    config = compose(*where, "recovery=transfer", f"recovery.from={repair.path}", "model.bos=never")
    recovery, given = stage.resolve(config.recovery)
    empty = models.open_empty(models.model_folder(dense), config.model)
    stage.check_given(given, config.model, dense, empty, recovery)
    assert "learned with the BOS tokens [257]" in caplog.text
    assert recovery.beginning(empty.bos) == Beginning((BOS,), "after")


def test_a_bank_of_before_it_was_written_down_is_used_as_it_was(begun):
    """Then a text's BOS stood behind the prompt, as the tokenizer puts it."""
    config, dense, repair = begun("prompt", "recovery.bos=before")
    described = repair.path / "bank" / "bank.json"
    values = json.loads(described.read_text())
    del values["bos"]
    described.write_text(json.dumps(values))
    repaired = opening.open_repaired(config.model, dense, repair, config.recovery)
    assert repaired.beginning == Beginning((BOS,), "after")


def test_prompts_of_another_bos_do_not_join(begun, compose):
    _, dense, repair = begun("prompt", "recovery.bos=after")
    where = ["model=local", f"model.path={models.model_folder(dense)}", "model.dtype=float32"]
    joined = ["recovery/bank=assembled", f"recovery.bank.from=[{repair.path},{repair.path}]"]
    config = compose(*where, "recovery=idp", *joined, "recovery.bos=before")
    recovery, given = stage.resolve(config.recovery)
    empty = models.open_empty(models.model_folder(dense), config.model)
    with pytest.raises(UserError, match=r"BOS tokens \[257\] at recovery.bos=after, this run has .*before"):
        stage.check_given(given, config.model, dense, empty, recovery)
    config = compose(*where, "recovery=idp", *joined, "recovery.bos=after")
    recovery, given = stage.resolve(config.recovery)
    stage.check_given(given, config.model, dense, empty, recovery)


def test_it_takes_its_place_in_the_window(begun, text):
    """A prompt of 5 and 2,043 tokens of text fill the window of 2,048; with a BOS they do not fit."""
    fill = ["recovery.training.sequence_length=2043", "recovery.training.heldout_sequences=1"]
    with pytest.raises(UserError, match="a prompt of 5 tokens, 1 of BOS and 2043 of text do not fit"):
        begun("prompt", *fill)


def test_the_choice_is_checked(small):
    with pytest.raises(UserError, match="recovery.bos=first"):
        small("prompt", "recovery.bos=first")
    with pytest.raises(UserError, match="model.bos=yes"):
        small("prompt", "model.bos=yes")
