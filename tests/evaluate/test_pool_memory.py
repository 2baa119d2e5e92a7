"""What a process holds on a card is given back before others are started there, and their peaks are this run's."""

from types import SimpleNamespace

import pytest

from idp import memory
from idp.evaluate import pool

DESCRIBED = {"prompts": [], "longest_prompt": 0, "beginning": None, "not_followed": []}


class Connection:
    """A process's end of the line, which answers all that it is asked; its card had 7 bytes at most."""

    def send(self, job):
        self.job = job

    def recv(self):
        return None, DESCRIBED if self.job[0] == "describe" else {"tokens": 3}, {"cuda:1": 7}

    def close(self): ...


@pytest.fixture
def happened(monkeypatch):
    order = []

    class Process:
        def __init__(self, **_): ...

        def start(self):
            order.append("start")

        def join(self, _): ...

        def is_alive(self):
            return False

    context = SimpleNamespace(Pipe=lambda: (Connection(), Connection()), Process=Process)
    monkeypatch.setattr(pool.multiprocessing, "get_context", lambda _: context)
    monkeypatch.setattr(pool, "wait", list)
    monkeypatch.setattr(pool, "release", lambda: order.append("release"))
    return order


def test_the_card_is_free_before_processes_start(happened):
    memory.start_peak()
    engine = pool.PooledEngine(lambda _: None, ["cuda:0", "cuda:1"], None, None)
    assert happened == ["release", "start", "start"]
    assert list(engine.score([[]], [])) == [(0, {"tokens": 3})]
    assert memory.device_peaks() == {"cuda:1": 7}
    memory.start_peak()
    engine.close()


def test_lack_of_memory_in_a_process_is_lack_of_memory_here(happened, monkeypatch):
    engine = pool.PooledEngine(lambda _: None, ["cuda:0"], None, None)
    monkeypatch.setattr(Connection, "recv", lambda _: ((MemoryError, "OutOfMemoryError: CUDA", "trace"), None, {}))
    with pytest.raises(MemoryError, match="an evaluation process failed: OutOfMemoryError: CUDA"):
        list(engine.score([[]], []))
