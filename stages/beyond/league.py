"""The analytic league: training-free scores beside a small network of the same images, by level and by their samples.

Closed forms that stand in for a trained network's score (METHODS §8b) are compared with one at noised images that
neither has seen, and by what they draw: copies, blends, and the Fréchet distance of the pixels to held-out images.
"""

from typing import ClassVar

import numpy as np
from pydantic import Field

from stages.beyond.measures import shares
from stages.beyond.question import Question, by_seed, percent, share_difference, summary, words
from stages.diffusion.parameters import NetworkParams, OptimizationParams, Variant
from stages.memorization.seeds import paired_difference
from stages.theory.claims import Claim, Findings, Statement, Table

NETWORK, COPYING, GAUSSIAN = "network", "conditioning", "wiener"
SOURCE = "METHODS §8b [ours]"


def agreement(own: np.ndarray, other: np.ndarray, x: np.ndarray, sigma: float) -> tuple[float, float]:
    """r² of the denoised images x + σ² s of two scores, and the mean cosine of the scores; all (B, d)."""
    denoised, wanted = x + sigma**2 * own, x + sigma**2 * other
    left = np.square(denoised - wanted).sum() / np.square(wanted - wanted.mean(0)).sum()
    cosines = (own * other).sum(1) / (np.linalg.norm(own, axis=1) * np.linalg.norm(other, axis=1))
    return float(1 - left), float(cosines.mean())


class League(Question):
    """Closed forms beside a network that is trained in the block."""

    TITLE: ClassVar[str] = "The analytic league: closed forms beside a trained network"
    QUESTION: ClassVar[str] = (
        "Which score without training is nearest to a trained network's, and does it copy? If the empirical score "
        "described networks, it would be the nearest one, and networks would copy as it does."
    )

    size: int = Field(ge=10, description="training images")
    levels: list[float] = Field(min_length=2, description="noise levels of the agreement, rising")
    points: int = Field(ge=10, description="held-out images that are noised at every level")
    forms: dict[str, Variant] = Field(description="closed forms and their samplers; conditioning and wiener among them")
    variant: Variant = Field(description="of the network")
    network: NetworkParams
    optimization: OptimizationParams

    def findings(self, seed: int, images: np.ndarray | None) -> Findings:
        """A row per form, and one per form and level, of the piece's seed."""
        from stages.beyond import points, small_models

        rows, levels = [], []
        for own in self.seeds:
            train, held_out = self.drawn(images, own, self.size)
            training = small_models.new_training(self.variant, self.noise, self.network, self.optimization, train, own)
            ((_, network),) = small_models.trained(training, [self.optimization.steps])
            models = {NETWORK: (self.variant, network)} | {name: (form, None) for name, form in self.forms.items()}
            for name, (form, net) in models.items():
                drawn = small_models.samples(form, self.noise, train, self.samples, own, net)
                rows.append({"form": name, "seed": own} | shares(drawn, train, held_out))
            for sigma in self.levels:
                x = points.noised(held_out[: self.points], sigma, own)
                scores = {
                    name: points.score(form, self.noise, train, x, sigma, net) for name, (form, net) in models.items()
                }
                for name in self.forms:
                    r2, cosine = agreement(scores[name], scores[NETWORK], points.rows(x), sigma)
                    levels.append({"form": name, "sigma": sigma, "seed": own, "r2": r2, "cosine": cosine})
        return Findings([], {"league": rows, "league_levels": levels})

    def conclude(self, tables: dict[str, Table]) -> list[Claim]:
        """See Block.conclude."""
        levels, rows = tables["league_levels"], tables["league"]
        return [self._highest(levels), self._nearer(levels), _fewer_copies(rows)]

    def _highest(self, levels: Table) -> Claim:
        top = self.levels[-1]
        found = summary(levels, "cosine", form=COPYING, sigma=top)
        return Statement(
            "At the highest level the network's score points as the empirical one does", f"cosine at σ = {top:g}",
            SOURCE, f"noised held-out images: {words(found, digits=3)}",
        ).above(found, 0.98, "below 0.98: the network has not learned")  # fmt: skip

    def _nearer(self, levels: Table) -> Claim:
        low = self.levels[0]
        best, *_ = sorted(self.forms, key=lambda name: -summary(levels, "cosine", form=name, sigma=low).mean)
        found = paired_difference(*(by_seed(levels, "cosine", form=name, sigma=low) for name in (GAUSSIAN, COPYING)))
        listing = ", ".join(f"{n} {words(summary(levels, 'cosine', form=n, sigma=low))}" for n in self.forms)
        return Statement(
            "At low noise a Gaussian's score is nearer to the network's than the empirical score is",
            f"cosine with the network, wiener − conditioning, σ = {low:g}", SOURCE, f"{listing}; the nearest is {best}",
        ).above(found, 0.0, "0 or less")  # fmt: skip


def _fewer_copies(rows: Table) -> Claim:
    names = dict.fromkeys(row["form"] for row in rows)
    listing = "; ".join(
        f"{name} {percent(rows, 'copies', form=name)} %, {summary(rows, 'fd', form=name).mean:.2f}" for name in names
    )
    control = percent(rows, "control", form=NETWORK)
    found = share_difference(rows, "copies", {"form": COPYING}, {"form": NETWORK})
    return Statement(
        "The network copies less than the empirical score", "share of copies, conditioning − network", SOURCE,
        f"copies and FD-pixels: {listing}; held-out images {control} % copies",
    ).above(found, 0.0, "0")  # fmt: skip
