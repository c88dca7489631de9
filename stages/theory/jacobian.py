"""The Jacobian of the empirical score at points between training images: how expansive a step is (METHODS §2).

With g_i = −p_i (x − x_i), p_i = 1/σ_i*² = (d−2)/r_i² and weights w at temperature T, σ_i* held fixed:

    J = (1/T) Cov_w(g) − λ̄ I,  λ̄ = Σ_i w_i p_i.

Conditioning has p_i = 1/σ², T = 1, σ = min_i r_i/√d (the actual noise level). Differentiating σ_i* too adds
(2/(d−2)) Σ_i w_i g_i g_iᵀ. J is symmetric, so power iteration finds its eigenvalue of largest magnitude.
float64 numpy; J is never formed: J v costs two products with the centres.
"""

import dataclasses
from collections.abc import Callable
from typing import ClassVar, Self

import numpy as np
from pydantic import Field

from stages.errors import InputError
from stages.theory.claims import Claim, Findings, ImageBlock, Table
from stages.theory.weights import Score, inverse_temperature, label, squared_distances, weigh

CIFAR10 = (32, 32, 3)
NEGLIGIBLE = 1e-18  # centres whose weight is below this at every point change no float64 digit of J
CHECKED = {
    "T = ∞": {"low": 13.3, "high": 13.8},
    "T = 1": {"low": 50.0, "high": 64.0},
    "T = 1000": {"low": 18.0, "high": 19.0},
}
"""The range of the mean λ̄ found before on CIFAR-10 (METHODS §2)."""
STEEP = 25  # T is small against the dimension while (d−2)/T stays above this; at d = 3072 that is T ≤ 122


class Jacobian(ImageBlock):
    """Spectral radius, dominant eigenvalue and λ̄ of the score's Jacobian on bisector points (METHODS §2)."""

    TITLE: ClassVar[str] = "Jacobian of the score between training images"

    points: int = Field(ge=2, description="bisector points, each of a random pair of training images")
    noise: float = Field(ge=0, description="standard deviation of the isotropic noise added to the midpoints")
    scores: list[Score] = Field(min_length=1, description="conditioning, temperatures, infinity")
    tolerance: float = Field(gt=0, lt=1, description="relative change at which power iteration stops")
    iterations: int = Field(ge=2, description="... or after so many iterations")
    cifar10: bool = Field(description="the images are CIFAR-10: compare with the published numbers")

    def pieces(self) -> list[Self]:
        """One per score."""
        return [self.model_copy(update={"scores": [score]}) for score in self.scores]

    def findings(self, seed: int, images: np.ndarray | None) -> Findings:
        """See verify_jacobian."""
        if images is None:
            raise ValueError("jacobian needs images")
        return verify_jacobian(self, seed, images)

    def conclude(self, tables: dict[str, Table]) -> list[Claim]:
        """How ρ and λ̄ change with T, and CIFAR-10's published numbers."""
        return [*_fall_claims(tables["jacobian"]), *(_cifar10_claims(tables["jacobian"]) if self.cifar10 else [])]


@dataclasses.dataclass(frozen=True)
class Linearization:
    """The Jacobians of one score at B points, over M centres; all arrays float64.

    Attributes:
        points: (B, d). centres: (M, d).
        weights: (B, M), rows sum to 1. precision: p_i, (B, M).
        score: S = Σ w_i g_i, (B, d). mean_precision: λ̄, (B,).
        covariance: the factor of Cov_w(g): 1/T.
        curvature: the factor of Σ w g gᵀ: 2/(d−2) where σ_i* is differentiated, else 0.
    """

    points: np.ndarray
    centres: np.ndarray
    weights: np.ndarray
    precision: np.ndarray
    score: np.ndarray
    mean_precision: np.ndarray
    covariance: float
    curvature: float

    def at(self, rows: np.ndarray) -> "Linearization":
        """The Jacobians at some of the points only."""
        if len(rows) == len(self.points):
            return self
        kept = ("points", "weights", "precision", "score", "mean_precision")
        return dataclasses.replace(self, **{name: getattr(self, name)[rows] for name in kept})

    def _sum(self, factors: np.ndarray) -> np.ndarray:
        """Σ_i factors_i g_i for factors (B, M)."""
        scaled = factors * self.precision
        return scaled @ self.centres - scaled.sum(axis=1, keepdims=True) * self.points

    def apply(self, vectors: np.ndarray) -> np.ndarray:
        """J v for one vector per point, (B, d)."""
        along = self.precision * (vectors @ self.centres.T - (vectors * self.points).sum(axis=1, keepdims=True))
        second = self._sum(self.weights * along)  # Σ w g (g·v)
        result = (self.covariance + self.curvature) * second - self.mean_precision[:, None] * vectors
        if self.covariance:
            result -= self.covariance * self.score * (self.score * vectors).sum(axis=1, keepdims=True)
        return result

    def dense(self) -> np.ndarray:
        """J in full, (B, d, d), for small d: written down from its definition, without `apply`."""
        gradients = self.precision[..., None] * (self.centres[None] - self.points[:, None])
        score = np.einsum("bm,bmd->bd", self.weights, gradients)
        second = np.einsum("bm,bmd,bme->bde", self.weights, gradients, gradients)
        covariance = second - score[:, :, None] * score[:, None, :]
        identity = np.eye(self.points.shape[1])
        return self.covariance * covariance + self.curvature * second - self.mean_precision[:, None, None] * identity


