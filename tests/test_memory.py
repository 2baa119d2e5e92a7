"""A stage's peak is its own: what came before it is forgotten. Accelerators are asked only where they are used."""

import mmap
import sys
import weakref

import pytest
import torch

from idp.memory import device_memory, device_peaks, keep_peaks, peak_bytes, release, start_peak
from idp.store import Store, peaks

from .processes import python


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can forget a peak")
def test_the_peak_is_of_the_span():
    def touch(size: int) -> None:  # straight from the system, past an allocator that keeps what was freed
        with mmap.mmap(-1, size) as block:
            block.write(b"x" * size)

    start_peak()
    before = peak_bytes()
    touch(2**28)
    assert peak_bytes() >= before + 2**27
    start_peak()
    start = peak_bytes()
    touch(2**25)
    assert 2**24 <= peak_bytes() - start < 2**27


def test_a_ring_of_references_is_freed():
    class Ring:
        def __init__(self):
            self.itself = self

    gone = weakref.ref(Ring())
    assert gone() is not None
    release()
    assert gone() is None


def test_a_cpu_has_no_device_memory():
    assert device_memory("cpu") is None
    assert device_memory(torch.device("meta")) is None
    if not torch.cuda.is_available():
        assert device_memory("cuda:0") is None
        start_peak()
        assert device_peaks() == {}


class Accelerator:
    """torch's module of an accelerator, as far as `idp.memory` asks it: two devices with a peak and a cache each."""

    __name__ = "torch.cuda"

    def __init__(self, begun=True):
        self.begun, self.peaks, self.cached = begun, {"cuda:0": 7, "cuda:1": 0}, 5

    def is_available(self):
        return True

    def is_initialized(self):
        return self.begun

    def device_count(self):
        return 2

    def max_memory_allocated(self, device):
        return self.peaks[device]

    def reset_peak_memory_stats(self, device):
        self.peaks[device] = 0

    def memory_allocated(self, device):
        return 20

    def memory_reserved(self, device):
        return 20 + self.cached

    def mem_get_info(self, device):
        return 100, 500

    def empty_cache(self):
        assert self.begun, "asking a device that is not used begins to use it"
        self.cached = 0


def test_peaks_and_caches_of_an_accelerator(monkeypatch):
    monkeypatch.setattr(torch, "cuda", card := Accelerator())
    assert device_peaks() == {"cuda:0": 7}
    assert device_memory("cuda:1") == (105, 500)  # what is cached is free to this process
    release()
    assert card.cached == 0 and device_memory("cuda:1") == (100, 500)
    start_peak()
    assert device_peaks() == {}


def test_peaks_are_kept_while_counters_are_set_back(monkeypatch):
    """Within a span each model that is timed has a peak of its own; and other processes work for this one."""
    monkeypatch.setattr(torch, "cuda", card := Accelerator())
    start_peak()
    card.peaks["cuda:0"] = 30
    keep_peaks()
    card.reset_peak_memory_stats("cuda:0")
    card.peaks["cuda:0"] = 4
    keep_peaks({"cuda:1": 11, "cuda:0": 2})
    assert device_peaks() == {"cuda:0": 30, "cuda:1": 11}
    start_peak()
    assert device_peaks() == {}


def test_a_product_says_what_making_it_took(monkeypatch, tmp_path):
    store, arguments = Store(tmp_path), {"parent": None, "config": {}, "version": 1}
    plain = store.get_or_make("plain", make=lambda _: None, **arguments)
    assert "device_peak_bytes" not in plain.manifest  # as ever on a CPU
    monkeypatch.setattr(torch, "cuda", card := Accelerator())
    made = store.get_or_make("made", make=lambda _: card.peaks.update({"cuda:1": 5}), **arguments)
    more = store.get_or_make("more", make=lambda _: card.peaks.update({"cuda:0": 3, "cuda:1": 4}), **arguments)
    assert made.manifest["device_peak_bytes"] == {"cuda:1": 5}
    found = peaks([plain, made, more])
    assert found["device_peak_bytes"] == {"cuda:0": 3, "cuda:1": 5}
    assert found["peak_memory_bytes"] == max(each.manifest["peak_memory_bytes"] for each in (plain, made, more))


def test_a_card_that_is_not_used_is_left_alone(monkeypatch):
    monkeypatch.setattr(torch, "cuda", card := Accelerator(begun=False))
    start_peak()
    release()
    assert device_peaks() == {} and card.cached == 5 and card.peaks["cuda:0"] == 7


def test_in_a_process_of_runs_the_libraries_are_overlooked_and_models_are_not():
    code = (
        "import gc, weakref; from idp import memory; memory.of_runs_alone()\n"
        "class Model: pass\n"
        "def opened():\n"
        "    model = Model(); model.itself = model; return weakref.ref(model)\n"
        "gc.unfreeze(); before = opened(); memory.release(); frozen = gc.get_freeze_count()\n"
        "after = opened(); memory.release()\n"
        "print(before(), after(), frozen > 1000, gc.get_freeze_count() <= frozen)"
    )
    done = python("-c", code)
    assert done.stdout == "None None True True\n", done.stderr
