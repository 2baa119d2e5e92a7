"""Texts as Hydra's grammar of overrides takes them, whatever is in them."""

from __future__ import annotations

import re


def quoted(text: str, mark: str = "'") -> str:
    """A text in quotes: of the backslashes only those before a quotation mark, and at the end, are doubled.

    https://hydra.cc/docs/advanced/override_grammar/basic/#quoted-values
    """
    escaped = re.sub(rf"(\\*){mark}", rf"\1\1\\{mark}", text)
    end = re.search(r"\\*$", escaped)
    return f"{mark}{escaped}{end[0] if end else ''}{mark}"
