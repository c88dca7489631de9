"""The steps of an audit: each plans its shards from what the steps before it gathered, and gathers their results."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from stages.errors import InputError
from stages.files.arrays import Arrays, read_arrays
from stages.files.images import read_images
from stages.files.shard import Shard
from stages.images.common_size import ImageSet, common_shape, decoding, differences, image_set, open_all, unnamed
from stages.images.sources.base import check_apart
from stages.images.sources.image_groups import group_values
from stages.memorization.audit_settings import AuditParams, encoder_params
from stages.memorization.audit_work import encoder_of, load_reference
from stages.memorization.feature_distances import drawn
from stages.memorization.feature_stage import answer, compared_rows, expected_images
from stages.memorization.groups import Duplicates, find_duplicates
from stages.memorization.judge import Judged, Suspects
from stages.memorization.leaks import check_leaks, find_leaks, leak_note
from stages.memorization.matching import BLOCK, Matches, Reference, join
from stages.memorization.metrics import Rules, Searched, calibrated_by
from stages.memorization.planting import WORDS
from stages.memorization.self_test import planted_count
from stages.protocol import Parts

CARLINI_ALPHA, CARLINI_N = 0.5, 50
FEWEST_CONTROL = 1_000  # images of half the training set that are searched at least, where there are as many
NEIGHBOR_BLOCK, FEATURE_BLOCK = 12_288, 256  # images per shard
NEIGHBOR_PAIRS = 1 << 32  # of a shard, where that allows more images: every shard prepares the whole set anew
DECODING_SECONDS, EMBEDDING_SECONDS = 2.5e-4, 6e-3  # per image, estimated

Key = tuple[str, int, bool]
"""An image whose features are needed: (path of its table, row, mirrored)."""


class Step(NamedTuple):
    """plan() returns the shards; gather(parts) takes their results by task."""

    plan: Callable[[], list[Shard]]
    gather: Callable[[Parts], None]


@dataclasses.dataclass(frozen=True)
class Queries:
    """Images that are searched: rows of an image table. name: for a person, and in tasks."""

    name: str
    path: str
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def images(self) -> np.ndarray:
        """uint8 (N, H, W, C)."""
        images = read_images(self.path).images
        return images if len(images) == len(self) else images[self.rows]


@dataclasses.dataclass(frozen=True)
class Inquiry:
    """A set under thresholds, with the images that its second stage needs.

    Attributes:
        suspects: the set.
        keys: of its N images, as they are in their tables.
        reference: what it was searched against, rows of the image table `train`.
        compared: int64 (R, C), the reference rows that each distinct match is compared with; −1 fills up.
    """

    suspects: Suspects
    keys: list[tuple[str, int]]
    reference: Reference
    train: str
    compared: np.ndarray

    @classmethod
    def of(cls, suspects: Suspects, queries: Sequence[Queries], reference: Reference, train: str) -> "Inquiry":
        """Return the inquiry on one or several searched sets, one after the other."""
        keys = [(some.path, row) for some in queries for row in some.rows.tolist()]
        compared = compared_rows(np.unique(suspects.questions.row), reference)
        return cls(suspects, keys, reference, train, compared)

    @property
    def query_keys(self) -> list[Key]:
        """The image of every question."""
        asked = self.suspects.questions
        return [(*self.keys[query], turned) for query, turned in zip(asked.query, asked.mirrored.tolist())]

    def row_keys(self, rows: np.ndarray) -> list[Key]:
        """The training images of reference rows."""
        return [(self.train, row, False) for row in self.reference.rows[rows].tolist()]

    def needed(self) -> list[Key]:
        """All images whose features `judged` takes, besides the drawn ones."""
        rows = np.unique(self.suspects.questions.row)
        return [*self.query_keys, *self.row_keys(rows), *self.row_keys(self.compared[self.compared >= 0])]

    def judged(self, features: "Features", drawn_rows: np.ndarray, rules: Rules) -> Judged:
        """Return the verdicts. drawn_rows: training images that every match is compared with, too."""

        def features_of(rows: np.ndarray) -> np.ndarray:
            return features.of(self.row_keys(rows))

        known = np.flatnonzero(np.isin(self.reference.rows, drawn_rows))
        asked, images = self.suspects.questions, features.of(self.query_keys)
        return self.suspects.judged(answer(asked, images, self.reference, features_of, self.compared, known), rules)


@dataclasses.dataclass(frozen=True)
class Features:
    """Features float32 (N, D) and the place of each image's."""

    places: dict[Key, int]
    values: np.ndarray

    def of(self, keys: Sequence[Key]) -> np.ndarray:
        """Return the features of these images, float64 (len(keys), D)."""
        return self.values[[self.places[key] for key in keys]].astype(np.float64)


