"""Which running text; each source is a file in `idp/corpora/sources`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Optional

from idp.config.options import option


@dataclass
class Corpus:
    """What is asked of a corpus's options; each source is a file in `idp/corpora/sources`, called by `source`."""

    name: str = option("the name in records")
    source: str = option("where the text comes from: embedded, hub, local, or a source of your own")
    path: Optional[str] = option("source=hub: data set id; source=local: a txt, jsonl or parquet file, or .gz of one")
    subset: Optional[str] = option("source=hub: the data set's configuration")
    files: Optional[dict[str, str]] = option("source=hub: data files of each part, where the whole is too large")
    splits: Optional[dict[str, str]] = option("source=hub: the split for train, heldout and perplexity")
    text_field: str = option("the column or key that holds the text")
    made_from: list[str] = option(
        "tasks whose text the corpus holds: a run that evaluates one refuses the corpus; source=embedded reads these"
    )
    documents: Optional[int] = option("documents to read at most; null: all", minimum=1)
    revision: Optional[str] = option("source=hub: a branch, tag or commit of the data set", default=None)

    # DENSE of a source whose text the run's dense model makes. It has `product`, `make` and `documents_of` then.
    needs: ClassVar[frozenset[str]] = frozenset()

    def check(self) -> None:
        """Raises a UserError where the options do not go together."""

    def check_model(self, empty: Any) -> None:
        """Raises a UserError where the model, an `idp.models.LoadedModel` without weights, cannot make the text."""

    def product(self, model: Any, dense: str) -> Any:
        """What the product is that holds the text which the dense model makes, an `idp.store.Identity`.

        Args:
            model: the model's config.
            dense: the key of the dense model.
        """
        raise NotImplementedError

    def make(self, model: Any, dense: Path, folder: Path) -> None:
        """Writes that product into `folder`; `dense` is the folder of the dense model."""
        raise NotImplementedError

    def documents_of(self, folder: Path) -> list[str]:
        """The documents of that product."""
        raise NotImplementedError

    def read(self, data_dir: str | None, store: Any) -> tuple[dict[str, list[str]], str]:
        """Reads the text.

        Args:
            data_dir: the user's folder of data; None where there is none.
            store: an `idp.store.Store`, where what comes over a network is kept, so that it comes once.

        Returns:
            documents under `train` (always there), `heldout` and `perplexity` (where the corpus has those splits; no
            document of theirs is trained on); and the place they come from, for messages.

        Raises:
            UserError: the text cannot be had, or a file cannot be read.
        """
        raise NotImplementedError
