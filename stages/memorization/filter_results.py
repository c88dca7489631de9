"""What the filter stage makes of its searches: flags, thresholds, the tables of pairs, and what people decided."""

import dataclasses
import functools
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.spatial.distance import cdist

from stages.errors import InputError
from stages.files.arrays import read_arrays
from stages.files.features import read_features
from stages.files.images import ImageTable
from stages.files.neighbors import read_neighbors
from stages.files.paths import features_of, images_of, neighbors_of
from stages.images.sharpness import roughness, total_variation
from stages.memorization.calibrated_metrics import Nearness, blends, calibrated_table
from stages.memorization.calibrated_rates import limit
from stages.memorization.embedded import FIRST
from stages.memorization.groups import find_duplicates
from stages.memorization.judge import Suspects
from stages.memorization.leaks import Leak, check_leaks, find_leaks
from stages.memorization.matching import Matches, Reference, join, whole_reference, with_groups
from stages.memorization.metrics import (
    FeatureDistances,
    Flags,
    Rules,
    Searched,
    calibrated_by,
    definitions,
    distance_summary,
    grouped_flags,
    metrics_table,
    published_flags,
    ratio_summary,
)
from stages.memorization.pairs import (
    basic_columns,
    match_columns,
    nullable,
    score_columns,
    sorted_pairs,
    training_image,
)
from stages.memorization.pictures import Pair, draw_pairs, spread_rows
from stages.memorization.quality import Looks, broken
from stages.memorization.quality_rule import QualityRule
from stages.memorization.ratios import rho
from stages.memorization.thresholds import COPY_CAP, Thresholds
from stages.memorization.verdicts import Evidence, decide, ratio_rules
from stages.memorization.vocabulary import COPIED, VERDICTS
from stages.search.pixel_distance import pixel_distance, squared_radius

LISTED = 10  # nearest training images that are listed of each of the FIRST samples
BLOCK = 4096  # training images whose features are in memory in float64 at once


def _only(found: Any, kept: np.ndarray) -> Any:
    """Return a dataclass of arrays (N, ...), or of such dataclasses, with the rows that are kept."""
    values = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
    rows = {name: value[kept] for name, value in values.items() if isinstance(value, np.ndarray)}
    parts = {name: _only(value, kept) for name, value in values.items() if dataclasses.is_dataclass(value)}
    return dataclasses.replace(found, **rows, **parts)


@dataclasses.dataclass(frozen=True)
class Measured:
    """A set, searched.

    Attributes:
        searched: its matches and scores.
        features: of its candidates and their nearest training images.
        sharpness, roughness: float64 (N,), of every image (stages.images.sharpness).
    """

    searched: Searched
    features: FeatureDistances
    sharpness: np.ndarray
    roughness: np.ndarray

    def flags(self, thresholds: Thresholds, rules: Rules) -> Flags:
        """Every metric's flags."""
        published = published_flags(self.searched, self.features, rules)
        return published | grouped_flags(self.searched, thresholds, rules)

    def only(self, kept: np.ndarray) -> "Measured":
        """The images that are kept, bool (N,)."""
        return _only(self, kept)

    @property
    def looks(self) -> Looks:
        """What says whether the images are broken."""
        nearest = self.searched.matches.index[:, 0]
        return Looks(nearest, self.searched.distance, self.searched.matches.hull, self.sharpness, self.roughness)

    def nearness(self, below: float) -> Nearness:
        """How near the images lie to the training set; copies are those whose r₁/r₂ is `below`."""
        found = self.searched.scores
        return Nearness(
            self.searched.distance, self.searched.matches.hull, (found.ratio < below) | (found.ratio_grouped < below)
        )


def grouped_reference(parts: Sequence[Path], train: ImageTable) -> Reference:
    """The training images with their duplicate groups and neighbours. parts: files of `neighbors.own_neighbors`."""
    own = join([read_arrays(part) for part in parts])
    group = find_duplicates(train.ids, own, train.dimension).group
    return whole_reference(train.images, group, (own["index"], own["squared"]))


def unseen(
    parts: Sequence[Path], images: ImageTable, reference: Reference, train: ImageTable, within: float
) -> tuple[np.ndarray, list[Leak]]:
    """Return which held-out images are not training images, bool (N,), and those that are.

    The audit's rule, and for changed copies r₁ below a third of the distance to the next group, too, and the image or
    its mirror image `within` this pixel distance of its match: what is near by otherwise is alike, such as two digits
    1. Raises InputError where most of the images are training images.
    """
    found = join([read_arrays(part) for part in parts])
    matches = Matches(**with_groups(found, images.images, reference), dimension=train.dimension)
    searched = Searched.of(matches, 100.0)
    nearest = np.minimum(matches.squared[:, 0], matches.mirrored_squared[:, 0])
    outstanding = (searched.scores.ratio_grouped < COPY_CAP) & (nearest <= squared_radius(within, matches.dimension))
    leaked, leaks = find_leaks(searched, images.ids.__getitem__, train.ids.__getitem__, outstanding)
    check_leaks(leaks, len(images), str(images_of("holdout")))
    return ~leaked, leaks


