"""Requests with a bank's prompts: chosen as `idp.load` chooses, from the first layer alone, in the form of vLLM's."""

import base64
import io
import logging
import re

import pytest
import torch
from safetensors.torch import load_file

import idp
from idp.errors import UserError
from idp.export import checkpoint, serving
from idp.export.options import ExportOptions
from idp.export.serving import PromptChooser
from idp.models.first_layers import layer_of, open_first_layers

TEXTS = ["The old bridge over the river", "Water boils at one hundred", "two", "12 people repair a stone bridge, and"]
BANK = ("recovery=idp", "recovery.lengths=[3,5]", "recovery.controls=false")
CALIBRATED = (*BANK, "recovery/selector=attention_calibrated")  # which chooses both of them


class StubEngine:
    """What takes requests as vLLM takes them: one dictionary each, whose only entry is a matrix on the CPU."""

    def __init__(self, model):
        self.model = model

    def generate(self, requests):
        """The greedy next token of each request, by the model alone."""
        found = []
        for request in requests:
            assert set(request) == {"prompt_embeds"}
            rows = request["prompt_embeds"]
            assert rows.dim() == 2 and rows.shape[1] == self.model.config.hidden_size
            assert rows.device.type == "cpu" and rows.dtype == self.model.dtype and not rows.requires_grad
            with torch.no_grad():
                found.append(int(self.model(inputs_embeds=rows[None]).logits[0, -1].argmax()))
        return found


def plain_model(record):
    from idp.finished import of_record

    return of_record(record).open("compressed").model


def test_the_same_choice_the_same_rows_and_the_same_answers(finished_run, tmp_path):
    folder, record = finished_run("compressor=gptq4", *CALIBRATED)
    out = tmp_path / "export"
    checkpoint.export(ExportOptions(str(folder), str(out)))
    whole = idp.load(folder)
    answers = whole.generate(TEXTS, 1)
    model = plain_model(record)
    for place in (folder, out):
        chooser = PromptChooser.open(place)
        assert chooser.repaired.model.config.num_hidden_layers == 1 < model.config.num_hidden_layers
        assert chooser.prompts == whole.prompts
        assert chooser.choose(TEXTS, 1) == [answer.prompt for answer in answers] == whole.choose(TEXTS)
        assert len(set(chooser.choose(TEXTS, 1))) > 1  # else the same choice would show nothing
        requests = chooser.requests(TEXTS, 1)
        for text, request, name in zip(TEXTS, requests, chooser.choose(TEXTS, 1), strict=True):
            prompt = load_file(out / "prompts" / name / "adapter_model.safetensors")["prompt_embeddings"]
            ids = torch.tensor(chooser.tokenizer(text)["input_ids"])
            assert torch.equal(request["prompt_embeds"], torch.cat([prompt, model.get_input_embeddings()(ids)]))
        tokens = StubEngine(model).generate(requests)
        assert [chooser.tokenizer.decode([token]) for token in tokens] == [answer.text for answer in answers]


def test_other_selectors_read_what_they_need(finished_run, caplog):
    folder, _ = finished_run("compressor=gptq4", *BANK, "recovery/selector=nearest")
    chooser = PromptChooser.open(folder)
    assert chooser.repaired.model.config.num_hidden_layers == 1
    assert chooser.choose(TEXTS) == idp.load(folder).choose(TEXTS)
    folder, _ = finished_run("compressor=gptq4", *BANK, "recovery/selector=likelihood")
    with caplog.at_level(logging.WARNING):
        chooser = PromptChooser.open(folder)
    assert "likelihood reads the whole model" in caplog.text
    assert chooser.choose(TEXTS) == idp.load(folder).choose(TEXTS)


def test_with_layers_repaired_too(finished_run):
    """The first layer's queries and keys are the repaired ones: an adapter as large as this one changes the choice."""
    more = ("recovery.training.learning_rate=0.1", "recovery.controls=false")
    folder, _ = finished_run("compressor=gptq4", "recovery=lora_idp", "recovery.lengths=[3,5]", *more)
    chooser, whole = PromptChooser.open(folder), idp.load(folder)
    contexts = chooser._contexts(TEXTS, 1)
    one, other = (each.selector.scores(contexts) for each in (chooser.repaired, whole._engine.repaired))
    torch.testing.assert_close(one, other)
    assert any("lora_A" in name for name, _ in chooser.repaired.model.named_parameters())


@pytest.mark.parametrize(("mode", "place"), [("before", "ahead"), ("after", "behind")])
def test_the_bos_stands_where_it_stood(mode, place, open_bos, make_bank):
    from idp.beginning import Beginning
    from idp.prompting.repaired import RepairedModel

    loaded = open_bos()
    bank = make_bank(loaded, [3])
    bank.beginning = Beginning(loaded.bos, mode)
    chooser = PromptChooser(RepairedModel(loaded, bank))
    (request,) = chooser.requests(["a b"], 1)
    rows, bos = request["prompt_embeds"], loaded.model.get_input_embeddings().weight[loaded.bos[0]]
    assert torch.equal(rows[0 if place == "ahead" else 3], bos)
    assert torch.equal(rows[1:4] if place == "ahead" else rows[:3], bank.prompts[0])
    ids = loaded.tokenizer("a b", add_special_tokens=False)["input_ids"]
    assert len(rows) == 3 + 1 + len(ids)


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2", "qwen2", "gemma2", "gemma3_text"])
def test_first_layers_of_other_families(family, open_tiny, model_folders, compose):
    from dataclasses import replace

    whole = open_tiny(family)
    config = replace(compose("model=tiny_llama").model, device="cpu", dtype="float32")
    first = open_first_layers(model_folders(family), config, 1).model
    assert first.config.get_text_config().num_hidden_layers == 1
    found, there = dict(first.named_parameters()), dict(whole.model.named_parameters())
    assert {name for name in there if (layer_of(name) or 0) < 1} - set(found) <= {"lm_head.weight"}
    for name, parameter in found.items():
        assert torch.equal(parameter, there[name]), name


def test_a_request_s_embeddings_over_the_wire():
    rows = torch.randn(3, 4).bfloat16()
    sent = serving.as_base64(rows)
    read = torch.load(io.BytesIO(base64.b64decode(sent, validate=True)), weights_only=True)  # as vLLM reads them
    assert read.dtype == torch.bfloat16 and torch.equal(read, rows)


def test_what_cannot_be_served_is_said_in_one_line(finished_run, tmp_path):
    for overrides, message in (
        (("compressor=gptq4", "recovery=lowrank"), "it has no prompts, so there is none to choose"),
        (("compressor=gptq4", "recovery=prefix"), "its prompts are keys and values of every layer (prefix)"),
        (("compressor=gptq4", "baselines=true"), "the run repaired nothing"),
    ):
        folder, _ = finished_run(*overrides)
        with pytest.raises(UserError, match=re.escape(message)):
            PromptChooser.open(folder)
    with pytest.raises(UserError, match="no such file"):
        PromptChooser.open(tmp_path / "nothing")
    chooser = PromptChooser.open(finished_run("compressor=gptq4", *CALIBRATED)[0])
    with pytest.raises(UserError, match="max_new_tokens=100000: the model's window holds"):
        chooser.requests(TEXTS, 100_000)
    with pytest.raises(UserError, match="texts: give a list of texts"):
        chooser.requests("a text")
