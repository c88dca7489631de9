"""What the metrics find on this very data: known copies among held-out images, recall and false positives."""

from typing import Any

import numpy as np

from stages.auditing import planting
from stages.auditing.judging import Judge, Searched, cross_fitted
from stages.auditing.matching import Reference, match
from stages.auditing.store import Store
from stages.files.artifacts import sha256_json
from stages.memorization.statistics import wilson

SHARE, FEWEST, MOST = 0.02, 10, 100  # planted copies of a kind: this share of the control, within these bounds
GRID = (0.1, 0.2, 0.3, 1 / 3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
SCORES = {
    "ratio": "r1/r2",
    "ratio_grouped": "r1 over the distance to the next duplicate group",
    "rho_star": "rho*, over the transforms",
}


def planted_count(control: int) -> int:
    """How many copies of each kind are planted beside so many control images."""
    return max(FEWEST, min(MOST, round(SHARE * control)))


def plant_all(reference: Reference, count: int, seed: int, store: Store, budget: int) -> tuple[Searched, np.ndarray]:
    """`count` copies of every kind, matched against the reference; and each one's kind (place in planting.WORDS).

    Originals are drawn with the seed; fewer where the reference has fewer. Without repeated training images there is
    no kind "duplicated".
    """
    sizes = np.bincount(reference.group)
    repeated = np.flatnonzero(sizes[reference.group] > 1)
    images, kinds = [], []
    for number, kind in enumerate(planting.WORDS):
        pool = repeated if kind == "duplicated" else np.arange(len(reference))
        if len(pool) == 0:
            continue
        rows = np.random.default_rng([seed, number]).permutation(pool)[:count]
        images.append(planting.plant(reference.images[rows], kind, seed))
        kinds.append(np.full(len(rows), number))
    planted, kind = np.concatenate(images), np.concatenate(kinds)
    digest = sha256_json([planting.WORDS, reference.digest, count, seed])
    matches = match(planted, digest, reference, store, budget)
    return Searched.of(planted, [f"{digest[:16]}#{row}" for row in range(len(planted))], matches), kind


def self_test(control: Searched, planted: Searched, kind: np.ndarray, judge: Judge) -> dict[str, Any]:
    """Recall and false positives of every metric, and of every score at the thresholds of GRID.

    The planted copies are judged together with the control, as one set of samples would be. False positives of
    `calibrated` are counted on the half of the control that its threshold was not taken from, both ways round
    (`judging.cross_fitted`).
    """
    judged = judge(Searched.join(control, planted))
    real = len(control)
    names = {number: name for number, name in enumerate(planting.WORDS) if (kind == number).any()}
    metrics = {name: _rates(flags[:real], flags[real:], kind, names) for name, flags in judged.flags.items()}
    honest = cross_fitted(control.scores, judge.rules.percentile)
    metrics["calibrated"]["false_positives"] = _rate(honest)
    metrics["copy_or_near_copy"]["false_positives"] = _rate(honest | judged.flags["copy_or_near_copy"][:real])
    values = {
        "ratio": judged.searched.scores.ratio,
        "ratio_grouped": judged.searched.scores.ratio_grouped,
        "rho_star": judged.searched.scores.best,
    }
    return {
        "control": real,
        "planted": {n: {"count": int((kind == k).sum()), "copies": planting.WORDS[n]} for k, n in names.items()},
        "planted_share": len(planted) / len(judged),
        "metrics": metrics,
        "scores": {
            name: {"definition": SCORES[name], "thresholds": [_at(value, real, kind, names, t) for t in GRID]}
            for name, value in values.items()
        },
    }


def _rates(control: np.ndarray, planted: np.ndarray, kind: np.ndarray, names: dict[int, str]) -> dict[str, Any]:
    recall = {name: float(planted[kind == number].mean()) for number, name in names.items()}
    return {"recall": recall, "recall_all": float(planted.mean()), "false_positives": _rate(control)}


def _rate(flags: np.ndarray) -> dict[str, float | int]:
    low, high = wilson(int(flags.sum()), len(flags))
    return {
        "flagged": int(flags.sum()),
        "count": len(flags),
        "rate": float(flags.mean()),
        "ci_low": low,
        "ci_high": high,
    }


def _at(value: np.ndarray, real: int, kind: np.ndarray, names: dict[int, str], threshold: float) -> dict[str, Any]:
    below = value < threshold
    return {"threshold": threshold, **_rates(below[:real], below[real:], kind, names)}
