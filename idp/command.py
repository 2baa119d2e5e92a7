"""What every command line of `idp` does alike: `key=value` words, help, and one line for whatever goes wrong."""

from __future__ import annotations

import contextlib
import difflib
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, field, fields
from typing import Any, TypeVar

from idp.errors import UserError, lacks_memory, out_of_memory

Options = TypeVar("Options")


def quiet_libraries() -> None:
    """Keeps the bars and warnings of libraries off the terminal; to be called before they are imported."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # a tokenizer that forks after threads may hang
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # bars of libraries; our own progress is whole lines there
    warnings.filterwarnings("ignore", category=FutureWarning)


@contextlib.contextmanager
def failures_in_one_line(
    interrupted: str = "interrupted",
    explain: Callable[[Exception], str] | None = None,
    also: str = "",
    command: str = "idp",
) -> Iterator[None]:
    """Turns every failure inside into one line on standard error and a non-zero exit status.

    Args:
        interrupted: what is said of Ctrl-C.
        explain: the line for an error that is not a `UserError`; None: its kind, its text, and how to see more.
        also: what such a line ends with, such as "nothing was written".
        command: what is said to have run out of memory where no stage says it.
    """
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(interrupted)
    except UserError as error:
        sys.exit(f"error: {error}")
    except Exception as error:
        if os.environ.get("IDP_DEBUG"):
            raise
        if lacks_memory(error):
            said = out_of_memory(command)
        else:
            said = explain(error) if explain is not None else _unforeseen(error)
        sys.exit(f"error: {said}{f'; {also}' if also else ''}")


def _unforeseen(error: Exception) -> str:
    said = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {said} (IDP_DEBUG=1 shows where)"


def word(help: str, **default: Any) -> Any:
    """A field of an options dataclass: a `key=value` word, required unless it has a default."""
    return field(metadata={"help": help}, **default)


def help_text(options: type, opening: str) -> str:
    """The text of `--help`: `opening`, then a line for each option."""
    lines = [f"  {item.name + '=...':<20} {item.metadata['help']}" for item in fields(options)]
    return "\n".join([opening, *lines])


def parse(options: type[Options], words: Sequence[str]) -> Options:
    """The options in `key=value` words; a field's default says its kind: text, a whole number, or true and false.

    Raises:
        UserError: a word that is no option or comes twice, a value of the wrong kind, or a missing one.
    """
    known = {item.name: item for item in fields(options)}
    values: dict[str, Any] = {}
    for given in words:
        key, equals, value = given.partition("=")
        if key not in known or not equals:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {near[0]}=?" if near else ""
            raise UserError(f"{given}: options are {', '.join(f'{name}=' for name in known)}{hint}")
        if key in values:
            raise UserError(f"{given}: {key}= is given twice")
        if not value:
            raise UserError(f"{given}: give a value ({known[key].metadata['help']})")
        values[key] = _value(key, value, known[key].default)
    for key, item in known.items():
        if key not in values and item.default is MISSING and item.default_factory is MISSING:
            raise UserError(f"{key}= is missing: {item.metadata['help']}")
    return options(**values)


def _value(key: str, value: str, default: Any) -> Any:
    if isinstance(default, bool):
        if value.lower() not in ("true", "false"):
            raise UserError(f"{key}={value}: use true or false")
        return value.lower() == "true"
    if isinstance(default, int):
        if not value.isdecimal():
            raise UserError(f"{key}={value}: use a whole number")
        return int(value)
    return value
