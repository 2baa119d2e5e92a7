"""The one exception whose message a user reads: a single line that says what, where and what to do."""

from __future__ import annotations

import contextlib
import errno
import os


class UserError(Exception):
    """A problem that the user can mend.

    The message is one line: what is wrong, where, and the next step. It is shown without a traceback; the log has
    the traceback.
    """

    def __init__(self, message: str):
        super().__init__(" ".join(str(message).split()))


# What to lower when a stage runs out of memory.
LOWER = {
    "load": "model.dtype=bfloat16, a smaller model, or model.device_map=auto to spread it over devices",
    "compress": "compressor.calibration.samples or compressor.calibration.length",
    "recover": "recovery.training.batch_size or recovery.training.sequence_length",
    "measure": "evaluation.batch_tokens",
}


@contextlib.contextmanager
def out_of_memory_is_explained(stage: str):
    """Turns any out-of-memory error inside `stage` into a `UserError` that says what to lower."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(f"{stage}: out of memory. Lower {LOWER[stage]}") from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` is how Python, torch on a CPU or torch on an accelerator says that memory ran out."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return "can't allocate memory" in str(error) or "out of memory" in str(error).lower()


DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM)


def disk_trouble(error: BaseException) -> str | None:
    """What the disk did not do, in the system's words, where that is what the error is; else None.

    Writers in Rust (safetensors, tokenizers) have errors of their own with those words in them.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno) if error.errno in DISK else None
    return next((words for words in map(os.strerror, DISK) if words in str(error)), None)
