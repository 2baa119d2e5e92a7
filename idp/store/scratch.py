"""A store for what is computed from finished results, which may lie where nothing can be written."""

from __future__ import annotations

import atexit
import functools
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from idp.errors import UserError
from idp.store import Identity, Product, Store

log = logging.getLogger("idp.store")


class ReaderStore(Store):
    """A store that makes what is missing where it can write; else in a temporary folder, until the process ends."""

    def obtain(self, identity: Identity, make: Callable[[Path], None], after: Iterable[Product] = ()) -> Product:
        """As `Store.obtain`, and never refused for want of permission to write."""
        if self.finished(identity) is None:
            try:
                self.check_writable([identity.stage])
            except UserError:
                log.warning("%s: cannot write there; what is computed now is not kept", self.root / identity.stage)
                return self._scratch.obtain(identity, make, after)
        return super().obtain(identity, make, after)

    @functools.cached_property
    def _scratch(self) -> Store:
        folder = tempfile.mkdtemp(prefix="idp-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        return Store(folder)
