"""SLURM's signals: a run stops in good order, at a safe moment where it asks for one, and only then is requeued."""

import contextlib
import os
import signal

import pytest

from idp.preemption import Stopped, postponed, requeued
from idp.status import run_folder


@pytest.fixture
def job(monkeypatch):
    """A process as submitit sets it up; what its handler was told."""
    told = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: told.append(number))
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    yield told
    signal.signal(signal.SIGUSR2, before)


def be_preempted(number=signal.SIGUSR2):
    os.kill(os.getpid(), number)


def test_it_unwinds_before_it_is_requeued(job):
    seen = []
    with pytest.raises(Stopped), requeued():
        try:
            be_preempted()
        except Exception:
            pytest.fail("it was taken for an error")
        finally:
            seen = list(job)
    assert seen == [] and job == [signal.SIGUSR2]
    assert signal.getsignal(signal.SIGUSR2) is not signal.SIG_DFL


def test_work_in_one_piece_is_finished_first(job):
    done = []
    with pytest.raises(Stopped), requeued(), postponed() as stop:
        for step in range(5):
            if step == 2:
                be_preempted()
                be_preempted()  # a second time is once
            done.append((step, stop.asked))
            stop.now_if_asked()
    assert done == [(0, False), (1, False), (2, True)] and job == [signal.SIGUSR2]


def test_it_stops_whatever_a_library_makes_of_it(job, tmp_path):
    with pytest.raises(Stopped), requeued(), run_folder(tmp_path / "run", "run"):
        try:
            be_preempted()
        except BaseException as error:
            raise ImportError("no such module") from error
    assert job == [signal.SIGUSR2]
    with pytest.raises(Stopped), requeued(), run_folder(tmp_path / "run", "run") as status:
        with contextlib.suppress(BaseException):
            be_preempted()
        status.stage("the next one")
    assert len(job) == 2


def test_asked_in_the_last_piece_it_stops_at_its_end(job):
    done = []
    with pytest.raises(Stopped), requeued():
        with postponed():
            be_preempted()
            done.append("all of it")
        done.append("too much")
    assert done == ["all of it"]


def test_the_status_says_queued_or_why_not(job, tmp_path):
    def state():
        import json

        values = json.loads((tmp_path / "run" / "status.json").read_text())
        return values["state"], values["error"]

    with pytest.raises(Stopped), requeued(), run_folder(tmp_path / "run", "run"):
        be_preempted()
    assert state() == ("queued", None)

    def refuses(number, frame):
        raise RuntimeError("timed-out too many times")

    signal.signal(signal.SIGUSR2, refuses)
    with pytest.raises(RuntimeError), requeued(), run_folder(tmp_path / "run", "run"):
        be_preempted()
    assert state() == ("failed", "timed-out too many times")


def test_a_job_that_is_cancelled_is_not_requeued(job, tmp_path, monkeypatch):
    monkeypatch.setattr("idp.preemption.LONGEST_GRACE_SECONDS", 0)
    with pytest.raises(Stopped), requeued(), run_folder(tmp_path / "run", "run"):
        be_preempted(signal.SIGTERM)
    assert job == []
    assert '"failed"' in (tmp_path / "run" / "status.json").read_text()


def test_outside_a_job_signals_are_left_alone(monkeypatch):
    monkeypatch.delenv("SUBMITIT_EXECUTOR", raising=False)
    with requeued():
        assert signal.getsignal(signal.SIGUSR2) == signal.SIG_DFL
