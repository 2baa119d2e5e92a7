"""MkDocs' hook: the site's pages are the repository's own files at their own places, each written once.

MkDocs takes pages from one folder, which may not be the one that its config is in. README.md, docs/ and experiments/
are given to it here under their paths in the repository, so that a relative link leads to the same place on the site as
it does where the repository is browsed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff", "LICENSE")
FOLDERS = ("docs", "experiments")
NO_PAGES = (".py", ".pyc")
EXAMPLES = ("serving_proxy.py",)  # that a page links to


def on_files(files: Files, config: Any) -> Files:
    """The theme's files, and the repository's in place of those of `docs_dir`."""
    docs = Path(config.docs_dir)
    kept = [file for file in files if Path(file.src_dir or "") != docs]
    return Files([*kept, *(_file(path, config) for path in paths())])


def paths() -> list[Path]:
    """What the site is made of: pages, pictures, and the files that pages link to."""
    found = [ROOT / name for name in PAGES]
    for folder in FOLDERS:
        files = sorted(path for path in (ROOT / folder).rglob("*") if path.is_file())
        found += [path for path in files if path.suffix not in NO_PAGES or path.name in EXAMPLES]
    return found


def _file(path: Path, config: Any) -> File:
    return File(path.relative_to(ROOT).as_posix(), str(ROOT), config.site_dir, config.use_directory_urls)
