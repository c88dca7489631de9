"""The state of a training as named tensors, and the files in which its checkpoints lie."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stages.files.tensors import select


def module_tensors(module: torch.nn.Module, prefix: str) -> dict[str, Tensor]:
    """A module's parameters and buffers under `prefix`."""
    return {f"{prefix}.{name}": tensor for name, tensor in module.state_dict().items()}


def optimizer_tensors(optimizer: torch.optim.Optimizer, prefix: str) -> dict[str, Tensor]:
    """An optimizer's per-parameter state under `prefix`, by the parameter's index."""
    state = optimizer.state_dict()["state"]
    return {f"{prefix}.{index}.{key}": tensor for index, slots in state.items() for key, tensor in slots.items()}


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], prefix: str) -> None:
    """Restore what `optimizer_tensors` took.

    A fused optimizer walks parameters and their moments in memory order, so each moment gets its parameter's strides
    (channels_last); a file holds them contiguous.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in select(tensors, prefix).items():
        index, key = name.split(".", 1)
        like = parameters[int(index)]
        if tensor.shape == like.shape:
            tensor = torch.empty_like(like, dtype=tensor.dtype, device=tensor.device).copy_(tensor)
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def newest(folder: Path) -> Path | None:
    """The checkpoint of the last step in a folder, or None."""
    return max(folder.glob("checkpoint-*.safetensors"), default=None)


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies; the names sort by step."""
    return folder / f"checkpoint-{step:010d}.safetensors"


def rotate(folder: Path, keep: int) -> None:
    """Remove all but the last `keep` checkpoints."""
    for path in sorted(folder.glob("checkpoint-*.safetensors"))[:-keep]:
        path.unlink()


def differing(saved: Any, wanted: Any, prefix: str = "") -> list[str]:
    """What differs between two trees of JSON values: "KEY SAVED there, WANTED here" for every dotted key."""
    if isinstance(saved, dict) and isinstance(wanted, dict):
        keys = [*wanted, *(key for key in saved if key not in wanted)]
        absent = "nothing"
        return [
            line
            for key in keys
            for line in differing(saved.get(key, absent), wanted.get(key, absent), f"{prefix}.{key}" if prefix else key)
        ]
    return [] if saved == wanted else [f"{prefix} {json.dumps(saved)} there, {json.dumps(wanted)} here"]
