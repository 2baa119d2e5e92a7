"""Fixtures: a tiny model of each family in seconds, and runs on them in a folder of the test's own."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("TQDM_DISABLE", "1")
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):  # share the cores out: threads that fight for them crawl
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(workers))))


def pytest_collection_modifyitems(items):
    """The slow ones first, so that no worker is left alone with one at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


# Small models of the families that differ in ways that matter here.
FAMILIES = {
    "llama": {  # grouped-query attention, rotary positions, tied head
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
    },
    "opt": {  # learned positions, biases
        "model_type": "opt",
        "hidden_size": 64,
        "word_embed_proj_dim": 64,
        "ffn_dim": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 2048,
    },
    "gpt2": {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 1024},
    "qwen2": {  # biases on queries, keys and values; an untied head
        "model_type": "qwen2",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
    },
    "qwen3": {  # normalised queries and keys
        "model_type": "qwen3",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 2048,
    },
    "mistral": {  # every layer has a sliding window
        "model_type": "mistral",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "sliding_window": 24,
    },
    "gemma2": {  # alternating sliding and full attention, soft-capped logits
        "model_type": "gemma2",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 2048,
        "sliding_window": 24,
        "query_pre_attn_scalar": 16,
    },
    "gemma3_text": {  # sliding and full attention with their own rotary bases, scaled embeddings
        "model_type": "gemma3_text",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 2048,
        "sliding_window": 24,
        "query_pre_attn_scalar": 16,
        "layer_types": ["sliding_attention", "full_attention"],
    },
}


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory):
    """`model_folders(family)`: the folder of a tiny model with random weights, made once per session."""
    from idp.models import _make_random

    root, made = tmp_path_factory.mktemp("models"), {}

    def folder(family: str) -> Path:
        if family not in made:
            _make_random(FAMILIES[family], root / family)
            made[family] = root / family
        return made[family]

    return folder


@pytest.fixture(scope="session")
def open_tiny(model_folders):
    """`open_tiny(family)`: a tiny model in memory, float32, with its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from idp.models import LoadedModel

    def opened(family: str) -> LoadedModel:
        folder = model_folders(family)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)
        return LoadedModel(model, AutoTokenizer.from_pretrained(folder))

    return opened


@pytest.fixture(scope="session")
def bos_folders(tmp_path_factory):
    """`bos_folders(family, adds=True)`: as `model_folders`, with a BOS of its own, which the tokenizer adds or not."""
    import torch
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoConfig, AutoModelForCausalLM

    from idp.models import byte_tokenizer

    root, made = tmp_path_factory.mktemp("bos"), {}

    def folder(family: str, adds: bool = True) -> Path:
        if (family, adds) in made:
            return made[family, adds]
        tokenizer = byte_tokenizer()
        tokenizer.add_special_tokens({"bos_token": "<s>"})
        if adds:
            tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
                single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
            )
        arguments = dict(FAMILIES[family])
        ids = {"vocab_size": len(tokenizer), "bos_token_id": tokenizer.bos_token_id, "eos_token_id": 0}
        config = AutoConfig.for_model(arguments.pop("model_type"), **arguments, **ids, pad_token_id=0)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 2:
                    parameter.mul_(4.0)
        made[family, adds] = root / f"{family}-{adds}"
        model.save_pretrained(made[family, adds])
        tokenizer.save_pretrained(made[family, adds])
        return made[family, adds]

    return folder


@pytest.fixture(scope="session")
def open_bos(bos_folders):
    """`open_bos(family, mode, adds=True)`: a tiny model that has a BOS of its own, with `model.bos=mode`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from idp.beginning import resolve
    from idp.models import LoadedModel

    def opened(family: str = "llama", mode: str = "auto", adds: bool = True) -> LoadedModel:
        folder = bos_folders(family, adds)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        return LoadedModel(model, tokenizer, resolve(mode, tokenizer))

    return opened


@pytest.fixture
def make_bank():
    """`make_bank(loaded, lengths)`: prompts made of vocabulary rows, each drawn from its own seed."""
    from idp.prompting.bank import PromptBank
    from idp.recover.prompt import initial

    def bank(loaded, lengths):
        prompts = [initial(loaded, length, "vocabulary", "", 7 + i) for i, length in enumerate(lengths)]
        return PromptBank(prompts, [f"prompt_{i}" for i in range(len(lengths))])

    return bank


@pytest.fixture(scope="session")
def compose():
    """`compose(*overrides)`: the checked config."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    from idp.checks import check
    from idp.config import conf_dir
    from idp.kinds import register

    def composed(*overrides: str):
        register()
        GlobalHydra.instance().clear()
        with hydra.initialize_config_dir(str(conf_dir().absolute()), version_base="1.3"):
            return check(hydra.compose("config", overrides=list(overrides)))

    return composed


@pytest.fixture
def idp_run(tmp_path):
    """`idp_run(*overrides)`: the command line in a process of its own, output under `tmp_path`."""

    def run(*overrides: str, fails: bool = False, timeout: int = 600, **kwargs) -> subprocess.CompletedProcess:
        done = subprocess.run(
            [sys.executable, "-m", "idp.run", *overrides, f"output={tmp_path / 'outputs'}"],
            capture_output=True,
            text=True,
            timeout=timeout,
            **kwargs,
        )
        assert (done.returncode != 0) == fails, done.stdout + done.stderr
        return done

    return run


@pytest.fixture
def run_here(compose, tmp_path):
    """`run_here(*overrides)`: a run in this process, which saves it the imports; its record as it is on disk."""

    def run(*overrides: str) -> dict:
        from idp.pipeline import run

        record, place = run(compose(*overrides, f"output={tmp_path / 'outputs'}"))
        written = json.loads(place.read_text())
        assert written["results"].keys() == record["results"].keys()
        return written

    return run


@pytest.fixture(scope="session")
def bridges(tmp_path_factory):
    """The overrides that name a small corpus of few words, which is read much sooner than the embedded one."""
    words = ["the", "bridge", "river", "repairs", "old", "new", "stone", "over", "builds", "two", "seven", "and"]
    draw = random.Random(0)
    text = tmp_path_factory.mktemp("corpus") / "text.txt"
    text.write_text("\n\n".join(" ".join(draw.choices(words, k=60)) for _ in range(300)))
    return "corpus=local", f"corpus.path={text}", "corpus.name=bridges"


@pytest.fixture(scope="session")
def finished_run(compose, bridges, tmp_path_factory):
    """`finished_run(*overrides)`: a small run of the tiny model, made once per session; its folder and its record."""
    from idp.pipeline import run

    root, made = tmp_path_factory.mktemp("outputs"), {}
    small = ("model=tiny_llama", "task=arc_easy", "budget=smoke", "tracker=none", "evaluation.perplexity=[]")

    def finished(*overrides: str) -> tuple[Path, dict]:
        if overrides not in made:
            _, place = run(compose(*small, *bridges, "baselines=false", *overrides, f"output={root}"))
            made[overrides] = place.parent, json.loads(place.read_text())
        return made[overrides]

    return finished


def record_of(done: subprocess.CompletedProcess) -> dict:
    """The record that a finished run names in its last line."""
    last = done.stdout.strip().splitlines()[-1]
    assert last.startswith("record: "), done.stdout
    return json.loads(Path(last.removeprefix("record: ")).read_text())
