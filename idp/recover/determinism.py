"""Training on a GPU by operations that give the same bits each time.

Attention's backward passes, flash and memory-efficient, add up in the order in which blocks of threads finish, unless
torch is asked for determinism; cuBLAS gives the same bits from one workspace of a fixed size (`idp/__init__.py` sets
CUBLAS_WORKSPACE_CONFIG before anything uses it). On a CPU nothing has to be asked for.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

REFUSED = re.compile(r"does not have a deterministic implementation|CUBLAS_WORKSPACE_CONFIG")


@contextlib.contextmanager
def deterministic(tensors: Iterable[torch.Tensor]) -> Iterator[None]:
    """Within the block, where the tensors are on a GPU, torch takes deterministic operations, or says that it has none.

    `give_up` ends that within the block.
    """
    import torch

    if all(tensor.device.type != "cuda" for tensor in tensors):
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)  # warn_only would leave attention as it is
    torch.utils.deterministic.fill_uninitialized_memory = False  # nothing here reads what it has not written
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = filled


def is_refusal(error: BaseException) -> bool:
    """Whether an error says that an operation has no deterministic form."""
    return isinstance(error, RuntimeError) and bool(REFUSED.search(str(error)))


def give_up() -> None:
    """Lets torch take operations of any order again."""
    import torch

    torch.use_deterministic_algorithms(False)
