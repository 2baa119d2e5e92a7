"""Shell completion, as the README has it set up: what a shell offers behind the words that stand there."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Bash calls the function with these variables set; what it offers comes back in COMPREPLY.
TAB = """
eval "$(idp --shell-completion install=bash)"
complete -p idp | grep -q hydra_bash_completion || exit 3
COMP_LINE=$1 COMP_POINT=${#1}; COMP_WORDS=($1); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMPREPLY=()
hydra_bash_completion
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A PATH with `idp` on it, as `pip install` puts it there."""
    module, function = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["idp"].split(":")
    script = tmp_path_factory.mktemp("bin") / "idp"
    start = f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom {module} import {function}\n{function}()\n"
    script.write_text(f"#!{sys.executable}\n{start}")
    script.chmod(0o755)
    return f"{script.parent}{os.pathsep}{os.environ['PATH']}"


def ran(command, path):
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PATH": path})
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash(path):
    offered = ran(["bash", "--norc", "-c", TAB, "bash", "idp compressor=gp"], path)
    assert "compressor=gptq3" in offered and all(word.startswith("compressor=gp") for word in offered)
    offered = ran(["bash", "--norc", "-c", TAB, "bash", "idp recovery=lora recovery.ra"], path)
    assert offered == ["recovery.rank="]  # an option of the choice that stands before it
    assert ran(["bash", "--norc", "-c", TAB, "bash", "idp run recovery=lora recovery.ra"], path) == offered


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_knows_the_commands(path):
    def tab(line):
        return ran(["bash", "--norc", "-c", TAB, "bash", line], path)

    assert tab("idp re") == ["report"]
    assert tab("idp analyze cl") == ["claims"]
    assert tab("idp export rec") == ["record="]
    assert tab("idp store prune --dr") == ["--dry-run"]


def test_a_query_without_a_shell(path, monkeypatch):
    """What fish's function asks for: a line for each."""
    monkeypatch.setenv("COMP_LINE", "idp fetch corpus=wiki")
    assert ran(["idp", "-sc", "query=fish"], path) == ["corpus=wikitext2"]
    monkeypatch.setenv("COMP_LINE", "idp sweep ")
    assert ran(["idp", "-sc", "query=fish"], path) == ["status", "wait", "resume"]


def test_fish_and_zsh(path):
    """Fish has a function of its own; zsh takes bash's."""
    assert {"function", "complete", "idp"} <= set(ran(["idp", "--shell-completion", "install=fish"], path))
