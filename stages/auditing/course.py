"""The course of an audit, from opening the sources to writing the files."""

import dataclasses
from typing import Any

import numpy as np

from stages.auditing import results as r
from stages.auditing.embedding import SECONDS_PER_IMAGE, Embedder, encoder_params
from stages.auditing.feature_distances import drawn, feature_distances
from stages.auditing.groups import Duplicates, find_duplicates, halves
from stages.auditing.groups import expected_seconds as grouping_seconds
from stages.auditing.judging import Judge, Searched, cross_fitted
from stages.auditing.loading import ImageSet, common_shape, differences, expected_seconds, load, open_all
from stages.auditing.matching import expected_seconds as matching_seconds
from stages.auditing.matching import match, reference_of
from stages.auditing.page import render
from stages.auditing.planting import WORDS
from stages.auditing.scores import calibrate
from stages.auditing.second_stage import KnownFeatures, expected_images
from stages.auditing.self_test import plant_all, planted_count, self_test
from stages.auditing.settings import AuditParams
from stages.auditing.store import Store
from stages.errors import InputError
from stages.files.artifacts import sha256_json, write_json, write_text
from stages.memorization.copying_test import assign, cell_centres, cell_distances, copying_test
from stages.memorization.metrics import Rules

CARLINI_ALPHA, CARLINI_N = 0.5, 50
FEWEST_CONTROL = 1_000  # images of half the training set that are searched at least, if there are so many
MOST_CELLS, IMAGES_PER_CELL, FEWEST_PER_CELL, CELL_FIT = 10, 200, 20, 5_000  # of C_T
NEAR_SHARE = 0.25  # of the median distance to the nearest other image: near duplicates, absolutely


def _check_counts(counts: dict[str, int]) -> None:
    """Ratios need a second nearest image, and half a training set as control two images on each side."""
    fewest = 2 if "holdout" in counts else 4
    if counts["train"] < fewest:
        why = "r1/r2 needs a second training image" if fewest == 2 else "each half of it needs two, without --holdout"
        raise InputError(f"--train holds {counts['train']} readable image(s), too few: {why}: give at least {fewest}")


