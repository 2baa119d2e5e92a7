"""A command line's words as Hydra takes them."""

from __future__ import annotations

from collections.abc import Sequence

from idp.config import conf_dir
from idp.errors import UserError


def with_plus(words: Sequence[str]) -> list[str]:
    """The words, `experiment=name` being `+experiment=name`: an experiment takes the place of none.

    Raises:
        UserError: an option's dot stands where a group's slash belongs.
    """
    for word in words:
        key, equals, value = word.partition("=")
        group = key.replace(".", "/")
        if equals and "." in key and value.isidentifier() and (conf_dir() / group / f"{value}.yaml").exists():
            raise UserError(f"{word}: a choice of a group has a slash; write {group}={value}")
    return [f"+{word}" if word.startswith("experiment=") else word for word in words]
