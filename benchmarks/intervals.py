"""How often each stated 95 % interval holds the truth, in repetitions of samples whose truth is known.

    python -m benchmarks.intervals [--repetitions 1000] [--only distance kernel rate difference seeds frontier late]

Prints a Markdown table: coverage in percent, and on which side the interval misses, too low or too high. The rates'
rows need no repetitions, their coverage is a sum over all counts. benchmarks/README.md has the numbers.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from scipy.stats import binom

from stages.features.frechet import frechet_from_features, frechet_interval
from stages.features.kid import kernel_distance, kernel_interval
from stages.memorization.first_reached import Stop, first_reached
from stages.memorization.seeds import SHARE, SeedMean, over_seeds, paired_rates, rate_variance
from stages.memorization.statistics import Z95, newcombe, rate_interval
from stages.reporting.frontier import at_equal_distance
from stages.reporting.runs import SHARES, Columns

SPREAD = 0.3  # how far the samples' law is from the reference's
CENTRES = 30
Draw = Callable[[int], np.ndarray]
Row = tuple[str, str, float, float, float]
"""What is estimated, in which case, and the shares of intervals that hold the truth, end below and begin above it."""

DISTANCES = [
    ("plain", 60, 8), ("plain", 30, 48), ("heavy", 60, 24), ("heavy", 30, 48), ("student", 60, 24), ("copies", 60, 24),
    ("blends", 60, 24), ("3 modes", 60, 24), ("6 modes", 60, 8), ("6 modes", 60, 40), ("6 modes", 60, 160),
    ("6 modes", 200, 24), ("12 modes", 60, 24), ("uneven modes", 60, 40), ("blank", 60, 24), ("reference", 60, 8),
    ("reference", 30, 48),
]  # fmt: skip
RATES = [(0.002, 100), (0.002, 300), (0.01, 100), (0.01, 300), (0.05, 300), (0.3, 100), (0.7, 300), (0.99, 300)]
FRONTIER = [(190, 0.0), (190, 10.0), (165, 0.0), (165, 10.0), (155, 10.0)]
CURVE = {  # a plain network's training: the default run's steps, Fréchet distance and share of copies, about
    "step": [50, 100, 200, 500, 1000], "fd": [270, 220, 170, 150, 160], "rate": [0.0, 0.01, 0.05, 0.25, 0.65]
}  # fmt: skip
LATE_SHARES = [(0.25, 0.65, 0.05, 0.12), (0.5, 0.8, 0.05, 0.06), (0.9, 0.97, 0.3, 0.5), (0.02, 0.02, 0.0, 0.0)]
"""Shares of copies halfway and at the end of the training: the plain network's, and the smoothed one's."""
SEED_RATES = [(0.005, 0.0), (0.02, 0.005), (0.3, 0.0), (0.3, 0.05), (0.7, 0.1), (0.98, 0.005), (0.995, 0.0)]


def law(kind: str, dimension: int, rng: np.random.Generator) -> tuple[Draw, np.ndarray]:
    """Return a function that draws `count` samples (count, D), and the reference's standard deviations (D,)."""
    scale = np.arange(1, dimension + 1) ** -0.5
    same = kind == "reference"
    shift = 0 if same else SPREAD * rng.normal(size=dimension) * scale
    own = scale * (1 if same else np.exp(SPREAD * rng.normal(size=dimension)))
    centres = rng.normal(size=(CENTRES, dimension))
    modes = int(kind.split()[0]) if kind[0].isdigit() else 6
    shares = rng.dirichlet(np.ones(modes)) if kind == "uneven modes" else np.full(modes, 1 / modes)

    def draw(count: int) -> np.ndarray:
        z = rng.normal(size=(count, dimension))
        if kind == "heavy":
            z *= np.exp(0.4 * rng.normal(size=(count, 1)))
        elif kind == "student":  # 5 degrees of freedom
            z /= np.sqrt(rng.chisquare(5, size=(count, 1)) / 5)
        elif kind == "copies":
            rows = rng.random(count) < 0.5
            z[rows] = centres[rng.integers(CENTRES, size=rows.sum())]
        elif kind == "blends":
            parts = np.argsort(rng.random((count, CENTRES)), axis=1)[:, :8]
            z = 0.02 * z + np.einsum("nk,nkd->nd", rng.dirichlet(np.ones(8), size=count), centres[parts])
        elif kind == "blank":
            z *= 0.02
        elif kind.endswith("modes"):
            z = 0.15 * z + centres[rng.choice(modes, size=count, p=shares)]
        return z * own + shift

    return draw, scale