def linearize(points: np.ndarray, centres: np.ndarray, score: Score, differentiated: bool = False) -> Linearization:
    """The Jacobian of a score at `points` (B, d) over `centres` (M, d).

    differentiated: also differentiate σ_i* (unconditioning only).
    """
    dimension = points.shape[1]
    weights, precision = weigh(squared_distances(points, centres), dimension, score)
    kept = np.flatnonzero(weights.max(axis=0) > NEGLIGIBLE)
    scaled = weights * precision
    return Linearization(
        points=points,
        centres=centres[kept],
        weights=weights[:, kept],
        precision=precision[:, kept],
        score=scaled @ centres - scaled.sum(axis=1, keepdims=True) * points,
        mean_precision=scaled.sum(axis=1),
        covariance=inverse_temperature(score),
        curvature=2 / (dimension - 2) if differentiated else 0.0,
    )


@dataclasses.dataclass(frozen=True)
class Eigenvalues:
    """What power iteration found at B points.

    Attributes:
        value: eigenvalue of largest magnitude of the iterated matrix, as a Rayleigh quotient (B,).
        magnitude: ‖A v‖ at the last iteration (B,).
        residual: ‖A v − value·v‖ (B,): for symmetric A some eigenvalue lies within it of `value`.
        iterations: (B,).
        vector: A v over its length, (B, d); 0 where A v is.
    """

    vector: np.ndarray
    value: np.ndarray
    magnitude: np.ndarray
    residual: np.ndarray
    iterations: np.ndarray


def power_iteration(
    apply: Callable[[np.ndarray, np.ndarray], np.ndarray], start: np.ndarray, tolerance: float, limit: int
) -> Eigenvalues:
    """Power iteration at every point at once; a point leaves when ‖A v‖ changes by less than `tolerance`.

    apply: (rows, vectors) -> A v for the points numbered `rows`. start: (B, d).
    """
    count = len(start)
    vectors = start / np.linalg.norm(start, axis=1, keepdims=True)
    value, magnitude, residual = np.zeros(count), np.full(count, np.inf), np.zeros(count)
    iterations, active = np.zeros(count, int), np.arange(count)
    for step in range(1, limit + 1):
        own = vectors[active]
        image = apply(active, own)
        norms = np.linalg.norm(image, axis=1)
        value[active] = (own * image).sum(axis=1)
        residual[active] = np.linalg.norm(image - value[active, None] * own, axis=1)
        settled = np.abs(norms - magnitude[active]) <= tolerance * norms
        magnitude[active], iterations[active] = norms, step
        vectors[active] = image / np.where(norms > 0, norms, 1)[:, None]
        active = active[~settled & (norms > 0)]
        if not len(active):
            break
    return Eigenvalues(vectors, value, magnitude, residual, iterations)


