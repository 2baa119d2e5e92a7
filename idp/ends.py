"""How a command ends that is interrupted, or whose reader is gone, while it imports or prints its help."""

from __future__ import annotations

import atexit
import os
import select
import sys
from types import TracebackType

INTERRUPTED = 130  # as of shells: 128 and the signal
UNREAD = 141  # the same of SIGPIPE, of which other programs die when nobody reads what they print


def is_command() -> bool:
    """Whether this process is one of this package's commands: `python -m idp...`, or the script `idp`."""
    given = sys.orig_argv
    if "-m" in given:
        name = "".join(given[given.index("-m") + 1 :][:1])
        return name == "idp" or name.startswith("idp.")
    return os.path.basename(sys.argv[0] if sys.argv else "") == "idp"


def quietly() -> None:
    """From here on Ctrl-C is one line and status 130, and a closed pipe is nothing, wherever they arrive."""
    before = sys.excepthook

    def ended(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            print("interrupted", file=sys.stderr, flush=True)
            os._exit(INTERRUPTED)  # else Python ends by the signal itself, and the locks of imports may be held
        if issubclass(kind, BrokenPipeError) and nobody_reads():
            os._exit(UNREAD)
        before(kind, error, trace)

    sys.excepthook = ended
    atexit.register(unread)  # first of all, so it is the last to be called


def unread() -> None:
    """Writes what standard output still holds; where nobody reads it, ends the process as other programs do."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os._exit(UNREAD)  # Python's own end would be that of an error, or of a success
    except (ValueError, AttributeError):  # closed, or none
        return


def nobody_reads() -> bool:
    """Whether standard output is a pipe whose reader is gone."""
    waiting = select.poll()
    waiting.register(sys.stdout, select.POLLOUT)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in waiting.poll(0))
