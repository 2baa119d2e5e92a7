"""What comes from the hub is fetched once for a store, and `idp.fetch` fetches it before a sweep."""

import json
import shutil
from types import SimpleNamespace

import pytest

from idp import fetch, hub
from idp.fetched import STAGE
from idp.store import Store

RUN = (
    "model=llama_7b",
    "model.device=cpu",
    "model.dtype=float32",
    "compressor=rtn4",
    "compressor.quantization.group_size=32",
    "corpus=c4",
    "corpus.documents=400",
    "task=webqs",
    "budget=smoke",
    "evaluation.perplexity=[corpus,wikitext2]",
    "evaluation.fidelity=false",
    "tracker=none",
)
WORDS = ["the", "old", "bridge", "over", "river", "seven", "stone", "repairs", "builds", "and", "new", "two"]


class Hub:
    """A hub in this process: one model, two corpora, one task. `calls` says what it was asked."""

    def __init__(self, folder, cache, monkeypatch):
        import datasets
        import huggingface_hub

        self.folder, self.cache = folder, cache
        self.calls, self.down, self.commit, self.killed, self.gated = [], False, "c0ffee", "", ""
        monkeypatch.setattr(hub, "_answers", lambda: not self.down)
        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", self.model_info)
        monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", self.dataset_info)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.snapshot_download)
        monkeypatch.setattr(datasets, "load_dataset", self.load_dataset)

    def asked(self, *what):
        self.calls.append(what)
        if self.down:
            raise OSError("no network")
        if self.gated and self.gated in what:
            raise ValueError(f"Dataset '{self.gated}' is a gated dataset on the Hub.")

    def model_info(self, path, revision=None, **_):
        self.asked("model", path)
        files = [SimpleNamespace(rfilename=file.name) for file in self.folder.iterdir()]
        config = json.loads((self.folder / "config.json").read_text())
        return SimpleNamespace(sha=revision or self.commit, config=config, siblings=files)

    def dataset_info(self, path, revision=None, **_):
        self.asked("dataset", path)
        return SimpleNamespace(sha=revision or self.commit)

    def snapshot_download(self, path, revision, allow_patterns):
        self.asked("files", path, revision)
        place = self.cache / path.replace("/", "--") / revision
        return str(shutil.copytree(self.folder, place, dirs_exist_ok=True))

    def load_dataset(self, path, name=None, split=None, **options):
        self.asked("data", path, split, options.get("revision"))
        if path == "stanfordnlp/web_questions":
            from datasets import Dataset, DatasetDict

            rows = [{"url": "", "question": f"where is {word}?", "answers": [word]} for word in WORDS]
            return DatasetDict({part: Dataset.from_list(rows) for part in ("train", "test")})
        return self.rows(path, split)

    def rows(self, path, split):
        for number in range(600 if split == "train" else 300):
            if self.killed == split and number == 5:
                raise KeyboardInterrupt
            yield {"text": f"{path} {split} {number} " + " ".join(WORDS) * 2, "url": ""}


@pytest.fixture
def the_hub(model_folders, tmp_path, monkeypatch):
    return Hub(model_folders("llama"), tmp_path / "cache", monkeypatch)


@pytest.fixture
def fetching(tmp_path, capsys):
    """`fetching(*words)`: the command; its exit status is 0 unless `fails` names what its one line of error says."""

    def run(*words, fails=None):
        given = [*words, f"store={tmp_path / 'outputs' / 'store'}"]
        if fails is None:
            fetch.main(given)
        else:
            with pytest.raises(SystemExit, match=fails):
                fetch.main(given)
        return capsys.readouterr().out.splitlines()

    return run


def states(lines):
    return {tuple(line.split()[1:3]): line.split()[0] for line in lines[:-1]}


EVERYTHING = {("model", "llama_7b"), ("corpus", "c4"), ("corpus", "wikitext2"), ("task", "webqs")}


def test_what_was_fetched_beforehand_runs_without_a_network(the_hub, fetching, run_here, tmp_path):
    lines = fetching(*RUN)
    assert states(lines) == dict.fromkeys(EVERYTHING, "fetched")
    (model,) = [line for line in lines if " model " in line]
    size = sum(file.stat().st_size for file in the_hub.folder.iterdir())
    assert "huggyllama/llama-7b at c0ffee" in model and fetch.size(size) in model
    data = [call for call in the_hub.calls if call[0] == "data"]
    assert all(revision == "c0ffee" for _, path, _, revision in data if path != "stanfordnlp/web_questions")

    the_hub.down, the_hub.calls = True, []
    record = run_here(*RUN, "recovery=none")
    assert record["idp"]["data"]["webqs"]["source"] == "hub" and not record["idp"]["data"]["webqs"]["stand_in"]
    assert set(record["idp"]["perplexity"]) == {"c4", "wikitext2"}
    run_here(*RUN, "recovery=prompt", "recovery.length=3")
    assert the_hub.calls == [], "a compute node asks nobody"
    assert states(fetching(*RUN, "--check")) == dict.fromkeys(EVERYTHING, "there")
    assert the_hub.calls == []


