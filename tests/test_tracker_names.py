"""What W&B would refuse when a run starts: refused before, dropped or shortened."""

from __future__ import annotations

import os
from typing import Any

import pytest

from idp.command import INTERRUPTED, failures_in_one_line
from idp.errors import UserError
from idp.track import wandb


def tracker(**options: Any) -> wandb.Wandb:
    given = {"mode": "auto", "project": "idp", "entity": None, "group": None, "artifacts": "none"}
    more = {"kind": "wandb", "study": None, "tags": [], "system_metrics": False}
    return wandb.Wandb(**{**given, **more, **options})


@pytest.mark.parametrize(
    ("options", "answer"),
    [
        ({"project": "team/proj"}, "say tracker.entity=team tracker.project=proj"),
        ({"project": "a/b/c"}, "without any of"),
        ({"project": ""}, "tracker.project="),
        ({"project": "50%"}, "without any of"),
        ({"entity": "a/b"}, "tracker.entity=a/b: W&B needs the name of a user or team"),
        ({"entity": ""}, "tracker.entity=: W&B needs"),
        ({"entity": " "}, "tracker.entity= : W&B needs"),
        ({"entity": "my team"}, "tracker.entity=my team: .*without spaces"),
        ({"entity": "x" * 129}, "tracker.entity=x*: W&B takes 128 characters"),
        ({"project": "x" * 129}, "128 characters"),
    ],
)
def test_a_bad_project_or_entity_is_refused(options: dict[str, Any], answer: str) -> None:
    with pytest.raises(UserError, match=answer):
        tracker(**options).check()
    tracker(**options, mode="disabled").check()


@pytest.mark.parametrize("given", ["a/b", "my team", "me?"])
def test_a_bad_entity_of_the_environment_is_refused(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_ENTITY", given)
    monkeypatch.setenv("WANDB_MODE", "offline")
    with pytest.raises(UserError, match="^WANDB_ENTITY=.*leave it out for your own"):
        tracker().check()
    tracker(entity="me").check()  # which is used in its place
    tracker(mode="disabled").check()


@pytest.mark.parametrize("given", ["", "  "])
def test_a_blank_entity_of_the_environment_is_none(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_ENTITY", given)
    tracker().check()
    wandb._clean_environment()
    assert "WANDB_ENTITY" not in os.environ


def test_tags_are_none_empty_none_twice_none_too_long() -> None:
    first, second = wandb.tags_of(["x" * 70 + "a", "x" * 70 + "b"])
    assert first != second
    assert len(first) == len(second) == 64
    assert wandb.tags_of(["", " ", "a", "a "]) == ["a"]


def test_variables_that_would_keep_wandb_from_starting(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WANDB_TAGS": "a,,", "WANDB_MODE": "bogus", "WANDB_PROJECT": "team/proj"}.items():
        monkeypatch.setenv(name, value)
    assert wandb._clean_environment() == ["a"]
    assert os.environ["WANDB_MODE"] == "offline"
    assert os.environ["WANDB_TAGS"] == "a"
    assert "WANDB_PROJECT" not in os.environ
    assert wandb._clean_environment() == ["a"]  # a second run of the same process


def test_ctrl_c_is_one_line_and_130(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, failures_in_one_line("stopped"):
        raise KeyboardInterrupt
    assert ended.value.code == INTERRUPTED
    assert capsys.readouterr().err == "stopped\n"
