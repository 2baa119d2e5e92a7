"""A pretended accelerator `gpu` with several devices, so that device faults are found where there is no GPU.

Its tensors hold CPU numbers and say that they are on `gpu:0`, `gpu:1`, ...: what a GPU refuses is refused (an
operation on tensors of two devices, a generator of another device, numpy), and what makes a GPU wait is counted (a
number read back by the host, a copy between devices). Numbers are the CPU's own, so that results can be held to it.

`install` changes torch for the whole process and cannot be undone: only processes of its own call it. Its known gaps:
streams and events are not there, a kernel is chosen as on the CPU, and `torch.inference_mode` is `torch.no_grad`.

Below Python a tensor of `gpu:1` is one of `cpu:1`, which torch knows and nobody else uses: its autograd engine counts
one device for a backend that is written in Python, and runs what is on a CPU, whatever its number, in its own thread.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn.attention.bias import CausalBias
from torch.utils._device import _device_constructors
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "gpu"
GIGABYTE = 2**30

# What happened, by what it was and the line of idp that asked for it.
syncs: Counter[tuple[str, str]] = Counter()  # the host waited for the device
copies: Counter[tuple[str, str]] = Counter()  # numbers went to a device, or from one to another

# Kernels whose result has a size that the host must wait for, or that check their arguments on the host.
WAITING = {"nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "equal", "segment_reduce"}
SHAPES_ONLY = {"is_same_size"}  # nothing but shapes is looked at
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}


class Device(_DummyBackendModule):
    """`torch.gpu`: what torch and its users ask of a kind of device. `free` is each device's free memory in bytes."""

    def __init__(self, count: int):
        self.free = [16 * GIGABYTE] * count
        self.total = 16 * GIGABYTE
        self.current = 0

    def device_count(self) -> int:
        return len(self.free)

    def current_device(self) -> int:
        return self.current

    def set_device(self, device: Any) -> None:
        self.current = device if isinstance(device, int) else torch.device(device).index or 0

    def mem_get_info(self, device: Any = None) -> tuple[int, int]:
        if device is None:
            index = self.current
        else:
            index = device if isinstance(device, int) else torch.device(device).index or 0
        return self.free[index], self.total

    def memory_reserved(self, device: Any = None) -> int:
        return 0

    memory_allocated = memory_reserved

    def manual_seed(self, seed: int) -> None: ...

    def get_rng_state(self, device: Any = None) -> torch.Tensor:
        return torch.zeros(8, dtype=torch.uint8)

    def set_rng_state(self, state: torch.Tensor, device: Any = None) -> None: ...

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def empty_cache(self) -> None: ...

    def synchronize(self, device: Any = None) -> None:
        syncs["synchronize", asked_by()] += 1


OWN = ("numbers", "place")

_compatible = torch._has_compatible_shallow_copy_type


def _attributes(tensor: torch.Tensor) -> dict[str, Any]:
    return vars(torch.Tensor)["__dict__"].__get__(tensor)


