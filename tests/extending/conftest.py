"""Examples that live outside the package: a file, and a YAML of its name below `conf`."""

import importlib
import shutil
import sys
from pathlib import Path

import pytest

from idp import plugins, registry

EXAMPLES = Path(__file__).parent


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A folder outside the package, from which modules are imported; what was is forgotten after the test."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(plugins, "_LOADED", {})
    yield folder
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]
    registry.forget()


@pytest.fixture
def outside(elsewhere):
    """`outside(*names)`: examples copied there with all YAMLs, and the overrides that have them found."""

    def copied(*names):
        for name in names:
            shutil.copy(EXAMPLES / f"{name}.py", elsewhere)
        shutil.copytree(EXAMPLES / "conf", elsewhere / "conf", dirs_exist_ok=True)
        importlib.invalidate_caches()
        return f"plugins=[{','.join(names)}]", f"hydra.searchpath=[file://{elsewhere / 'conf'}]"

    return copied
