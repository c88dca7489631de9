"""Weights and training state as safetensors with a JSON header: no pickle, written atomically."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from stages.artifacts import atomic_path
from stages.errors import InputError


def save_tensors(path: Path | str, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> Path:
    """Write tensors (moved to the CPU) with JSON metadata, atomically."""
    flat = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(flat, temporary, metadata={"json": json.dumps(metadata, sort_keys=True)})
    return Path(path)


def load_tensors(path: Path | str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_tensors` wrote; a missing or damaged file raises InputError naming it."""
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = _metadata(file.metadata())
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118 (not a mapping)
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing: run the stage that writes it (dvc repro)") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error}): it must be a file that this user may read") from error
    except SafetensorError as error:
        raise InputError(f"{path} is damaged ({error}): delete it and rerun its stage") from error
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is damaged (its JSON: {error}): delete it and rerun its stage") from error


def _metadata(header: dict[str, str] | None) -> dict[str, Any]:
    """The JSON object in a file's header; none there: empty."""
    text = (header or {}).get("json", "{}")
    found = json.loads(text)
    if not isinstance(found, dict):
        raise json.JSONDecodeError("not an object", text, 0)
    return found


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


def select(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors under `prefix`, without it."""
    return {name[len(prefix) + 1 :]: tensor for name, tensor in tensors.items() if name.startswith(prefix + ".")}


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
