"""A job that SLURM wants stopped: it saves, lets go of its locks, and is queued again.

submitit has SLURM send SIGUSR2 when a job is preempted or nears its time limit, and queues the job again at once. Here
the signal first becomes a `Stopped`, which unwinds the run as Ctrl-C would: W&B is flushed, locks are released,
`status.json` says what happened. Only then does submitit's own handler queue the job again.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator

# SLURM ends a job that got SIGTERM by SIGKILL, after the grace time of its partition.
LONGEST_GRACE_SECONDS = 600.0


class Stopped(BaseException):
    """SLURM wants the job to stop. No `Exception`, so that nothing on the way takes it for an error of its own.

    Args:
        number: the signal's number. SIGTERM means that the job is being cancelled or preempted without the other
            signal: whether it is queued again is SLURM's business.
    """

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.requeues = number != signal.SIGTERM
        self.on_refusal: Callable[[str], None] = lambda reason: None


class Postponed:
    """Whether a stop was asked for that waits for the next safe moment."""

    def __init__(self) -> None:
        self.depth = 0
        self.number: int | None = None

    @property
    def asked(self) -> bool:
        return self.number is not None

    def stop_if_asked(self) -> None:
        """The safe moment.

        Raises:
            Stopped: a signal came since the last one.
        """
        if self.number is not None:
            number, self.number = self.number, None
            raise Stopped(number)


_postponed = Postponed()


@contextlib.contextmanager
def postponed() -> Iterator[Postponed]:
    """Within, a signal to stop waits for `stop_if_asked` or the end: work that must be saved in one piece."""
    _postponed.depth += 1
    try:
        yield _postponed
    finally:
        _postponed.depth -= 1
    if not _postponed.depth:
        _postponed.stop_if_asked()


@contextlib.contextmanager
def requeued() -> Iterator[None]:
    """Within, SLURM's signals stop the run in good order; at the end the job is handed to submitit to be queued again.

    Outside a submitit job nothing is changed.

    Raises:
        Exception: as submitit's handler or SLURM says why the job is not queued again.
    """
    asks = getattr(signal, f"SIG{os.environ.get('SUBMITIT_PREEMPT_SIGNAL', 'USR2')}")
    requeue = signal.getsignal(asks)
    if "SUBMITIT_EXECUTOR" not in os.environ or not callable(requeue):
        yield
        return
    owner, stopping = os.getpid(), False

    def stop(number: int, frame: object) -> None:
        nonlocal stopping
        if os.getpid() != owner or stopping:  # a forked worker inherits the handler; the second signal is too late
            return
        stopping = True
        if _postponed.depth:
            _postponed.number = number
        else:
            raise Stopped(number)

    numbers = [asks, *([signal.SIGTERM] if os.environ["SUBMITIT_EXECUTOR"] == "slurm" else [])]
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    except Stopped as stopped:
        if not stopped.requeues:
            time.sleep(LONGEST_GRACE_SECONDS)  # a job that ends by itself now would count as ended
            raise
        try:
            requeue(asks, None)
        except Exception as error:
            stopped.on_refusal(" ".join(str(error).split()))
            raise
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
