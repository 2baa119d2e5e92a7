"""`python -m idp.export record=<record.json or run folder> out=<folder>`: a run's model as others can load it."""

from __future__ import annotations

import difflib
import os
import sys
import warnings
from dataclasses import fields

from idp.errors import UserError
from idp.export.options import Options

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
if not sys.stderr.isatty():
    os.environ.setdefault("TQDM_DISABLE", "1")
warnings.filterwarnings("ignore", category=FutureWarning)

HELP = """idp.export: a run's compressed model as a checkpoint that transformers loads, with its repair as PEFT adapters

  python -m idp.export record=outputs/runs/<run>/record.json out=exports/mine
  python -m idp.export record=outputs/runs/<run> out=exports/mine name=me/my-model-gptq4

Options:
"""


def main(words: list[str] | None = None) -> None:
    """The command line: every failure is one line on standard error and a non-zero exit status."""
    words = sys.argv[1:] if words is None else words
    if not words or {"-h", "--help"} & set(words):
        print(help_text())
        sys.exit(0 if words else "error: nothing to export: give record=... and out=...")
    try:
        options = parse(words)
        from idp.export.checkpoint import export

        done = export(options)
    except KeyboardInterrupt:
        sys.exit("interrupted; nothing was written")
    except UserError as error:
        sys.exit(f"error: {error}")
    except Exception as error:
        if os.environ.get("IDP_DEBUG"):
            raise
        said = " ".join(str(error).split())[:300]
        sys.exit(f"error: {type(error).__name__}: {said} (IDP_DEBUG=1 shows where); nothing was written")
    print(f"loaded again and compared: the largest difference of a logit is {done.difference:.3g}")
    print(f"exported: {done.folder}", flush=True)


def help_text() -> str:
    """The text of `--help`."""
    lines = [f"  {item.name + '=...':<16} {item.metadata['help']}" for item in fields(Options)]
    return HELP + "\n".join(lines)


def parse(words: list[str]) -> Options:
    """The options in `key=value` words.

    Raises:
        UserError: a word that is no option, a value of the wrong kind, or a missing one.
    """
    known = {item.name: item for item in fields(Options)}
    values: dict[str, str | bool] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if key not in known or not equals:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {near[0]}=?" if near else ""
            raise UserError(f"{word}: options are {', '.join(f'{name}=' for name in known)}{hint}")
        if key == "overwrite":
            if value.lower() not in ("true", "false"):
                raise UserError(f"overwrite={value}: use true or false")
            values[key] = value.lower() == "true"
        elif not value:
            raise UserError(f"{word}: give a value ({known[key].metadata['help']})")
        else:
            values[key] = value
    for key in ("record", "out"):
        if key not in values:
            raise UserError(f"{key}= is missing: {known[key].metadata['help']}")
    return Options(**values)


if __name__ == "__main__":
    main()
