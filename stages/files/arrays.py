"""Named arrays of numbers in one .npz file, written atomically and read without pickle."""

from pathlib import Path

import numpy as np

from stages.files.artifacts import atomic_path

Arrays = dict[str, np.ndarray]


def write_arrays(path: Path | str, arrays: Arrays) -> Path:
    """Write numbers and booleans of any shapes."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)
    return Path(path)


def read_arrays(path: Path | str) -> Arrays:
    """Read what `write_arrays` wrote."""
    with np.load(path, allow_pickle=False) as archive:
        return dict(archive)
