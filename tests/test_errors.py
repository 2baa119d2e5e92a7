"""Out of memory is said with its stage and what to lower; other errors pass."""

import errno
import json

import pytest
import torch
from safetensors import SafetensorError

from idp.command import failures_in_one_line
from idp.errors import LOWER, OTHERWISE, UserError, lacks_memory, out_of_memory_is_explained
from idp.status import run_folder

CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.64 GiB")
LACKING = [
    MemoryError(),
    CUDA,
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:75] DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:115] data. DefaultCPUAllocator: not enough memory: you tried"),
    RuntimeError("unable to mmap 4096 bytes from file <a.bin>: Cannot allocate memory (12)"),
    RuntimeError("std::bad_alloc"),
    torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be reported asynchronously", 2),
    RuntimeError("CUDA driver error: CUDA_ERROR_OUT_OF_MEMORY"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`"),
    RuntimeError("cuFFT error: CUFFT_ALLOC_FAILED"),
    RuntimeError("MPS backend out of memory (MPS allocated: 18.13 GB, max allowed: 18.13 GB)"),
    RuntimeError("Invalid buffer size: 24.00 GB"),
    RuntimeError("Native API returns: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)"),
    SafetensorError("Error while deserializing: I/O error: Cannot allocate memory (os error 12)"),
]
STAGES = [*LOWER, "export", "a stage that nobody has heard of"]


@pytest.mark.parametrize("error", LACKING, ids=str)
def test_it_says_the_stage_and_what_to_do(error):
    for stage in STAGES:
        with pytest.raises(UserError, match=f"^{stage}: out of memory. ") as caught, out_of_memory_is_explained(stage):
            raise error
        assert LOWER.get(stage, OTHERWISE) in str(caught.value)
        assert caught.value.__cause__ is error


def test_what_a_library_raises_from_it_is_it_as_well():
    with pytest.raises(UserError, match="compress: out of memory"), out_of_memory_is_explained("compress"):
        try:
            raise CUDA
        except RuntimeError as error:
            raise ValueError("the pipeline failed") from error


def test_what_was_explained_stays_as_it_is():
    with (
        pytest.raises(UserError, match="^load: out of memory"),
        out_of_memory_is_explained("measure"),
        out_of_memory_is_explained("load"),
    ):
        raise CUDA


@pytest.mark.parametrize("stage", ["find", "load", "select", "measure: repaired arc_easy done", "track", "latency"])
def test_every_stage_of_a_run_says_it_in_its_one_line(tmp_path, stage):
    said = f"^{stage.partition(':')[0]}: out of memory. Lower"
    with pytest.raises(UserError, match=said), run_folder(tmp_path / "run", "run") as status:
        status.stage(stage)
        raise CUDA
    said = json.loads((tmp_path / "run" / "status.json").read_text())
    assert said["state"] == "failed" and "out of memory. Lower" in said["error"]


def test_a_command_says_it_in_its_one_line():
    with pytest.raises(SystemExit) as caught, failures_in_one_line(command="export"):
        raise CUDA
    assert str(caught.value) == f"error: export: out of memory. {OTHERWISE}"


def test_what_to_lower_are_options_that_exist(compose):
    config = compose("recovery=idp")
    for advice in LOWER.values():
        for word in advice.translate(str.maketrans(",:", "  ")).split():
            name = word.partition("=")[0]
            if "." in name:
                node = config
                for part in name.split("."):
                    node = getattr(node, part)


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="shape"), out_of_memory_is_explained("load"):
        raise RuntimeError("shape mismatch")
    assert not lacks_memory(ValueError("document 3: 'the camp ran out of memory of better days'"))
    assert not lacks_memory(RuntimeError("CUDA error: device-side assert triggered"))
    assert not lacks_memory(OSError(errno.ENOSPC, "No space left on device"))
    assert not lacks_memory(UserError("load: out of memory. Lower something"))