def spectrum(jacobian: Linearization, tolerance: float, limit: int, seed: int) -> dict[str, np.ndarray]:
    """ρ, the largest eigenvalue and the signed dominant one at every point, each (B,).

    Most eigenvalues are −λ̄, so ‖J v‖ of a random v rests at λ̄ for a while even where another is larger. So the first
    iteration is on J + λ̄I, a covariance: it gives the largest eigenvalue λ_max and its vector. The second, on J, starts
    from that vector and a random one in equal parts and gives ρ. The dominant eigenvalue is λ_max where it reaches ρ
    within the tolerance, else −ρ.
    """
    start = np.random.default_rng([seed, 2]).standard_normal(jacobian.points.shape)
    start /= np.linalg.norm(start, axis=1, keepdims=True)
    shift = jacobian.mean_precision

    def covariance(rows: np.ndarray, vectors: np.ndarray) -> np.ndarray:
        return jacobian.at(rows).apply(vectors) + shift[rows, None] * vectors

    first = power_iteration(covariance, start, tolerance, limit)
    second = power_iteration(lambda rows, v: jacobian.at(rows).apply(v), first.vector + start, tolerance, limit)
    largest, radius = first.magnitude - shift, second.magnitude
    return {
        "rho": radius,
        "largest": largest,
        "dominant": np.where(largest >= (1 - 10 * tolerance) * radius, radius, -radius),
        "residual": second.residual,
        "iterations": first.iterations + second.iterations,
    }


def bisector_points(flat: np.ndarray, count: int, noise: float, seed: int) -> np.ndarray:
    """Midpoints of `count` random pairs of different images, float64 (count, d), with isotropic noise.

    flat: float64 (M, d) in [0,1]. The midpoint is the point of the perpendicular bisector that surely lies in [0,1]^d.
    Raises InputError where all images are equal.
    """
    generator = np.random.default_rng([seed, 1])
    found: list[np.ndarray] = []
    for _ in range(100 * count):
        if len(found) == count:
            break
        first, second = flat[generator.choice(len(flat), 2, replace=False)]
        if not np.array_equal(first, second):
            found.append((first + second) / 2)
    if len(found) < count:
        raise InputError(
            "verify.blocks.jacobian: nearly all training images are equal, so that no point lies between them"
        )
    return np.stack(found) + noise * generator.standard_normal((count, flat.shape[1]))


def verify_jacobian(block: Jacobian, seed: int, images: np.ndarray) -> Findings:
    """One piece of the block: its scores at the same points, with σ_i* held fixed and differentiated."""
    if block.cifar10 and images.shape[1:] != CIFAR10:
        raise InputError(
            f"verify.blocks.jacobian.cifar10 is for 32×32×3 images, these are {images.shape[1:]}: set it to false"
        )
    flat = images.reshape(len(images), -1) / 255.0
    if flat.shape[1] < 3:
        raise InputError(f"verify.blocks.jacobian needs images of at least 3 values, these have {flat.shape[1]}")
    points = bisector_points(flat, block.points, block.noise, seed)
    claims: list[Claim] = []
    table: Table = []
    for score in block.scores:
        claims += _small_claims(flat, score, block, seed)
        for differentiated in (False,) if score == "conditioning" else (False, True):
            table += _rows(linearize(points, flat, score, differentiated), score, differentiated, block, seed)
    published = [
        {"score": label(s), **CHECKED[label(s)]} for s in block.scores if block.cifar10 and label(s) in CHECKED
    ]
    return Findings(claims, {"jacobian": table, **({"jacobian_published": published} if published else {})})


def _rows(jacobian: Linearization, score: Score, differentiated: bool, block: Jacobian, seed: int) -> Table:
    found = spectrum(jacobian, block.tolerance, block.iterations, seed)
    precision = jacobian.mean_precision
    return [
        {
            "score": label(score),
            "steepness": inverse_temperature(score),  # 1/T
            "d": jacobian.points.shape[1],
            "sigma_star": "differentiated" if differentiated else "frozen",
            "point": point,
            "rho": float(found["rho"][point]),
            "dominant": float(found["dominant"][point]),
            "largest": float(found["largest"][point]),
            "lambda_bar": float(precision[point]),
            "residual": float(found["residual"][point]),
            "iterations": int(found["iterations"][point]),
        }
        for point in range(len(precision))
    ]


