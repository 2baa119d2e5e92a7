"""Keys and values by the dense model, and a first token that stays: what is stored, trained, counted and refused."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import cross_entropy

from idp import models
from idp.beginning import Beginning, sink_of
from idp.compress import stage as compressing
from idp.corpora.corpus import part
from idp.errors import UserError
from idp.prompting.attention.group import TRUNK
from idp.prompting.bank import PromptBank
from idp.prompting.packing import pack
from idp.prompting.repaired import RepairedModel
from idp.prompting.shapes import prefix_width
from idp.recover import making, opening, prompt_states, stage
from idp.recover.context import RepairContext
from idp.recover.initial import embed
from idp.store import Store

TEXT, TOKENS = [*range(60, 90)], [3, 40, 41, 42, 90]
BOS = 257
DENSE = ["recovery.states=dense", "recovery.sink=keep"]


def logits_of(repaired, tokens):
    """Of one input behind a bank's only prompt, by the packed pass."""
    packed = pack(
        [tokens], [range(len(tokens))], [[TRUNK] * len(tokens)], [0], repaired.prefixes, repaired.model, repaired.device
    )
    with torch.no_grad():
        return torch.cat([found for _, found in repaired.logits_at(packed, torch.arange(len(tokens)))])


def plain_logits(model, tokens):
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0]


@pytest.mark.parametrize("family", ["llama", "opt", "gemma2", "gemma3_text", "mistral"])
def test_the_states_of_real_text_are_the_text(family, open_tiny):
    """Longer than the sliding windows, on the model that computed them; embeddings scaled and not."""
    loaded = open_tiny(family)
    rows = prompt_states.rows(loaded, embed(loaded, TEXT[1:]), TEXT[:1])
    assert rows.shape == (30, prefix_width(loaded.model.config))
    found = logits_of(RepairedModel(loaded, PromptBank([rows], ["text"], "prefix")), TOKENS)
    torch.testing.assert_close(found, plain_logits(loaded.model, TEXT + TOKENS)[30:], atol=1e-4, rtol=0)


@pytest.fixture
def repaired_twice(small, text, tmp_path, model_folders):
    """`repaired_twice(method, *overrides)`: config, dense and damaged product, and the repair of the latter."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    def make(method, *overrides, family="llama"):
        folder, root = tmp_path / f"damaged_{family}", Store(tmp_path / "store")
        if not folder.exists():
            model = AutoModelForCausalLM.from_pretrained(model_folders(family), dtype=torch.float32)
            draw = torch.Generator().manual_seed(3)
            for weight in model.parameters():
                weight.data += 0.1 * weight.data.std() * torch.randn(weight.shape, generator=draw)
            model.save_pretrained(folder)
            AutoTokenizer.from_pretrained(model_folders(family)).save_pretrained(folder)
        products = []
        for place in (model_folders(family), folder):
            config = small(method, "model=local", f"model.path={place}", "model.dtype=float32", *overrides)
            products.append(models.load(config.model, models.find_model(config.model), root))
        dense, damaged = products
        empty = models.open_empty(models.model_folder(damaged), config.model)
        stage.check(config.recovery, empty, text)
        return config, dense, damaged, stage.recover(config.recovery, config.model, damaged, text, 0, root, dense=dense)

    return make


def opened(config, product):
    return models.open_model(models.model_folder(product), config.model)


@pytest.mark.parametrize("family", ["llama", "opt", "gemma3_text"])
def test_intactkv_is_the_first_token_as_the_dense_model_reads_it(family, repaired_twice):
    config, dense, damaged, repair = repaired_twice("intactkv", family=family)
    bank = PromptBank.load(repair.path / "bank")
    loaded = opened(config, dense)
    sink = sink_of(loaded.bos, loaded.tokenizer)
    assert bank.kind == "prefix" and bank.lengths == [1] and sink == 0
    with torch.no_grad():
        expected = loaded.model(torch.tensor([[sink]]), use_cache=True).past_key_values
    pairs = [tensor[0, :, 0] for layer in expected.layers for tensor in (layer.keys, layer.values)]
    torch.testing.assert_close(bank.prompts[0][0], torch.stack(pairs).flatten(), atol=1e-5, rtol=0)
    own = prompt_states.rows(opened(config, damaged), embed(opened(config, damaged), [sink]))
    assert (own - bank.prompts[0]).abs().max() > 1e-2
    found = repair.read("repair.json")
    assert found["added"] == prefix_width(loaded.model.config) == config.recovery.numbers(loaded)
    assert found["trainable"] == 0 and not repair.manifest["config"].get("seed")
    assert repair.manifest["config"]["teacher"] == dense.key


@pytest.mark.parametrize("method", ["prompt-dense", "prefix-dense", "cartridge"])
def test_what_is_lowered_is_the_damaged_models_loss_behind_the_dense_models_states(method, repaired_twice, text):
    """By the models' own caches: the dense one reads the start, the damaged one goes on behind it."""
    short = ["recovery.length=5"] if method == "cartridge" else []
    config, dense, damaged, repair = repaired_twice(
        method, *short, "recovery.training.objective=lm", "recovery.training.learning_rate=0.02"
    )
    history = repair.read("history.json")["prompt_0"]
    loaded, other = opened(config, dense), opened(config, damaged)
    context = RepairContext(loaded, 0, repair.path, repair.path, corpus=text)
    start = config.recovery.start.prompt(loaded, 5, 0, context.beginning_of_text)
    sink = embed(loaded, [sink_of(loaded.bos, loaded.tokenizer)])
    _, heldout = making._text(config.recovery.training, text, loaded, 0)
    with torch.no_grad():
        whole = torch.cat([sink, start]).expand(len(heldout), -1, -1)
        cache = loaded.model(inputs_embeds=whole, use_cache=True).past_key_values
        logits = other.model(heldout, past_key_values=cache).logits[:, :-1]
    expected = cross_entropy(logits.flatten(0, 1), heldout[:, 1:].flatten()).item()
    assert history["heldout"][0]["loss"] == pytest.approx(expected, abs=1e-5)
    assert history["best_loss"] < expected - 0.01
    bank = PromptBank.load(repair.path / "bank")
    assert torch.equal(bank.prompts[0][:1], prompt_states.rows(loaded, sink))  # not trained, to the last bit
    assert (bank.prompts[0][1:] - prompt_states.rows(loaded, torch.cat([sink, start]))[1:]).abs().max() > 1e-3
    assert bank.lengths == [6] and config.recovery.numbers(loaded) == bank.parameters == 6 * 128
    assert repair.read("repair.json")["trainable"] == (5 * 64 if method == "prompt-dense" else 5 * 128)


