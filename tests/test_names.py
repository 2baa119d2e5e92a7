"""Names of models that are no names of folders: safe on disk, whole in tables and records."""

import pytest

from idp.errors import UserError
from idp.recording import run_id_and_folder

ODD = {
    "meta-llama/Llama-2-7b-hf": "meta-llama-Llama-2-7b-hf",
    "/elsewhere/m": "elsewhere-m",
    "../up": "up",
    "..": "unnamed",
    "a b%j:c": "a-b-j-c",
    "modèle": "mod-le",
    "tiny_llama": "tiny_llama",
    "opt_1.3b+x": "opt_1.3b+x",
    "x" * 300: "x" * 80,
}


@pytest.mark.parametrize("name", ODD)
def test_a_run_s_folder_is_one_below_runs_whatever_the_model_is_called(name, compose, tmp_path):
    config = compose(f"output={tmp_path}")
    config.model.name = name
    run_id, folder = run_id_and_folder(config)
    assert folder.parent == tmp_path / "runs" and folder.name == f"{ODD[name]}-none-none-small-{run_id}"
    assert len(folder.name.encode()) < 200


def test_models_that_come_to_one_folder_s_name_have_runs_of_their_own(compose, tmp_path):
    folders = set()
    for name in ("org/m", "org-m", "org m"):
        config = compose(f"output={tmp_path}")
        config.model.name = name
        folders.add(run_id_and_folder(config)[1])
    assert len(folders) == 3


@pytest.mark.parametrize("name", ["''", "' '"])
def test_a_model_without_a_name_is_refused(name, compose):
    with pytest.raises(UserError, match=r"model.name=.*: tables name the model by it; give it a name"):
        compose(f"model.name={name}")


def test_the_name_stands_whole_in_the_record_and_the_run_is_found(run_here, tmp_path, shared_store):
    import idp
    from idp.records.collect import collect

    words = ("model=tiny_llama", "model.name=org/model", "budget=smoke", "tracker=none", "task=arc_easy", shared_store)
    record = run_here(*words, "evaluation.perplexity=[]", "baselines=false")
    assert record["config"]["model"] == "org/model" == record["idp"]["config"]["model"]["name"]
    (place,) = (tmp_path / "outputs" / "runs").glob("*/record.json")
    assert place.parent.name.startswith("org-model-none-none-smoke-")
    (model,) = collect([str(tmp_path / "outputs" / "runs")]).models
    assert model.runs == [record["idp"]["name"]]
    assert idp.load(place.parent, variant="dense").generate(["The bridge"], 2)