def first_stage(parts: Sequence[Path], kept: np.ndarray, rules: Rules) -> float | None:
    """Return the ρ below which images are candidates, from the held-out images that are kept; None: each set's own."""
    squared = np.concatenate([read_arrays(part)["squared"] for part in parts])[kept]
    return limit(rho(squared), rules.percentile / 100) if rules.percentile_of == "holdout" else None


def measure(
    parts: Sequence[Path],
    embedded: Sequence[Path],
    images: ImageTable,
    reference: Reference,
    train: ImageTable,
    rules: Rules,
    threshold: float | None,
) -> Measured:
    """Join the parts of a search, `matching.match`, and those of the features of some rows.

    embedded: files with feature, feature_row and feature_made, the JSON of their making; threshold: what `first_stage`
    returns. Raises ArithmeticError for a candidate without features.
    """
    found = join([read_arrays(part) for part in parts])
    known = join([read_arrays(part) for part in embedded])
    rows, features, made = known["feature_row"], known["feature"], known["feature_made"]
    matches = Matches(**with_groups(found, images.images, reference), dimension=train.dimension)
    searched = Searched.of(matches, rules.percentile, threshold)
    references, spacing = _train_features([json.loads(text) for text in made], train)
    wanted = searched.candidate[rows]
    if wanted.sum() < searched.candidate.sum():
        raise ArithmeticError(f"{searched.candidate.sum() - wanted.sum()} candidates have no features")
    rows, features = rows[wanted], features[wanted]
    nearest, distances = matches.index[rows, 0], np.full((2, len(images)), np.nan)
    difference = features.astype(np.float64) - references[nearest].astype(np.float64)
    distances[0, rows], distances[1, rows] = np.linalg.norm(difference, axis=1), spacing[nearest]
    looks = total_variation(images.images), roughness(images.images)
    return Measured(searched, FeatureDistances(*distances), *looks)


def _train_features(made: list[dict[str, Any]], train: ImageTable) -> tuple[np.ndarray, np.ndarray]:
    """The training images' features (M, D) and each one's distance to the nearest other, made as `made` says."""
    features, neighbors = read_features(features_of("train")), read_neighbors(neighbors_of("feature"))
    for table, path, stage in (
        (features, features_of("train"), "embed"),
        (neighbors, neighbors_of("feature"), "index"),
    ):
        if table.ids != train.ids:
            raise InputError(f"{path} does not hold {images_of('train')}, row by row: rerun stage {stage}")
    if neighbors.nn_distance is None:
        raise InputError(f"{neighbors_of('feature')} has no column nn_distance: rerun stage index")
    for metadata in made:
        differing = sorted(key for key in metadata if metadata[key] != features.metadata.get(key))
        if differing:
            key = differing[0]
            raise InputError(
                f"{features_of('train')} was made with {key} {features.metadata.get(key)!r}, the samples' "
                f"features with {metadata[key]!r}: rerun stages embed and filter on the same kind of device"
            )
    return features.features, neighbors.nn_distance


def first_neighbors(parts: Sequence[Path], matches: Matches) -> pa.Table:
    """Return the nearest training images of the first samples, in pixels and in features: LISTED of FIRST samples.

    parts: those of the features. Columns: sample_index; space, "pixel", or "feature" where the sample's features are
    known; rank from 1; train_index; distance, in pixels as `pixel_distance`, in features Euclidean.
    """
    pixels = zip(matches.index[:FIRST, :LISTED], pixel_distance(matches.squared[:FIRST, :LISTED], matches.dimension))
    lists = [(sample, "pixel", *found) for sample, found in enumerate(pixels)]
    if known := _first_features(parts):
        train, samples = read_features(features_of("train")).features, np.array(list(known.values()))
        blocks = [cdist(samples, train[start : start + BLOCK]) for start in range(0, len(train), BLOCK)]
        for sample, distance in zip(known, np.concatenate(blocks, axis=1)):
            nearest = np.argsort(distance, kind="stable")[:LISTED]
            lists.append((sample, "feature", nearest, distance[nearest]))
    names = ("sample_index", "space", "rank", "train_index", "distance")
    rows = [
        (sample, space, rank, int(row), float(distance))
        for sample, space, *found in lists
        for rank, (row, distance) in enumerate(zip(*found), 1)
    ]
    return pa.table(dict(zip(names, map(list, zip(*rows)))))


