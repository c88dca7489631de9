"""Two halves: do models of disjoint halves of a set give alike samples from the same noise, or copies of their halves?

A model that has learned the distribution gives the same sample from the same noise, whichever half it saw (Kadkhodaie
et al. 2024, arXiv 2310.02557); one that memorizes gives images of its own half. Alikeness needs no threshold of a copy.
"""

from typing import ClassVar

import numpy as np
from pydantic import Field

from stages.beyond.measures import copied, flat
from stages.beyond.question import Question, by_seed, percent, summary, words
from stages.diffusion.parameters import NoiseParams, Variant
from stages.memorization.seeds import paired_difference
from stages.memorization.statistics import Z95
from stages.theory import product
from stages.theory.claims import Claim, Findings, Statement, Table

COPYING, GAUSSIAN = "conditioning", "wiener"
SOURCE = "METHODS §8b [ours]; Kadkhodaie et al. 2024"


def alikeness(one: np.ndarray, other: np.ndarray) -> tuple[float, float, float]:
    """Return 1 - mean_i |a_i - b_i|^2 / mean_(i != j) |a_i - b_j|^2, and its 95 % interval (jackknife over i).

    1 for equal samples, 0 for unrelated ones. one, other: (N, d), N >= 3; sample i of both began at the same noise.
    """
    a, b = one.astype(np.float64), other.astype(np.float64)
    squares = (a * a).sum(1)[:, None] + (b * b).sum(1) - 2 * a @ b.T
    n, pairs = len(a), np.diag(squares)
    together, apart = pairs.sum(), squares.sum() - pairs.sum()
    # without i: its own pair, and its row and column of the unrelated ones
    left = apart - (squares.sum(0) + squares.sum(1) - 2 * pairs)
    each = 1 - ((together - pairs) / (n - 1)) / (left / ((n - 1) * (n - 2)))
    found = 1 - (together / n) / (apart / (n * (n - 1)))
    half = Z95 * float(np.sqrt((n - 1) / n * ((each - each.mean()) ** 2).sum()))
    return float(found), float(found) - half, float(found) + half


def gaussian_samples(train: np.ndarray, start: np.ndarray, noise: NoiseParams) -> np.ndarray:
    """What an exact sampler makes of `start` (N, d) under a Gaussian's score, uint8 (N, d).

    The Gaussian N(mu, S) has the mean and covariance of the images uint8 (M, d). Its flow to the smallest level s is
    linear, mu + ((S + s^2)/(S + sigma_max^2))^(1/2) (x - mu); the last step goes to the posterior mean there.
    """
    images = train / 255
    values, axes = np.linalg.eigh(np.cov(images.T, bias=True))
    variance, low, high = values.clip(0), noise.sigma_min**2, noise.sigma_max**2
    shrink, mean = variance / np.sqrt((variance + low) * (variance + high)), images.mean(0)
    ends = mean + ((start - mean) @ axes * shrink) @ axes.T
    return (ends.clip(0, 1) * 255).round().astype(np.uint8)


class TwoHalves(Question):
    """Closed forms over both halves of a set, from the same noise."""

    TITLE: ClassVar[str] = "Two halves: generalization measured without a threshold for copies"
    QUESTION: ClassVar[str] = (
        "Do models of disjoint halves draw the same from the same noise? One that memorizes draws images of its own "
        "half. If alikeness did not measure this, a score that copies and one that cannot would have the same."
    )

    half: int = Field(ge=10, description="images of each half")
    forms: dict[str, Variant] = Field(description="closed forms and their samplers; conditioning and wiener among them")

    def findings(self, seed: int, images: np.ndarray | None) -> Findings:
        """A row per form of the piece's seed."""
        from stages.beyond import small_models

        rows: Table = []
        for own in self.seeds:
            both, held_out = self.drawn(images, own, 2 * self.half)
            halves = both[: self.half], both[self.half :]
            control = float(np.mean([copied(held_out, half).mean() for half in halves]))
            start = self.noise.sigma_max * product.noise(own, range(self.samples), 0, both[0].size)
            exact = alikeness(*(gaussian_samples(flat(half), start, self.noise) for half in halves))[0]
            for name, form in self.forms.items():
                pair = [small_models.samples(form, self.noise, half, self.samples, own) for half in halves]
                found, low, high = alikeness(*map(flat, pair))
                copies = float(np.mean([copied(part, half).mean() for part, half in zip(pair, halves)]))
                rows.append({"form": name, "seed": own, "alikeness": found, "low": low, "high": high,
                             "copies": copies, "control": control, "gaussian": exact,
                             "samples": 2 * self.samples, "controls": 2 * self.held_out})  # fmt: skip
        return Findings([], {"two_halves": rows})

    def conclude(self, tables: dict[str, Table]) -> list[Claim]:
        """See Block.conclude."""
        rows = tables["two_halves"]
        return [_known_answer(rows), _tells_apart(rows), *_forms_between(rows)]


def _known_answer(rows: Table) -> Claim:
    own = [row for row in rows if row["form"] == GAUSSIAN]
    measured, exact = (np.array([row[name] for row in own]) for name in ("alikeness", "gaussian"))
    return Statement(
        "On a Gaussian model alikeness is that of its exact flow", "1 − mean |a_i − b_i|²/mean |a_i − b_j|²",
        SOURCE, f"wiener, {len(own)} seeds, against the linear flows of both halves' Gaussians from the same noise",
    ).equals(measured, exact, 2e-3, "the sampler's few steps")  # fmt: skip


def _tells_apart(rows: Table) -> Claim:
    found = paired_difference(by_seed(rows, "alikeness", form=GAUSSIAN), by_seed(rows, "alikeness", form=COPYING))
    return Statement(
        "Halves of a score that copies are less alike than those of a Gaussian model",
        "alikeness, wiener − conditioning", SOURCE, "; ".join(_listing(rows, name) for name in (COPYING, GAUSSIAN)),
    ).above(found, 0.0, "0")  # fmt: skip


def _forms_between(rows: Table) -> list[Claim]:
    """Every other form, which r1/r2 may clear: its halves are less alike than a Gaussian model's."""
    names = [name for name in dict.fromkeys(row["form"] for row in rows) if name not in (COPYING, GAUSSIAN)]
    claims = []
    for name in names:
        found = paired_difference(by_seed(rows, "alikeness", form=name), by_seed(rows, "alikeness", form=GAUSSIAN))
        computed = f"{_listing(rows, name)}; held-out images {percent(rows, 'control', form=name)} % copies"
        claims.append(Statement(
            f"Halves of {name} are less alike than those of a Gaussian model, however few copies r_1/r_2 finds",
            f"alikeness, {name} − wiener", SOURCE, computed,
        ).below(found, 0.0, "0 or more"))  # fmt: skip
    return claims


def _listing(rows: Table, name: str) -> str:
    alike = words(summary(rows, "alikeness", form=name))
    return f"{name}: alikeness {alike}, {percent(rows, 'copies', form=name)} % copies"
