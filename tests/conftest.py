"""Fixtures: a tiny model of each family in seconds, and runs on them in a folder of the test's own."""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
import multiprocessing.spawn
import os
import random
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from tests.families import FAMILIES
from tests.processes import python, stand_in

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("TQDM_DISABLE", "1")
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):  # share the cores out: threads that fight for them crawl
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(workers))))
for name in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL"):  # else a make that a test starts would say which folders it enters
    os.environ.pop(name, None)


LONGER = Path(__file__).with_name("longer.txt")
RUNS = {"finished_run", "idp_run", "run_here", "swept"}  # fixtures that make whole runs


def pytest_xdist_auto_num_workers():
    """Two more than there are cores: those that wait for SLURM or for other processes take no core meanwhile."""
    return (os.cpu_count() or 1) + 2


def pytest_addoption(parser):
    parser.addoption("--longer", action="store_true", help=f"write {LONGER.name} anew: which tests take longer")


@pytest.hookimpl(tryfirst=True)  # before tests are selected by their marks
def pytest_collection_modifyitems(items):
    """Marks the tests that make whole runs or take longer. The slow ones come first, so that no worker is left with one
    at the end."""
    longer = set(LONGER.read_text().splitlines())
    for item in items:
        if RUNS & set(item.fixturenames):
            item.add_marker("run")
        if _function(item.nodeid) in longer:
            item.add_marker("longer")
    items.sort(key=lambda item: [item.get_closest_marker(mark) is None for mark in ("slow", "run")])


def pytest_terminal_summary(terminalreporter, config):
    """With `--longer`, writes what took longer than half a second, as the longest of its parameters did."""
    if config.getoption("longer"):
        seconds = Counter()
        for report in itertools.chain.from_iterable(terminalreporter.stats.values()):
            if hasattr(report, "duration"):
                seconds[report.nodeid] += report.duration
        found = {_function(name) for name, taken in seconds.items() if taken >= 0.5}
        head = [line for line in LONGER.read_text().splitlines() if line.startswith("#")]
        LONGER.write_text("".join(f"{line}\n" for line in [*head, *sorted(found)]))


def _function(nodeid):
    """A test's name without its parameters and its group."""
    return nodeid.partition("[")[0].partition("@")[0]


@pytest.fixture(scope="module", autouse=True)
def what_was_imported_stays():
    """After each file, what it left is no garbage any more: else every collection in a test looks at all libraries."""
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """A folder that the session's workers have in common."""
    root = tmp_path_factory.getbasetemp()
    folder = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def shared_store(shared):
    """The override that names a store of all workers, for runs that are not about what is made and what is found."""
    return f"store={shared / 'store'}"


@pytest.fixture(scope="session")
def model_folders(shared):
    """`model_folders(family)`: the folder of a tiny model with random weights, made once per session."""
    from idp.models import _make_random

    root, made = shared / "models", {}

    def folder(family: str) -> Path:
        if family not in made:
            with once(root / family) as needed:
                if needed:
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
    from idp.recover.initial import initial

    def bank(loaded, lengths):
        prompts = [initial(loaded, length, "vocabulary", "", 7 + i) for i, length in enumerate(lengths)]
        return PromptBank(prompts, [f"prompt_{i}" for i in range(len(lengths))])

    return bank


@pytest.fixture(scope="session")
def compose():
    """`compose(*overrides)`: the checked config."""
    from idp import registry
    from idp.checks import check
    from idp.composed import Composer

    kept = Composer()

    def composed(*overrides: str):
        registry.register(overrides)
        plugged = any(word.startswith("plugins=") for word in overrides)  # another test's may have the same names
        return check((Composer() if plugged else kept).compose(overrides))

    return composed


@pytest.fixture
def quick_corpus(bridges):
    """`quick_corpus(*overrides)`: the overrides, on the small corpus unless they say what they read."""
    says = ("corpus", "+experiment=", "task=all", "task=knowledge", "evaluation.perplexity=[embedded")

    def with_corpus(*overrides: str) -> tuple[str, ...]:
        return overrides if any(word.startswith(says) for word in overrides) else (*overrides, *bridges)

    return with_corpus


@pytest.fixture
def idp_run(tmp_path, quick_corpus):
    """`idp_run(*overrides)`: the command line in a process of its own, output under `tmp_path`; options of `python`.

    It reads a small corpus unless the overrides say which.
    """

    def run(*overrides: str, fails: bool = False, **options) -> subprocess.CompletedProcess:
        words = overrides if any(word.startswith("--") for word in overrides) else quick_corpus(*overrides)
        done = python("-m", "idp.run", *words, f"output={tmp_path / 'outputs'}", **options)
        assert (done.returncode != 0) == fails, done.stdout + done.stderr
        return done

    return run


@pytest.fixture
def run_here(compose, quick_corpus, tmp_path):
    """`run_here(*overrides)`: a run in this process, which saves it the imports; its record as it is on disk.

    It reads a small corpus unless the overrides say which.
    """

    def run(*overrides: str) -> dict:
        from idp.pipeline import run

        record, place = run(compose(*quick_corpus(*overrides), f"output={tmp_path / 'outputs'}"))
        written = json.loads(place.read_text())
        assert written["results"].keys() == record["results"].keys()
        return written

    return run


@pytest.fixture
def spawned_forked():
    """Processes that `multiprocessing` spawns here are forks of one that has the imports behind it."""
    before = multiprocessing.spawn.get_executable()
    multiprocessing.set_executable(stand_in())
    yield
    multiprocessing.set_executable(before)


@pytest.fixture(scope="session")
def bridges(shared):
    """The overrides that name a small corpus of few words, which is read much sooner than the embedded one."""
    words = ["the", "bridge", "river", "repairs", "old", "new", "stone", "over", "builds", "two", "seven", "and"]
    draw = random.Random(0)
    text = shared / "bridges" / "text.txt"
    with once(text.parent) as needed:
        if needed:
            text.parent.mkdir()
            text.write_text("\n\n".join(" ".join(draw.choices(words, k=60)) for _ in range(300)))
    return "corpus=local", f"corpus.path={text}", "corpus.name=bridges"


@pytest.fixture(scope="session")
def finished_run(compose, bridges, shared):
    """`finished_run(*overrides)`: a small run of the tiny model, made once per session; its folder and its record."""
    from idp.pipeline import run
    from idp.recording import run_id_and_folder

    root, made = shared / "outputs", {}
    small = ("model=tiny_llama", "task=arc_easy", "budget=smoke", "tracker=none", "evaluation.perplexity=[]")

    def finished(*overrides: str) -> tuple[Path, dict]:
        if overrides not in made:
            config = compose(*small, *bridges, "baselines=false", *overrides, f"output={root}")
            folder = run_id_and_folder(config)[1]
            with once(folder) as needed:
                if needed:
                    run(config)
            made[overrides] = folder, json.loads((folder / "record.json").read_text())
        return made[overrides]

    return finished


@contextlib.contextmanager
def once(place: Path) -> Iterator[bool]:
    """Whether a folder is still to be made; other workers wait until it is whole. A half made one is removed."""
    lock, whole = (place.parent / f"{place.name}.{end}" for end in ("lock", "whole"))
    place.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):
        if needed := not whole.exists():
            shutil.rmtree(place, ignore_errors=True)
        yield needed
        whole.touch()


def record_of(done: subprocess.CompletedProcess) -> dict:
    """The record that a finished run names in its last line."""
    last = done.stdout.strip().splitlines()[-1]
    assert last.startswith("record: "), done.stdout
    return json.loads(Path(last.removeprefix("record: ")).read_text())
