"""Named tensors as safetensors with a JSON header: no pickle, written atomically."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from stages.errors import InputError, missing
from stages.files.artifacts import atomic_path


def save_tensors(path: Path | str, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> Path:
    """Write tensors, moved to the CPU, with JSON metadata, atomically."""
    flat = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(flat, temporary, metadata={"json": json.dumps(metadata, sort_keys=True)})
    return Path(path)


def load_tensors(path: Path | str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors and the metadata that `save_tensors` wrote; a missing or damaged file raises InputError."""
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = _metadata(file.metadata())
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118 (not a mapping)
    except FileNotFoundError as error:
        raise missing(path) from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error}): it must be a file that this user may read") from error
    except SafetensorError as error:
        raise InputError(f"{path} is damaged ({error}): delete it and rerun its stage") from error
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is damaged (its JSON: {error}): delete it and rerun its stage") from error


def _metadata(header: dict[str, str] | None) -> dict[str, Any]:
    """The JSON object in a file's header; empty if there is none."""
    text = (header or {}).get("json", "{}")
    found = json.loads(text)
    if not isinstance(found, dict):
        raise json.JSONDecodeError("not an object", text, 0)
    return found


def prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under `prefix`."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def select(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names start with "PREFIX.", under the rest of their names."""
    return {name[len(prefix) + 1 :]: tensor for name, tensor in tensors.items() if name.startswith(prefix + ".")}


def shared_tensor(array: np.ndarray) -> Tensor:
    """Return a tensor that shares the memory of an array, possibly memory-mapped and read-only: only read it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(array)