def held(ends: np.ndarray, truth: float | np.ndarray) -> tuple[float, float, float]:
    """Return the shares of intervals (R, 2) that hold the truth, that end below it, and that begin above it."""
    below, above = ends[:, 1] < truth, ends[:, 0] > truth
    return float((~below & ~above).mean()), float(below.mean()), float(above.mean())


def distance_coverage(
    kind: str, count: int, dimension: int, repetitions: int, seed: int = 0, kernel: bool = False
) -> tuple[float, float, float]:
    """Return `held` of a distance's intervals, the truth being the mean distance of 2 x `repetitions` other sets."""
    estimate, interval = (kernel_distance, kernel_interval) if kernel else (frechet_from_features, frechet_interval)
    rng = np.random.default_rng((dimension, seed))
    draw, scale = law(kind, dimension, rng)
    reference = rng.normal(size=(100, dimension)) * scale
    truth = float(np.mean([estimate(draw(count), reference) for _ in range(2 * repetitions)]))
    return held(np.array([interval(draw(count), reference)[1:] for _ in range(repetitions)]), truth)


def rate_coverage(rate: float, count: int) -> tuple[float, float, float]:
    """Return `held` of a rate's interval, weighted with the exact binomial law."""
    ends, weights = (
        np.array([rate_interval(k, count) for k in range(count + 1)]),
        binom.pmf(range(count + 1), count, rate),
    )
    below, above = weights @ (ends[:, 1] < rate), weights @ (ends[:, 0] > rate)
    return 1 - below - above, below, above


def difference_coverage(rate: float, count: int, control: int) -> tuple[float, float, float]:
    """Return `held` of Newcombe's interval for two equal rates, weighted with both exact binomial laws."""
    laws = [binom.pmf(range(n + 1), n, rate) for n in (count, control)]
    found = np.zeros(3)
    for k in np.flatnonzero(laws[0] > 1e-6):
        for m in np.flatnonzero(laws[1] > 1e-6):
            low, high = newcombe(int(k), count, int(m), control)
            found += laws[0][k] * laws[1][m] * np.array([low <= 0 <= high, high < 0, low > 0])
    return tuple((found / found.sum()).tolist())


def seed_coverage(
    rate: float, spread: float, paired: bool, repetitions: int, seeds: int = 3, count: int = 100
) -> tuple[float, float, float]:
    """Return `held` of the interval over seeds: of the mean rate, or of the difference of two variants' equal rates.

    A seed's rate differs from the mean by a uniform number of standard deviation `spread`, that of two variants of one
    seed apart. Raises AssertionError where an interval passes what a share, or a difference of shares, can be.
    """
    rng = np.random.default_rng(2)
    wide = np.sqrt(3) * spread

    def counts() -> np.ndarray:
        return rng.binomial(count, np.clip(rate + rng.uniform(-wide, wide, seeds), 0, 1)).astype(float)

    def estimate() -> SeedMean:
        if paired:
            return paired_rates(counts(), counts(), count)
        flagged = counts()
        return over_seeds(flagged / count, rate_variance(flagged, count), SHARE)

    found = np.array([(mean.low, mean.high) for mean in (estimate() for _ in range(repetitions))])
    assert found.min() >= (-1 if paired else 0)
    assert found.max() <= 1
    return held(found, 0 if paired else rate)


def frontier_coverage(distance: float, spread: float, repetitions: int) -> tuple[float, float, float]:
    """Return `held` of the difference of copies at equal Fréchet distance, over 3 seeds of which each has one.

    The smoothed network ends at `distance` with 30 % copies. A seed's curve of distances lies higher or lower by a
    normal number of standard deviation `spread`; every measured distance errs by 7 and every share by 100 samples. The
    truth is the difference of the curves without these errors, over many seeds.
    """
    rng, error, count = np.random.default_rng(3), 7.0, 100
    step, fd, rate = (np.array(CURVE[key], float) for key in ("step", "fd", "rate"))

    def truth(shift: float) -> float:
        stop = first_reached(fd + shift, distance)
        assert isinstance(stop, Stop)
        return 0.3 - stop.value(rate)

    def measured(seed: int, steps: np.ndarray, distances: np.ndarray, rates: np.ndarray) -> Columns:
        flagged = rng.binomial(count, rates).astype(float)
        found = distances + error * rng.normal(size=len(steps))
        ends = {"fd": found, "fd_low": found - Z95 * error, "fd_high": found + Z95 * error}
        same = {"seed": np.full(len(steps), seed), "step": steps, "count": np.full(len(steps), count)}
        return same | ends | dict.fromkeys(SHARES, flagged)

    def estimate() -> SeedMean | None:
        plain = [measured(seed, step, fd + spread * rng.normal(), rate) for seed in range(3)]
        smoothed = [measured(seed, step[-1:], np.array([distance]), np.array([0.3])) for seed in range(3)]
        runs = {name: {key: np.concatenate([one[key] for one in own]) for key in own[0]}
                for name, own in (("plain", plain), ("smoothed", smoothed))}  # fmt: skip
        change = at_equal_distance("smoothed", "plain", runs).change
        return change and change.ratio

    shifts = spread * rng.normal(size=10_000)
    mean = float(np.mean([truth(shift) for shift in shifts if (fd + shift).min() <= distance <= fd[0] + shift]))
    found = [interval for interval in (estimate() for _ in range(repetitions)) if interval is not None]
    return held(np.array([(interval.low, interval.high) for interval in found]), mean)


