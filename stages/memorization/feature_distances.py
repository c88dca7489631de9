"""Fréchet and kernel distance, precision, recall, density and coverage, of the samples and of the control."""

from typing import Any

import numpy as np

from stages.engine.products import single_threaded_products, spread
from stages.features.coverage import precision_recall_density_coverage
from stages.features.frechet import frechet_interval
from stages.features.kid import kernel_interval

NEIGHBOR = 5  # which neighbour a ball reaches to, as in Naeem et al. 2020
INTERVALS = {"frechet": frechet_interval, "kid": kernel_interval}
"""Distances with a 95 % interval: of as many other samples, to the same training images."""

ENDS = ("ci_low", "ci_high")
NAMES = ("frechet", "kid", "precision", "recall", "density", "coverage_prdc")


def drawn(count: int, wanted: int, seed: int) -> np.ndarray:
    """`wanted` of `count` rows drawn with the seed, or all; ascending."""
    return np.sort(np.random.default_rng(seed).permutation(count)[:wanted])


def feature_distances(
    train: np.ndarray, samples: np.ndarray, holdout: np.ndarray, encoder: str
) -> dict[str, dict[str, Any]]:
    """Each distance of the samples to the training images, beside that of the control, with all counts.

    Args: features (N, D) of one encoder. Where a set is too small for a number the value is null with a reason.
    """
    ours, theirs = _of_both(train, samples, holdout)
    kind = "FID" if encoder == "inception_v3" else f"FD-{encoder}"
    labels = {"frechet": kind, "kid": f"{'KID' if encoder == 'inception_v3' else f'KD-{encoder}'}"}
    counts = {"train_count": len(train), "samples_count": len(samples), "holdout_count": len(holdout)}
    return {
        name: {
            "name": labels.get(name, f"{name.removesuffix('_prdc')} ({encoder}, k = {NEIGHBOR})"),
            "encoder": encoder,
            "value": ours[name],
            "holdout": theirs[name],
            **({end: ours[f"{name}_{end}"] for end in ENDS} if name in INTERVALS else {}),
            **({f"holdout_{end}": theirs[f"{name}_{end}"] for end in ENDS} if name in INTERVALS else {}),
            **counts,
        }
        for name in NAMES
    }


def _of_both(train: np.ndarray, *others: np.ndarray) -> list[dict[str, float | None]]:
    """`_all` of each of the others, side by side."""
    found: list[dict[str, float | None]] = [{} for _ in others]

    def some(a: int, b: int) -> None:
        for place in range(a, b):
            found[place] = _all(train, others[place])

    with single_threaded_products():
        spread(some, len(others))
    return found


def _all(train: np.ndarray, other: np.ndarray) -> dict[str, float | None]:
    """To 9 digits: what follows depends on the number of threads of the linear algebra."""
    values: dict[str, float | None] = dict.fromkeys([*NAMES, *(f"{n}_{end}" for n in INTERVALS for end in ENDS)])
    if min(len(train), len(other)) >= 3:
        for name, interval in INTERVALS.items():
            ends = (f"{name}_{end}" for end in ENDS)
            values |= dict(zip([name, *ends], interval(other, train)))
    if min(len(train), len(other)) > NEIGHBOR:
        found = precision_recall_density_coverage(train, other, NEIGHBOR)
        values |= {name: found[name.removesuffix("_prdc")] for name in NAMES[2:]}
    return {name: None if value is None else float(f"{value:.9g}") for name, value in values.items()}
