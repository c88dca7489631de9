"""The feature stage: do the features of an image and of its match agree? Only what is asked about is embedded."""

import dataclasses

import numpy as np

from stages.auditing.embedding import Embedder
from stages.auditing.matching import Reference, mirrored

OWN = 5  # nearest training images, by pixels, that the match's own feature distance is taken to, besides the sample


@dataclasses.dataclass(frozen=True)
class KnownFeatures:
    """Features of a drawn part of the reference: float32 (R, D), and which rows of the reference they are."""

    rows: np.ndarray
    features: np.ndarray


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


@dataclasses.dataclass(frozen=True)
class Answers:
    """Of P pairs, float64 (P,).

    Attributes:
        distance: ‖φ(x̂) − φ(x)‖ of the pair.
        spacing: least ‖φ(x) − φ(x_j)‖ over the compared training images j ≠ x.
        spacing_grouped: the same over those that are not in x's duplicate group.
    """

    distance: np.ndarray
    spacing: np.ndarray
    spacing_grouped: np.ndarray


def expected_images(pairs: int) -> int:
    """How many images `ask` embeds at most for so many pairs."""
    return pairs * (2 + 2 * OWN)


def ask(
    questions: Questions,
    images: np.ndarray,
    ids: list[str],
    reference: Reference,
    reference_ids: list[str],
    known: KnownFeatures,
    embedder: Embedder,
    budget: int,
) -> Answers:
    """Embed the pairs, and the training images that each match is compared with, and measure.

    Compared are the OWN nearest by pixels, the OWN nearest outside the duplicate group, and all of `known`. So the
    spacing is an upper bound of the one over all training images, and equals it where `known` is all of them.
    """
    if len(questions) == 0:
        nothing = np.zeros(0)
        return Answers(nothing, nothing, nothing)
    rows, at = np.unique(questions.row, return_inverse=True)
    neighbors = _own_neighbors(rows, reference, budget)
    needed = np.unique(np.concatenate([rows, neighbors[neighbors >= 0]]))
    names = [reference_ids[row] for row in needed]
    train = embedder.remembering(reference.images[needed], names).astype(np.float64)
    own = train[np.searchsorted(needed, rows)]
    spacing, grouped = np.empty(len(rows)), np.empty(len(rows))
    for number, row in enumerate(rows):
        near = neighbors[number][neighbors[number] >= 0]
        others = np.concatenate([near, known.rows])
        vectors = np.concatenate([train[np.searchsorted(needed, near)], known.features])
        distance = np.sqrt(np.square(vectors - own[number]).sum(1))
        spacing[number] = distance[others != row].min(initial=np.inf)
        grouped[number] = distance[reference.group[others] != reference.group[row]].min(initial=np.inf)
    features = _query_features(questions, images, ids, embedder)
    return Answers(np.sqrt(np.square(features - own[at]).sum(1)), spacing[at], grouped[at])


def _own_neighbors(rows: np.ndarray, reference: Reference, budget: int) -> np.ndarray:
    """The OWN nearest rows, then the OWN nearest outside the group, of every row; −1 fills up; int64 (R, 2·OWN)."""
    index, _ = reference.neighbors(rows, budget)
    foreign = reference.group[index] != reference.group[rows][:, None]
    order = np.argsort(~foreign, axis=1, kind="stable")
    outside = np.where(np.take_along_axis(foreign, order, 1), np.take_along_axis(index, order, 1), -1)
    chosen = np.full((len(rows), 2 * OWN), -1, np.int64)
    width = min(OWN, index.shape[1])
    chosen[:, :width], chosen[:, OWN : OWN + width] = index[:, :width], outside[:, :width]
    return chosen


def _query_features(questions: Questions, images: np.ndarray, ids: list[str], embedder: Embedder) -> np.ndarray:
    """φ of each pair's image as it was matched, float64 (P, D); each distinct one embedded once."""
    keys, back = np.unique(2 * questions.query + questions.mirrored, return_inverse=True)
    pixels, names = images[keys // 2], [ids[key // 2] + ("|" * (key % 2)) for key in keys]
    turned = np.flatnonzero(keys % 2)
    pixels[turned] = mirrored(pixels[turned])
    return embedder.remembering(pixels, names).astype(np.float64)[back]
