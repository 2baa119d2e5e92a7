"""Where the store of a run is looked for."""

from pathlib import Path

from idp.records.reading import stores


def test_a_store_that_several_studies_share_is_found_from_elsewhere(tmp_path, monkeypatch):
    """`output=outputs/study store=outputs/store`, read from another folder than the one where it was started."""
    run = tmp_path / "outputs" / "study" / "runs" / "one"
    run.mkdir(parents=True)
    shared = tmp_path / "outputs" / "store"
    assert stores("outputs/store", run) == [Path("outputs/store"), tmp_path / "outputs" / "study" / "store"]
    shared.mkdir()
    assert stores("outputs/store", run) == [shared, Path("outputs/store")], "what was copied has its own"
    own = tmp_path / "outputs" / "study" / "store"
    own.mkdir()
    assert stores("outputs/store", run) == [own, shared, Path("outputs/store")]


def test_without_a_file_there_is_only_the_store_that_is_named():
    assert stores("~/store") == [Path.home() / "store"]
