"""Where kinds are found, and what is said of those that cannot be."""

import shutil
from pathlib import Path

import pytest

from idp import plugins, registry
from idp.errors import UserError
from tests.conftest import record_of

EXAMPLES = Path(__file__).parent
TINY = ("model=tiny_llama", "budget=smoke", "task=arc_easy", "tracker=none", "baselines=false")
TINY += ("evaluation.perplexity=[]",)
PRUNER = """
from typing import ClassVar

from idp.config import Pruner


class Checkered(Pruner):
    reads_text: ClassVar[bool] = True
"""
EXPERIMENT = """# @package _global_
plugins: [svd, jsonl]
defaults:
  - override /compressor: svd
  - override /tracker: jsonl
"""


def installed(folder, name, group, value):
    """A distribution in a folder of the path, as pip would leave it."""
    place = folder / f"{name}-1.2.dist-info"
    place.mkdir()
    (place / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    (place / "entry_points.txt").write_text(f"[{group}]\n{name} = {value}\n")
    registry.forget()


@pytest.mark.parametrize("value", ["svd", "svd:TruncatedSVD"])
def test_an_installed_distribution_s_kind_is_there_without_a_word(value, outside, elsewhere, compose):
    _, yamls = outside("svd")
    installed(elsewhere, "decomposed", "idp.compressors", value)
    config = compose(yamls, "compressor=svd")
    assert config.compressor.label == "svd50" and config.plugins == [] and not plugins.loaded()
    assert [code["module"] for code in registry.code_of(config.compressor)["plugin"]] == ["svd"]


def test_a_run_with_an_installed_kind(outside, elsewhere, run_here):
    _, yamls = outside("svd")
    installed(elsewhere, "decomposed", "idp.compressors", "svd:TruncatedSVD")
    record = run_here(yamls, *TINY, "compressor=svd", "recovery=prompt", "recovery.length=2")
    assert record["idp"]["compressor"] == "svd50" and "plugins" not in record["idp"]["config"]
    assert record["idp"]["repair"]["prompts"] == [2]


def test_from_the_command_line_in_another_folder(outside, elsewhere, idp_run):
    outside("svd", "jsonl")
    words = ("--config-dir", "conf", "plugins=[svd,jsonl]", "compressor=svd", "tracker=jsonl", "recovery=none")
    done = idp_run(*words, *[word for word in TINY if "tracker" not in word], cwd=elsewhere)
    record = record_of(done)
    assert record["idp"]["compressor"] == "svd50" and record["idp"]["config"]["tracker"]["kind"] == "jsonl"
    (elsewhere / "broken.py").write_text("import nothing_of_the_name\n")
    failed = idp_run("plugins=[broken]", *TINY, cwd=elsewhere, fails=True)
    assert failed.stderr.splitlines()[-1].startswith(
        "error: plugins=[broken]: does not import: ModuleNotFoundError: No module named 'nothing_of_the_name'"
    )
    assert "Traceback" not in failed.stderr
    listed = idp_run("plugins=[svd]", "--help", cwd=elsewhere).stdout
    assert "compressor.kept" in listed and "share of each layer's singular values" in listed


def test_an_experiment_names_its_plug_ins(outside, elsewhere, compose):
    _, yamls = outside("svd", "jsonl")
    place = elsewhere / "conf" / "experiment" / "mine.yaml"
    place.parent.mkdir()
    place.write_text(EXPERIMENT)
    config = compose(yamls, "+experiment=mine")
    assert config.plugins == ["svd", "jsonl"]
    assert (config.compressor.label, config.tracker.kind) == ("svd50", "jsonl")
    words = [f"--config-dir={elsewhere / 'conf'}", "-m", "+experiment=recoveries,mine"]
    assert plugins.named(words) == ["svd", "jsonl"]  # of each cell of a sweep
    assert plugins.named([yamls, "+experiment=glob(mi*)"]) == ["svd", "jsonl"]
    (place.parent / "more.yaml").write_text("# @package _global_\ndefaults: [mine]\n")
    assert plugins.named([yamls, "+experiment=more"]) == ["svd", "jsonl"]  # and of what it is made of
    assert plugins.named([yamls, "+experiment=mine", "plugins=[jsonl]"]) == ["jsonl"]  # the command line has its way
    assert plugins.named(["-m", "plugins=[svd],[jsonl]"]) == ["svd", "jsonl"]
    (place.parent / "not_global.yaml").write_text("plugins: [other]\n")
    assert plugins.named([yamls, "+experiment=not_global", "recovery=none", "seed=3"]) == []


def test_the_cells_of_a_sweep_know_them_too(outside, compose):
    """In a process that composes nothing, and is handed a composed config."""
    from omegaconf import OmegaConf

    from idp.checks import check

    words = outside("jsonl")
    config = compose(*words, "tracker=jsonl")
    handed = OmegaConf.create({**OmegaConf.to_container(OmegaConf.structured(config)), "compressor": {}})
    plugins._LOADED.clear()
    registry.forget()
    assert "jsonl" not in registry.trackers()
    with pytest.raises(UserError):
        check(handed)  # which has no compressor
    assert "jsonl" in registry.trackers()


@pytest.mark.slow
def test_a_sweep_of_joblib_s(outside, elsewhere, idp_run):
    outside("svd")
    sweep = ("-m", "hydra/launcher=joblib", "compressor=svd", "compressor.kept=0.25,0.5", "recovery=none")
    done = idp_run("--config-dir", "conf", *sweep, "plugins=[svd]", *TINY, cwd=elsewhere)
    assert done.stdout.count("record: ") == 2 and "svd25" in done.stdout and "svd50" in done.stdout


def test_a_pruner_of_one_s_own_is_a_method(elsewhere, compose):
    (elsewhere / "checkered.py").write_text(PRUNER)
    words = ("compressor=rtn4", "compressor.sparsity.method=checkered", "compressor.sparsity.level=0.5")
    with pytest.raises(UserError, match="method=checkered: choose one of null, magnitude, sparsegpt, wanda"):
        compose(*words)
    compressor = compose(*words, "plugins=[checkered]").compressor
    assert compressor.label == "checkered50_rtn4" and compressor.needs == {"dense", "calibration"}
    assert [code["module"] for code in registry.code_of(compressor, *compressor.parts.values())["plugin"]] == [
        "checkered"
    ]


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        ("gone", None, r"plugins=\[gone\]: there is no module gone; run where it lies"),
        ("gone.py", None, r"plugins=\[gone\.py\]: give a module as `import` would name it; say plugins=\[gone\]"),
        ("empty", "x = 1\n", r"plugins=\[empty\]: \S+empty\.py has no kind, a class of its own that derives from"),
        ("torn", "def f(:\n", r"plugins=\[torn\]: does not import: SyntaxError: .*torn\.py, line 1"),
        ("failing", "1 / 0\n", r"plugins=\[failing\]: does not import: ZeroDivisionError: .*failing\.py, line 1"),
        (
            "borrowed",
            "from idp.recover.lora import Lora\n",
            r"plugins=\[borrowed\]: \S+borrowed\.py has no kind",
        ),
    ],
)
def test_what_is_no_plug_in_is_one_line(name, source, message, elsewhere, compose):
    if source is not None:
        (elsewhere / f"{name}.py").write_text(source)
    for _ in range(2):  # a second try says no less
        with pytest.raises(UserError, match=message) as told:
            compose(f"plugins=[{name}]")
        assert "\n" not in str(told.value)


