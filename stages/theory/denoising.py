"""Denoising score matching is explicit score matching on the unified mixture (METHODS §1.2, §4; [P] A.6).

Levels are drawn log-uniformly with the weight λ(σ) = σ² of the loss. A score s(x) that does not see the level is
compared with −z/σ (denoising), or with the score s̃(x) of the unified mixture (explicit). Both differ by a number that
does not depend on s, so the unified mixture is what denoising learns. The loss is the pipeline's own.

The pipeline's network of a noise-blind score gives F(x), whose loss ½‖F + z‖² has another minimiser: F* = −E[z | x].
As a score at the actual level, F*/σ*, it agrees with the unified mixture only in the limit of thin shells, d → ∞.
"""

import math
from collections.abc import Callable
from typing import ClassVar

import numpy as np
from pydantic import Field
from scipy.special import gammaln

from stages.theory import product
from stages.theory.claims import Claim, Findings, Schedule, Statement
from stages.theory.shell import Dimension

SOURCE = "METHODS §4, eq. 9 [P]; A.6 [P]"
SHELL_LEVELS = 4001  # levels around σ*
Values = Callable[[np.ndarray], np.ndarray]


class Denoising(Schedule):
    """The pipeline's loss against explicit matching, and what a noise-blind network's loss is minimised by."""

    TITLE: ClassVar[str] = "Denoising score matching is explicit matching on the unified mixture"

    dimension: int = Field(ge=3, description="d of the points")
    centres: int = Field(ge=2, description="training images, drawn uniformly from [0, 1]^d")
    levels: int = Field(ge=2, description="noise levels, log-uniform")
    draws: int = Field(ge=100, description="noised centres")
    dimensions: list[Dimension] = Field(min_length=1, description="d at which the shell limit is approached")

    def findings(self, seed: int, images: np.ndarray | None) -> Findings:
        rng = np.random.default_rng([seed, self.dimension])
        centres = rng.uniform(size=(self.centres, self.dimension))
        sigmas = product.noise_levels(self.smallest, self.largest, self.levels)
        x0 = centres[rng.integers(self.centres, size=self.draws)]
        sigma = sigmas[rng.integers(self.levels, size=self.draws)]
        z = rng.standard_normal(x0.shape)
        claims = [_explicit_claim(centres, sigmas, x0, sigma, z), _blind_claim(centres, sigmas, x0, sigma, z)]
        quotients = [shell_quotient(d) for d in self.dimensions]
        claims += [_shell_claim(d, quotient) for d, quotient in zip(self.dimensions, quotients)]
        rows = [{"d": d, "quotient": quotient} for d, quotient in zip(self.dimensions, quotients)]
        return Findings(claims, {"denoising_shell": rows})


def two_functions(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two values (B, d) that any claim about all functions must hold for: of a bounded and of a growing one."""
    return np.tanh(x[:, ::-1] - 0.5), 0.3 * (0.4 - x)


def posterior_noise(x: np.ndarray, centres: np.ndarray, sigmas: np.ndarray) -> np.ndarray:
    """Return E[z | x] for uniform centres and levels, (B, d): the weights are σ_j^(−d) exp(−r_i²/(2σ_j²))."""
    offsets = x[:, None] - centres[None]
    squared = np.square(offsets).sum(2)[..., None]
    logs = -x.shape[1] * np.log(sigmas) - squared / (2 * sigmas**2)
    weights = np.exp(logs - logs.max((1, 2), keepdims=True))
    weights /= weights.sum((1, 2), keepdims=True)
    return np.einsum("bij,bid->bd", weights / sigmas, offsets)


def _explicit_claim(centres: np.ndarray, sigmas: np.ndarray, x0: np.ndarray, sigma: np.ndarray, z: np.ndarray) -> Claim:
    """The two losses of s_1 minus those of s_2: the number that does not depend on s drops out."""
    x = x0 + sigma[:, None] * z
    mixture = product.mixture(centres, sigmas)(x)
    difference = np.zeros(len(x))
    for sign, score in zip((1, -1), two_functions(x)):
        denoising = product.denoising_losses(lambda x, level, s=score: level[:, None] * s, x0, sigma, z, True)
        explicit = 0.5 * sigma**2 * np.square(score - mixture).sum(1)
        difference += sign * (denoising - explicit)
    return Statement(
        "Denoising score matching is explicit score matching on the unified mixture",
        "E σ²½‖s(x)+z/σ‖² − E σ²½‖s(x)−s̃(x)‖² is the same number for every s",
        SOURCE,
        f"the pipeline's loss of F = σ s(x), two functions s, {len(x):,} draws",
    ).mean(difference, 0.0)


def _blind_claim(centres: np.ndarray, sigmas: np.ndarray, x0: np.ndarray, sigma: np.ndarray, z: np.ndarray) -> Claim:
    """The same for F(x), which does not see the level: its loss is explicit matching of −E[z | x]."""
    x = x0 + sigma[:, None] * z
    wanted = -posterior_noise(x, centres, sigmas)
    difference = np.zeros(len(x))
    for sign, values in zip((1, -1), two_functions(x)):
        denoising = product.denoising_losses(lambda x, level, f=values: f, x0, sigma, z, False)
        difference += sign * (denoising - 0.5 * np.square(values - wanted).sum(1))
    return Statement(
        "The loss of a noise-blind network is minimised by −E[z | x]",
        "E ½‖F(x)+z‖² − E ½‖F(x)+E[z|x]‖² is the same number for every F",
        "METHODS §4 [chk]",
        f"the pipeline's loss of F(x), two functions F, {len(x):,} draws",
    ).mean(difference, 0.0)


def shell_quotient(dimension: int) -> float:
    """Return −E[z | x]/σ* over the unified mixture's score, at one centre, on levels that cover its shell."""
    x, spread = np.full((1, dimension), 1.0), max(8 / math.sqrt(2 * dimension), 30 / (dimension - 2))
    level = 1 / math.sqrt(1 - 2 / dimension)  # σ* at r = √d
    sigmas = level * np.exp(np.linspace(spread, -spread, SHELL_LEVELS))
    centres = np.zeros((1, dimension))
    noise, score = posterior_noise(x, centres, sigmas), product.mixture(centres, sigmas)(x)
    return float((-noise / level / score).mean())


def _shell_claim(dimension: int, quotient: float) -> Claim:
    """With one centre and log-uniform levels 1/σ² has a Gamma law, so both sides are known: σ*² = r²/(d−2)."""
    ln = gammaln((dimension + 1) / 2) - gammaln(dimension / 2)
    expected = math.exp(ln) * math.sqrt(2 / (dimension - 2))
    return Statement(
        f"A noise-blind network's minimiser is the unified mixture's score in the shell limit alone (d = {dimension})",
        "−E[z|x]/σ* ÷ s̃(x) = √(2/(d−2)) Γ((d+1)/2)/Γ(d/2) = 1 + 3/(4d) + …",
        "METHODS §1.3, §4 [ours]",
        f"{SHELL_LEVELS:,} levels around σ* of one centre",
    ).equals(quotient, expected, 1e-6, "levels end where their weights are below e^−30")
