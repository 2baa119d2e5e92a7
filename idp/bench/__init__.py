"""What models take: the parts that need no checkout; beside them the repository's `benchmarks/`, under the same name.

`python -m idp.bench.training` and the like are files of `benchmarks/`. Where only the wheel is installed, one line
says so.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

BENCHMARKS = {
    "speed": "the scorer against lm-eval's HFLM, and what prompts cost (what idp bench alone runs)",
    "attention": "what attention takes of a layer, in FLOP and in kernels",
    "beginning": "dense losses, and prompts, with the BOS at each place",
    "compress": "compression against llmcompressor called plainly, and how it grows",
    "cost": "GPU hours, disk and memory of a run or a sweep, beforehand",
    "fidelity": "how near measured divergences are to exact ones",
    "memory": "GPU memory of a training step, for models of 1 to 13 billion weights",
    "report": "time, memory and page size of a report over many records",
    "teacher": "distilled steps, of a resident and of a cached teacher, against those of plain text",
    "training": "a training step against PEFT's prompt tuning",
}
_ROOT = Path(__file__).parents[2]
_FOLDER = _ROOT / "benchmarks"


def absent(name: str) -> str:
    """What is said of a benchmark that this installation does not have."""
    return f"idp bench {name}: it is in benchmarks/ of the repository, and not installed; run it in a checkout"


class _Absent:
    """Asked for a module that no other finder has."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        package, _, last = name.rpartition(".")
        if package == __name__ and last in BENCHMARKS:
            raise ModuleNotFoundError(absent(last), name=name)
        return None


if (_ROOT / "pyproject.toml").is_file() and _FOLDER.is_dir():
    __path__.append(str(_FOLDER))
    if str(_ROOT) not in sys.path:  # they import one another as `benchmarks`
        sys.path.append(str(_ROOT))
else:
    sys.meta_path.append(_Absent)