@dataclasses.dataclass
class Course:
    """One audit under way."""

    params: AuditParams
    store: Store

    def run(self) -> dict[str, Any]:
        """All of it, in order. What can be wrong with the input is found before the long searches."""
        p, progress = self.params, self.store.progress
        specs = {"train": p.train, "samples": p.samples} | ({"holdout": p.holdout} if p.holdout else {})
        sources = open_all(specs)
        _check_counts({role: len(source) for role, source in sources.items()})
        self.shape = common_shape(sources, p.resolution)
        progress.expect(expected_seconds(sources))
        self.embedder = Embedder(encoder_params(p.encoder, p.weights, self.shape.resolution), p.device, self.store)
        self.sets: dict[str, ImageSet] = {}
        for role, source in sources.items():
            progress.step(f"reading {role}")
            self.sets[role] = load(role, source, self.shape, self.store)
        _check_counts({role: len(images) for role, images in self.sets.items()})
        self.notes = differences(self.sets, self.shape)
        self._search()
        self._judge()
        progress.step("writing")
        result = self._write()
        progress.finish()
        return result

    def _search(self) -> None:
        """Duplicate groups, and every image against its reference: samples, control and planted copies."""
        p, progress, samples = self.params, self.store.progress, self.sets["samples"].table
        self._expect()
        progress.step("duplicate groups")
        self.duplicates = {"train": self._duplicates(self.sets["train"], p.near)}
        self.near = self.duplicates["train"].near
        others = (role for role in self.sets if role != "train")
        self.duplicates |= {role: self._duplicates(self.sets[role], self.near) for role in others}
        self._split()
        progress.step("searching the samples")
        found = match(samples.images, self.sets["samples"].digest, self.whole, self.store, p.budget)
        self.searched = Searched.of(samples.images, samples.ids, found)
        progress.step("searching the control")
        images, ids, digest = self.control_images
        self.control = Searched.of(images, ids, match(images, digest, self.reference, self.store, p.budget))
        progress.step("planting copies and searching them")
        count = planted_count(len(self.control))
        self.planted = plant_all(self.reference, count, p.seed, self.store, p.budget)

    def _expect(self) -> None:
        """Tell the progress bar what lies ahead."""
        sizes = {role: len(images) for role, images in self.sets.items()}
        control = sizes.get("holdout", min(sizes["train"] // 2, max(FEWEST_CONTROL, sizes["samples"])))
        planted = len(WORDS) * planted_count(control)
        count = sizes["samples"] + control + planted
        dimension = self.sets["train"].table.dimension
        embedded = sum(min(self.params.features, n) for n in (sizes["train"], sizes["samples"], control))
        # the candidates by rho, and as many that rho* leaves in doubt
        asked = expected_images(round(2 * count * self.params.percentile / 100))
        groups = sum(grouping_seconds(size, dimension) for size in sizes.values())
        searches = matching_seconds(count, sizes["train"], dimension)
        self.store.progress.expect(groups + searches + SECONDS_PER_IMAGE * (embedded + asked))

    def _duplicates(self, images: ImageSet, near: float | None) -> Duplicates:
        return find_duplicates(images.table, near, NEAR_SHARE, images.digest, self.store, self.params.budget)

    def _split(self) -> None:
        """The references, and the control images: the holdout set, or one half of the training set for the other."""

        train, group = self.sets["train"], self.duplicates["train"].group
        pixels = train.table.images
        known = self.duplicates["train"]
        own = known.index, known.squared
        self.whole = self.reference = reference_of(pixels, np.arange(len(train)), group, train.digest, own)
        if "holdout" in self.sets:
            held = self.sets["holdout"]
            self.control_images = held.table.images, held.table.ids, held.digest
            self.control_words = f"{len(held):,} held-out images of {held.source}, searched against all training images"
            return
        left, right = halves(group, self.params.seed)
        if min(len(left), len(right)) < 2:
            raise InputError(
                f"--train {train.source}: its images are all near duplicates (within {self.near:g}), so no "
                "half of it can stand in for unseen images: give --holdout, or a smaller --near"
            )
        rows = left[drawn(len(left), max(FEWEST_CONTROL, len(self.sets["samples"])), self.params.seed)]
        self.reference = reference_of(pixels, right, group, train.digest)
        ids = [train.table.ids[row] for row in rows]
        self.control_images = pixels[rows], ids, sha256_json(ids)
        self.control_words = (
            f"no --holdout was given: {len(rows):,} images of a random half of the training set, searched against the "
            f"other half ({len(right):,} images; duplicate groups stay together)"
        )
        self.notes.append(self.control_words)

    def _judge(self) -> None:
        """Thresholds from the control, features, verdicts, and the self-test under the same rules."""
        p, train, progress = self.params, self.sets["train"], self.store.progress
        progress.step("features for distances")
        self._draw()
        self.thresholds = calibrate(self.control.scores.best, p.percentile)
        rules = Rules(p.percentile, p.margin, CARLINI_ALPHA, CARLINI_N)
        known = KnownFeatures(self.drawn_rows, self.features["train"])
        rest = train.table.ids, known, self.embedder, p.budget
        self.judge = self.control_judge = Judge(rules, self.thresholds, self.whole, *rest)
        if self.reference is not self.whole:
            self.control_judge = self._half_judge(rules, known)
        progress.step("features of candidates")
        self.judged, self.control_judged = self.judge(self.searched), self.control_judge(self.control)
        honest = cross_fitted(self.control.scores, p.percentile)
        flags = self.control_judged.flags
        flags |= {"calibrated": honest, "copy_or_near_copy": honest | flags["copy_or_near_copy"]}
        progress.step("self-test")
        self.tested = self_test(self.control, *self.planted, self.control_judge)

    def _half_judge(self, rules: Rules, known: KnownFeatures) -> Judge:
        """The judge of the control: the same rules, the other half of the training set as reference."""

        half, ids = self.reference, self.sets["train"].table.ids
        inside = np.isin(known.rows, half.rows)
        own = KnownFeatures(np.searchsorted(half.rows, known.rows[inside]), known.features[inside])
        names = [ids[row] for row in half.rows]
        return Judge(rules, self.thresholds, half, names, own, self.embedder, self.params.budget)

    def _draw(self) -> None:
        """Features of as many drawn images of each set as were asked for."""
        self.features: dict[str, np.ndarray] = {}
        for number, (role, images, ids) in enumerate(
            (
                ("train", self.whole.images, self.sets["train"].table.ids),
                ("samples", self.searched.images, self.searched.ids),
                ("holdout", self.control.images, self.control.ids),
            )
        ):
            rows = drawn(len(images), self.params.features, self.params.seed + number)
            self.features[role] = self.embedder(images[rows], [ids[row] for row in rows])
            if role == "train":
                self.drawn_rows = rows

    def _copying_test(self) -> dict[str, Any]:
        """C_T of the samples against the control, both measured to the control's reference."""

        p, reference, train = self.params, self.reference, self.sets["train"].table
        wanted = max(1, min(MOST_CELLS, len(self.control) // IMAGES_PER_CELL))
        rows = drawn(len(reference), CELL_FIT, p.seed)
        centres = cell_centres(reference.flat[rows], wanted, p.seed)
        cell = assign(reference.flat, centres)
        whole = np.full(len(train), -1)
        whole[reference.rows] = cell
        sides = []
        for searched, pixels, cells in ((self.searched, train.flat, whole), (self.control, reference.flat, cell)):
            flat = searched.images.reshape(len(searched), -1)
            own = assign(flat, centres)
            m = searched.matches
            sides += [cell_distances(m.index, m.squared, flat, own, pixels, cells, p.budget), own]
        found = copying_test(*sides, len(centres), FEWEST_PER_CELL)
        return {
            "value": found.c_t,
            "definition": "z-score of the Mann-Whitney test that samples are as far from the training images of their "
            "cell as control images are, averaged over k-means cells (Meehan et al. 2020); below 0: samples are nearer",
            "cells": found.cells,
            "cells_used": found.cells_used,
            "images_fitted": len(rows),
            "reference_images": len(reference),
        }

    def _write(self) -> dict[str, Any]:

        out, sets = self.params.out, self.sets
        result = self._result()
        pairs = r.pairs_table(self.judged, sets["samples"], sets["train"])
        digests = {"digests": result["digests"]}
        r.write_pairs(out, pairs, self.judged, sets["samples"], sets["train"], digests)
        r.write_rejected(out, list(sets.values()))
        write_text(out / "report.html", render(result, pairs, self.judged, self.control_judged, sets["train"]))
        write_json(out / "audit.json", result)  # the last one: where it is, all of them are
        return result

    def _result(self) -> dict[str, Any]:

        p, sets, train = self.params, self.sets, self.sets["train"]
        looked_at = len(self.drawn_rows)
        rejected = len(train.rejected)
        if rejected:
            self.notes.append(
                f"coverage {len(train) / (len(train) + rejected):.4f}: unreadable training images were not searched"
            )
        if looked_at < len(train):
            self.notes.append(
                f"distances in feature space and the second stage use {looked_at:,} of {len(train):,} training images "
                "(and the nearest of each match); pixel searches use all of them"
            )
        feature = self.features["train"], self.features["samples"], self.features["holdout"], self.embedder.name
        return {
            **{role: r.counts(images, self.duplicates[role]) for role, images in sets.items()},
            "holdout": self._holdout(),
            "coverage": len(train) / (len(train) + rejected),
            "resolution": [self.shape.resolution, self.shape.resolution, self.shape.channels],
            "near_duplicate_distance": self.near,
            "thresholds": {"copy": self.thresholds.copy, "candidate": self.thresholds.candidate},
            "metrics": r.metrics_table(
                self.judged, self.control_judged, self.judge.rules, self.embedder.name, looked_at, self.thresholds
            ),
            "agreement": r.agreement(self.judged),
            "verdicts": r.verdict_counts(self.judged),
            "holdout_verdicts": r.verdict_counts(self.control_judged),
            "c_t": self._copying_test(),
            **feature_distances(*feature),
            "feature_reference": {"count": looked_at, "of": len(train)},
            "extraction": r.extraction(self.judged, train, self.duplicates["train"]),
            "thresholds_self_test": self.tested,
            "encoder": self.embedder.metadata,
            "settings": p.model_dump(mode="json"),
            "seeds": {"seed": p.seed},
            "digests": {role: images.digest for role, images in sets.items()},
            "versions": r.versions(),
            "notes": self.notes,
        }

    def _holdout(self) -> dict[str, Any]:

        if "holdout" in self.sets:
            return r.counts(self.sets["holdout"], self.duplicates["holdout"]) | {"control": self.control_words}
        return {
            "source": None, "count": len(self.control), "rejected": 0, "resized": 0, "recoloured": 0,
            "duplicates_groups": None, "duplicates_images": None, "digest": None, "control": self.control_words,
        }  # fmt: skip
