"""Copies per group of samples (prompt, class, patient), and training images that several groups copy."""

from collections import Counter
from typing import Any

import numpy as np
from scipy.stats import hypergeom

from stages.images.common_size import ImageSet
from stages.images.sources.image_groups import place_of
from stages.memorization.judge import Judged
from stages.memorization.statistics import rate_with_interval

MOST_ACROSS = 100  # training images listed that several groups copy


def holm(p: np.ndarray) -> np.ndarray:
    """Return p-values adjusted for their number (Holm 1979): those below α are wrong with probability α in all.

    The i-th smallest of m becomes the largest of (m − j) p_j over j ≤ i, at most 1, counted from 0.
    """
    order = np.argsort(p, kind="stable")
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return adjusted


def more_than_the_others(flagged: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Return Fisher's one-sided p of every group: that so many of its samples are copies if its rate is the others'.

    flagged, count: int64 (G,).
    """
    return hypergeom.sf(flagged - 1, count.sum(), flagged.sum(), count)


def groups_result(
    column: str, groups: list[str], samples: Judged, train: ImageSet, group: np.ndarray
) -> dict[str, Any]:
    """Return what audit.json holds of the groups.

    Args:
        column: what they are called.
        groups: the group of each sample.
        group: int64, the duplicate group of every training image.
    """
    names, place = place_of(groups)
    copy = samples.flags["calibrated"]
    count, flagged = np.bincount(place), np.bincount(place, copy).astype(np.int64)
    p = more_than_the_others(flagged, count)
    rows = zip(names, flagged.tolist(), count.tolist(), p.tolist(), holm(p).tolist())
    found = [{"group": n, **rate_with_interval(k, m), "p": p, "p_holm": q} for n, k, m, p, q in rows]
    above = sum(entry["p_holm"] < 0.05 for entry in found)
    return {
        "column": column,
        "groups": sorted(found, key=lambda entry: (entry["p"], -entry["flagged"], entry["group"])),
        "above": above,
        "definition": "p: Fisher's one-sided test that a group's rate of copies exceeds that of all other samples; "
        f"p_holm: adjusted for the {len(names):,} groups (Holm). Each interval alone covers with 95 %, so that one in "
        "20 of them misses",
        **_across(names, place, samples, train, group),
    }


def _across(names: list[str], place: np.ndarray, samples: Judged, train: ImageSet, group: np.ndarray) -> dict[str, Any]:
    """Training images, duplicates counted as one, that copies and near copies of several groups show."""
    hits: dict[int, Counter[int]] = {}
    shown: dict[int, int] = {}
    for sample in np.flatnonzero(samples.copied).tolist():
        row = int(samples.shown.row[sample])
        key = int(group[row])
        shown.setdefault(key, row)
        hits.setdefault(key, Counter())[int(place[sample])] += 1
    several = sorted(
        (key for key in hits if len(hits[key]) > 1), key=lambda k: (-len(hits[k]), -hits[k].total(), shown[k])
    )
    listed = [
        {
            "train_index": shown[key],
            "train_id": train.table.ids[shown[key]],
            "where": train.where[shown[key]],
            "groups": {names[number]: count for number, count in sorted(hits[key].items())},
        }
        for key in several[:MOST_ACROSS]
    ]
    return {"shared_training_images": len(several), "across": listed}