def _first_features(parts: Sequence[Path]) -> dict[int, np.ndarray]:
    """Return the features of those of the first samples that have any, by sample."""
    arrays = join([read_arrays(part) for part in parts])
    found = {int(row): feature for row, feature in zip(arrays["feature_row"], arrays["feature"]) if row < FIRST}
    return dict(sorted(found.items()))


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The samples beside the held-out images, under the same rules; these set the thresholds of ρ*.

    copied_below: the r₁/r₂ below which an image is a copy and no blend.
    """

    samples: Measured
    holdout: Measured
    rules: Rules
    copied_below: float

    @functools.cached_property
    def thresholds(self) -> Thresholds:
        """Thresholds of ρ*."""
        return calibrated_by(self.holdout.searched, self.rules.percentile)

    @functools.cached_property
    def flags(self) -> Flags:
        """Every metric's flags of the samples."""
        return self.samples.flags(self.thresholds, self.rules)

    @property
    def _calibrated(self) -> frozenset[str]:
        """The metrics whose threshold the held-out images set."""
        own = {"two_stage"} if self.rules.percentile_of == "holdout" else set()
        return self.thresholds.calibrated | own

    @property
    def nearness(self) -> tuple[Nearness, Nearness]:
        """How near the samples and the held-out images lie to the training set."""
        return self.samples.nearness(self.copied_below), self.holdout.nearness(self.copied_below)

    def summary(self, encoder: str, rule: QualityRule) -> dict[str, Any]:
        """Return the metrics, thresholds, distances, ratios and faults of filter.json. encoder: its name."""
        control = self.holdout.flags(self.thresholds, self.rules)
        words = definitions(self.rules, encoder, self.thresholds)
        return {
            "metrics": metrics_table(self.flags, control, words, self._calibrated) | calibrated_table(*self.nearness),
            "thresholds": dataclasses.asdict(self.thresholds),
            "distance": distance_summary(self.samples.searched, self.holdout.searched),
            "ratio": ratio_summary(self.samples.searched, self.holdout.searched),
            "faults": broken(self.samples.looks, self.nearness[0].copied, self.holdout.looks, rule),
        }

    def pairs(self, ratios: tuple[float, float], sample_ids: Sequence[str], train_ids: Sequence[str]) -> pa.Table:
        """Return one row per sample, sorted by verdict, then ratio, then sample.

        ratios: r₁/r₂ below which a sample is a copy, and a near copy.
        """
        searched, features, flags = self.samples.searched, self.samples.features, self.flags
        m, candidate, ratio = searched.matches, searched.candidate, searched.scores.ratio
        evidence = Evidence(flags["byte_identical"], ratio, flags["carlini_sample"], candidate, flags["two_stage"])
        verdict, reason = decide(ratio_rules(evidence, *ratios))
        best = Suspects.of(searched, self.thresholds).shown
        columns = {
            **basic_columns(searched, sample_ids),
            **training_image("train", m.index[:, 0], train_ids),
            **training_image("next", m.index[:, 1], train_ids),
            "distance": searched.distance,
            "train_spacing": pixel_distance(m.own_squared[:, 0], m.dimension),
            "feature_distance": nullable(features.distance, candidate),
            "feature_threshold": nullable(self.rules.margin * features.spacing, candidate),
            "verdict": verdict,
            "reason": reason,
            **score_columns(searched, best.words),
            **training_image("best", best.row, train_ids),
            "best_distance": best.distance,
            **match_columns(searched, train_ids),
            "blend": blends(*self.nearness),
        }
        return sorted_pairs(columns, ratio)


def verdict_counts(pairs: pa.Table) -> dict[str, Any]:
    """Return how many samples have each verdict, and of how many training images the copies and near copies are."""
    verdicts = Counter(pairs["verdict"].to_pylist())
    copied = zip(pairs["train_index"].to_pylist(), pairs["verdict"].to_pylist())
    return {
        "verdicts": {name: verdicts[name] for name in VERDICTS},
        "unique_training_images": len({row for row, verdict in copied if verdict in COPIED}),
    }


def draw(
    path: Path, pairs: pa.Table, samples: np.ndarray, train: np.ndarray, grid: tuple[int, int], title: str
) -> None:
    """Draw rows × columns pairs, evenly spaced. samples, train: uint8 images, by the pairs' indices."""
    shown = [
        Pair(
            (samples[row["sample_index"]], train[row["train_index"]], train[row["next_index"]]),
            row["verdict"],
            row["ratio"],
            row["distance"],
        )
        for row in pairs.take(spread_rows(len(pairs), grid[0] * grid[1])).to_pylist()
    ]
    words = f"{len(shown)} of {len(pairs)} pairs, evenly spaced in the order of verdict, then r1/r2 (column by column)"
    draw_pairs(path, shown, grid[1], title, words)
