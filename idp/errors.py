"""The one exception whose message a user reads: a single line that says what, where and what to do."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator


class UserError(Exception):
    """A problem that the user can mend.

    The message is one line: what is wrong, where, and the next step. It is shown without a traceback; the log has
    the traceback.
    """

    def __init__(self, message: str):
        super().__init__(" ".join(str(message).split()))


# What to lower when a stage or a command runs out of memory.
LOWER = {
    "find": "task.documents, or use a machine with more main memory",
    "load": "model.dtype=bfloat16, a smaller model, or model.device_map=auto to spread it over devices",
    "compress": "compressor.calibration.samples or compressor.calibration.length",
    "recover": "recovery.training.sequence_length: micro batches were tried down to one sequence",
    "select": "recovery.fit.tokens or recovery.fit.context_tokens",
    "measure": "evaluation.batch_tokens",
    "latency": "latency.batch_sizes, latency.input_tokens or latency.new_tokens",
    "track": "task.documents, or use a machine with more main memory",
    "generate": "max_new_tokens, or the number and the length of the texts",
    "similarity": "documents= or tokens=",
}
OTHERWISE = "Free some, or use a machine or a device with more of it"

# How the libraries say it where they raise a plain RuntimeError: `CUDA error: out of memory`, CUDA_ERROR_OUT_OF_MEMORY,
# UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY, hipErrorOutOfMemory; CUBLAS_STATUS_ALLOC_FAILED and its like in cuDNN, cuSOLVER,
# cuSPARSE, cuFFT (CUFFT_ALLOC_FAILED), hipBLAS, MIOpen; MAGMA; the CPU's allocators, C++ and `mmap`; Metal's buffers.
LACKING = re.compile(
    r"out[ _]?of[ _]?((device|host)[ _]?)?memory|alloc(ation)?_?failed|magma_err_(host|device)_alloc|bad[ _]alloc"
    r"|can(no|')?t allocate memory|not enough memory|invalid buffer size|\bMemoryError\b",
    re.IGNORECASE,
)


@contextlib.contextmanager
def out_of_memory_is_explained(stage: str) -> Iterator[None]:
    """Turns any out-of-memory error inside `stage` into a `UserError` that says what to lower."""
    try:
        yield
    except Exception as error:
        if not lacks_memory(error):
            raise
        raise out_of_memory(stage) from error


def out_of_memory(stage: str) -> UserError:
    """The line for a stage or a command, known or not, that ran out of memory."""
    return UserError(f"{stage}: out of memory. {f'Lower {LOWER[stage]}' if stage in LOWER else OTHERWISE}")


def lacks_memory(error: BaseException) -> bool:
    """Whether `error`, or what it was raised from, is how Python, torch or a driver says that memory ran out.

    A `UserError` is none: it has been explained.
    """
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen and not isinstance(cause, UserError):
        seen.add(id(cause))
        kinds = {kind.__name__ for kind in type(cause).__mro__}
        if kinds & {"MemoryError", "OutOfMemoryError"} or getattr(cause, "errno", None) == errno.ENOMEM:
            return True
        # Of other kinds the text may be anything, such as a document's.
        if kinds & {"RuntimeError", "OSError", "SafetensorError"} and LACKING.search(str(cause)):
            return True
        cause = cause.__cause__
    return False


DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM)


def disk_trouble(error: BaseException) -> str | None:
    """What the disk did not do, in the system's words, where that is what the error is; else None.

    Writers in Rust (safetensors, tokenizers) have errors of their own with those words in them.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno) if error.errno in DISK else None
    return next((words for words in map(os.strerror, DISK) if words in str(error)), None)
