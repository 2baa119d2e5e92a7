"""Packages that only some features need: `pip install 'idp[...]'`, in a line, where one of them is used without."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from idp.errors import UserError


@contextlib.contextmanager
def needs(feature: str, package: str, extra: str) -> Iterator[None]:
    """Says what to install if the imports inside fail for want of a module.

    Args:
        feature: what the user asked for, as they write it.
        package: what it needs, as it is installed.
        extra: the extra of this project that has it.

    Raises:
        UserError: a module is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(lacks(feature, package, extra)) from error


def lacks(feature: str, package: str, extra: str) -> str:
    """The line."""
    return f"{feature} needs {package}: pip install 'idp[{extra}]'"
