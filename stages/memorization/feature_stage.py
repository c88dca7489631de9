"""The second stage: do the features of an image and of its match agree? Only the images in question are embedded."""

import dataclasses
from collections.abc import Callable

import numpy as np

from stages.memorization.matching import Reference

OWN = 5  # nearest training images, by pixels, whose features a match is compared with, besides the drawn ones


@dataclasses.dataclass(frozen=True)
class Questions:
    """P pairs: image `query` (mirrored or not) and reference row `row`; int64, bool, int64 (P,)."""

    query: np.ndarray
    mirrored: np.ndarray
    row: np.ndarray

    def __len__(self) -> int:
        return len(self.query)

    @classmethod
    def join(cls, a: "Questions", b: "Questions") -> "Questions":
        """One after the other."""
        return cls(*(np.concatenate([getattr(a, n), getattr(b, n)]) for n in ("query", "mirrored", "row")))


def expected_images(pairs: int) -> int:
    """Return how many images the answers to `pairs` questions need at most."""
    return pairs * (2 + 2 * OWN)


def answer(
    questions: Questions,
    features: np.ndarray,
    reference: Reference,
    features_of: Callable[[np.ndarray], np.ndarray],
    compared: np.ndarray,
    known: np.ndarray,
) -> np.ndarray:
    """Measure the pairs in feature space.

    Args:
        features: float64 (P, D), φ(x̂) of each pair's image as it was matched.
        features_of: rows of the reference → φ, float64 (R, D).
        compared: `compared_rows` of the distinct matches, ascending.
        known: int64, further rows that every match is compared with.

    Returns:
        float64 (3, P): ‖φ(x̂) − φ(x)‖; the least ‖φ(x) − φ(x_j)‖ over the compared training images j ≠ x; and over
        those outside x's duplicate group. The latter two are upper bounds of the distances to the nearest of all
        training images, and equal them where `known` is all of them.
    """
    rows, at = np.unique(questions.row, return_inverse=True)
    own, others_known = features_of(rows), features_of(known)
    spacing, grouped = np.empty(len(rows)), np.empty(len(rows))
    for number, row in enumerate(rows):
        near = compared[number][compared[number] >= 0]
        others = np.concatenate([near, known])
        vectors = np.concatenate([features_of(near), others_known])
        distance = np.sqrt(np.square(vectors - own[number]).sum(1))
        spacing[number] = distance[others != row].min(initial=np.inf)
        grouped[number] = distance[reference.group[others] != reference.group[row]].min(initial=np.inf)
    return np.stack([np.sqrt(np.square(features - own[at]).sum(1)), spacing[at], grouped[at]])


def compared_rows(rows: np.ndarray, reference: Reference) -> np.ndarray:
    """Return each row's OWN nearest rows, then its OWN nearest outside its group, −1 filling up: int64 (R, 2·OWN)."""
    index, _ = reference.neighbors(rows)
    foreign = reference.group[index] != reference.group[rows][:, None]
    order = np.argsort(~foreign, axis=1, kind="stable")
    outside = np.where(np.take_along_axis(foreign, order, 1), np.take_along_axis(index, order, 1), -1)
    chosen = np.full((len(rows), 2 * OWN), -1, np.int64)
    width = min(OWN, index.shape[1])
    chosen[:, :width], chosen[:, OWN : OWN + width] = index[:, :width], outside[:, :width]
    return chosen
