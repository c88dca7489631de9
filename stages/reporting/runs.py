"""The runs of a network: its samples after some step of the training, for every training seed.

A run is (seed, step). `filter` and `fid` measure each; here their tables are one. Columns: seed, step, count; the
samples that each measure flags (may end in a half); and what describes the run as a whole.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stages.errors import InputError
from stages.memorization.seeds import SHARE, SeedMean, over_seeds, rate_variance

RATIO, DISTANCE, BLEND = "nn_ratio_near_copy", "calibrated_distance", "blend"
SHARES = (RATIO, DISTANCE, BLEND)
FLAGGED = (*SHARES, "nn_ratio_copy", "carlini_train")
FILTER = ("seed", "step", "count", *FLAGGED, "median_effective", "unique_training_images")
FID = ("seed", "step", "count", "fd", "fd_low", "fd_high", "recall", "coverage", "vendi", "sharpness")

Columns = dict[str, np.ndarray]
"""Column -> float64 (runs,), sorted by seed, then step."""


def joined(found: Columns, distances: Columns, folder: Path | str) -> Columns:
    """Return the columns of filter's and fid's runs.tsv as one table. Raises InputError where their runs differ."""
    one, other = (_sorted(table) for table in (found, distances))
    if any(not np.array_equal(one[key], other[key]) for key in ("seed", "step", "count")):
        raise InputError(
            f"data/filter/{folder}/runs.tsv and data/fid/{folder}/runs.tsv list different runs: run dvc repro"
        )
    return other | one


def _sorted(columns: Columns) -> Columns:
    order = np.lexsort((columns["step"], columns["seed"]))
    return {name: values[order] for name, values in columns.items()}


def seeds(runs: Columns) -> set[int]:
    """Return the training seeds."""
    return set(runs["seed"].astype(int).tolist())


def of_seed(runs: Columns, seed: int) -> Columns:
    """Return the runs of one seed, in the order of their steps."""
    return {name: values[runs["seed"] == seed] for name, values in runs.items()}


def final(runs: Columns, chosen: Sequence[int]) -> Columns:
    """Return the last run of each of the chosen seeds, in their order."""
    if not chosen:
        raise ValueError("no training seed is common to both variants")
    ends = [of_seed(runs, seed) for seed in chosen]
    return {name: np.array([end[name][-1] for end in ends]) for name in runs}


def rates(runs: Columns, measure: str) -> np.ndarray:
    """Return the share of samples that a measure flags, per run, in [0, 1]."""
    return runs[measure] / runs["count"]


def over_seeds_by_step(runs: Columns, values: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return the steps, and at each the mean, the least and the largest value over the seeds."""
    steps = np.unique(runs["step"])
    groups = [values[runs["step"] == step] for step in steps]
    return steps, *(np.array([summary(group) for group in groups]) for summary in (np.mean, np.min, np.max))


def mean_at_the_end(runs: Columns, measure: str) -> SeedMean:
    """Return the mean over seeds of a column at the end of training; a share in [0, 1] for flagged samples."""
    ends = final(runs, sorted(seeds(runs)))
    if measure not in FLAGGED:
        return over_seeds(ends[measure])
    return over_seeds(rates(ends, measure), rate_variance(ends[measure], ends["count"]), SHARE)