@pytest.mark.parametrize("method", ["prompt", "idp"])
def test_a_dense_model_that_is_the_compressed_one_changes_nothing_but_the_form(method, recovered):
    config, dense, own = recovered(method)
    _, _, other = recovered(method, "recovery.states=dense")
    for name, history in own.read("history.json").items():
        assert other.read("history.json")[name]["best_loss"] == pytest.approx(history["best_loss"], abs=1e-5)
    loaded = opened(config, dense)
    pairs = zip(*(PromptBank.load(repair.path / "bank").prompts for repair in (own, other)), strict=True)
    for prompt, prefix in pairs:
        torch.testing.assert_close(prompt_states.rows(loaded, prompt), prefix, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("states", ["own", "dense"])
def test_a_bos_before_it_is_part_of_it(states, small, compose, text, tmp_path, bos_folders):
    """Stored once, computed by the same model, and put before no text: in training, scoring, transfer and export."""
    from peft import PeftModel

    from idp.export.repair import _save_prompts

    where = ["model=local", f"model.path={bos_folders('llama')}", "model.dtype=float32"]
    config = small("prefix", *where, "recovery.bos=before", "recovery.sink=keep", f"recovery.states={states}")
    root = Store(tmp_path / "store")
    dense = models.load(config.model, models.find_model(config.model), root)
    as_it_is = compressing.compress(config.compressor, None, config.model, dense, text, root)
    repair = stage.recover(config.recovery, config.model, as_it_is, text, 0, root, dense=dense)
    bank = PromptBank.load(repair.path / "bank")
    assert bank.beginning == Beginning((BOS,), "within") and bank.lengths == [6]
    assert repair.manifest["config"]["bos"] == {"tokens": [BOS], "place": "within"}
    loaded = opened(config, dense)
    torch.testing.assert_close(bank.prompts[0][:1], prompt_states.rows(loaded, embed(loaded, [BOS])))
    repaired = opening.open_repaired(config.model, dense, repair, config.recovery)
    assert repaired.longest_prompt == 6 and not repaired.beginning.ahead_of_text

    moved = compose(*where, "recovery=transfer", f"recovery.from={repair.path}").recovery
    assert moved.beginning((BOS,)) == bank.beginning

    run = SimpleNamespace(record={"idp": {"config": {"recovery": {"kind": "prefix"}}}}, selector=None)
    _save_prompts(run, repair, loaded, tmp_path / "out", "me/mine")
    ours = logits_of(repaired, TOKENS)
    with torch.no_grad():
        theirs = PeftModel.from_pretrained(loaded.model, tmp_path / "out" / bank.names[0])
        theirs = theirs(input_ids=torch.tensor([TOKENS])).logits[0]
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_the_sink_of_a_soft_prompt_is_an_embedding(recovered):
    config, dense, repair = recovered("prompt", "recovery.sink=keep", "recovery.training.learning_rate=0.05")
    (prompt,) = PromptBank.load(repair.path / "bank").prompts
    loaded = opened(config, dense)
    assert prompt.shape == (6, 64) and torch.equal(prompt[:1], embed(loaded, [0]))
    assert (repair.read("repair.json")["added"], repair.read("repair.json")["trainable"]) == (6 * 64, 5 * 64)
    assert config.recovery.numbers(loaded) == 6 * 64


def test_a_written_instruction_in_the_dense_models_reading(repaired_twice):
    config, dense, damaged, repair = repaired_twice("hard_prompt", "recovery.text=Ask", *DENSE)
    tokens = [0, *opened(config, dense).tokenizer("Ask")["input_ids"]]
    (rows,) = PromptBank.load(repair.path / "bank").prompts
    loaded, other = opened(config, dense), opened(config, damaged)
    torch.testing.assert_close(rows, prompt_states.rows(loaded, embed(loaded, tokens)))
    assert len(rows) == 4 and repair.read("repair.json")["added"] == 4 * 128 == config.recovery.numbers(loaded)
    found = logits_of(RepairedModel(other, PromptBank([rows], ["one"], "prefix")), TOKENS)
    with torch.no_grad():
        cache = loaded.model(torch.tensor([tokens]), use_cache=True).past_key_values
        expected = other.model(torch.tensor([TOKENS]), past_key_values=cache).logits[0]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_a_corpus_start_is_the_beginning_of_a_training_document(recovered, text):
    config, dense, repair = recovered("prompt", "recovery.init=corpus", "recovery.training.learning_rate=0")
    (prompt,) = PromptBank.load(repair.path / "bank").prompts
    loaded = opened(config, dense)
    found = {document for document in text.documents if torch.equal(prompt, embed(loaded, _ids(loaded, document)[:5]))}
    assert found and found <= set(part(text, "train"))
    _, _, other = recovered("prompt", "recovery.init=corpus", "recovery.training.learning_rate=0", seed=1)
    assert not torch.equal(PromptBank.load(other.path / "bank").prompts[0], prompt)


def _ids(loaded, document):
    return loaded.tokenizer(document, add_special_tokens=False)["input_ids"]


def test_keys_are_silent_about_what_was_always_so(recovered):
    for method in ("prompt", "idp"):
        options = recovered(method)[-1].manifest["config"]["recovery"]
        assert not {"states", "sink"} & options.keys()
    options = recovered("prompt-dense")[-1].manifest["config"]["recovery"]
    assert (options["states"], options["sink"]) == ("dense", "keep")


def test_what_cannot_be_is_refused_in_a_line(small, open_tiny, tmp_path):
    for bank, said in (("specialists", "states=dense"), ("specialists", "sink=keep")):
        with pytest.raises(UserError, match=f"recovery.{said}: recovery/bank={bank} does not train each"):
            small("idp", f"recovery/bank={bank}", f"recovery.{said}")
    with pytest.raises(UserError, match="recovery.text is empty: .*recovery.sink=keep"):
        small("hard_prompt", "recovery.text=''")
    loaded = open_tiny("llama")
    loaded.tokenizer.bos_token = loaded.tokenizer.eos_token = None
    recovery = small("prompt", "recovery.sink=keep").recovery
    with pytest.raises(UserError, match="sink=keep: the model's tokenizer has neither a BOS nor an end-of-text"):
        recovery.check_model(loaded)
    loaded.model.config.rope_parameters = {"rope_type": "longrope", "original_max_position_embeddings": 64}
    with pytest.raises(UserError, match="states=dense: LlamaForCausalLM changes its rotary frequencies"):
        small("prefix", "recovery.states=dense").recovery.check_model(loaded)
    context = RepairContext(open_tiny("llama"), 0, tmp_path, tmp_path, open_dense=lambda: open_tiny("opt"))
    with pytest.raises(UserError, match="the dense model has keys and values of 256 numbers a token, the .* 128"):
        prompt_states.source(small("prefix", "recovery.states=dense").recovery, context)
