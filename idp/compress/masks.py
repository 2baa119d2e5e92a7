"""What pruners and quantisers of llmcompressor are told alike: patterns and blocks of columns."""

from __future__ import annotations

from idp.config import n_of_m

BLOCK_COLUMNS = 128  # GPTQ and SparseGPT update the columns behind a block of this many at once, as in the papers


def mask_structure(pattern: str | None) -> str:
    """llmcompressor counts what of every M weights is set to zero, the field what is kept; without a pattern `0:0`."""
    if pattern is None:
        return "0:0"
    keep, of = n_of_m(pattern)
    return f"{of - keep}:{of}"