class Tensor(torch.Tensor):
    """A tensor that says it is on a device of the accelerator; `numbers` is the CPU tensor that it holds."""

    numbers: torch.Tensor
    place: torch.device

    @staticmethod
    def __new__(cls, numbers: torch.Tensor, place: torch.device) -> Tensor:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            numbers.size(),
            strides=numbers.stride(),
            storage_offset=numbers.storage_offset(),
            dtype=numbers.dtype,
            layout=numbers.layout,
            device=torch.device("cpu", place.index),
        )
        made.numbers, made.place = numbers, place
        return made

    def __init__(self, *_: Any): ...

    # compressed-tensors gives a copy on another device the class and the attributes of the original. What is told here
    # is what a real tensor would tell, and what is set leaves a tensor what it is.
    __class__ = property(
        lambda self: torch.nn.Parameter if getattr(self, "_is_param", False) else torch.Tensor,
        lambda self, value: setattr(self, "_is_param", issubclass(value, torch.nn.Parameter)),
    )
    __dict__ = property(
        lambda self: {name: value for name, value in _attributes(self).items() if name not in OWN},
        lambda self, value: _attributes(self).update(value),
    )
    __torch_function__ = torch._C._disabled_torch_function_impl
    is_cpu = False

    @property
    def device(self) -> torch.device:
        return self.place

    def get_device(self) -> int:
        return self.place.index

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return run(function, args, kwargs or {})

    def __repr__(self, **_: Any) -> str:
        return f"{NAME}.Tensor({tuple(self.shape)}, {self.dtype}, {self.place})"

    @property
    def data(self) -> torch.Tensor:
        return torch.Tensor.data.__get__(self)

    @data.setter
    def data(self, value: Tensor) -> None:
        torch.Tensor.data.__set__(self, value)
        self.numbers, self.place = value.numbers, value.place  # torch itself exchanges what is below Python only

    def to(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """As torch's: itself where nothing changes, which torch cannot see from below."""
        stated = {name: value for name, value in kwargs.items() if name not in ("copy", "memory_format")}
        device, dtype, _, _ = torch._C._nn._parse_to(*args, **stated)
        same = _device(device) in (None, self.place) and dtype in (None, self.dtype)
        return self if same and not kwargs.get("copy") else torch.Tensor.to(self, *args, **kwargs)

    def tolist(self) -> Any:
        syncs["tolist", asked_by()] += 1
        return self.numbers.tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError(f"can't convert {self.place} device type tensor to numpy")

    def __array__(self, *_: Any, **__: Any) -> Any:
        return self.numpy()

    def data_ptr(self) -> int:
        return self.numbers.data_ptr()

    def untyped_storage(self) -> Any:
        return self.numbers.untyped_storage()

    def __getitem__(self, index: Any) -> torch.Tensor:
        return torch.Tensor.__getitem__(self, _as_index(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        torch.Tensor.__setitem__(self, _as_index(index), value)

    def __deepcopy__(self, memo: dict) -> Tensor:
        return memo.setdefault(id(self), self.detach().clone().requires_grad_(self.requires_grad))


class Pretending(TorchDispatchMode):
    """Within it, tensors can be made on the accelerator and moved to it."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and being kept from it costs as much as a small kernel

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return run(function, args, kwargs or {})


def install(count: int = 2) -> Device:
    """Registers the accelerator with `count` devices; returns `torch.gpu`.

    Everything that is to see it runs within `Pretending()`.
    """
    device = Device(count)
    _setup_privateuseone_for_python_backend(NAME, backend_module=device)
    _device_constructors()  # `with torch.device(...)` knows functions by name, once: before they are replaced
    torch.inference_mode = _NoGrad
    torch.tensor = _tensor_maker(torch.tensor)
    torch.as_tensor = _tensor_maker(torch.as_tensor)
    torch.nn.Module._apply = _keeping_ties(torch.nn.Module._apply)
    torch._has_compatible_shallow_copy_type = _same_kind
    CausalBias.__new__ = _made_below(CausalBias.__new__)
    torch.accelerator.current_device_index = device.current_device
    torch.accelerator.set_device_index = device.set_device
    torch.accelerator.device_count = device.device_count
    torch.accelerator.get_memory_info = device.mem_get_info
    torch.accelerator.max_memory_allocated = lambda *_: 0
    torch.accelerator.reset_peak_memory_stats = lambda *_: None
    torch.accelerator.empty_cache = device.empty_cache
    return device


def reset() -> None:
    """Forgets what was counted."""
    syncs.clear()
    copies.clear()


def asked_by() -> str:
    """The line of idp that is running, as `file:line`."""
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if "/idp/" in file and "/site-packages/" not in file:
            return f"{file.rsplit('/idp/', 1)[1]}:{frame.f_lineno}"
        frame = frame.f_back
    return "?"


def run(function: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """One operation, on the CPU's numbers, as the accelerator would take it.

    Raises:
        RuntimeError: its tensors are on several devices.
    """
    leaves = [*_tensors(args), *(_tensors(tuple(kwargs.values())) if kwargs else ())]
    ours = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    wanted = _device(kwargs.get("device"))
    if not ours and (wanted is None or wanted.type != NAME):
        if function._schema.name in ("aten::is_pinned", "aten::_pin_memory"):  # the CPU's own asks the accelerator
            return False if function._schema.name == "aten::is_pinned" else args[0].clone()
        return function(*args, **kwargs)
    name = function._schema.name.removeprefix("aten::")
    if name in ("_to_copy", "copy_"):
        _count_copy(name, args, wanted)
    elif name not in SHAPES_ONLY:
        _refuse_mixture(name, function, args, leaves, kwargs.get("generator"), wanted)
    if name in ("_local_scalar_dense", *WAITING) or (name in INDEXING and _has_mask(args[1])):
        syncs[name, asked_by()] += 1
    plain_args, plain = _numbers(args), {key: _numbers(value) for key, value in kwargs.items()}
    if wanted is not None and wanted.type == NAME:
        plain["device"] = torch.device("cpu")
    plain.pop("pin_memory", None)
    found = function(*plain_args, **plain)
    place = wanted if wanted is not None else args[0].device if name == "_to_copy" else ours[0].place
    if name == "_to_copy" and found is plain_args[0]:
        found = found.clone()
    if place.type != NAME:
        return found
    for leaf in ours if function._schema.is_mutable else ():
        if leaf.numbers is found:  # in place: the tensor itself is the answer
            return leaf

    return found if function._schema.is_mutable and name == "copy_" else _placed(found, place)


def _refuse_mixture(
    name: str, function: Any, args: tuple, leaves: list[torch.Tensor], generator: Any, wanted: torch.device | None
) -> None:
    """Raises as torch does where not all tensors of more than one number are on one device."""
    if generator is not None:
        raise RuntimeError(f"{function}: expected a '{NAME}' generator, found one for the '{generator.device.type}'")
    mixed = [leaf for leaf in leaves if isinstance(leaf, Tensor) or leaf.dim() > 0]
    if name in INDEXING:  # indices may be on the CPU, from where they are copied
        indices = [index for index in args[1] if isinstance(index, torch.Tensor) and not isinstance(index, Tensor)]
        if indices and isinstance(args[0], Tensor):
            copies["index", asked_by()] += len(indices)
        taken = {id(index) for index in indices}
        mixed = [leaf for leaf in mixed if id(leaf) not in taken]
    devices = {str(leaf.device) for leaf in mixed}
    if wanted is None and len(devices) > 1:
        raise RuntimeError(
            f"{function}: expected all tensors to be on the same device, found {' and '.join(sorted(devices))}, asked"
            f" by {asked_by()}"
        )


def _count_copy(name: str, args: tuple, wanted: torch.device | None) -> None:
    """Counts what a copy makes the host wait for; one within a device is none."""
    if name == "copy_":
        to, source = args[0].device, args[1].device
    else:
        source = args[0].device
        to = wanted if wanted is not None else source
    if source == to:
        return
    if to.type == NAME:
        copies[f"{source.type} to {to.type}", asked_by()] += 1
    else:
        syncs["to the host", asked_by()] += 1


def _has_mask(indices: Any) -> bool:
    return any(isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8) for index in indices)


# An operation's arguments and results are tensors, and lists and tuples of them: torch's own trees take as long to
# look through as a small operation.


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _numbers(value: Any) -> Any:
    if type(value) is Tensor:
        return value.numbers
    return type(value)(map(_numbers, value)) if type(value) in (list, tuple) else value


def _placed(value: Any, place: torch.device) -> Any:
    if isinstance(value, torch.Tensor):
        return value if type(value) is Tensor else Tensor(value, place)
    return type(value)(_placed(each, place) for each in value) if type(value) in (list, tuple) else value


def _device(asked: Any) -> torch.device | None:
    """The device with its number, under the name that it has above."""
    if asked is None:
        return None
    device = torch.device(asked)
    if device.type == NAME and device.index is None:
        return torch.device(NAME, torch.gpu.current_device())
    return torch.device(NAME, device.index) if device.type == "cpu" and device.index is not None else device


def _as_index(index: Any) -> Any:
    """An index whose lists are tensors: torch makes them on the tensor's device itself, below what can be seen here."""
    if isinstance(index, tuple):
        return tuple(map(_as_index, index))
    return torch.tensor(index) if isinstance(index, list) else index


class _NoGrad(torch.no_grad):
    """In place of `torch.inference_mode`, whose tensors a wrapper cannot be."""

    def __new__(cls, mode: Any = True) -> Any:
        return (
            super().__new__(cls) if mode is True else torch.no_grad()(mode) if callable(mode) else torch.enable_grad()
        )


def _tensor_maker(made: Callable) -> Callable:
    """`torch.tensor` and `torch.as_tensor`, which fill a device below what a dispatch mode sees."""

    def make(data: Any, *, dtype: Any = None, device: Any = None, **more: Any) -> torch.Tensor:
        wanted = _device(device)
        if isinstance(data, Tensor):
            return data.to(device=wanted, dtype=dtype)
        if wanted is None or wanted.type != NAME:
            return made(data, dtype=dtype, device=device, **more)
        return made(data, dtype=dtype).to(wanted)

    return make


def _made_below(new: Callable) -> Callable:
    """A subclass's `__new__` that fills itself with an empty tensor, which must not be one of a dispatch mode's."""

    def made(cls: type, *_: Any, **__: Any) -> torch.Tensor:
        with _disable_current_modes():
            return new(cls)

    return made


def _same_kind(input: torch.Tensor, from_: torch.Tensor) -> bool:
    """Whether a parameter can be given the other's data; asked by `Module._apply`."""
    return not isinstance(input, Tensor) and not isinstance(from_, Tensor) and _compatible(input, from_)


def _keeping_ties(apply: Callable) -> Callable:
    """`Module._apply`, which makes two parameters of a tied one where it cannot exchange the data of the one."""
    depth = 0

    def applied(self: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.nn.Module:
        nonlocal depth
        shared: dict[int, list[tuple[torch.nn.Module, str]]] = {}
        if depth == 0:
            for module in self.modules():
                for name, parameter in module._parameters.items():
                    if parameter is not None:
                        shared.setdefault(id(parameter), []).append((module, name))
        depth += 1
        try:
            apply(self, *args, **kwargs)
        finally:
            depth -= 1
        for (first, its), *others in shared.values():
            for module, name in others:
                module._parameters[name] = first._parameters[its]
        return self

    return applied