def test_two_kinds_of_one_name_are_refused_with_both_files(elsewhere, compose):
    (elsewhere / "lora.py").write_text("from idp import config\n\n\nclass Mine(config.Recovery):\n    pass\n")
    with pytest.raises(UserError) as told:
        compose("plugins=[lora]")
    said = str(told.value)
    assert said.startswith("recovery=lora: two kinds are called so, in ")
    assert str(elsewhere / "lora.py") in said and str(Path("idp", "recover", "lora.py")) in said


def test_two_classes_of_one_file_need_names(elsewhere, compose):
    two = "from idp import config\n\n\nclass One(config.Tracker):\n    pass\n\n\nclass Two(config.Tracker):\n    {}\n"
    (elsewhere / "twice.py").write_text(two.format("pass"))
    with pytest.raises(UserError, match=r"twice\.py: One and Two are both the tracker twice; give each a file, or a"):
        compose("plugins=[twice]")
    plugins._LOADED.clear()
    (elsewhere / "named.py").write_text(two.format('kind: str = "other"'))
    compose("plugins=[named]")
    assert {"named", "other"} <= registry.trackers().keys()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("torn", r"entry point theirs in idp\.trackers of theirs 1\.2: does not import: ZeroDivisionError"),
        ("svd", r"entry point theirs in idp\.trackers of theirs 1\.2: svd has no class that derives from config\.Tr"),
    ],
)
def test_what_is_installed_and_is_no_kind_is_one_line(value, message, outside, elsewhere, compose):
    outside("svd")
    (elsewhere / "torn.py").write_text("1 / 0\n")
    installed(elsewhere, "theirs", "idp.trackers", value)
    with pytest.raises(UserError, match=message):
        compose()


def test_an_edit_anywhere_in_a_package_counts(elsewhere, compose):
    package = elsewhere / "theirs"
    package.mkdir()
    (package / "__init__.py").write_text("from theirs.jsonl import Jsonl\n")
    (package / "helper.py").write_text("x = 1\n")
    shutil.copy(EXAMPLES / "jsonl.py", package)
    compose("plugins=[theirs]")
    node = registry.trackers()["jsonl"]
    before = plugins.code(node)
    (package / "helper.py").write_text("x = 2\n")
    assert plugins.code(node) != before
    node.code_version = "3"  # what its author says
    assert plugins.code(node) == {"module": "theirs.jsonl", "version": "3"}
