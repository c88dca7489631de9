"""What an audit writes besides its page: audit.json, its tables of pairs and of unreadable images, samples-kept.txt."""

import dataclasses
import platform
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from stages.files.arrow import write_parquet
from stages.files.artifacts import write_text
from stages.images.common_size import ImageSet
from stages.images.decode import CHANGES
from stages.images.sources.image_groups import numbered
from stages.memorization.audit_steps import Audit
from stages.memorization.candidates import NAME as CANDIDATES
from stages.memorization.candidates import offer
from stages.memorization.copying_test import assign, cell_centres, cell_distances, copying_test
from stages.memorization.feature_distances import drawn, feature_distances
from stages.memorization.groups import Duplicates
from stages.memorization.judge import Judged, metric_definitions
from stages.memorization.metrics import metrics_table
from stages.memorization.pairs import (
    basic_columns,
    match_columns,
    nullable,
    score_columns,
    sorted_pairs,
    training_image,
)
from stages.memorization.sample_groups import groups_result
from stages.memorization.scores import TRANSFORMS
from stages.memorization.self_test import failure, self_test
from stages.memorization.verdict_log import LOG
from stages.memorization.verified import verified_summary
from stages.memorization.vocabulary import COPIED, VERDICTS

PACKAGES = ("scoresmooth", "torch", "numpy", "scipy", "pyarrow", "numba", "pillow")
SCHEMA = 1  # of audit.json: docs/audit.schema.json. A key that is renamed, removed or means something else raises it
MOST_CANDIDATES = 2_000  # rows of candidates.parquet, for a person to judge
MOST_HIT = 100  # training images listed with their hits
FOLLOWING = 4  # training images shown after the match
MOST_CELLS, IMAGES_PER_CELL, FEWEST_PER_CELL, CELL_FIT = 10, 200, 20, 5_000  # of C_T


def audit_result(audit: Audit) -> dict[str, Any]:
    """Everything that audit.json holds."""
    train, compared = audit.train, len(audit.drawn["train"])
    coverage = len(train) / (len(train) + len(train.rejected))
    if train.rejected:
        audit.notes.append(f"coverage {coverage:.4f}: unreadable training images were not searched")
    if compared < len(train):
        audit.notes.append(
            f"distances in feature space and the second stage use {compared:,} of {len(train):,} training images "
            "(and the nearest of each match); pixel searches use all of them"
        )
    tested = self_test(audit.tested, audit.kinds, audit.params.percentile)
    words = metric_definitions(audit.rules, audit.thresholds, audit.encoder.name, compared)
    return {
        "schema": {"name": "scoresmooth audit", "version": SCHEMA},
        **{role: _counts(images, audit.duplicates[role]) for role, images in audit.sets.items()},
        "holdout": _holdout(audit),
        "coverage": coverage,
        "resolution": [audit.shape.resolution, audit.shape.resolution, audit.shape.channels],
        "near_duplicate_distance": audit.near,
        "thresholds": dataclasses.asdict(audit.thresholds),
        "metrics": metrics_table(audit.judged.flags, audit.control_judged.flags, words, audit.thresholds.calibrated),
        "agreement": _agreement(audit.judged),
        "verdicts": _verdict_counts(audit.judged),
        "holdout_verdicts": _verdict_counts(audit.control_judged),
        "c_t": _copying_test(audit),
        **feature_distances(*(audit.drawn[role] for role in ("train", "samples", "holdout")), audit.encoder.name),
        "feature_reference": {"count": compared, "of": len(train)},
        "extraction": _extraction(audit.judged, train, audit.duplicates["train"].group),
        "groups": _groups(audit),
        "failure": failure(tested, audit.thresholds.copy),
        "thresholds_self_test": tested,
        "encoder": audit.encoder.metadata,
        "settings": audit.params.reproducible(),
        "seeds": {"seed": audit.params.seed},
        "digests": _digests(audit),
        "versions": versions(),
        "notes": audit.notes,
    }


