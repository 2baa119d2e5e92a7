"""The dashboard draws what runs log: every key of its specification is one that a real run has logged."""

import json
import os

import pytest

from idp import dashboard
from idp.records import metrics

from ..processes import python
from .read_wandb import read
from .receiver import Receiver

pytestmark = pytest.mark.xdist_group("swept")  # one sweep serves them all

PANELS = {"Run History Line Plot", "Scatter Plot", "Bar Chart", "Vega2", "Weave"}


def nodes(value):
    """Every dictionary in a JSON value."""
    if isinstance(value, dict):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from nodes(item)


@pytest.fixture(scope="module")
def specified(swept, tmp_path_factory):
    """What `--dry-run` writes for the sweep."""
    file = tmp_path_factory.mktemp("dashboard") / "dashboard.json"
    done = python("-m", "idp.dashboard", swept[0], "--dry-run", file)
    assert done.returncode == 0 and done.stdout.endswith(f"\nspecification: {file}\n"), done.stderr
    for section in json.loads(file.read_text())["workspace"]["section"]["panelBankConfig"]["sections"]:
        assert f"\n{section['name']}\n" in done.stdout, "what one will see is said"
        for panel in section["panels"]:
            assert panel["config"].get("chartTitle", "") in done.stdout
    assert "columns: run:displayName, score/mean" in done.stdout
    return json.loads(file.read_text())


@pytest.fixture(scope="module")
def logged(swept):
    """The keys of summary, history and tables in the sweep's own offline logs."""
    runs = [read(file) for file in swept[0].glob("*/wandb/offline-run-*/*.wandb")]
    summary = {key for run in runs for key in run["summary"]}
    return {
        "history": {key for run in runs for row in run["history"] for key in row},
        "summary": summary,
        "tables": {key.removesuffix("._type") for key in summary if key.endswith("._type")},
    }


@pytest.mark.parametrize("part", ["workspace", "report"])
def test_every_key_is_logged(part, specified, logged):
    panels = [node for node in nodes(specified[part]) if "viewType" in node]
    assert {panel["viewType"] for panel in panels} == PANELS
    for panel in panels:
        config = panel["config"]
        if panel["viewType"] == "Run History Line Plot":
            assert {config["xAxis"], *config["metrics"]} <= logged["history"]
        elif panel["viewType"] == "Scatter Plot":
            axes = {config[axis].removeprefix("summary:") for axis in ("xAxis", "yAxis")}
            assert axes <= logged["summary"], axes - logged["summary"]
        elif panel["viewType"] == "Bar Chart":
            assert config["metrics"] and set(config["metrics"]) <= logged["summary"]
        elif panel["viewType"] == "Vega2":
            (table,) = (node["value"] for node in nodes(config["userQuery"]) if node.get("name") == "tableKey")
            assert table in logged["tables"]
            assert set(config["fieldSettings"].values()) <= set(metrics.TABLES[table])
        else:
            keys = {node["key"]["val"] for node in nodes(config) if isinstance(node.get("key"), dict)}
            assert keys & logged["tables"], keys
    columns = {
        column
        for node in nodes(specified[part])
        for column in node.get("columnOrder", [])
        if column.startswith("summary:")
    }
    assert columns and {column.removeprefix("summary:") for column in columns} <= logged["summary"]


def test_it_shows_what_was_asked_for(specified, swept):
    titles = [node["chartTitle"] for node in nodes(specified["workspace"]) if "chartTitle" in node]
    assert {
        "Gain against added parameters",
        "Gain by task",
        "Seconds by stage",
        "Accuracy against decode latency (ms)",
        "Perplexity (bridges) against accuracy",
        "Score by task",
        "Training loss",
        "Held-out loss",
    } <= set(titles)
    sections = [section["name"] for section in specified["workspace"]["section"]["panelBankConfig"]["sections"]]
    assert sections[:4] == ["Scores", "Gain and cost", "Selection", "Training"]
    (own,) = (node for node in nodes(specified["report"]) if node.get("name") == "rtn3" and "runFeed" in node)
    assert any(node.get("value") == ["rtn3"] and node.get("op") == "IN" for node in nodes(own["filters"]))
    tasks = next(iter(swept[1].values()))["idp"]["data"]
    shown = {node for column in nodes(own["runFeed"]) for node in column.get("columnOrder", [])}
    assert {f"summary:score/{metrics.key_of(task, data)}" for task, data in tasks.items()} <= shown
    assert {"summary:score/nq_open_for_webqs", "summary:gain/mean_low", "summary:score/mean_stand_ins"} <= shown
    assert "summary:params/added" in shown and any(name.startswith("summary:ppl/") for name in shown)


def test_what_no_run_measured_is_left_out(swept):
    records = [json.loads(json.dumps(record)) for record in swept[1].values()]
    for record in records:
        record["idp"] |= {"latency": None, "selection": {}, "training": None}
    spec = dashboard.as_json(*dashboard.specification(records, "", "demo"))
    titles = {node["chartTitle"] for node in nodes(spec) if "chartTitle" in node}
    assert "Score by task" in titles and not any("latency" in title or "loss" in title for title in titles)
    assert "Vega2" not in {node.get("viewType") for node in nodes(spec)}


def test_it_is_saved_as_it_was_specified(swept, specified, tmp_path):
    with Receiver() as receiver:
        environment = {**os.environ, **receiver.environment(tmp_path)}
        for shared in ("WANDB_MODE", "WANDB_SERVICE"):
            environment.pop(shared, None)
        done = python("-m", "idp.dashboard", swept[0], env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        assert not receiver.unknown
        saved = {view["type"]: view for view in receiver.views}
    assert saved.keys() == {"project-view", "runs"}
    assert {(view["entityName"], view["projectName"]) for view in saved.values()} == {("me", "demo")}
    for kind, part in (("project-view", "workspace"), ("runs", "report")):
        panels = [node["config"] for node in nodes(json.loads(saved[kind]["spec"])) if "viewType" in node]
        assert panels == [node["config"] for node in nodes(specified[part]) if "viewType" in node]
    assert [line.split(": http")[0] for line in done.stdout.splitlines()] == ["workspace", "report"]


def test_without_an_account_the_error_says_so(swept, tmp_path):
    environment = {**os.environ, "HOME": str(tmp_path), "WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_MODE": "online"}
    done = python("-m", "idp.dashboard", swept[0], env=environment)
    assert done.returncode == 1 and done.stderr.strip().splitlines()[-1].startswith("error: W&B: ")
    assert "--dry-run" in done.stderr


def test_without_the_package_the_error_says_what_to_install(swept):
    code = "import sys; sys.modules['wandb_workspaces'] = None; from idp.dashboard import main; main()"
    done = python("-c", code, swept[0], "--dry-run", "d.json")
    assert done.returncode == 1
    assert done.stderr.strip() == "error: idp.dashboard needs wandb-workspaces: pip install 'idp[dashboard]'"
