"""Named tensors as safetensors with a JSON header and a digest of the whole file: no pickle, written atomically."""

import hashlib
import json
import re
import warnings
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from stages.errors import InputError, missing
from stages.files.artifacts import atomic_path

OWN, UNKNOWN = "file_sha256", "0" * 64
"""The entry of the JSON header that holds the digest of the file, and what stands there while it is computed."""

LONGEST_HEADER = 100_000_000
"""Bytes of the longest header that safetensors reads."""

_RECORDED = re.compile(rb'\\"file_sha256\\": \\"([0-9a-f]{64})\\"')


class DamagedError(InputError):
    """A file of tensors is not, bit for bit, what was written."""


def save_tensors(path: Path | str, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> Path:
    """Write tensors, moved to the CPU, with JSON metadata and the file's own digest, atomically."""
    flat = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(flat, temporary, metadata={"json": json.dumps({**metadata, OWN: UNKNOWN}, sort_keys=True)})
        with temporary.open("rb+") as file:
            place, _, digest = _own_digest(file)
            file.seek(place)
            file.write(digest)
    return Path(path)


def load_tensors(path: Path | str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors and the metadata that `save_tensors` wrote. Raises as `check_tensors` does."""
    check_tensors(path)
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = json.loads(file.metadata()["json"])
            del metadata[OWN]
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118 (not a mapping)
    except SafetensorError as error:
        raise _damaged(path, error) from error


def check_tensors(path: Path | str) -> None:
    """Raise InputError for a missing or unreadable file, DamagedError for one with any other bit than was written."""
    try:
        with open(path, "rb") as file:
            _, recorded, digest = _own_digest(file)
    except FileNotFoundError as error:
        raise missing(path) from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error}): it must be a file that this user may read") from error
    if recorded != digest:
        raise _damaged(path, "its sha256 differs")


def _damaged(path: Path | str, why: object) -> DamagedError:
    return DamagedError(f"{path} is damaged ({why}): delete it and rerun its stage")


def _own_digest(file: BinaryIO) -> tuple[int, bytes, bytes]:
    """Return where in a file the digest of its other bytes lies, the digest that lies there, and the right one.

    Both as hexadecimal sha256, in which the place itself counts as UNKNOWN. Raises DamagedError.
    """
    length = file.read(8)
    header = file.read(min(int.from_bytes(length, "little"), LONGEST_HEADER))
    match = _RECORDED.search(header)
    if match is None:
        raise _damaged(file.name, "it holds no digest of itself")
    start, stop = match.span(1)
    rest = length + header[:start] + UNKNOWN.encode() + header[stop:]
    digest = hashlib.file_digest(file, lambda: hashlib.sha256(rest)).hexdigest()
    return len(length) + start, match[1], digest.encode()


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