def _counts(images: ImageSet, duplicates: Duplicates) -> dict[str, Any]:
    return {
        "source": images.source,
        "count": len(images),
        "rejected": len(images.rejected),
        "skipped": len(images.skipped),
        **images.changed,
        "duplicates_groups": duplicates.groups,
        "duplicates_images": duplicates.images,
        "digest": images.digest,
    }


def _holdout(audit: Audit) -> dict[str, Any]:
    words = {"control": audit.control_words, "used": len(audit.control), "leaked": len(audit.leaks)}
    if "holdout" in audit.sets:
        return _counts(audit.sets["holdout"], audit.duplicates["holdout"]) | words
    unknown = dict.fromkeys(("source", "duplicates_groups", "duplicates_images", "digest"))
    return {**unknown, "count": len(audit.control), "rejected": 0, "skipped": 0, **dict.fromkeys(CHANGES, 0), **words}


def _agreement(samples: Judged) -> dict[str, dict[str, int]]:
    """How many samples each pair of metrics flags together; on the diagonal what each flags."""
    flags = samples.flags
    return {a: {b: int((flags[a] & flags[b]).sum()) for b in flags} for a in flags}


def _verdict_counts(judged: Judged) -> dict[str, int]:
    found = Counter(judged.verdict)
    return {name: found[name] for name in VERDICTS}


def _extraction(samples: Judged, train: ImageSet, group: np.ndarray) -> dict[str, Any]:
    """Which training images the copies and near copies are of, how often each, per class, and how they were changed.

    Those that are "covered" show a training image with a part replaced: copies of a template.
    """
    rows, how = samples.shown.row[samples.copied], samples.shown.transform[samples.copied]
    hits = Counter(rows.tolist()).most_common()
    names = train.classes
    labels = [int(train.table.labels[row]) for row in rows]
    per_class = Counter(("unlabelled" if v < 0 else names[v] if names else str(v)) for v in labels)
    return {
        "copies": len(rows),
        "unique_training_images": len(hits),
        "unique_duplicate_groups": len(np.unique(group[rows])),
        "hits_per_image": [
            {"train_index": row, "train_id": train.table.ids[row], "where": train.where[row], "hits": count}
            for row, count in hits[:MOST_HIT]
        ],
        "per_change": {name: int((how == place).sum()) for place, name in enumerate(TRANSFORMS)},
        "images_by_hits": {str(n): count for n, count in sorted(Counter(count for _, count in hits).items())},
        "per_class": dict(sorted(per_class.items())),
    }


def sample_groups(audit: Audit) -> list[str] | None:
    """The group of each readable sample; None where none are asked for."""
    if audit.groups_named is None:
        return None
    named = [audit.groups_named[row] for row in audit.sets["samples"].rows.tolist()]
    return numbered(named) if audit.params.no_images else named


def _groups(audit: Audit) -> dict[str, Any] | None:
    named, group = sample_groups(audit), audit.duplicates["train"].group
    return named and groups_result(audit.params.group_by or "group", named, audit.judged, audit.train, group)


