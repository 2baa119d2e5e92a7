"""Out of memory is said with its stage and what to lower; other errors pass."""

import pytest
import torch

from idp.errors import LOWER, UserError, out_of_memory_is_explained


@pytest.mark.parametrize("stage", LOWER)
@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:75] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_it_says_the_stage_and_what_to_lower(stage, error):
    with pytest.raises(UserError, match=f"{stage}: out of memory. Lower ") as caught, out_of_memory_is_explained(stage):
        raise error
    assert LOWER[stage] in str(caught.value)


def test_what_to_lower_are_options_that_exist(compose):
    config = compose("recovery=prompt")
    for advice in LOWER.values():
        for word in advice.replace(",", " ").split():
            name = word.partition("=")[0]
            if "." in name:
                node = config
                for part in name.split("."):
                    node = getattr(node, part)


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="shape"), out_of_memory_is_explained("load"):
        raise RuntimeError("shape mismatch")
