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


class Stop:
    """Whether a stop was asked for, and whether it must wait for a safe moment."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.postponed = 0

    @property
    def asked(self) -> bool:
        return self.number is not None

    def now_if_asked(self) -> None:
        """A safe moment.

        Raises:
            Stopped: a signal came.
        """
        if self.number is not None:
            raise Stopped(self.number)

    def cause(self, error: BaseException) -> Stopped | None:
        """The stop behind an error, if one was asked for: a library may have made something else of it on its way."""
        if isinstance(error, Stopped) or self.number is None:
            return error if isinstance(error, Stopped) else None
        return Stopped(self.number)


STOP = Stop()


@contextlib.contextmanager
def postponed() -> Iterator[Stop]:
    """Within, a signal to stop waits for `now_if_asked` or the end: work that must be saved in one piece."""
    STOP.postponed += 1
    try:
        yield STOP
    finally:
        STOP.postponed -= 1
    if not STOP.postponed:
        STOP.now_if_asked()


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
    owner = os.getpid()

    def stop(number: int, frame: object) -> None:
        if os.getpid() != owner or STOP.asked:  # a forked worker inherits the handler; a second signal says nothing new
            return
        STOP.number = number
        if not STOP.postponed:
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
        STOP.number = None
        for number, handler in before.items():
            signal.signal(number, handler)