class Audit:
    """One audit under way. What can be wrong with the input is found before the long searches.

    Attributes that the steps set, in this order:
        groups_named: the group of every sample of the source, or None.
        sets, notes: the images, and what was done to them.
        own: by role, the files of the neighbours within the set.
        groups, near, duplicates: the file of the groups, the distance of near duplicates, and the groups by role.
        queries, control, planted, kinds: the searched sets, and the kinds of the planted copies.
        control_words: what the control is.
        leaks: images of the control that are training images; they are left out of it.
        thresholds, inquiries: of ρ*, and the three judged sets before their features are known.
        drawn: by role, the features of the drawn images.
        judged, control_judged, tested: the samples, the control, and the control with the planted copies.
    """

    def __init__(self, params: AuditParams):
        """Open the sources. InputError where one cannot be read."""
        self.params = params
        specs = {"train": params.train, "samples": params.samples}
        specs |= {"holdout": params.holdout} if params.holdout else {}
        self.sources = open_all(specs)
        if params.holdout:
            check_apart(self.sources["holdout"], self.sources["train"], ("--holdout", "--train"))
        _check_counts({role: len(source) for role, source in self.sources.items()})
        self.groups_named = group_values(self.sources["samples"], params.groups, params.group_by)
        self.shape = common_shape(self.sources, params.resolution, params.fit)
        self.encoder_params = encoder_params(params.encoder, params.weights, self.shape.resolution)
        self.encoder = encoder_of(self.encoder_params, params.device)
        self.rules = Rules(params.percentile, params.margin, CARLINI_ALPHA, CARLINI_N)
        self.dimension = self.shape.resolution**2 * self.shape.channels

    def steps(self) -> tuple[Step, ...]:
        """All steps, in order."""
        return (
            Step(self.plan_images, self.gather_images),
            Step(self.plan_neighbors, self.gather_neighbors),
            Step(self.plan_groups, self.gather_groups),
            Step(self.plan_planted, self.gather_planted),
            Step(self.plan_matches, self.gather_matches),
            Step(self.plan_features, self.gather_features),
        )

    # Estimated time, for the progress bar

    def _seconds_per_image(self) -> dict[str, float]:
        """Estimated seconds by task; tasks that take next to no time are absent."""
        searched = len(self.sources["train"]) * self.dimension**0.9
        return {
            "images": DECODING_SECONDS,
            "neighbors": 6e-12 * searched,
            "matches": 2e-11 * searched + 4e-7 * self.dimension,
            "features": EMBEDDING_SECONDS,
        }

    def seconds(self, shard: Shard) -> float:
        """Estimated seconds of one shard."""
        task = shard.task.split()[0]
        return self._seconds_per_image().get(task, 0.0) * shard.settings.get("count", 0)

    def expected_seconds(self) -> float:
        """Estimated seconds of the whole audit."""
        sizes = {role: len(source) for role, source in self.sources.items()}
        control = sizes.get("holdout", min(sizes["train"] // 2, max(FEWEST_CONTROL, sizes["samples"])))
        searched = sizes["samples"] + control + len(WORDS) * planted_count(control)
        # the drawn images, the candidates by rho, and as many that rho* leaves in doubt
        embedded = sum(min(self.params.features, n) for n in (sizes["train"], sizes["samples"], control))
        embedded += expected_images(round(2 * searched * self.params.percentile / 100))
        total = sum(sizes.values())
        counts = {"images": total, "neighbors": total, "matches": searched, "features": embedded}
        return sum(rate * counts[task] for task, rate in self._seconds_per_image().items())

    # Images

    def plan_images(self) -> list[Shard]:
        """Decode every set."""
        return [decoding(role, source, self.shape) for role, source in self.sources.items()]

    def gather_images(self, parts: Parts) -> None:
        """The sets, and what was done to their images."""
        read = zip(self.sources.items(), parts["images"])
        self.sets = {role: image_set(role, source, path) for (role, source), path in read}
        if self.params.no_images:
            self.sets = {role: unnamed(images) for role, images in self.sets.items()}
        _check_counts({role: len(images) for role, images in self.sets.items()})
        self.notes = differences(self.sets, self.shape)

    # Duplicate groups

    def plan_neighbors(self) -> list[Shard]:
        """The nearest other images of every image of each set."""
        return [
            _shard(f"neighbors {role}", "duplicate groups", {"start": start, "count": count}, (str(images.path),))
            for role, images in self.sets.items()
            for start, count in _blocks(len(images), max(NEIGHBOR_BLOCK, NEIGHBOR_PAIRS // len(images)))
        ]

    def gather_neighbors(self, parts: Parts) -> None:
        """The files of every set."""
        self.own = {role: [str(part) for part in parts[f"neighbors {role}"]] for role in self.sets}

    def plan_groups(self) -> list[Shard]:
        """Groups and halves of the training images."""
        settings = {"near": self.params.near, "seed": self.params.seed}
        return [_shard("groups", "duplicate groups", settings, (str(self.train.path), *self.own["train"]))]

    def gather_groups(self, parts: Parts) -> None:
        """The groups of every set under the training set's distance, and the control."""
        self.groups = str(parts["groups"][0])
        found = read_arrays(self.groups)
        self.near = float(found["near"])
        self.duplicates = {"train": Duplicates(found["group"], *found["counts"].tolist(), self.near)}
        for role, images in self.sets.items():
            if role != "train":
                own = join([read_arrays(part) for part in self.own[role]])
                self.duplicates[role] = find_duplicates(images.table.ids, own, self.dimension, self.near)
        self._choose_control(found["left"], found["right"])

    def _choose_control(self, left: np.ndarray, right: np.ndarray) -> None:
        """The control: the held-out set, or images of one half of the training set for the other half."""
        samples = self.sets["samples"]
        self.queries = Queries("samples", str(samples.path), np.arange(len(samples)))
        if "holdout" in self.sets:
            held = self.sets["holdout"]
            self.control = Queries("control", str(held.path), np.arange(len(held)))
            self.control_words = f"{len(held):,} held-out images of {held.source}, searched against all training images"
            return
        if min(len(left), len(right)) < 2:
            raise InputError(
                f"--train {self.train.source}: its images are all near duplicates (within {self.near:g}), so no "
                "half of it can stand in for unseen images: give --holdout, or a smaller --near"
            )
        rows = left[drawn(len(left), max(FEWEST_CONTROL, len(samples)), self.params.seed)]
        self.control = Queries("control", str(self.train.path), rows)
        self.control_words = (
            f"no --holdout was given: {len(rows):,} images of a random half of the training set, searched against the "
            f"other half ({len(right):,} images; duplicate groups stay together)"
        )
        self.notes.append(self.control_words)

    @property
    def train(self) -> ImageSet:
        """The training set."""
        return self.sets["train"]

    @property
    def _half(self) -> bool:
        return "holdout" not in self.sets

    @property
    def _reference_files(self) -> tuple[str, ...]:
        return str(self.train.path), self.groups, *self.own["train"]

    def reference(self, half: bool = False) -> Reference:
        """All training images, or the half that the control is searched against."""
        return load_reference(*self._reference_files, half=half, budget=self.params.budget)

    @property
    def control_reference(self) -> Reference:
        """What the control is searched against."""
        return self.reference(self._half)

    # Searches

    def plan_planted(self) -> list[Shard]:
        """Known copies of the control's reference."""
        settings = {"half": self._half, "copies": planted_count(len(self.control)), "seed": self.params.seed}
        return [_shard("planted", "planting copies", settings, self._reference_files, ".arrow")]

    def gather_planted(self, parts: Parts) -> None:
        """The planted copies and their kinds."""
        path = parts["planted"][0]
        self.kinds = read_images(path).labels
        self.planted = Queries("planted copies", str(path), np.arange(len(self.kinds)))

    def plan_matches(self) -> list[Shard]:
        """The samples against all training images; the control and the planted copies against its reference."""
        shards = []
        for queries, half in ((self.queries, False), (self.control, self._half), (self.planted, self._half)):
            words, inputs = f"searching the {queries.name}", (queries.path, *self._reference_files)
            for start, count in _blocks(len(queries), BLOCK):
                settings = {"rows": queries.rows[start : start + count].tolist(), "count": count, "half": half}
                shards.append(_shard(f"matches {queries.name}", words, settings, inputs))
        return shards

    def gather_matches(self, parts: Parts) -> None:
        """The three judged sets, under the thresholds that the control sets."""
        samples, control, planted = (
            join([read_arrays(part) for part in parts[f"matches {queries.name}"]])
            for queries in (self.queries, self.control, self.planted)
        )
        control = self._without_leaks(control)
        samples, control, tested = (self._searched(found) for found in (samples, control, join([control, planted])))
        self.thresholds = calibrated_by(control, self.params.percentile)
        self.inquiries = (
            self._inquiry(samples, self.reference(), self.queries),
            self._inquiry(control, self.control_reference, self.control),
            self._inquiry(tested, self.control_reference, self.control, self.planted),
        )

    def _searched(self, found: Arrays) -> Searched:
        return Searched.of(Matches(**found, dimension=self.dimension), self.params.percentile)

    def _without_leaks(self, found: Arrays) -> Arrays:
        """The control's matches without the images that are training images; sets `leaks` and shortens the control."""
        held, rows = self.sets.get("holdout", self.train), self.control_reference.rows
        leaked, self.leaks = find_leaks(
            self._searched(found),
            lambda place: held.where[self.control.rows[place]],
            lambda row: self.train.where[rows[row]],
        )
        check_leaks(self.leaks, len(leaked), f"--{held.role} {held.source}")
        if self.leaks:
            self.notes.insert(0, leak_note(self.leaks, len(leaked)))
            self.control_words += f", without {len(self.leaks):,} that are training images"
            self.control = dataclasses.replace(self.control, rows=self.control.rows[~leaked])
        return {name: values[~leaked] for name, values in found.items()}

    def _inquiry(self, searched: Searched, reference: Reference, *queries: Queries) -> Inquiry:
        return Inquiry.of(Suspects.of(searched, self.thresholds), queries, reference, str(self.train.path))

    # Features

    def _drawn_keys(self) -> dict[str, list[Key]]:
        """The images of every set that are drawn for distances in feature space."""
        whole = Queries("train", str(self.train.path), np.arange(len(self.train)))
        sets, keys = {"train": whole, "samples": self.queries, "holdout": self.control}, {}
        for number, (role, queries) in enumerate(sets.items()):
            rows = queries.rows[drawn(len(queries), self.params.features, self.params.seed + number)]
            keys[role] = [(queries.path, row, False) for row in rows.tolist()]
        return keys

    def plan_features(self) -> list[Shard]:
        """The drawn images and those that the second stage needs, each once."""
        self.drawn_keys = self._drawn_keys()
        wanted = [*self.drawn_keys.values(), *(inquiry.needed() for inquiry in self.inquiries)]
        self.keys = list(dict.fromkeys(key for keys in wanted for key in keys))
        tables = sorted({path for path, _, _ in self.keys})
        images = [[tables.index(path), row, turned] for path, row, turned in self.keys]
        common = {"encoder": self.encoder_params.model_dump(), "made": self.encoder.metadata}
        common |= {"device": self.params.device}
        return [
            _shard("features", "features", {**common, "images": images[a : a + n], "count": n}, tuple(tables))
            for a, n in _blocks(len(images), FEATURE_BLOCK)
        ]

    def gather_features(self, parts: Parts) -> None:
        """The verdicts on the samples, on the control, and on the control with the planted copies."""
        values = np.concatenate([read_arrays(part)["feature"] for part in parts["features"]])
        features = Features({key: place for place, key in enumerate(self.keys)}, values)
        self.drawn = {role: features.of(keys) for role, keys in self.drawn_keys.items()}
        rows = np.array([row for _, row, _ in self.drawn_keys["train"]])
        judged = (inquiry.judged(features, rows, self.rules) for inquiry in self.inquiries)
        self.judged, self.control_judged, self.tested = judged


def _shard(task: str, words: str, settings: dict[str, Any], inputs: tuple[str, ...], suffix: str = ".npz") -> Shard:
    return Shard("audit", task, words, settings, inputs, suffix)


def _blocks(count: int, size: int) -> list[tuple[int, int]]:
    """(start, count) of blocks of at most `size`."""
    return [(start, min(size, count - start)) for start in range(0, count, size)]


def _check_counts(counts: dict[str, int]) -> None:
    """Ratios need a second nearest image, and half a training set as control two images on each side."""
    fewest = 2 if "holdout" in counts else 4
    if counts["train"] < fewest:
        why = "r1/r2 needs a second training image" if fewest == 2 else "each half of it needs two, without --holdout"
        raise InputError(f"--train holds {counts['train']} readable image(s), too few: {why}: give at least {fewest}")
