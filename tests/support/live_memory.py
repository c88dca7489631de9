"""How much memory torch's tensors take at most, counted storage by storage: the same on every machine."""

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten


class LiveMemory(TorchDispatchMode):
    """Within it, `peak` is the most bytes that tensors made within it have taken together."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._storages: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        before = {value.untyped_storage()._cdata for value in _tensors((args, kwargs))}
        for value in _tensors(result):
            storage = value.untyped_storage()
            if storage._cdata not in before | self._storages:
                self._add(storage._cdata, storage.nbytes(), storage)
        return result

    def _add(self, key: int, size: int, storage: Any) -> None:
        def release() -> None:
            self._storages.discard(key)
            self.now -= size

        self._storages.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, release)


def _tensors(values: Any) -> list[torch.Tensor]:
    return [value for value in tree_flatten(values)[0] if isinstance(value, torch.Tensor)]
