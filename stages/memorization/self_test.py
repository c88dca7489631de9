"""What the metrics find on this very data: known copies among held-out images, recall and false positives."""

from typing import Any

import numpy as np

from stages.memorization import planting
from stages.memorization.judge import Judged
from stages.memorization.matching import Reference
from stages.memorization.statistics import rate_with_interval
from stages.memorization.thresholds import cross_fitted

SHARE, FEWEST, MOST = 0.02, 20, 100  # planted copies of a kind: this share of the control, within these bounds
CERTAIN = ("exact", "jpeg", "mirrored")  # kinds that every usable audit finds
LEAST_RECALL = 0.95  # of each of CERTAIN
GRID = (0.1, 0.2, 0.3, 1 / 3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
SCORES = {
    "ratio": "r1/r2",
    "ratio_grouped": "r1 over the distance to the next duplicate group",
    "rho_star": "rho*, over the transforms",
}


def planted_count(control: int) -> int:
    """Return how many copies of each kind are planted beside a control of this many images."""
    return max(FEWEST, min(MOST, round(SHARE * control)))


def plant_all(reference: Reference, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return `count` copies of every kind, uint8 (P, H, W, C), and the place of its kind in WORDS, int64 (P,).

    Originals are drawn with the seed; fewer where the reference has fewer. Without repeated training images there is
    no kind "duplicated".
    """
    repeated = np.flatnonzero(np.bincount(reference.group)[reference.group] > 1)
    images, kinds = [], []
    for number, kind in enumerate(planting.WORDS):
        pool = repeated if kind == "duplicated" else np.arange(len(reference))
        if len(pool):
            rows = np.random.default_rng([seed, number]).permutation(pool)[:count]
            images.append(planting.plant(reference.images[rows], kind, seed))
            kinds.append(np.full(len(rows), number))
    return np.concatenate(images), np.concatenate(kinds)


def self_test(judged: Judged, kind: np.ndarray, percentile: float) -> dict[str, Any]:
    """Return recall and false positives of every metric, and of every score at the thresholds of GRID.

    judged: the control and after it the planted copies, judged as one set of samples would be; kind: int64 (P,), of
    the planted ones. False positives of `calibrated` are counted on the half of the control that its threshold was not
    taken from, both ways round (`thresholds.cross_fitted`).
    """
    real, found = len(judged) - len(kind), judged.searched.scores
    names = {number: name for number, name in enumerate(planting.WORDS) if (kind == number).any()}
    metrics = {name: _rates(flags, real, kind, names) for name, flags in judged.flags.items()}
    honest = cross_fitted(found.best[:real], percentile)
    metrics["calibrated"]["false_positives"] = _rate(honest)
    metrics["copy_or_near_copy"]["false_positives"] = _rate(honest | judged.copied[:real])
    values = {"ratio": found.ratio, "ratio_grouped": found.ratio_grouped, "rho_star": found.best}
    return {
        "control": real,
        "planted": {n: {"count": int((kind == k).sum()), "copies": planting.describe(n)} for k, n in names.items()},
        "planted_share": len(kind) / len(judged),
        "metrics": metrics,
        "scores": {
            name: {
                "definition": SCORES[name],
                "thresholds": [{"threshold": t, **_rates(value < t, real, kind, names)} for t in GRID],
            }
            for name, value in values.items()
        },
    }


def failure(tested: dict[str, Any], copy_threshold: float) -> str | None:
    """Return why an audit with this self-test cannot be trusted, or None. tested: what `self_test` returns."""
    recall, planted = tested["metrics"]["calibrated"]["recall"], tested["planted"]
    missed = [kind for kind in CERTAIN if kind in recall and recall[kind] < LEAST_RECALL]
    if not missed:
        return None
    found = ", ".join(f"{round(recall[k] * planted[k]['count'])} of {planted[k]['count']} {k}" for k in missed)
    return (
        f"the self-test found only {found} of the planted copies ({LEAST_RECALL:.0%} are required), so real "
        f"copies would be missed, too: the unseen images put the threshold of rho* at {copy_threshold:.3g}, so some of "
        f"these {tested['control']:,} images lie as near to training images as copies do. "
        "Look at the nearest ones (in report.html), and give unseen images that repeat no training image"
    )


def _rates(flags: np.ndarray, real: int, kind: np.ndarray, names: dict[int, str]) -> dict[str, Any]:
    planted = flags[real:]
    recall = {name: float(planted[kind == number].mean()) for number, name in names.items()}
    return {"recall": recall, "recall_all": float(planted.mean()), "false_positives": _rate(flags[:real])}


def _rate(flags: np.ndarray) -> dict[str, float | int]:
    return rate_with_interval(int(flags.sum()), len(flags))
