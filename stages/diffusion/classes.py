"""The classes of a class-conditional network: which there are, and which one a sample belongs to."""

import numpy as np

from stages.errors import InputError


def class_list(labels: np.ndarray, key: str) -> list[int]:
    """Return the distinct labels of the training images, ascending.

    labels: int64 (M,), -1 where there is none, which raises InputError naming `key`, the parameter that needs them.
    """
    if unlabelled := int((labels < 0).sum()):
        raise InputError(
            f"{key}: {unlabelled} of {len(labels)} training images have no label: remove it, or ingest a source with "
            "classes"
        )
    return np.unique(labels).tolist()


def places(labels: np.ndarray, classes: list[int]) -> np.ndarray:
    """Return the place of each label in `classes`, ascending, int64. A label that is not there raises InputError."""
    if wrong := sorted(set(labels.tolist()) - set(classes)):
        raise InputError(f"label {wrong[0]} is not one of the classes {classes} of the training: rerun its train stage")
    return np.searchsorted(classes, labels).astype(np.int64)


def sample_labels(classes: list[int], count: int) -> np.ndarray:
    """Return the labels of samples 0..count-1, int64: the classes in turn, so that all have as many, to one."""
    return np.asarray(classes, np.int64)[np.arange(count) % len(classes)]


def most_frequent(places: np.ndarray) -> int:
    """Return the place that most images have, the first one of several."""
    return int(np.bincount(places).argmax())
