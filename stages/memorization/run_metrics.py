"""The copy measures of every run of a network (filter's runs.tsv), under the thresholds that held-out images set.

A run is searched for its nearest training images alone: without mirror images, shifts, crops and features, which the
reference run's samples have besides.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stages.files.arrays import Arrays, read_arrays
from stages.files.images import read_images
from stages.files.runs import rows_of_runs
from stages.memorization.calibrated_metrics import Nearness, calibrated_table, hull_arrays
from stages.memorization.matching import Reference, join, outside
from stages.memorization.metrics import Rules
from stages.memorization.ratios import carlini, nn_ratio, over
from stages.search.pixel_distance import pixel_distance


def search(images: np.ndarray, reference: Reference, count: int) -> Arrays:
    """Return the `count` nearest training images of uint8 (N, d), index and squared, and `hull_arrays`."""
    index, squared = reference.nearest(images, count)
    return {"index": index, "squared": squared, **hull_arrays(images, reference.flat, index, reference.budget)}


def run_rows(
    source: Path, parts: Sequence[Path], reference: Reference, held_out: Nearness, rules: Rules
) -> list[dict[str, Any]]:
    """Return one row per run: its key, its number of samples, and how many of them each measure flags.

    Args:
        source: the samples of all runs; parts: files of what `search` found of them.
        reference: the training images with their duplicate groups and their own neighbours.
        held_out: how near the held-out images lie.

    Numbers under cross-fitted thresholds are means over the two halves and may end in a half. median_effective is the
    median effective number of the hull's weights, unique_training_images counts those that the copies are nearest to.
    """
    samples, found = read_images(source), join([read_arrays(part) for part in parts])
    images = samples.flat
    nearest, ratio = found["index"][:, 0], nn_ratio(found["squared"])
    beyond = outside(images, found["index"], found["squared"], reference, 1)[:, 0]
    first = np.sqrt(found["squared"][:, 0])
    grouped = over(first, np.where(beyond < 0, np.nan, np.sqrt(np.maximum(beyond, 0))))
    around = np.sqrt(reference.neighbors(nearest, rules.n)[1]).mean(axis=1)
    copied_below = rules.near_copy_below
    flags = {
        **{name: ratio < value for name, value in rules.ratios.items()},
        "carlini_train": carlini(first, around, rules.alpha),
    }
    distance = pixel_distance(found["squared"][:, 0], images.shape[1])
    copied = (ratio < copied_below) | (grouped < copied_below)
    table = []
    for key, rows in rows_of_runs(samples, source):
        own = calibrated_table(Nearness(distance[rows], found["hull"][rows], copied[rows]), held_out)
        table.append(
            {
                **key,
                "count": len(rows),
                **{name: int(flagged[rows].sum()) for name, flagged in flags.items()},
                **{name: entry["flagged"] for name, entry in own.items()},
                "median_effective": float(np.median(found["effective"][rows])),
                "unique_training_images": len(np.unique(nearest[rows][ratio[rows] < copied_below])),
            }
        )
    return table
