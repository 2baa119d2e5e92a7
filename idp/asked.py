"""What a model is asked from Python, checked before anything is computed: texts, choices, conversations, numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from idp.errors import UserError

ROLES = ("system", "user", "assistant")


def texts(given: Any, name: str, may_be_empty: bool = False) -> list[str]:
    """A list of texts.

    Raises:
        UserError: it is none, or something in it is no text.
    """
    if isinstance(given, (str, bytes)) or not isinstance(given, Iterable):
        raise UserError(f"{name}: give a list of texts, not {described(given)}")
    found = list(given)
    if not found and not may_be_empty:
        raise UserError(f"{name} is empty: give at least one text")
    for number, each in enumerate(found):
        text(each, f"{name}[{number}]")
    return found


def text(given: Any, name: str) -> str:
    """One text.

    Raises:
        UserError: it is none.
    """
    if not isinstance(given, str):
        raise UserError(f"{name} is not a text: {described(given)}")
    try:
        given.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{name} is not valid Unicode: {error}") from error
    return given


def choices(given: Any, contexts: int) -> list[list[str]]:
    """A list of choices for each context; one list of texts is that of all.

    Raises:
        UserError: it is neither.
    """
    if isinstance(given, (str, bytes)) or not isinstance(given, Iterable):
        raise UserError(f"choices: give a list of choices for each context, not {described(given)}")
    given = list(given)
    if given and all(isinstance(choice, str) for choice in given):
        return [texts(given, "choices")] * contexts
    if len(given) != contexts:
        raise UserError(f"choices: there are {contexts} contexts and {len(given)} lists of choices; give one for each")
    return [texts(each, f"choices[{number}]") for number, each in enumerate(given)]


def conversation(given: Any, name: str) -> list[dict[str, str]]:
    """One conversation as messages of a `role` and its `content`; a text is a single question.

    Raises:
        UserError: it is none, or does not end with what is to be answered.
    """
    if isinstance(given, str):
        return [{"role": "user", "content": text(given, name)}]
    if isinstance(given, (bytes, Mapping)) or not isinstance(given, Iterable):
        raise UserError(f"{name}: give a text or a list of messages, not {described(given)}")
    messages = list(given)
    if not messages:
        raise UserError(f'{name} is empty: give messages, such as {{"role": "user", "content": "Why?"}}')
    for number, message in enumerate(messages):
        where = f"{name}[{number}]"
        if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
            raise UserError(f'{where}: a message is {{"role": ..., "content": ...}}, not {described(message)}')
        if message["role"] not in ROLES:
            raise UserError(f"{where}: role={message['role']}: use {', '.join(ROLES)}")
        text(message["content"], f"{where}.content")
    if messages[-1]["role"] == "assistant":
        raise UserError(f"{name}: its last message is the model's own; end with what is to be answered")
    return [dict(message) for message in messages]


def is_conversation(given: Any) -> bool:
    """Whether it is one conversation, rather than a list of several."""
    return isinstance(given, str) or (isinstance(given, Iterable) and any(isinstance(each, Mapping) for each in given))


def check_count(name: str, value: Any) -> None:
    """Refuses what is no whole number from 1 up.

    Raises:
        UserError: as said, of `name`.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{name}={value}: use a whole number, 1 or more")


def described(value: Any) -> str:
    """A value in a message: its beginning, and its type."""
    shown = repr(value)
    return f"{shown if len(shown) <= 40 else shown[:37] + '...'} ({type(value).__name__})"