def _small_claims(
    flat: np.ndarray, score: Score, block: Jacobian, seed: int, count: int = 40, width: int = 48, points: int = 8
) -> list[Claim]:
    """J on a few pixels of a few images: against autograd of the pipeline's score, and its dense eigenvalues."""
    generator = np.random.default_rng([seed, 3])
    pixels = np.argsort(-flat.std(axis=0), kind="stable")[:width]  # those that vary: images may have a constant border
    small = flat[generator.permutation(len(flat))[:count]][:, pixels]
    if small.shape[1] < 3 or len(np.unique(small, axis=0)) < 2:
        return []
    where = bisector_points(small, points, 0.02, seed)
    jacobian = linearize(where, small, score)
    dense = jacobian.dense()
    exact = np.linalg.eigvalsh(dense)
    found = spectrum(jacobian, 1e-9, 10_000, seed)  # far enough that near-equal eigenvalues separate
    size = f"{points} points, {len(small)} centres, d = {small.shape[1]}"
    radius = np.abs(exact).max(axis=1)
    claims = [
        _eigenvalue_claim(f"Spectral radius by power iteration, {label(score)}", radius, found["rho"], radius, size),
        _eigenvalue_claim(
            f"Largest eigenvalue by iteration on J + λ̄I, {label(score)}", exact[:, -1], found["largest"], radius, size
        ),
    ]
    kinds = (False,) if score == "conditioning" else (False, True)
    return [*claims, *(_autograd_claim(where, small, score, kind, size) for kind in kinds)]


def _eigenvalue_claim(claim: str, exact: np.ndarray, found: np.ndarray, radius: np.ndarray, size: str) -> Claim:
    return Claim(
        claim=claim,
        formula="J v = (1/T)[Σ w_i g_i (g_i·v) − S (S·v)] − λ̄ v, never formed, against the eigenvalues of J in full",
        source="METHODS §2 [P]",
        computed=f"{size}; deviation relative to ρ",
        expected=float(exact.mean()),
        tolerance=1e-3,
        reason="a step that changes ‖J v‖ by 1e-9 of itself may be followed by many where eigenvalues nearly coincide",
        measured=float(found.mean()),
        deviation=float((np.abs(found - exact) / radius).max()),
    )


def _autograd_claim(points: np.ndarray, centres: np.ndarray, score: Score, differentiated: bool, size: str) -> Claim:
    dense = linearize(points, centres, score, differentiated).dense()
    automatic = autograd_jacobian(points, centres, score, differentiated)
    scale = float(np.abs(automatic).max())
    held = "σ_i* differentiated" if differentiated else "σ_i* held fixed"
    return Claim(
        claim=f"The Jacobian's formula is the score's derivative, {label(score)}, {held}",
        formula="(1/T) Cov_w(g) − λ̄ I" + (" + (2/(d−2)) Σ w_i g_i g_iᵀ" if differentiated else ""),
        source="METHODS §2 [P], [chk]",
        computed=f"automatic differentiation of the score at {size}; entries, relative to the largest",
        expected=float(np.abs(automatic).mean()),
        tolerance=1e-8,
        reason="float64 rounding of differences of squared distances",
        measured=float(np.abs(dense).mean()),
        deviation=float(np.abs(dense - automatic).max()) / scale,
    )


def autograd_jacobian(points: np.ndarray, centres: np.ndarray, score: Score, differentiated: bool) -> np.ndarray:
    """The Jacobian (B, d, d) of the score at `points` (B, d) by automatic differentiation, point by point.

    Differentiated: of the pipeline's own empirical score. Else of −Σ w_i p_i (x − x_i) with p_i detached.
    """
    import torch

    from stages.diffusion.scores import make_centres, unconditioning

    where, images = torch.from_numpy(points), torch.from_numpy(np.ascontiguousarray(centres))
    power = points.shape[1] - 2

    def evaluate(x: torch.Tensor) -> torch.Tensor:
        if differentiated:
            heat = 1 / torch.tensor(inverse_temperature(score), dtype=torch.float64)
            return unconditioning(make_centres(images), x[None], heat)[0]
        squared = ((x - images) ** 2).sum(dim=1)
        if score == "conditioning":
            variance = squared.detach().min() / points.shape[1]
            return torch.softmax(-squared / (2 * variance), dim=0) @ (images - x) / variance
        weights = torch.softmax(-power / 2 * inverse_temperature(score) * squared.log(), dim=0)
        return (weights * power / squared.detach()) @ (images - x)

    return torch.stack([torch.autograd.functional.jacobian(evaluate, x) for x in where]).numpy()


