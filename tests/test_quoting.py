"""Overrides that Hydra's grammar does not take: one line with what to write instead."""

from __future__ import annotations

import shlex
import subprocess
import sys

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from idp.quoting import quoted
from idp.usage import explain


def answer(word: str) -> str:
    with pytest.raises(Exception) as error:
        OverridesParser.create().parse_overrides([word])
    return explain(error.value)


@pytest.mark.parametrize(
    ("word", "advice"),
    [
        ("model.path=~/x", "write model.path=$HOME/x"),
        ("recovery.lengths=[10,", "quote the whole: 'recovery.lengths=[10, ...]'"),
        ("20]", "'recovery.lengths=[10, 20]'"),
    ],
)
def test_what_to_write(word: str, advice: str) -> None:
    said = answer(word)
    assert said.endswith(advice)
    assert "\n" not in said


@pytest.mark.parametrize("value", ["it's", "'it", "a#b", "été", 'a"b#', "a(b)", "#\\"])
def test_what_is_advised_is_read_as_it_was_meant(value: str) -> None:
    (word,) = shlex.split(answer(f"output={value}").rpartition("write ")[2])
    (override,) = OverridesParser.create().parse_overrides([word])
    assert override.value() == value


def test_a_closed_pipe_and_a_ctrl_c_outside_of_any_guard() -> None:
    code = "from idp import ends; ends.quietly(); "
    piped = f"{sys.executable} -c 'import time; {code}time.sleep(0.3); print(1)' | true"
    ended = subprocess.run(["bash", "-c", piped], capture_output=True, text=True)
    assert ended.stderr == ""
    stopped = subprocess.run([sys.executable, "-c", f"{code}raise KeyboardInterrupt"], capture_output=True, text=True)
    assert (stopped.returncode, stopped.stderr) == (130, "interrupted\n")


@pytest.mark.parametrize("mark", ["'", '"'])
@pytest.mark.parametrize(
    "text", ["a", "it's", r"a\b", r"a\'b", "end\\", "two\\\\", "\\'", "a b,c=[1]{2}", 'say "x"', "%j $x ${y"]
)
def test_what_is_quoted_is_read_as_it_was(text: str, mark: str) -> None:
    assert OverridesParser.create().parse_override(f"key={quoted(text, mark)}").value() == text