def _copying_test(audit: Audit) -> dict[str, Any]:
    """C_T of the samples against the control, both measured to the control's reference."""
    reference, train, budget = audit.control_reference, audit.train.table, audit.params.budget
    wanted = max(1, min(MOST_CELLS, len(audit.control) // IMAGES_PER_CELL))
    rows = drawn(len(reference), CELL_FIT, audit.params.seed)
    centres = cell_centres(reference.flat[rows], wanted, audit.params.seed)
    cell = assign(reference.flat, centres)
    whole = np.full(len(train), -1)
    whole[reference.rows] = cell
    sides = []
    for judged, queries, pixels, cells in (
        (audit.judged, audit.queries, train.flat, whole),
        (audit.control_judged, audit.control, reference.flat, cell),
    ):
        flat, m = queries.images.reshape(len(queries), -1), judged.searched.matches
        own = assign(flat, centres)
        sides += [cell_distances(m.index, m.squared, flat, own, pixels, cells, budget), own]
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


def versions() -> dict[str, str]:
    """Python and the packages that made the numbers."""
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


def following(samples: Judged) -> np.ndarray:
    """The training images to show after each match, int64 (N, FOLLOWING): nearest in the match's orientation."""
    m, match = samples.searched.matches, samples.shown.row[:, None]
    index = np.where(samples.shown.mirrored[:, None], m.mirrored_index, m.index)
    order = np.argsort(index == match, axis=1, kind="stable")  # the match itself goes last
    rows = np.take_along_axis(index, order, 1)[:, :FOLLOWING]
    rows = np.where(rows == match, -1, rows)
    return np.pad(rows, ((0, 0), (0, FOLLOWING - rows.shape[1])), constant_values=-1)


def pairs_table(audit: Audit) -> pa.Table:
    """One row per sample, sorted by verdict, then ρ*, then sample."""
    samples, images, train, named = audit.judged, audit.sets["samples"], audit.train, sample_groups(audit)
    searched, shown, ids = samples.searched, samples.shown, train.table.ids
    columns = {
        **basic_columns(searched, images.table.ids),
        "sample_where": images.where,
        **({"group": named} if named else {}),
        **training_image("train", shown.row, ids),
        "train_where": [train.where[row] for row in shown.row],
        "distance": shown.distance,
        "verdict": samples.verdict,
        "reason": samples.reason,
        **score_columns(searched, shown.words),
        **training_image("nearest", searched.matches.index[:, 0], ids),
        "nearest_distance": searched.distance,
        **match_columns(searched, ids),
        "feature_distance": nullable(samples.features.distance),
        "feature_spacing": nullable(samples.features.spacing, np.isfinite(samples.features.spacing)),
        **{f"flag_{name}": flags for name, flags in samples.flags.items()},
    }
    return sorted_pairs(columns, searched.scores.best)


def write_tables(out: Path, pairs: pa.Table, audit: Audit) -> dict[str, Any] | None:
    """pairs.parquet, candidates.parquet (for `scoresmooth review`), samples-kept.txt and rejected.parquet.

    Returns what people decided about these pairs (`verified_summary`), or None where `out` holds no verdicts.
    """
    where, images = audit.sets["samples"].where, audit.sets["samples"].table
    samples, metadata = audit.judged, {"digests": _digests(audit)}
    write_parquet(out / "pairs.parquet", pairs, metadata)
    _write_names(out, where, audit)
    if audit.params.no_images:
        (out / CANDIDATES).unlink(missing_ok=True)  # of an earlier audit
        return None
    copied = np.isin(pairs["verdict"].to_pylist(), COPIED)
    pixels = images.images, audit.train.table.images
    path = out / CANDIDATES
    asked = offer(
        path, pairs, "rho_star", copied, following(samples), *pixels, MOST_CANDIDATES, metadata, samples.shown.mirrored
    )
    if not (out / LOG).is_file():
        return None
    group = audit.duplicates["train"].group
    repeated = np.bincount(group)[group] > 1
    return verified_summary(out / LOG, pairs, *asked, repeated[pairs["train_index"].to_numpy()])


def _write_names(out: Path, where: list[str], audit: Audit) -> None:
    """samples-kept.txt and rejected.parquet."""
    kept = [name for name, copied in zip(where, audit.judged.copied) if not copied]
    write_text(out / "samples-kept.txt", "".join(f"{name}\n" for name in kept))
    rows = [(images.role, *entry) for images in audit.sets.values() for entry in images.rejected]
    rows += [("holdout", leak.where, leak.reason) for leak in audit.leaks]
    names = ("set", "where", "reason")
    columns = {name: pa.array([row[place] for row in rows], pa.string()) for place, name in enumerate(names)}
    write_parquet(out / "rejected.parquet", pa.table(columns))


def _digests(audit: Audit) -> dict[str, str]:
    return {role: images.digest for role, images in audit.sets.items()}
