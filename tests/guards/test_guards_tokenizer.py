"""The guard of tokenizers and faults planted for it: letters for words, a copy with other ids, ids beyond the rows."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from idp import models
from idp.errors import UserError
from idp.models import tokenization
from tests.conftest import FAMILIES


@pytest.fixture
def planted(model_folders, tmp_path):
    """`planted(tokenizer, rows=...)`: the folder of a tiny LLaMA with that tokenizer."""

    def plant(tokenizer, rows=2000, family="llama"):
        folder = tmp_path / "planted"
        shutil.copytree(model_folders(family), folder)
        for file in folder.glob("tokenizer*"):
            file.unlink()
        tokenizer.save_pretrained(folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "vocab_size": rows}))
        weights = load_file(folder / "model.safetensors")
        for name, tensor in weights.items():
            if tensor.shape[0] == config["vocab_size"]:
                weights[name] = tensor.new_zeros(rows, *tensor.shape[1:])
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        return folder

    return plant


def byte_level(extra=(), merges=(), splits=None):
    """A byte-level tokenizer with further pieces."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    pieces = ["<s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), *extra]
    made = Tokenizer(BPE(vocab={piece: number for number, piece in enumerate(pieces)}, merges=list(merges)))
    made.pre_tokenizer = splits or pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="<s>", pad_token="<s>")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tokenizers_of_the_tiny_models_pass(family, model_folders):
    tokenization.check(model_folders(family))


def test_words_cut_into_letters(planted, compose, tmp_path):
    """A vocabulary of words whose merges were lost, as when a file of scores is taken for another kind."""
    folder = planted(byte_level(extra=[f"word{number}" for number in range(1200)]))
    with pytest.raises(UserError, match=r"1457 pieces and cuts a page of English into 1\.00 tokens a character"):
        tokenization.check(folder)


def test_a_saved_copy_with_other_ids(model_folders, tmp_path):
    """A class that transformers builds anew from vocabulary and merges forgets how its tokenizer was mended."""
    from tokenizers import pre_tokenizers
    from transformers import GPT2Tokenizer

    plain = byte_level(extra=["12", "34", "1234"], merges=[("1", "2"), ("3", "4"), ("12", "34")])
    plain.save_pretrained(tmp_path / "plain")
    saved = json.loads((tmp_path / "plain" / "tokenizer.json").read_text())["model"]
    mended = GPT2Tokenizer(
        vocab=saved["vocab"], merges=[tuple(merge) for merge in saved["merges"]], unk_token="<s>", bos_token="<s>",
        eos_token="<s>", pad_token="<s>",
    )  # fmt: skip
    folder = model_folders("gpt2")
    tokenization.check_saved("a tokenizer", mended, folder)
    mended.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    with pytest.raises(UserError, match=r"a tokenizer and its saved copy differ: token \d+ of a page is"):
        tokenization.check_saved("a tokenizer", mended, folder)


def test_a_class_that_is_not_what_its_file_says(planted):
    """transformers opens any tokenizer of a Qwen2 as Qwen2's own, which splits digits one by one."""
    made = byte_level(extra=["12", "34", "1234"], merges=[("1", "2"), ("3", "4"), ("12", "34")])
    with pytest.raises(UserError, match=r"as Qwen2Tokenizer and its own tokenizer\.json differ"):
        tokenization.check(planted(made, family="qwen2"))


@pytest.mark.parametrize("rows", [257, 256, 100])
def test_ids_beyond_the_embedding(rows, planted, compose, tmp_path):
    from idp.store import Store

    folder = planted(byte_level(), rows=rows)
    config = compose("model=local", f"model.path={folder}").model
    if rows == 257:
        models.load(config, models.find_model(config), Store(tmp_path / "store"))
        return
    with pytest.raises(UserError, match=rf"with the id 256, and the model's embedding has {rows} rows"):
        models.load(config, models.find_model(config), Store(tmp_path / "store"))


def test_text_that_does_not_come_back(planted):
    from tokenizers import Tokenizer

    made = byte_level()
    broken = json.loads(made.backend_tokenizer.to_str())
    broken["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": r"\s{2,}"}, "behavior": "Removed", "invert": False},
            broken["pre_tokenizer"],
        ],
    }
    from transformers import PreTrainedTokenizerFast

    made = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(broken)), bos_token="<s>")
    with pytest.raises(UserError, match="does not give a text back"):
        tokenization.check(planted(made))


def test_another_implementation_that_disagrees(planted):
    folder = planted(byte_level())
    with pytest.raises(UserError, match="a plain implementation of its file's own merges differ: token 0 of a page"):
        tokenization.check(folder, plain=lambda text: [5, 6, 7])


def test_it_is_asked_once_for_each_model(planted, compose, tmp_path, monkeypatch):
    from idp.store import Store

    config = compose("model=local", f"model.path={planted(byte_level())}").model
    asked, check = [], tokenization.check
    monkeypatch.setattr(tokenization, "check", lambda *given: (asked.append(given), check(*given)))
    for _ in range(2):
        models.load(config, models.find_model(config), Store(tmp_path / "store"))
    assert len(asked) == 1