def _fall_claims(table: Table) -> list[Claim]:
    """ρ falls in proportion to T while the weights are steep, and λ̄ falls with T."""
    frozen = [row for row in table if row["sigma_star"] == "frozen" and row["score"] != "conditioning"]
    steep = [row for row in frozen if row["steepness"] * (row["d"] - 2) >= STEEP]
    inverse = sorted({row["steepness"] for row in steep}, reverse=True)
    falls = [_fall_claim(steep, hot, cold) for hot, cold in zip(inverse[1:], inverse)]
    return [*falls, _order_claim(frozen)] if frozen else []


def _fall_claim(rows: Table, hot: float, cold: float) -> Claim:
    falls = cold / hot
    radii = [np.array([row["rho"] for row in rows if row["steepness"] == steepness]) for steepness in (cold, hot)]
    ratio = float(radii[0].mean() / radii[1].mean())
    spread = [float(radius.std(ddof=1) / radius.mean()) / len(radius) ** 0.5 for radius in radii]
    return Claim(
        claim=f"The spectral radius falls as 1/T: from T = {1 / cold:g} to T = {1 / hot:g}",
        formula="mean ρ(T)/mean ρ(T′) = T′/T where one pair of images dominates: ρ = ‖g_i − g_j‖²/(4T) − λ̄",
        source="METHODS §2 [P]: about tenfold per tenfold T, up to T = 100",
        computed=f"power iteration at {len(radii[0])} bisector points, d = {rows[0]['d']}",
        expected=falls,
        tolerance=falls * 0.5,
        reason='"about": within half of the factor; λ̄ is subtracted and more images enter as T rises',
        measured=ratio,
        uncertainty=ratio * float(np.hypot(*spread)),
    )


def _order_claim(rows: Table) -> Claim:
    by_point: dict[int, list[tuple[float, float]]] = {}
    for row in rows:
        by_point.setdefault(row["point"], []).append((row["steepness"], row["lambda_bar"]))
    pairs = [pair for values in by_point.values() for pair in zip(sorted(values), sorted(values)[1:])]
    violations = sum(hot[1] > cold[1] * (1 + 1e-9) for hot, cold in pairs)
    return Claim(
        claim="The hotter the weights, the smaller λ̄, at every point",
        formula="dλ̄/d(1/T) = Cov_w(p, −(d−2) ln r) ≥ 0, because p_i = (d−2)/r_i² falls with r_i",
        source="METHODS §2; sign of the covariance [ours]",
        computed=f"{len(pairs)} comparisons at {len(by_point)} bisector points, d = {rows[0]['d']}",
        expected=0.0,
        tolerance=0.0,
        reason="an order holds or does not; the number counts its violations",
        measured=float(violations),
    )


def _cifar10_claims(table: Table) -> list[Claim]:
    """λ̄ against the published and the checked numbers (METHODS §2), for the temperatures at hand."""
    values = {
        name: np.array([row["lambda_bar"] for row in table if row["score"] == name and row["sigma_star"] == "frozen"])
        for name in dict.fromkeys(row["score"] for row in table)
    }
    claims = [_range_claim(name, values[name], **ends) for name, ends in CHECKED.items() if name in values]
    if "T = ∞" in values:
        error = float(values["T = ∞"].std(ddof=1)) / len(values["T = ∞"]) ** 0.5
        reason = "four standard errors over points; the paper's number is of the images before their re-compression"
        claims.append(_mean_claim("T = ∞, the paper's number", values["T = ∞"], 13.11, 4 * error, reason))
    return claims


def _range_claim(name: str, values: np.ndarray, low: float, high: float) -> Claim:
    reason = f"half of the range found before: {low:g} to {high:g}"
    return _mean_claim(name, values, (low + high) / 2, (high - low) / 2, reason)


def _mean_claim(score: str, values: np.ndarray, expected: float, tolerance: float, reason: str) -> Claim:
    return Claim(
        claim=f"CIFAR-10: λ̄ at {score}",
        formula="λ̄ = Σ_i w_i (d−2)/r_i²",
        source="METHODS §2 [P]" if "paper" in reason else "METHODS §2 [chk], re-compressed CIFAR-10, midpoints",
        computed=f"mean over {len(values)} bisector points",
        expected=expected,
        tolerance=tolerance,
        reason=reason,
        measured=float(values.mean()),
        uncertainty=float(values.std(ddof=1)) / len(values) ** 0.5,
    )
