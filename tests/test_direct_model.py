"""`model=<hub id, folder or GGUF file>`: any model by itself, wherever a name of the group `model` may stand."""

from types import SimpleNamespace

import hydra
import pytest

from idp import models
from idp.composed import SEARCH_PATH, Composer, configs, initialized
from idp.config import conf_dir
from idp.config.direct_model import directly
from idp.errors import UserError
from idp.fetch import needs
from idp.plan import command
from idp.usage import explain, options

LLAMA2 = "meta-llama/Llama-2-7b-hf"
SMALL = ("budget=smoke", "task=arc_easy", "tracker=none", "baselines=false", "evaluation.perplexity=[]")


@pytest.fixture
def folder(tmp_path, model_folders, monkeypatch):
    """A model's folder `mine/small`, seen from the folder above it."""
    import shutil

    monkeypatch.chdir(tmp_path)
    shutil.copytree(model_folders("llama"), tmp_path / "mine" / "small")
    return tmp_path / "mine" / "small"


def test_what_a_word_names(folder, tmp_path):
    (tmp_path / "weights.Q4_1.gguf").write_bytes(b"GGUF")
    (tmp_path / "tiny_llama").mkdir()
    named = {
        LLAMA2: ("hub", LLAMA2),
        "google/gemma-2-2b": ("hub", "google/gemma-2-2b"),
        "mine/small": ("local", "small"),  # a folder that is there, before the hub's of that id
        "./mine/small/": ("local", "small"),
        str(folder): ("local", "small"),
        "mine": ("local", "mine"),
        "weights.Q4_1.gguf": ("local", "weights.Q4_1"),
        "gone/weights.gguf": ("local", "weights"),
        "/nowhere/at/all": ("local", "all"),
        "./mine/gone": ("local", "gone"),
        "../gone": ("local", "gone"),
        "a/b/c": ("local", "c"),
    }
    for word, (source, name) in named.items():
        assert directly(word) == {"name": name, "source": source, "path": word}, word
    for word in ("smollm2_135", "gpt2", "tiny", "", ".", "..", "/"):
        assert directly(word) is None, word


def test_it_is_short_for_its_source_and_path(folder, compose, tmp_path):
    short = compose(f"model={LLAMA2}", "model.revision=main").model
    assert short == compose("model=hub", f"model.path={LLAMA2}", f"model.name={LLAMA2}", "model.revision=main").model
    place = compose(f"model={folder}", "model.dtype=float32")
    assert (
        place.model == compose("model=local", f"model.path={folder}", "model.name=small", "model.dtype=float32").model
    )
    assert models.find_model(place.model).identity == models.find_model(compose("model=mine/small").model).identity
    (tmp_path / "odd folder").mkdir()
    assert compose("model='odd folder'").model.path == "odd folder"


def test_a_name_stays_a_name(tmp_path, monkeypatch, compose):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny_llama").mkdir()
    assert compose("model=tiny_llama").model.source == "random"
    assert compose("model=./tiny_llama").model.source == "local"


@pytest.mark.parametrize(
    ("word", "messages"),
    [
        ("smollm2_135", ["model=smollm2_135: no such option; did you mean model=smollm2_135m", "its hub id (model="]),
        ("gpt2", ["model=gpt2: no such option", "its hub id (model=meta-llama/Llama-2-7b-hf), its folder or its GGUF"]),
    ],
)
def test_what_is_neither_is_answered_with_the_nearest_name(word, messages):
    with pytest.raises(hydra.errors.HydraException) as raised:
        Composer().compose([f"model={word}"])
    said = explain(raised.value)
    assert all(message in said for message in messages) and "\n" not in said


def test_names_ids_and_folders_mixed_in_a_sweep(folder):
    words = [f"model=tiny_llama,{LLAMA2},mine/small", "model.dtype=float32", "seed=0,1", "budget=smoke"]
    found = [(each.model.name, each.model.source, each.seed) for each in configs(words, sweep=True)]
    assert found == [
        (name, source, seed)
        for name, source in (("tiny_llama", "random"), (LLAMA2, "hub"), ("small", "local"))
        for seed in (0, 1)
    ]


def test_an_experiment_may_choose_one(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        f"# @package _global_\ndefaults:\n  - override /model: {LLAMA2}\nseed: 3\n"
    )
    (found,) = configs([f"{SEARCH_PATH}['file://{tmp_path}']", "experiment=mine"])
    assert (found.model.name, found.seed) == (LLAMA2, 3)


def test_other_programs_of_hydra_have_models_of_their_own(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "a.yaml").write_text("x: 1\n")
    (tmp_path / "config.yaml").write_text("defaults: [model: a]\n")
    hydra.core.global_hydra.GlobalHydra.instance().clear()
    with (
        hydra.initialize_config_dir(str(tmp_path), version_base="1.3"),
        pytest.raises(hydra.errors.HydraException, match="Could not find 'model/some/one'"),
    ):
        hydra.compose("config", ["model=some/one"])
    with initialized():
        assert hydra.compose("config", ["model=some/one"]).model.path == "some/one"


def test_a_sweep_over_a_name_and_a_folder_runs(folder, idp_run, tmp_path):
    idp_run("-m", *SMALL, "model=tiny_llama,./mine/small", "model.dtype=float32", cwd=tmp_path)
    runs = {place.parent.name.split("-")[0] for place in tmp_path.glob("outputs/runs/*/record.json")}
    assert runs == {"tiny_llama", "small"}


