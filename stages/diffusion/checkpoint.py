"""Checkpoints of a training: its state as named tensors in a file that says to which training it belongs."""

import json
import math
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stages.errors import InputError
from stages.files.artifacts import differing
from stages.files.paths import snapshot_name
from stages.files.tensors import DamagedError, check_tensors, load_tensors, save_tensors


def save_checkpoint(folder: Path, step: int, tensors: dict[str, Tensor], identity: dict[str, Any], keep: int) -> None:
    """Write the checkpoint of a step and remove all but the last `keep`.

    identity: JSON values (settings, digests of inputs) that tell which training the checkpoint belongs to.
    """
    save_tensors(_path(folder, step), tensors, {"identity": identity, "step": step})
    for old in _all(folder)[:-keep]:
        old.unlink()


def _path(folder: Path, step: int) -> Path:
    return folder / f"checkpoint-{step:010d}.safetensors"  # the names sort by step


def _all(folder: Path) -> list[Path]:
    return sorted(folder.glob("checkpoint-*.safetensors"))


def newest(folder: Path) -> Path | None:
    """Return the checkpoint of the last step in a folder, or None."""
    return max(_all(folder), default=None)


def snapshot_path(folder: Path, step: int) -> Path:
    """Return where a training keeps the average of the weights at a step until it ends."""
    return folder / f"{snapshot_name(step)}.safetensors"


def discard_unusable(folder: Path, snapshots: Collection[int]) -> None:
    """Remove what an interrupted training cannot resume from, each with a warning, and unfinished files.

    These are damaged checkpoints and snapshots, and checkpoints past a step of `snapshots` whose file is not there.
    """
    for path in folder.glob(".*"):
        path.unlink()
    for path in sorted(folder.glob("*.safetensors")):
        try:
            check_tensors(path)
        except DamagedError as error:
            _discard(path, str(error).partition(": ")[0])
    lost = min((step for step in snapshots if not snapshot_path(folder, step).exists()), default=math.inf)
    for path in _all(folder):
        if int(path.stem.partition("-")[2]) >= lost:
            _discard(path, f"{path} lacks the snapshot of step {lost}")


def _discard(path: Path, why: str) -> None:
    print(f"warning: {why}: removed, the training resumes from an earlier step", file=sys.stderr, flush=True)
    path.unlink()


def load_checkpoint(path: Path, identity: dict[str, Any]) -> tuple[dict[str, Tensor], int]:
    """Return a checkpoint's tensors and its step.

    Raises DamagedError for a damaged file, and InputError for one of a training with another identity, naming what
    differs.
    """
    tensors, metadata = load_tensors(path)
    if "identity" not in metadata or not isinstance(metadata.get("step"), int):
        raise InputError(f"{path} is not a checkpoint of a training: remove it")
    if lines := differing(metadata["identity"], json.loads(json.dumps(identity))):
        raise InputError(
            f"{path} belongs to a training with other parameters: {'; '.join(lines)}: "
            f"restore them, or remove {path.parent} to restart from step 0"
        )
    return tensors, metadata["step"]


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return AdamW's state of each parameter, by the parameter's index."""
    state = optimizer.state_dict()["state"]
    return {f"{index}.{key}": tensor for index, slots in state.items() for key, tensor in slots.items()}


def load_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Tensor]) -> None:
    """Restore what `optimizer_tensors` returned. Raises KeyError for a missing tensor, ValueError for another shape.

    A fused optimizer reads parameters and their moments in memory order, so each moment gets its parameter's strides
    (channels_last); a file holds them contiguous.
    """
    state = {}
    for index, parameter in enumerate(p for group in optimizer.param_groups for p in group["params"]):
        state[index] = {"step": saved[f"{index}.step"]}
        for key in ("exp_avg", "exp_avg_sq"):
            moment = saved[f"{index}.{key}"]
            if moment.shape != parameter.shape:
                shapes = f"{tuple(moment.shape)}, not {tuple(parameter.shape)}"
                raise ValueError(f"{key} of parameter {index} has shape {shapes}")
            state[index][key] = torch.empty_like(parameter).copy_(moment)
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