def late_coverage(
    shares: Sequence[float], spread: float, repetitions: int
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Return `held` of the copies' growth per doubling of the steps: the smoothed network's, and its difference.

    shares: as in LATE_SHARES. A seed's share at every step differs from them by a uniform number of standard deviation
    `spread` (less where the share is near 0 or 1), and is measured on 100 samples.
    """
    rng, count, seeds = np.random.default_rng(4), 100, 3
    (early, end), (own_early, own_end) = shares[:2], shares[2:]

    def measured(rates: Sequence[float]) -> Columns:
        wide = np.minimum(np.sqrt(3) * spread, np.minimum(rates, np.subtract(1, rates)))
        flagged = rng.binomial(count, rates + rng.uniform(-wide, wide, (seeds, 2))).ravel().astype(float)
        same = {"seed": np.repeat(np.arange(seeds), 2), "step": np.tile([500.0, 1000.0], seeds)}
        distances = dict.fromkeys(("fd", "fd_low", "fd_high"), np.tile([170.0, 150.0], seeds))
        return same | distances | {"count": np.full(2 * seeds, count)} | dict.fromkeys(SHARES, flagged)

    found = []
    for _ in range(repetitions):
        runs = {"plain": measured([early, end]), "smoothed": measured([own_early, own_end])}
        own, _, difference = at_equal_distance("smoothed", "plain", runs).late
        found.append([(change.ratio.low, change.ratio.high) for change in (own, difference)])
    growth = own_end - own_early
    ends = np.array(found)
    return held(ends[:, 0], growth), held(ends[:, 1], growth - (end - early))


def rows(parts: Sequence[str], repetitions: int) -> Iterator[Row]:
    """Yield the table's rows, each as soon as it is measured."""
    for part, name in (("distance", "Fréchet distance"), ("kernel", "kernel distance")):
        for kind, count, dimension in DISTANCES if part in parts else []:
            for seed in (0, 1):
                found = distance_coverage(kind, count, dimension, repetitions, seed, part == "kernel")
                yield name, f"{kind}, N = {count}, D = {dimension}, law {seed + 1}", *found
    for rate, count in RATES if "rate" in parts else []:
        yield "rate", f"{rate} of {count}", *rate_coverage(rate, count)
    for rate, count in RATES if "difference" in parts else []:
        yield "rate beside a control of 1,000", f"{rate} of {count}", *difference_coverage(rate, count, 1000)
    for paired, name in ((False, "mean rate over 3 seeds"), (True, "difference of rates over 3 paired seeds")):
        for rate, spread in SEED_RATES if "seeds" in parts else []:
            yield name, f"{rate}, seeds ± {spread}, 100 samples", *seed_coverage(rate, spread, paired, repetitions)
    for distance, spread in FRONTIER if "frontier" in parts else []:
        case = f"FD {distance}, seeds ± {spread:.0f}"
        yield "difference of copies at equal FD", case, *frontier_coverage(distance, spread, repetitions)
    for shares in LATE_SHARES if "late" in parts else []:
        for spread in (0.0, 0.05):
            case = "{2} to {3} against {0} to {1}, seeds ± ".format(*shares) + f"{spread}"
            own, difference = late_coverage(shares, spread, repetitions)
            yield "copies per doubling of the steps", case, *own
            yield "difference of copies per doubling", case, *difference


def main() -> None:
    parts = ["distance", "kernel", "rate", "difference", "seeds", "frontier", "late"]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=1000)
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    options = parser.parse_args()
    print("| interval | case | covers % | ends low % | begins high % |\n|---|---|---|---|---|")
    found = []
    for name, case, *shares in rows(options.only, options.repetitions):
        print(f"| {name} | {case} | {' | '.join(f'{100 * share:.1f}' for share in shares)} |", flush=True)
        found.append({"interval": name, "case": case, "coverage": shares[0]})
    print(json.dumps({"repetitions": options.repetitions, "rows": found}))


if __name__ == "__main__":
    main()
