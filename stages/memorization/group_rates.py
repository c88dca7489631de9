"""The share of copies in each group of samples (prompt, class, patient), and which exceed the others'."""

from typing import Any

import numpy as np
from scipy.stats import hypergeom

from stages.memorization.statistics import rate_with_interval


def holm(p: np.ndarray) -> np.ndarray:
    """Return p-values adjusted for their number (Holm 1979): those below α are wrong with probability α in all.

    The i-th smallest of m becomes the largest of (m − j) p_j over j ≤ i, at most 1, counted from 0.
    """
    order = np.argsort(p, kind="stable")
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return adjusted


def more_than_the_others(flagged: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Return Fisher's one-sided p of every group: the chance of its copies, or more, if its rate is the others'.

    flagged, count: int64 (G,).
    """
    return hypergeom.sf(flagged - 1, count.sum(), flagged.sum(), count)


def group_rates(names: list[str], place: np.ndarray, copied: np.ndarray) -> list[dict[str, Any]]:
    """Return a row per group: its rate of copies with interval, p of `more_than_the_others`, and p_holm.

    names: of the G groups; place: int64 (N,), the group of each sample; copied: bool (N,).
    """
    count, flagged = np.bincount(place), np.bincount(place, copied).astype(np.int64)
    p = more_than_the_others(flagged, count)
    rows = zip(names, flagged.tolist(), count.tolist(), p.tolist(), holm(p).tolist())
    return [{"group": n, **rate_with_interval(k, m), "p": p, "p_holm": q} for n, k, m, p, q in rows]


def class_rates(
    labels: np.ndarray, copied: np.ndarray, held_labels: np.ndarray, held_copied: np.ndarray
) -> list[dict[str, Any]]:
    """Return `group_rates` of the samples' classes, ascending, with the held-out images of each class as its control.

    labels: int64 (N,); held_labels: int64 (H,); a class without held-out images has None as its control.
    """
    classes, place = np.unique(labels, return_inverse=True)
    rows = group_rates(list(map(str, classes.tolist())), place, copied)
    for row, label in zip(rows, classes):
        own = held_copied[held_labels == label]
        row["holdout"] = rate_with_interval(int(own.sum()), len(own)) if len(own) else None
    return rows