def test_a_plan_says_what_is_not_there(folder, bridges, tmp_path, capsys):
    words = [*SMALL, *bridges, f"output={tmp_path}"]
    command.main(["model=./mine/small", *words, "--plan"])
    assert "plan of small-none-none-smoke" in capsys.readouterr().out
    for word, message in (
        ("./mine/gone", "model.path=./mine/gone: no such folder or GGUF file"),
        ("mine", "model.path=mine: not a model: it has no config.json"),
    ):
        with pytest.raises(SystemExit, match=message):
            command.main([f"model={word}", *words, "--plan"])


def test_what_is_fetched_is_the_repository(compose):
    first, *_ = needs(compose(f"model={LLAMA2}", *SMALL))
    assert (first.what, first.name, first.identity["path"]) == ("model", LLAMA2, LLAMA2)


@pytest.mark.parametrize(
    ("raised", "message"),
    [
        (
            "gated",
            f"gated; accept its licence at https://huggingface.co/{LLAMA2}, then run `hf auth login`",
        ),
        ("missing", "not on the hub, or private, and no folder here; check the id or the path"),
        ("revision", f"model.revision=v9: {LLAMA2} has no such branch, tag or commit"),
        ("offline", "the hub cannot be reached and there is no downloaded copy (no network); `idp fetch` on"),
        ("odd", "neither a hub id (owner/name) nor a folder here"),
    ],
)
def test_the_hub_s_refusals_are_a_line_with_what_to_do(raised, message, compose, monkeypatch):
    import httpx
    from huggingface_hub import HfApi, errors

    response = httpx.Response(403, request=httpx.Request("GET", "http://hub"))
    error = {
        "gated": errors.GatedRepoError("gated", response=response),
        "missing": errors.RepositoryNotFoundError("missing", response=response),
        "revision": errors.RevisionNotFoundError("no such revision", response=response),
        "offline": errors.OfflineModeIsEnabled("no network"),
        "odd": errors.HFValidationError("odd"),
    }[raised]

    def model_info(*_, **__):
        raise error

    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    monkeypatch.setattr(HfApi, "model_info", model_info)
    with pytest.raises(UserError) as stopped:
        models.find_model(compose(f"model={LLAMA2}", "model.revision=v9").model)
    assert message in str(stopped.value) and "\n" not in str(stopped.value)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["README.md", "model.Q4_K_M.gguf"], "a repository of GGUF files: download one, such as by `hf download"),
        (["adapter_config.json", "adapter_model.safetensors"], "an adapter, which a model is the base of"),
        (["README.md"], "not a model: the repository has no config.json"),
    ],
)
def test_repositories_of_something_else(files, message, compose, monkeypatch):
    from huggingface_hub import HfApi

    found = SimpleNamespace(sha="1" * 40, config={}, siblings=[SimpleNamespace(rfilename=name) for name in files])
    monkeypatch.setattr(HfApi, "model_info", lambda *_, **__: found)
    with pytest.raises(UserError) as stopped:
        models.find_model(compose("model=some/one").model)
    assert message in str(stopped.value)


@pytest.mark.parametrize("words", [["model=local"], ["model=hub"]])
def test_a_path_that_is_missing_is_asked_for(words, compose):
    with pytest.raises(UserError, match="model.path is not set: give .*model=meta-llama/Llama-2-7b-hf"):
        models.find_model(compose(*words).model)


def test_a_hub_id_as_local_is_told_how_to_be_given(compose):
    with pytest.raises(UserError, match=f"no such folder or GGUF file; if it is a hub id: model={LLAMA2}"):
        models.find_model(compose("model=local", f"model.path={LLAMA2}").model)


def test_a_yaml_says_what_a_model_is_in_three_lines():
    for name in options("model"):
        text = (conf_dir() / "model" / f"{name}.yaml").read_text()
        lines = [line for line in text.split("architecture:")[0].splitlines() if not line.startswith("#")]
        assert len(lines) <= 3, name


def test_the_embedded_model_is_called_by_what_it_is(compose, tmp_path, finished_run):
    """Under its former word it is the same; earlier runs keep their hashes, and their records have its name."""
    import json

    from idp.config import values_of
    from idp.recording import run_id_and_folder
    from idp.records.record import RECORD, identity, load

    now, before = (compose(f"model={word}", *SMALL) for word in ("smollm2_135m_instruct", "smollm2_135m"))
    assert now == before and now.model.name == "smollm2_135m_instruct" and compose(*SMALL).model == now.model
    values = values_of(now)
    values["model"]["name"] = "smollm2_135m"
    assert identity(values) == identity(values_of(now))
    theirs = values_of(compose("model=hub", "model.path=a/b", "model.name=smollm2_135m_instruct", *SMALL))
    assert identity(theirs) != identity({**theirs, "model": {**theirs["model"], "name": "smollm2_135m"}})

    now.output = str(tmp_path / "outputs")
    _, folder = run_id_and_folder(now)
    former = folder.with_name(folder.name.replace("_instruct", ""))
    former.mkdir(parents=True)
    assert run_id_and_folder(now)[1] == former, "a sweep of an earlier version goes on in its folders"
    folder.mkdir()
    assert run_id_and_folder(now)[1] == folder

    _, record = finished_run("compressor=gptq3", "recovery=none")
    record["config"]["model"], record["idp"]["config"]["model"] = "smollm2_135m", values["model"]
    (tmp_path / RECORD).write_text(json.dumps(record))
    read = load(tmp_path / RECORD)
    assert read["config"]["model"] == read["idp"]["config"]["model"]["name"] == "smollm2_135m_instruct"
