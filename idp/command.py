"""What every command line of `idp` does alike: its grammar, help, and one line for whatever goes wrong."""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, field, fields
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints

from idp.ends import INTERRUPTED, UNREAD, nobody_reads
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
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # else Hydra prints its errors itself, over many lines
    try:
        yield
        sys.stdout.flush()  # a reader that is gone is noticed here, not when Python ends
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        sys.exit(INTERRUPTED)
    except UserError as error:
        sys.exit(f"error: {error}")
    except Exception as error:
        if isinstance(error, BrokenPipeError) and nobody_reads():  # `| head` has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(UNREAD)
        if os.environ.get("IDP_DEBUG"):
            raise
        if lacks_memory(error):
            message = str(out_of_memory(command))
        else:
            message = explain(error) if explain is not None else _unforeseen(error)
        sys.exit(f"error: {message}{f'; {also}' if also else ''}")


def _unforeseen(error: Exception) -> str:
    message = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {message} (IDP_DEBUG=1 shows where)"


def word(help: str, *, positional: bool = False, **default: Any) -> Any:
    """A field of an options dataclass, required unless it has a default.

    Its annotation says what values it takes: `str`, `int`, `float`, `bool`, a list of one of these, or one of them and
    None.

    Args:
        help: its line in `--help`.
        positional: whether it is also what stands in the command line without a name.
        default: `default=` or `default_factory=`, as of `dataclasses.field`.
    """
    return field(metadata={"help": help, "positional": positional}, **default)


def help_text(options: type, opening: str) -> str:
    """The text of `--help`: `opening`, then a line for each option."""
    lines = [(_shown(item), item.metadata["help"]) for item in fields(options)]
    width = max([20, *(len(name) for name, _ in lines)])
    return "\n".join([opening, *(f"  {name:<{width}} {help}" for name, help in lines)])


def _shown(item: Field[Any]) -> str:
    names = [item.name.upper()] if item.metadata["positional"] else []
    names.append(f"{item.name}=...")
    if isinstance(item.default, bool):
        names.append(f"--{_dashed(item.name)}")
    return " or ".join(names)


def wants_help(argv: Sequence[str]) -> bool:
    """Whether a command line asks for help."""
    return not {"-h", "--help"}.isdisjoint(argv)


def nearest(name: str, known: Iterable[str]) -> str:
    """What to say behind a name that is none of `known`: the one that may have been meant, or nothing."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def parse_action(actions: Mapping[str, type], argv: Sequence[str], what: str) -> tuple[str, Any]:
    """The action that a command line names first, and that action's options in the arguments behind it.

    Args:
        actions: the dataclass of each action's options.
        argv: of the command line.
        what: what an action is called, such as "analysis".

    Raises:
        UserError: no such action, or as of `parse`.
    """
    if not argv:
        raise UserError(f"which {what}? Choose one of {', '.join(actions)}")
    name, *rest = argv
    if name not in actions:
        raise UserError(f"{name}: no such {what}; choose one of {', '.join(actions)}{nearest(name, actions)}")
    return name, parse(actions[name], rest)


def parse(options: type[Options], argv: Sequence[str]) -> Options:
    """The options in a command line's arguments: `key=value`, `--key value` or `--key=value`, and `--key` for yes.

    Of a list, values follow one another (`--key a b`) or have commas between them (`key=a,b`, or `key=[a,b]` as in a
    run's words).

    Raises:
        UserError: a word that is no option or comes twice, a value of the wrong kind, or a missing one.
    """
    known, hints = {item.name: item for item in fields(cast(Any, options))}, get_type_hints(options)
    plain = next((item.name for item in known.values() if item.metadata["positional"]), None)
    values: dict[str, Any] = {}
    named = set()
    left = list(argv)
    while left:
        given = left.pop(0)
        dashed = given.startswith("--")
        key, equals, value = given.removeprefix("--").partition("=")
        key = key.replace("-", "_")
        if key not in known or not (equals or dashed):
            if plain is None or given.startswith("-") or (equals and not Path(given).exists()):
                raise UserError(_unknown(given, key, known))
            if not _is_list(hints[plain]) and plain in values:
                raise UserError(f"{given}: one {plain} is enough")
            values[plain] = [*values.get(plain, []), given] if _is_list(hints[plain]) else given
            continue
        if key in named:
            raise UserError(f"{given}: {key if dashed else f'{key}='} is given twice")
        named.add(key)
        texts = [value] if equals else _following(left, hints[key])
        argument = given if equals else " ".join([given, *texts])
        if not all(texts) or not texts:
            raise UserError(f"{given}: give a value ({known[key].metadata['help']})")
        if _is_list(hints[key]):
            (kind,) = get_args(_some(hints[key]))
            parts = [part.strip() for text in texts for part in (_unbracketed(text).split(",") if equals else [text])]
            values[key] = [*values.get(key, []), *(_value(argument, part, kind) for part in parts if part)]
        else:
            values[key] = _value(argument, texts[0], _some(hints[key]))
    for key, item in known.items():
        if key not in values and item.default is MISSING and item.default_factory is MISSING:
            raise UserError(f"{key}= is missing: {item.metadata['help']}")
    return options(**values)


def _following(left: list[str], hint: Any) -> list[str]:
    """The values that stand behind `--key`, which are taken off the arguments that are left."""
    if _some(hint) is bool:
        return [left.pop(0)] if left and left[0].lower() in ("true", "false") else ["true"]
    taken: list[str] = []
    while left and (_is_list(hint) or not taken) and (not left[0].startswith("-") or left[0][1:].isdecimal()):
        taken.append(left.pop(0))
    return taken


def _unknown(given: str, key: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(key, list(known), n=1)
    hint = "" if not near else f"; did you mean {f'--{_dashed(near[0])}' if given.startswith('--') else f'{near[0]}='}?"
    return f"{given}: options are {', '.join(f'{name}=' for name in known)}{hint}"


def _unbracketed(text: str) -> str:
    return text[1:-1] if text.startswith("[") and text.endswith("]") else text


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def _some(hint: Any) -> Any:
    """A type without the None that it may be."""
    some = [each for each in get_args(hint) if each is not type(None)]
    return some[0] if isinstance(hint, UnionType) else hint


def _is_list(hint: Any) -> bool:
    return get_origin(_some(hint)) is list


def _value(argument: str, value: str, kind: type) -> Any:
    if kind is bool:
        if value.lower() not in ("true", "false"):
            raise UserError(f"{argument}: use true or false")
        return value.lower() == "true"
    if kind is int:
        if not re.fullmatch(r"-?\d+", value):
            raise UserError(f"{argument}: use a whole number")
        return int(value)
    if kind is float:
        try:
            return float(value)
        except ValueError as error:
            raise UserError(f"{argument}: use a number") from error
    return value
