"""Copies per group of samples (prompt, class, patient), and training images that several groups copy."""

from collections import Counter
from typing import Any

import numpy as np

from stages.images.common_size import ImageSet
from stages.images.sources.image_groups import place_of
from stages.memorization.group_rates import group_rates
from stages.memorization.judge import Judged

MOST_ACROSS = 100  # training images listed that several groups copy


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
    found = group_rates(names, place, samples.flags["calibrated"])
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
