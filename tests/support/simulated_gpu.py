"""A GPU for tests on machines without one: tensors that compute on the CPU and say that they are on "cuda:0".

    with simulated_gpu():
        x = torch.ones(3, device="cuda")
        x + torch.ones(3)   # RuntimeError, as on a GPU: tensors on two devices
        x.numpy()           # TypeError, as on a GPU

What it finds: tensors that were not moved, arrays taken of a GPU's tensor, and branches for GPUs that compute
something else. What it cannot find: kernels that CUDA lacks or that differ, memory, speed.
"""

import contextlib
import itertools
import types
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
MEMORY = 1 << 36
_MAY_MIX = {"copy_", "__getitem__", "__setitem__", "index_put_", "index_put", "to", "type_as", "set_"}
_TO_CPU = {"item", "tolist", "__float__", "__int__", "__bool__", "__index__", "__len__", "__repr__", "__format__"}


class OnGpu(torch.Tensor):
    """A tensor that says it is on the GPU."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return _call(func, args, kwargs or {})

    def __deepcopy__(self, memo: dict) -> "OnGpu":
        if id(self) not in memo:
            copied = self.detach().clone()
            memo[id(self)] = (
                torch.nn.Parameter(copied, self.requires_grad) if isinstance(self, torch.nn.Parameter) else copied
            )
        return memo[id(self)]


class _Mode(TorchFunctionMode):
    """Catches what has no tensor of the GPU among its arguments: factories and moves."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return _call(func, args, kwargs or {})


def _call(func: Any, args: tuple, kwargs: dict) -> Any:
    name = _name(func)
    tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, torch.Tensor)]
    there = any(isinstance(value, OnGpu) for value in tensors)
    if there and func in _ATTRIBUTES:
        return _ATTRIBUTES[func]
    if there and name in ("numpy", "__array__"):
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")
    if name == "pin_memory":
        return args[0]
    if name == "_has_compatible_shallow_copy_type":  # Module.to then makes new parameters
        return isinstance(args[0], OnGpu) == isinstance(args[1], OnGpu)
    args, kwargs, asked = _without_device(name, args, kwargs)
    _check(name, tensors)
    with torch._C.DisableTorchFunctionSubclass(), torch._C.DisableTorchFunction():
        result = func(*args, **kwargs)
    if name in _TO_CPU:
        return result
    if asked is None and name == "to" and len(args) > 1 and isinstance(args[1], torch.Tensor):
        there = isinstance(args[1], OnGpu)
    elif asked is None and name in ("copy_", "__setitem__", "set_"):
        there = isinstance(args[0], OnGpu)
    elif asked is not None:
        there = asked.type == "cuda"
    return tree_map(lambda value: _place(value, there), result)


def _name(func: Any) -> str:
    return getattr(func, "__name__", str(func))


def _without_device(name: str, args: tuple, kwargs: dict) -> tuple[tuple, dict, torch.device | None]:
    """The arguments without a device, and which one was asked for."""
    asked = None
    if name == "cpu":
        return args, kwargs, CPU
    if name == "cuda":
        raise AssertionError("write .to(device): Tensor.cuda() works on no other")
    if kwargs.get("device") is not None:
        asked = torch.device(kwargs["device"])
        kwargs = {**kwargs, "device": CPU}
    if name in ("to", "_to", "parse_to"):
        places = [value for value in args[1:] if isinstance(value, str | torch.device)]
        if places:
            asked = torch.device(places[0])
            args = tuple(CPU if isinstance(value, str | torch.device) else value for value in args)
    return args, kwargs, asked


def _check(name: str, tensors: list[torch.Tensor]) -> None:
    """CUDA's rule: one device for all; a CPU tensor without dimensions may take part as a number."""
    there = [value for value in tensors if isinstance(value, OnGpu)]
    with torch._C.DisableTorchFunctionSubclass(), torch._C.DisableTorchFunction():
        here = [value for value in tensors if not isinstance(value, OnGpu) and value.dim() > 0]
        numbers_only = all(value.dim() == 0 for value in there) and any(value.dim() for value in tensors)
    if not there or name in ("copy_", "to", "type_as", "set_", "__get__", "__set__"):
        return
    if name in _MAY_MIX and isinstance(tensors[0], OnGpu):
        return  # a GPU's tensor may be indexed by the CPU's
    if here:
        kind = "the GPU's numbers" if numbers_only else "the GPU's tensors"
        raise RuntimeError(f"Expected all tensors to be on the same device: {name} got {kind} and {here[0].shape}, cpu")


def _place(value: Any, there: bool) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    with torch._C.DisableTorchFunctionSubclass(), torch._C.DisableTorchFunction():
        if there and not isinstance(value, OnGpu):
            return value.as_subclass(OnGpu)
        if not there and isinstance(value, OnGpu):
            return value.as_subclass(torch.Tensor)
    return value


_ATTRIBUTES = {
    torch.Tensor.device.__get__: GPU,
    torch.Tensor.is_cuda.__get__: True,
    torch.Tensor.is_cpu.__get__: False,
    torch.Tensor.get_device: 0,
}


@contextlib.contextmanager
def simulated_gpu() -> Iterator[None]:
    """torch sees one GPU within. Autocast for it is the CPU's, since that is what computes."""
    autocast = torch.autocast
    properties = types.SimpleNamespace(total_memory=MEMORY, name="simulated")
    clock = itertools.count()
    patches = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "is_bf16_supported": lambda including_emulation=True: True,
        "get_device_properties": lambda device=None: properties,
        "get_device_name": lambda device=None: properties.name,
        "synchronize": lambda device=None: None,
        "set_device": lambda device: None,
        "reset_peak_memory_stats": lambda device=None: None,
        "memory_allocated": lambda device=None: next(clock),
        "max_memory_allocated": lambda device=None: next(clock),
    }
    with contextlib.ExitStack() as stack:
        for name, value in patches.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, value))
        stack.enter_context(
            mock.patch.object(torch, "autocast", lambda kind, *rest, **more: autocast("cpu", *rest, **more))
        )
        stream = types.SimpleNamespace(is_capturing=lambda: False)
        stack.enter_context(mock.patch.object(torch.accelerator, "current_stream", return_value=stream))
        stack.enter_context(_Mode())
        yield
