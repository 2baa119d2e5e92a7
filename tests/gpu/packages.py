"""What a machine with a GPU is taken to have, and what else this project needs there: little enough to be carried.

`python -m tests.gpu.packages` prints the second, a requirement a line, which `tests/gpu/wheels.sh` gathers. Neither
list has what only other runs need: trackers, launchers, GGUF files, the metrics of tasks that are not measured there.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# These, and all that they ask for.
BARE = ("torch", "transformers", "accelerate", "peft", "pyarrow", "numpy", "pandas", "scipy", "scikit-learn")
BARE += ("requests", "psutil", "jinja2", "tabulate", "tqdm", "packaging")

# These, without what they ask for beyond it.
WHEELS = (
    "datasets",
    *("dill", "multiprocess", "xxhash", "fsspec"),
    "lm-eval",
    *("sacrebleu", "portalocker", "lxml", "colorama"),  # imported with its metrics, whatever is measured
    "llmcompressor",
    *("loguru", "pydantic", "pydantic-core", "annotated-types", "typing-inspection"),
    "compressed-tensors",
    "hydra-core",
    "antlr4-python3-runtime",  # there is no wheel of the version that Hydra asks for
    "omegaconf",
    "filelock",
)


def requirements() -> list[str]:
    """WHEELS with the versions of `constraints.txt`, else those that are installed here: they go together."""
    pinned = dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M))
    pinned = {normal(name): version for name, version in pinned.items()}
    return [f"{name}=={pinned.get(name) or metadata.version(name)}" for name in WHEELS]


def bare_folder(folder: Path) -> Path:
    """A folder of packages that has BARE and WHEELS, and nothing else of what is installed here, as links.

    Returns:
        what PYTHONPATH names. It is called site-packages: by that name dill knows an installed module, and `datasets`,
        which hashes functions with it, would else hash whole modules, and fail.
    """
    place = folder / "site-packages"
    place.mkdir(parents=True)
    for name in sorted(asked_for(BARE) | {normal(name) for name in WHEELS}):
        package = metadata.distribution(name)
        tops = {file.parts[0] for file in package.files or () if file.parts[0] not in ("..", "__pycache__")}
        for top in tops:
            if not os.path.lexists(place / top):
                (place / top).symlink_to(package.locate_file(top))
    return place


def asked_for(names: Iterable[str]) -> set[str]:
    """The packages, and all that they ask for on this machine, without extras."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = normal(waiting.pop())
        if name not in found:
            found.add(name)
            waiting += _needs(name)
    return found


def missing() -> list[str]:
    """Of BARE and WHEELS, what is not installed here."""
    lacking = []
    for name in (*BARE, *WHEELS):
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            lacking.append(name)
    return lacking


def _needs(name: str) -> Iterator[str]:
    from packaging.requirements import Requirement

    for line in metadata.requires(name) or ():
        needed = Requirement(line)
        if needed.marker is None or needed.marker.evaluate({"extra": ""}):
            yield needed.name


def normal(name: str) -> str:
    """A package's name as indexes spell it."""
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    print("\n".join(requirements()))
