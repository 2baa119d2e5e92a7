"""GGUF files: the function, the tokens and the weights that they state, or a refusal that names what is not read."""

import gzip
import itertools
import json
import math
import os
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from idp import models
from idp.errors import UserError
from idp.models import tokenization
from idp.models.gguf import header as headers
from idp.models.gguf import model as ggufs
from idp.models.gguf import plain, rope, tokenizer
from idp.models.gguf.pretokenizers import PRE_TOKENIZERS
from idp.models.gguf.tensors import stored
from tests import ggufs as writing
from tests.conftest import FAMILIES

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
LONG = {"rope_type": "longrope", "rope_theta": 10000.0}
LONG |= {"short_factor": [1 + 0.1 * i for i in range(8)], "long_factor": [2.0 + i for i in range(8)]}


def llama(**more):
    return {"model_type": "llama", **SIZES, **more}


MODELS = {
    **{name: FAMILIES[name] for name in ("llama", "gpt2", "qwen2", "qwen3", "gemma2", "gemma3_text")},
    "gpt2 with another context": {**FAMILIES["gpt2"], "n_positions": 512},
    "llama with biases": llama(attention_bias=True, mlp_bias=True),
    "llama with large heads": llama(head_dim=32, rope_parameters={"rope_type": "default", "rope_theta": 5000.0}),
    "mistral": {**FAMILIES["mistral"], "sliding_window": None},
    "mistral with a window": FAMILIES["mistral"],
    "phi3": {"model_type": "phi3", **SIZES, "sliding_window": 24},
    "phi3 that rotates a part": {"model_type": "phi3", **SIZES, "rope_parameters": {"partial_rotary_factor": 0.5}},
    "phi3 with LongRoPE": {
        "model_type": "phi3",
        **SIZES,
        "original_max_position_embeddings": 64,
        "rope_parameters": LONG,
    },
    "starcoder2": {"model_type": "starcoder2", **SIZES, "rope_parameters": {"rope_theta": 99999.0}},
    "linear": llama(rope_parameters={"rope_type": "linear", "rope_theta": 5000.0, "factor": 4.0}),
    "yarn": llama(
        rope_parameters={"rope_type": "yarn", "rope_theta": 5e3, "factor": 4.0, "original_max_position_embeddings": 64}
    ),
    "llama 3.1": llama(head_dim=32, rope_parameters=LLAMA3),
    "llama 3.2": llama(rope_parameters={**LLAMA3, "factor": 32.0}),
    "llama 3, other limits": llama(
        head_dim=32,
        rope_parameters={**LLAMA3, "original_max_position_embeddings": 64, "high_freq_factor": 12.0, "rope_theta": 1e3},
    ),
    "llama 3, no common limits": llama(
        rope_parameters={**LLAMA3, "original_max_position_embeddings": 64, "low_freq_factor": 2.0, "rope_theta": 1e3}
    ),
}
# What the converter of llama.cpp writes for them beside the usual.
WRITTEN = {
    "gemma3_text": {"attention.sliding_window_pattern": 2},
    "mistral with a window": {"attention.sliding_window": 24},
    "phi3 with LongRoPE": {"rope.scaling.attn_factor": math.sqrt(1 + math.log(2048 / 64) / math.log(64))},
    "linear": {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
    "yarn": {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": 4.0,
        "rope.scaling.original_context_length": 64,
        "rope.scaling.finetuned": True,
    },
}


@pytest.fixture
def made(tmp_path):
    """`made(architecture)`: the folder of a tiny model whose norms and biases say something as well."""

    def make(architecture) -> Path:
        from transformers import AutoModelForCausalLM

        folder = tmp_path / "dense"
        models._make_random(architecture, folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        draw = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    parameter.add_(0.3 * torch.randn(parameter.shape, generator=draw))
        model.save_pretrained(folder)
        return folder

    return make


def opened(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def logits(model):
    ids = torch.randint(0, 257, (2, 120), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model(ids).logits


def factors_of(folder):
    """The tensors that the converter writes for the rotary scaling of a model."""
    config = opened(folder).config
    said = getattr(config, "rope_parameters", None) or {}
    if said.get("rope_type") == "llama3":
        return {rope.FACTORS: writing.llama3_factors(config)}
    if said.get("rope_type") == "longrope":
        pairs = ((rope.LONG_FACTORS, "long_factor"), (rope.SHORT_FACTORS, "short_factor"))
        return {name: np.array(said[factors]) for name, factors in pairs}
    return {}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_and_its_gguf_file_give_the_same_logits(name, made, tmp_path):
    folder = made(MODELS[name])
    file = writing.write_model(folder, tmp_path / "a.gguf", more=WRITTEN.get(name), tensors=factors_of(folder))
    ggufs.check(file, with_tokenizer=True)
    ggufs.convert(file, tmp_path / "out")
    tokenization.check(tmp_path / "out", plain=ggufs.encoding(file))
    assert (logits(opened(folder)) - logits(opened(tmp_path / "out"))).abs().max() < 1e-5


def test_llama_3_s_scaling_is_found_in_its_factors():
    for factor, theta, dimensions in ((8.0, 5e5, 128), (32.0, 5e5, 64), (8.0, 5e5, 256)):
        stated = {**LLAMA3, "factor": factor, "rope_theta": theta}
        factors = rope.llama3_factors(stated, theta, dimensions)
        found = rope.of_factors([float(np.float32(value)) for value in factors], theta, 131072)
        assert found == {**stated, "rope_theta": theta}
    assert rope.of_factors([1.0] * 8, 1e4, 2048) == {"rope_type": "default", "rope_theta": 1e4}


REFUSED = {
    "experts": ({"expert_count": 8, "expert_used_count": 2}, "a mixture of experts is not read from GGUF files"),
    "an unknown key": ({"logit_scale": 0.25}, "llama.logit_scale=0.25 is not read from GGUF files"),
    "a key of tomorrow": ({"attention.sinks": 4}, "llama.attention.sinks=4 is not read"),
    "not causal": ({"attention.causal": False}, "llama.attention.causal=False is not read"),
    "a part of the head": ({"rope.dimension_count": 8}, "it rotates 8 of 16 dimensions of a head"),
    "heads by layer": ({"attention.head_count": [4, 2]}, "attention.head_count differs from layer to layer"),
    "values of another length": ({"attention.value_length": 8}, "keys and values are of different lengths"),
    "another scaling": ({"rope.scaling.type": "spiral", "rope.scaling.factor": 2.0}, "rope.scaling.type=spiral"),
    "yarn's own factor": (
        {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 2.0,
            "rope.scaling.original_context_length": 64,
            "rope.scaling.yarn_attn_factor": 0.5,
        },
        "rope.scaling.yarn_attn_factor=0.5 is not read",
    ),
    "longrope without factors": ({"rope.scaling.type": "longrope", "rope.scaling.factor": 2.0}, "rope_factors_long"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_shapes_the_function_and_is_not_read(name, model_folders, tmp_path):
    more, message = REFUSED[name]
    file = writing.write_model(model_folders("llama"), tmp_path / "a.gguf", more=more)
    with pytest.raises(UserError, match=message):
        models.gguf_source(file)


def test_a_factor_without_a_type_is_linear(model_folders, tmp_path):
    file = writing.write_model(model_folders("llama"), tmp_path / "a.gguf", more={"rope.scaling.factor": 4.0})
    assert ggufs.config_of(file).rope_parameters["rope_type"] == "linear"


def test_what_a_file_has_twice_is_refused(model_folders, tmp_path):
    whole = writing.write_model(model_folders("llama"), tmp_path / "a.gguf").read_bytes()
    keys = sorted(headers.read(tmp_path / "a.gguf").metadata, key=len)
    one, other = next(pair for pair in itertools.pairwise(keys) if len(pair[0]) == len(pair[1]))
    for before, after, message in (
        ("blk.0.attn_q.weight", "blk.0.attn_k.weight", "it has two tensors of one name"),
        (one, other, f"it says {other} twice"),
    ):
        assert whole.count(before.encode()) == 1
        (tmp_path / "b.gguf").write_bytes(whole.replace(before.encode(), after.encode()))
        with pytest.raises(UserError, match=f"b.gguf: cannot be read as a GGUF model: {message}"):
            models.gguf_source(tmp_path / "b.gguf")


def test_tensors_are_read_where_the_library_reads_them(model_folders, tmp_path):
    file = writing.write_model(model_folders("llama"), tmp_path / "a.gguf")
    found = headers.read(file).tensors
    for theirs in gguf.GGUFReader(file).tensors:
        ours = stored(file, found.pop(theirs.name))
        assert ours.dtype == theirs.data.dtype and np.array_equal(ours, theirs.data), theirs.name
    assert not found


def test_weights_that_are_cut_off(model_folders, tmp_path):
    file = writing.write_model(model_folders("llama"), tmp_path / "a.gguf")
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(UserError, match="a.gguf: cannot be read as a GGUF model"):
        ggufs.convert(file, tmp_path / "plain")


@pytest.mark.parametrize("cut", [3, 20, 100, 500, 3000])
def test_a_file_that_is_cut_off(cut, model_folders, tmp_path):
    file = writing.write_model(model_folders("llama"), tmp_path / "a.gguf")
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(UserError, match="a.gguf: cannot be read as a GGUF model"):
        models.gguf_source(file)


@pytest.mark.parametrize("more", [{"attention.head_count": 0}, {"context_length": "many"}])
def test_a_value_that_is_no_such_number(more, model_folders, tmp_path):
    file = writing.write_model(model_folders("llama"), tmp_path / "a.gguf", more=more, drop=("attention.key_length",))
    with pytest.raises(UserError, match="a.gguf: cannot be read as a GGUF model"):
        models.gguf_source(file)


def test_what_changes_nothing_is_let_through(model_folders, tmp_path):
    more = {"expert_count": 0, "attention.causal": True, "logit_scale": 1.0, "rope.scaling.type": "none"}
    file = writing.write_model(model_folders("llama"), tmp_path / "a.gguf", more=more)
    assert ggufs.config_of(file).rope_parameters == {"rope_type": "default", "rope_theta": 10000.0}


def test_an_architecture_that_is_not_read(tmp_path):
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "falcon")
    writer.add_tensor("token_embd.weight", np.zeros((4, 4), dtype=np.float32))
    writing._close(writer)
    with pytest.raises(UserError, match="of the architecture falcon are not read; these are: llama, qwen2"):
        models.gguf_source(tmp_path / "a.gguf")


@pytest.mark.parametrize(
    ("drop", "more", "message"),
    [
        (("blk.1.ffn_up.weight",), {}, r"it has no tensor model\.layers\.1\.mlp\.up_proj\.weight"),
        ((), {"blk.1.attn_q_norm.weight": np.ones(16)}, "a tensor blk.1.attn_q_norm.weight, for which llama has no"),
        ((), {"blk.7.ffn_up.weight": np.ones((128, 64))}, "a tensor blk.7.ffn_up.weight, for which llama has no"),
    ],
)
def test_a_tensor_that_is_missing_or_left_over(drop, more, message, model_folders, tmp_path):
    file = writing.write_model(model_folders("llama"), tmp_path / "a.gguf", drop=drop, tensors=more)
    with pytest.raises(UserError, match=message):
        ggufs.open_weights(file, torch.float32)


@pytest.mark.parametrize("name", ["m-00001-of-00003.gguf", "m-00002-of-00003.gguf", "m.gguf"])
@pytest.mark.parametrize("group", ["model", "compressor"])
def test_a_part_of_a_split(name, group, model_folders, tmp_path, compose):
    """llama.cpp writes how many parts there are into each, and names them so; either tells."""
    import gguf

    file = tmp_path / name
    if name == "m.gguf":
        writer = gguf.GGUFWriter(file, "llama")
        writer.add_uint16("split.no", 1)
        writer.add_uint16("split.count", 3)
        writing._close(writer)
    else:
        writing.write_model(model_folders("llama"), file)
    kind = "local" if group == "model" else "external"
    config = compose(f"{group}={kind}", f"{group}.path={file}")
    with pytest.raises(UserError, match=r"m.*gguf: part \d of a model that is split into 3 files; merge"):
        if group == "model":
            models.find_model(config.model)
        else:
            from idp.compress import external

            external.find_checkpoint(config.compressor)


def test_the_one_part_of_a_split_into_one(model_folders, tmp_path):
    file = writing.write_model(model_folders("llama"), tmp_path / "m-00001-of-00001.gguf")
    assert models.gguf_source(file).kind == "gguf"


# Tokenizers.

WORDS = ["▁The", "▁bridge", "▁over", "▁the", "▁river", "▁was", "▁built", "▁of", "▁stone", "ing", "ed", "repair", "rep"]
TEXTS = (
    "The bridge over the river was built of stone",
    "repairing, repaired:  two   spaces",
    "Größe 日本 😀\n\ttab",
    "",
    " begins with one",
)


@pytest.mark.parametrize("space_prefix", [True, False, None])
def test_sentencepiece(space_prefix, tmp_path):
    """Against a plain implementation; the saved copy, opened as Llama's tokenizer, gives the same ids."""
    file = writing.write_tokenizer(tmp_path / "a.gguf", writing.sentencepiece(WORDS, space_prefix))
    made = tokenizer.build(tokenizer.check(headers.read(file)))
    folder = tmp_path / "saved"
    made.save_pretrained(folder)
    ggufs.config_of(file).save_pretrained(folder)
    again = tokenization.opened(folder)
    for text in TEXTS:
        right = plain.encode(tokenizer.check(headers.read(file)), text)
        for found in (made, again):
            assert found(text, add_special_tokens=False)["input_ids"] == right
            assert found(text)["input_ids"] == [1, *right]
            assert found.decode(right) == text
    pieces = made.convert_ids_to_tokens(made(TEXTS[0], add_special_tokens=False)["input_ids"])
    if space_prefix is False:
        assert pieces == ["T", "h", "e", "▁bridge", "▁over", "▁the", "▁river", "▁was", "▁built", "▁of", "▁stone"]
    else:  # llama.cpp's default
        assert pieces == ["▁The", "▁bridge", "▁over", "▁the", "▁river", "▁was", "▁built", "▁of", "▁stone"]
    assert made.convert_ids_to_tokens(made("日", add_special_tokens=False)["input_ids"])[-3:] == [
        "<0xE6>",
        "<0x97>",
        "<0xA5>",
    ]
    tokenization.check(folder, plain=ggufs.encoding(file))


def test_sentencepiece_without_bytes(tmp_path):
    """What no piece spells is unknown, a run of it once; such a tokenizer is not held to giving text back."""
    values = writing.sentencepiece(WORDS, False)
    for name in ("tokens", "scores", "token_type"):
        del values[f"tokenizer.ggml.{name}"][3:259]
    file = writing.write_tokenizer(tmp_path / "a.gguf", values)
    vocabulary = tokenizer.check(headers.read(file))
    made = tokenizer.build(vocabulary)
    ids = made("river 日本 stone", add_special_tokens=False)["input_ids"]
    assert ids == plain.encode(vocabulary, "river 日本 stone") and ids.count(0) == 1
    made.save_pretrained(tmp_path / "saved")
    ggufs.config_of(file).save_pretrained(tmp_path / "saved")
    tokenization.check(tmp_path / "saved", plain=ggufs.encoding(file))


def test_the_best_score_is_merged_first(tmp_path):
    """`abc`: `bc` scores better than `ab`, so that it comes first though it stands later."""
    values = writing.sentencepiece(["bc", "ab"], False)
    file = writing.write_tokenizer(tmp_path / "a.gguf", values)
    made = tokenizer.build(tokenizer.check(headers.read(file)))
    assert made.tokenize("abc") == ["a", "bc"]
    values["tokenizer.ggml.scores"][values["tokenizer.ggml.tokens"].index("ab")] = 1.0
    file = writing.write_tokenizer(tmp_path / "b.gguf", values)
    assert tokenizer.build(tokenizer.check(headers.read(file))).tokenize("abc") == ["ab", "c"]


def test_tokens_that_stand_in_the_text(tmp_path):
    """User-defined ones are found before merging, and kept when special tokens are skipped; control ones are not."""
    values = writing.sentencepiece(WORDS, False)
    for piece, kind in (("<table>", writing.USER_DEFINED), ("▁▁", writing.USER_DEFINED), ("<end>", writing.CONTROL)):
        values["tokenizer.ggml.tokens"].append(piece)
        values["tokenizer.ggml.token_type"].append(kind)
        values["tokenizer.ggml.scores"].append(-1000.0)
    file = writing.write_tokenizer(tmp_path / "a.gguf", values)
    vocabulary = tokenizer.check(headers.read(file))
    made = tokenizer.build(vocabulary)
    text = "river<table>  stone<end>"
    ids = made(text, add_special_tokens=False)["input_ids"]
    assert ids == plain.encode(vocabulary, text)
    assert [vocabulary.ids["<table>"], vocabulary.ids["  "], vocabulary.ids["<end>"]] == [
        number for number in ids if number >= vocabulary.ids["<table>"]
    ]
    assert made.decode(ids) == text and made.decode(ids, skip_special_tokens=True) == "river<table>  stone"


@pytest.mark.parametrize(
    ("values", "before", "after"),
    [
        ({"model": "llama"}, [1], []),
        ({"model": "llama", "add_bos_token": False}, [], []),
        ({"model": "llama", "add_eos_token": True}, [1], [2]),
        ({"model": "gpt2"}, [], []),
        ({"model": "gpt2", "add_bos_token": True}, [0], []),
        ({"model": "gpt2", "add_bos_token": True, "add_eos_token": True}, [0], [0]),
        ({"model": "gpt2", "pre": "llama-bpe"}, [0], []),  # llama.cpp's default for Llama 3's
        ({"model": "gpt2", "pre": "llama-bpe", "add_bos_token": False}, [], []),
    ],
)
def test_what_is_added_at_the_ends(values, before, after, model_folders, tmp_path):
    values = dict(values)
    kind = values.pop("model")
    made = writing.sentencepiece(WORDS, False, **values) if kind == "llama" else None
    made = made or writing.byte_level(model_folders("llama"), **values)
    file = writing.write_tokenizer(tmp_path / "a.gguf", made)
    built = tokenizer.build(tokenizer.check(headers.read(file)))
    built.save_pretrained(tmp_path / "saved")
    ggufs.config_of(file).save_pretrained(tmp_path / "saved")
    for found in (built, tokenization.opened(tmp_path / "saved")):
        alone = found("a b", add_special_tokens=False)["input_ids"]
        assert found("a b")["input_ids"] == [*before, *alone, *after]


@pytest.fixture(scope="module")
def trained():
    """Byte-level pieces and merges that cross words, digits and lines: where a text is split decides its tokens."""
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers.models import BPE
    from tokenizers.trainers import BpeTrainer

    made = Tokenizer(BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    lines = [f"{a} {b}" for a in range(300) for b in ("the", "12345", "isn't\n\n", "WE'LL", "  x", "日本、", "нет!")]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        [*lines, tokenization.PAGE] * 2, BpeTrainer(vocab_size=900, initial_alphabet=alphabet, show_progress=False)
    )
    saved = json.loads(made.to_str())["model"]
    return sorted(saved["vocab"], key=saved["vocab"].get), [" ".join(merge) for merge in saved["merges"]]


@pytest.fixture
def with_pre(trained, tmp_path):
    """`with_pre(name)`: the tokenizer with that `tokenizer.ggml.pre`, as the file states it and as it is built."""

    def build(pre, **values):
        tokens, merges = trained
        found = {"model": "gpt2", "tokens": ["<s>", *tokens], "merges": merges, "bos_token_id": 0, "eos_token_id": 0}
        found["token_type"] = [writing.CONTROL, *[writing.NORMAL] * len(tokens)]
        found |= {"pre": pre} if pre is not None else {}
        keys = {f"tokenizer.ggml.{name}": value for name, value in (found | values).items()}
        vocabulary = tokenizer.check(headers.read(writing.write_tokenizer(tmp_path / f"{pre}.gguf", keys)))
        return vocabulary, tokenizer.build(vocabulary)

    return build


@pytest.mark.parametrize("pre", sorted(PRE_TOKENIZERS))
def test_each_way_of_splitting(pre, with_pre):
    """Against another engine of regular expressions and a plain loop of merges."""
    vocabulary, made = with_pre(pre)
    text = tokenization.PAGE + " 12345 1234567 ½ don't DON'T\r\n\r\n   end \n x  "
    ids = made(text, add_special_tokens=False)["input_ids"]
    assert ids == plain.encode(vocabulary, text)
    assert made.decode(ids) == text


SPLITS = {
    "llama-bpe": (["123", "456", "7"], ["It", "'S", " don", "'t"], ["end", ".\n\n", "x"]),
    "qwen2": (list("1234567"), ["It", "'S", " don", "'t"], ["end", ".\n\n", "x"]),
    "gpt-2": (["1234567"], ["It", "'", "S", " don", "'t"], ["end", ".", "\n", "\n", "x"]),
    "smollm": (list("1234567"), ["It", "'", "S", " don", "'t"], ["end", ".", "\n", "\n", "x"]),
    "starcoder": (list("1234567"), ["It", "'", "S", " don", "'t"], ["end", ".", "\n", "\n", "x"]),
    "falcon": (["123", "456", "7"], ["It", "'", "S", " don", "'", "t"], ["end", ".", "\n", "\n", "x"]),
    "deepseek-llm": (["1234567"], ["It", "'", "S", " don", "'", "t"], ["end", ".", "\n", "\n", "x"]),
    "deepseek-coder": (list("1234567"), ["It", "'", "S", " don", "'", "t"], ["end", ".", "\n", "\n", "x"]),
    "deepseek-v3": (["123", "456", "7"], ["It", "'S", " don", "'t"], ["end", ".\n\n", "x"]),
    "tekken": (list("1234567"), ["It", "'S", " don", "'t"], ["end", ".\n\n", "x"]),
    "gpt-4o": (["123", "456", "7"], ["It'S", " don't"], ["end", ".\n\n", "x"]),
    "superbpe": (["1", "234", "567"], ["It'S don't"], ["end.\n\nx"]),
    "bloom": (["1234567"], ["It'S", " don't"], ["end", ".\n\n", "x"]),
    "viking": (list("1234567"), ["It'S", " don't"], ["end", ".\n\n", "x"]),
}


@pytest.mark.parametrize("pre", SPLITS)
def test_where_text_is_split(pre):
    """What is known of each: digits by threes or one by one, contractions, and line breaks after a mark."""
    patterns = PRE_TOKENIZERS[pre].patterns
    for text, pieces in zip(("1234567", "It'S don't", "end.\n\nx"), SPLITS[pre], strict=True):
        assert plain._splits(text, patterns) == pieces


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": "bert"}, "of the kind bert, which is not read; these are: llama"),
        ({"model": "t5"}, "of the kind t5, which is not read"),
        ({"model": "rwkv"}, "of the kind rwkv, which is not read"),
        ({"model": "plamo2"}, "of the kind plamo2, which is not read"),
        ({"model": "none"}, "of the kind none, which is not read"),
        ({"pre": "of-tomorrow"}, "splits text as of-tomorrow does"),
        ({"pre": "kimi-k2"}, "splits text as kimi-k2 does"),
        ({"pre": None}, r"does not say how it splits text \(tokenizer.ggml.pre\)"),
        ({"merges": []}, "has no merges"),
        ({"merges": ["Ġ zzz"]}, "merges 'Ġ zzz', and one of the pieces is not among its tokens"),
        ({"add_sep_token": True}, "asks for tokenizer.ggml.add_sep_token"),
        ({"model": "llama"}, "has no scores"),
    ],
)
def test_a_tokenizer_that_is_not_read(values, message, with_pre):
    values = dict(values)
    with pytest.raises(UserError, match=message):
        with_pre(values.pop("pre", "gpt-2"), **values)


def test_a_gguf_without_a_tokenizer_is_refused_as_a_model_and_read_as_weights(model_folders, tmp_path, compose):
    file = writing.write_model(model_folders("llama"), tmp_path / "a.gguf", tokenizer={})
    assert models.gguf_source(file).kind == "gguf"
    with pytest.raises(UserError, match="its tokenizer is of the kind None, which is not read"):
        models.find_model(compose("model=local", f"model.path={file}").model)


@pytest.mark.parametrize(("pre", "held"), [("qwen2", True), ("deepseek-r1-qwen", True), ("llama-bpe", False)])
def test_a_class_that_transformers_builds_anew(pre, held, with_pre, tmp_path):
    """Any tokenizer of a Qwen2 is opened as Qwen2's own: it adds no token of its own, and splits as that one only."""
    from transformers import AutoConfig

    vocabulary, made = with_pre(pre, add_bos_token=True)
    folder = tmp_path / "saved"
    tokenizer.save(made, folder)
    shape = {**FAMILIES["qwen2"], "vocab_size": len(vocabulary.pieces), "pad_token_id": None}
    AutoConfig.for_model(**shape).save_pretrained(folder)
    if held:
        tokenization.check(folder, plain=lambda text: plain.encode(vocabulary, text))
        assert tokenization.opened(folder)("a")["input_ids"][0] == 0
        return
    with pytest.raises(UserError, match="a plain implementation of its file's own merges differ"):
        tokenization.check(folder, plain=lambda text: plain.encode(vocabulary, text))


def test_end_tokens_special_tokens_and_the_chat_template_are_kept(model_folders, tmp_path):
    values = writing.byte_level(model_folders("llama"), eot_token_id=5, eom_token_id=6, padding_token_id=7)
    values |= {"tokenizer.ggml.bos_token_id": 3, "tokenizer.ggml.eos_token_id": 4}
    values["tokenizer.chat_template"] = "{{ messages[0]['content'] }}"
    file = writing.write_model(model_folders("llama"), tmp_path / "a.gguf", tokenizer=values)
    ggufs.convert(file, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"] == [4, 5, 6]
    found = tokenization.opened(tmp_path / "out")
    assert (found.bos_token_id, found.eos_token_id, found.pad_token_id) == (3, 4, 7)
    assert found.chat_template == "{{ messages[0]['content'] }}"


def test_a_run_reads_a_sentencepiece_file_from_end_to_end(made, tmp_path, run_here, bridges):
    values = writing.sentencepiece(WORDS, True)
    rows = len(values["tokenizer.ggml.tokens"])
    folder = made(llama())
    from transformers import AutoModelForCausalLM

    grown = AutoModelForCausalLM.from_pretrained(folder)
    grown.resize_token_embeddings(rows, mean_resizing=False)
    grown.save_pretrained(folder)
    file = writing.write_model(folder, tmp_path / "a.gguf", tokenizer=values)
    small = ("task=arc_easy", "budget=smoke", "tracker=none", "evaluation.perplexity=[]", "baselines=false")
    record = run_here("model=local", f"model.path={file}", "compressor=none", *small, *bridges)
    load = tmp_path / "outputs" / "store" / "load" / record["idp"]["stages"]["load"]["key"]
    found = tokenization.opened(load / "model")
    assert found.tokenize("The bridge over the river") == ["▁The", "▁bridge", "▁over", "▁the", "▁river"]


# Checkpoints of another model under one name.


@pytest.fixture
def fits(compose, tmp_path):
    """`fits(folder, file)`: checks a GGUF file as a compression of a folder's model, as a run does."""
    from idp.compress import external
    from idp.store import Store

    def check(folder, file):
        overrides = ("model=local", f"model.path={folder}", "compressor=external", f"compressor.path={file}")
        config = compose(*overrides)
        store = Store(tmp_path / "store")
        dense = models.load(config.model, models.find_model(config.model), store)
        source = external.find_checkpoint(config.compressor)
        external.check(
            config.compressor, source, config.model, models.open_empty(models.model_folder(dense), config.model)
        )
        return external.compress(config.compressor, source, config.model, dense, store)

    return check


def test_a_mistral_s_file_that_says_llama_fits_mistral(made, fits, tmp_path):
    folder = made(MODELS["mistral"])
    product = fits(folder, writing.write_model(folder, tmp_path / "a.gguf"))
    assert (logits(opened(folder)) - logits(opened(product.path / "model"))).abs().max() < 1e-5


def test_a_window_of_which_the_file_says_nothing(made, fits, tmp_path):
    folder = made(FAMILIES["mistral"])
    file = writing.write_model(folder, tmp_path / "a.gguf")
    with pytest.raises(UserError, match="it says llama.*and not whether it has the sliding window of 24"):
        fits(folder, file)


def test_a_window_that_the_file_states(made, fits, tmp_path):
    folder = made(FAMILIES["mistral"])
    product = fits(folder, writing.write_model(folder, tmp_path / "a.gguf", more={"attention.sliding_window": 24}))
    assert (logits(opened(folder)) - logits(opened(product.path / "model"))).abs().max() < 1e-5


def test_factors_that_mean_the_model_s_own_scaling(made, fits, tmp_path):
    """Parameters of Llama 3's scaling that are not those that are found first, and give the same factors."""
    scaled = {**LLAMA3, "original_max_position_embeddings": 16384, "low_freq_factor": 2.0, "high_freq_factor": 8.0}
    folder = made(llama(head_dim=32, rope_parameters=scaled))
    file = writing.write_model(folder, tmp_path / "a.gguf", tensors=factors_of(folder))
    assert ggufs.config_of(file).rope_parameters["low_freq_factor"] == 1.0
    like = ggufs.config_of(file, like=opened(folder).config)
    assert like.rope_parameters["low_freq_factor"] == 2.0
    fits(folder, file)


# What was right stays as it was.


def test_the_embedded_file_has_the_key_that_it_always_had(compose):
    from idp.store import hash_file

    source = models.find_model(compose("model=smollm2_135m_instruct").model)
    assert source.identity == {"file": hash_file(source.place)}


def test_a_file_that_came_out_otherwise_before_has_another_key(model_folders, tmp_path, compose):
    folder, names = model_folders("llama"), {}
    for name, more, values in (
        ("as ever", {}, {"pre": "smollm"}),
        ("scaled", {"rope.scaling.type": "linear", "rope.scaling.factor": 2.0}, {"pre": "smollm"}),
        ("bos", {}, {"pre": "smollm", "add_bos_token": True}),
        ("pre", {}, {"pre": "llama-bpe"}),
    ):
        file = tmp_path / f"{name}.gguf"
        writing.write_model(folder, file, more=more, tokenizer=writing.byte_level(folder, **values))
        names[name] = models.find_model(compose("model=local", f"model.path='{file}'").model).identity.get("revision")
    assert names == {"as ever": None, "scaled": 2, "bos": 2, "pre": 2}


@pytest.mark.slow
@pytest.mark.skipif("IDP_GEMMA_GGUF" not in os.environ, reason="IDP_GEMMA_GGUF names no Gemma-3 file")
def test_a_real_sentencepiece_file():
    vocabulary = tokenizer.check(headers.read(Path(os.environ["IDP_GEMMA_GGUF"])))
    made = tokenizer.build(vocabulary)
    assert made("The capital of France is")["input_ids"] == [2, 818, 5279, 529, 7001, 563]
    ids = made(tokenization.PAGE, add_special_tokens=False)["input_ids"]
    assert ids == plain.encode(vocabulary, tokenization.PAGE)
    assert made.decode(ids) == tokenization.PAGE
    if text := os.environ.get("IDP_WIKITEXT"):
        with gzip.open(text, "rt", encoding="utf-8") as file:
            assert len(made(file.read()[2000:3000], add_special_tokens=False)["input_ids"]) == 233