def test_two_cells_share_what_the_first_one_fetched(the_hub, compose, tmp_path):
    from idp.plan.inputs import resolve

    store = Store(tmp_path / "store")
    _, first = resolve(compose(*RUN, "recovery=none"), store)
    known = len(the_hub.calls)
    the_hub.commit = "moved"
    _, second = resolve(compose(*RUN, "recovery=prompt", "compressor=gptq3"), store)
    assert len(the_hub.calls) == known == 9, "model; c4: commit, two parts; wikitext2: commit, three parts; webqs"
    assert second.source == first.source and second.tasks == first.tasks
    assert second.corpus == first.corpus and second.perplexity == first.perplexity


def test_a_sweep_is_fetched_as_a_whole(the_hub, fetching):
    lines = fetching("-m", "+experiment=prompt_length", *RUN[:3], *RUN[5:], "hydra/launcher=slurm")
    assert states(lines) == dict.fromkeys(EVERYTHING, "fetched"), "once, for all runs"
    lines = fetching("-m", "corpus=embedded,c4", "corpus.documents=100,200", *RUN[:3], "task=arc_easy")
    # The embedded passages are another corpus with each number of documents; of the hub's both are fetched.
    assert [line.split()[0] for line in lines[:-1]] == ["there", "local", "local", "local", "fetched", "fetched"]


def test_what_is_missing_is_said_in_a_line_each(the_hub, fetching):
    the_hub.down = True
    lines = fetching(*RUN, "--check", fails="error: 4 of 4 missing: model llama_7b, corpus c4, corpus wikitext2, task")
    assert states(lines) == dict.fromkeys(EVERYTHING, "missing")
    the_hub.down, the_hub.gated = False, "allenai/c4"
    lines = fetching(*RUN, fails="error: 1 of 4 missing: corpus c4")
    (line,) = [line for line in lines if line.startswith("missing")]
    assert "the hub's allenai/c4 cannot be read (Dataset 'allenai/c4' is a gated dataset on the Hub.)" in line
    assert states(lines)[("corpus", "wikitext2")] == "fetched"
    the_hub.gated = ""
    assert states(fetching(*RUN))[("corpus", "c4")] == "fetched"
    assert fetching("model=llama_7b", "--chekc", fails="--chekc: options are -m, --check and --update") == []


def test_a_killed_fetch_goes_on_with_the_part_that_it_was_at(the_hub, compose, tmp_path):
    from idp.corpora.corpus import open_corpus

    corpus, store = compose("corpus=c4").corpus, Store(tmp_path / "store")
    the_hub.killed = "heldout"
    with pytest.raises(KeyboardInterrupt):
        open_corpus(corpus, None, store)
    the_hub.killed, the_hub.calls = "", []
    text = open_corpus(corpus, None, store)
    assert [call[2] for call in the_hub.calls] == ["heldout"], "the training part was there"
    assert len(text.documents) == 600 and len(text.heldout_documents) == 300
    direct = open_corpus(corpus, None)
    assert text.fingerprint == direct.fingerprint and text.documents == direct.documents, "older keys hold"
    assert not list((store.root / STAGE).glob("*.part"))


def test_a_branch_is_resolved_once_until_it_is_asked_for_anew(the_hub, compose, fetching, tmp_path):
    from idp import models

    config, store = compose("model=llama_7b").model, Store(tmp_path / "outputs" / "store")
    first = models.find_model(config, store).identity
    the_hub.commit = "moved"
    assert (
        models.find_model(config, store).identity == first == {"repository": "huggyllama/llama-7b", "commit": "c0ffee"}
    )
    named = compose("model=llama_7b", "model.revision=v2").model
    assert models.find_model(named, store).identity["commit"] == "v2"
    assert models.find_model(config).identity["commit"] == "moved", "without a store it is asked anew"
    lines = fetching("--update", "model=llama_7b", "task=arc_easy")
    assert "huggyllama/llama-7b at moved" in lines[0]
    assert models.find_model(config, store).identity["commit"] == "moved"


def test_a_hub_cache_that_was_emptied_is_filled_again(the_hub, compose, tmp_path):
    from idp import fetched

    store = Store(tmp_path / "store")
    place = fetched.model("you/theirs", "c0ffee", "model", store)
    assert fetched.downloaded("you/theirs", "c0ffee", store) == place
    asked = len(the_hub.calls)
    assert fetched.model("you/theirs", "c0ffee", "model", store) == place and len(the_hub.calls) == asked
    (place / "config.json").write_text("{}")  # half of it
    assert fetched.downloaded("you/theirs", "c0ffee", store) is None
    assert fetched.model("you/theirs", "c0ffee", "model", store) == place and len(the_hub.calls) == asked + 1


def test_a_copy_that_was_downloaded_by_its_commit_is_found_without_a_network(monkeypatch, tmp_path):
    from huggingface_hub import HfApi, constants

    def model_info(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(HfApi, "model_info", model_info)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    copy = tmp_path / "models--you--theirs" / "snapshots" / "c0ffee"
    copy.mkdir(parents=True)
    (copy / "config.json").write_text('{"model_type": "llama"}')
    assert hub.repository("you/theirs", None, "model").commit == "c0ffee"


def test_a_column_that_is_not_there(the_hub, compose, tmp_path):
    from idp.corpora.corpus import open_corpus
    from idp.errors import UserError

    corpus = compose("corpus=c4", "corpus.text_field=body").corpus
    with pytest.raises(UserError, match=r"corpus c4: the hub's allenai/c4 has no column body \(it has text, url\)"):
        open_corpus(corpus, None, Store(tmp_path))
