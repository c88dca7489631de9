"""The Jacobian of the empirical score at points between training images: how expansive a step is (METHODS §2).

With g_i = −p_i (x − x_i), p_i = 1/σ_i*² = (d−2)/r_i² and weights w at temperature T, σ_i* held fixed:

    J = (1/T) Cov_w(g) − λ̄ I,  λ̄ = Σ_i w_i p_i.

Conditioning has p_i = 1/σ², T = 1, σ = min_i r_i/√d (the actual noise level). Differentiating σ_i* too adds
(2/(d−2)) Σ_i w_i g_i g_iᵀ. J is symmetric, so power iteration finds its eigenvalue of largest magnitude. J is never
formed: J v costs two products with the centres. That the formula is the derivative of the pipeline's scores is a claim.
"""

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import numpy as np
from pydantic import Field

from stages.errors import InputError
from stages.theory import product
from stages.theory.claims import ORDER, Claim, Findings, ImageBlock, Statement, Table, mean_error
from stages.theory.product import Form, inverse_temperature, label

CIFAR10 = (32, 32, 3)
NEGLIGIBLE = 1e-18  # centres whose weight is below this at every point change no float64 digit of J
CHECKED = {"T = ∞": (13.3, 13.8), "T = 1": (50.0, 64.0), "T = 1000": (18.0, 19.0)}
"""The range of the mean λ̄ found before on CIFAR-10 (METHODS §2)."""
STEEP = 25  # T is small against the dimension while (d−2)/T stays above this; at d = 3072 that is T ≤ 122


class Jacobian(ImageBlock):
    """Spectral radius, dominant eigenvalue and λ̄ of the score's Jacobian on bisector points (METHODS §2)."""

    TITLE: ClassVar[str] = "Jacobian of the score between training images"
    CUT: ClassVar[str | None] = "scores"

    points: int = Field(ge=2, description="bisector points, each of a random pair of training images")
    noise: float = Field(ge=0, description="standard deviation of the isotropic noise added to the midpoints")
    scores: list[Form] = Field(min_length=1, description="conditioning, temperatures, infinity")
    tolerance: float = Field(gt=0, lt=1, description="relative change at which power iteration stops")
    iterations: int = Field(ge=2, description="... or after this many iterations")
    cifar10: bool = Field(description="the images are CIFAR-10: compare with the published numbers")

    def findings(self, seed: int, images: np.ndarray | None) -> Findings:
        """Every score of this piece at the same points, with σ_i* held fixed and differentiated."""
        if self.cifar10 and images.shape[1:] != CIFAR10:
            raise InputError(
                f"verify.blocks.jacobian.cifar10 is for 32×32×3 images, these are {images.shape[1:]}: set it to false"
            )
        flat = images.reshape(len(images), -1) / 255.0
        if flat.shape[1] < 3:
            raise InputError(f"verify.blocks.jacobian needs images of at least 3 values, these have {flat.shape[1]}")
        points = bisector_points(flat, self.points, self.noise, seed)
        claims: list[Claim] = []
        table: Table = []
        for form in self.scores:
            claims += _small_claims(flat, form, seed)
            for differentiated in _kinds(form):
                found = linearize(points, flat, form, differentiated)
                table += _rows(found, form, differentiated, spectrum(found, self.tolerance, self.iterations, seed))
        names = [label(form) for form in self.scores if self.cifar10 and label(form) in CHECKED]
        published = [{"score": name, "low": CHECKED[name][0], "high": CHECKED[name][1]} for name in names]
        return Findings(claims, {"jacobian": table, **({"jacobian_published": published} if published else {})})

    def conclude(self, tables: dict[str, Table]) -> list[Claim]:
        """Return how ρ and λ̄ change with T, and the comparison with CIFAR-10's published numbers."""
        frozen = [row for row in tables["jacobian"] if row["sigma_star"] == "frozen"]
        hot = [row for row in frozen if row["score"] != "conditioning"]
        steep = [row for row in hot if row["steepness"] * (row["d"] - 2) >= STEEP]
        inverse = sorted({row["steepness"] for row in steep}, reverse=True)
        claims = [_fall_claim(steep, cold, warm) for cold, warm in zip(inverse, inverse[1:])]
        claims += [_order_claim(hot)] if hot else []
        return claims + (_cifar10_claims(frozen) if self.cifar10 else [])


def _kinds(form: Form) -> tuple[bool, ...]:
    """Whether σ_i* is differentiated; conditioning has no σ_i*."""
    return (False,) if form == "conditioning" else (False, True)


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
        """Return the Jacobians at some of the points only."""
        kept = ("points", "weights", "precision", "score", "mean_precision")
        return dataclasses.replace(self, **{name: getattr(self, name)[rows] for name in kept})

    def apply(self, vectors: np.ndarray) -> np.ndarray:
        """J v for one vector per point, (B, d)."""
        along = self.precision * (vectors @ self.centres.T - (vectors * self.points).sum(axis=1, keepdims=True))
        scaled = self.weights * along * self.precision
        second = scaled @ self.centres - scaled.sum(axis=1, keepdims=True) * self.points  # Σ w g (g·v)
        result = (self.covariance + self.curvature) * second - self.mean_precision[:, None] * vectors
        return result - self.covariance * self.score * (self.score * vectors).sum(axis=1, keepdims=True)

    def dense(self) -> np.ndarray:
        """J in full, (B, d, d), for small d: written down from its definition, without `apply`."""
        gradients = self.precision[..., None] * (self.centres[None] - self.points[:, None])
        score = np.einsum("bm,bmd->bd", self.weights, gradients)
        second = np.einsum("bm,bmd,bme->bde", self.weights, gradients, gradients)
        covariance = second - score[:, :, None] * score[:, None, :]
        identity = np.eye(self.points.shape[1])
        return self.covariance * covariance + self.curvature * second - self.mean_precision[:, None, None] * identity


def linearize(points: np.ndarray, centres: np.ndarray, form: Form, differentiated: bool = False) -> Linearization:
    """The Jacobian of a score at `points` (B, d) over `centres` (M, d).

    differentiated: also differentiate σ_i* (unconditioning only).
    """
    weights, precision = product.weigh(product.squared_distances(points, centres), points.shape[1], form)
    kept = np.flatnonzero(weights.max(axis=0) > NEGLIGIBLE)
    weights, precision, centres = weights[:, kept], precision[:, kept], centres[kept]
    scaled = weights * precision
    return Linearization(
        points=points,
        centres=centres,
        weights=weights,
        precision=precision,
        score=scaled @ centres - scaled.sum(axis=1, keepdims=True) * points,
        mean_precision=scaled.sum(axis=1),
        covariance=inverse_temperature(form),
        curvature=2 / (points.shape[1] - 2) if differentiated else 0.0,
    )


@dataclasses.dataclass(frozen=True)
class Eigenvalues:
    """What power iteration found at B points.

    Attributes:
        vector: A v over its length, (B, d); 0 where A v is.
        value: eigenvalue of largest magnitude of the iterated matrix, as a Rayleigh quotient (B,).
        magnitude: ‖A v‖ at the last iteration (B,).
        residual: ‖A v − value·v‖ (B,): for symmetric A some eigenvalue lies within it of `value`.
        iterations: (B,).
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
        "dominant": np.where(largest >= (1 - 10 * tolerance) * radius, radius, -radius),
        "largest": largest,
        "lambda_bar": shift,
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


def _rows(jacobian: Linearization, form: Form, differentiated: bool, found: dict[str, np.ndarray]) -> Table:
    about = {"score": label(form), "steepness": inverse_temperature(form), "d": jacobian.points.shape[1]}
    about["sigma_star"] = "differentiated" if differentiated else "frozen"
    return [
        {**about, "point": point, **{name: values[point].item() for name, values in found.items()}}
        for point in range(len(jacobian.points))
    ]


def _small_claims(
    flat: np.ndarray, form: Form, seed: int, count: int = 40, width: int = 48, points: int = 8
) -> list[Claim]:
    """J on a few pixels of a few images: its eigenvalues in full, and the derivative of the pipeline's score."""
    generator = np.random.default_rng([seed, 3])
    pixels = np.argsort(-flat.std(axis=0), kind="stable")[:width]  # those that vary: images may have a constant border
    small = flat[generator.permutation(len(flat))[:count]][:, pixels]
    if small.shape[1] < 3 or len(np.unique(small, axis=0)) < 2:
        return []
    where = bisector_points(small, points, 0.02, seed)
    size = f"{points} points, {len(small)} centres, d = {small.shape[1]}"
    jacobian = linearize(where, small, form)
    exact = np.linalg.eigvalsh(jacobian.dense())
    found, radius = spectrum(jacobian, 1e-9, 10_000, seed), np.abs(exact).max(axis=1)  # near-equal eigenvalues separate
    cases = (
        ("Spectral radius by power iteration", found["rho"], radius),
        ("Largest eigenvalue by iteration on J + λ̄I", found["largest"], exact[:, -1]),
    )
    reason = "a step that changes ‖J v‖ by 1e-9 of itself may be followed by many where eigenvalues nearly coincide"
    eigenvalues = [
        Statement(
            f"{claim}, {label(form)}",
            "J v = (1/T)[Σ w_i g_i (g_i·v) − S (S·v)] − λ̄ v, never formed, against the eigenvalues of J in full",
            "METHODS §2 [P]", f"{size}; deviation relative to ρ",
        ).equals(own, wanted, 1e-3, reason, relative_to=radius)
        for claim, own, wanted in cases
    ]  # fmt: skip
    return eigenvalues + [_derivative_claim(where, small, form, kind, size) for kind in _kinds(form)]


def _derivative_claim(points: np.ndarray, centres: np.ndarray, form: Form, differentiated: bool, size: str) -> Claim:
    found = score_jacobian(points, centres, form, differentiated)
    expected = linearize(points, centres, form, differentiated).dense()
    held = "σ_i* differentiated" if differentiated else "σ_i* held fixed"
    reason = "float64 rounding of differences of squared distances"
    return Statement(
        f"The Jacobian's formula is the score's derivative, {label(form)}, {held}",
        "(1/T) Cov_w(g) − λ̄ I" + (" + (2/(d−2)) Σ w_i g_i g_iᵀ" if differentiated else ""), "METHODS §2 [P], [chk]",
        f"automatic differentiation of the pipeline's score at {size}; entries, relative to the largest",
    ).equals(found, expected, 1e-8, reason, relative_to=np.abs(found).max())  # fmt: skip


def score_jacobian(points: np.ndarray, centres: np.ndarray, form: Form, differentiated: bool) -> np.ndarray:
    """The Jacobian (B, d, d) of the pipeline's score at `points` (B, d) by automatic differentiation, point by point.

    Conditioning is differentiated at a fixed level, min_i r_i/√d. With σ_i* held fixed, the weights of unconditioning
    are differentiated and the precisions are not.
    """
    import torch

    from stages.diffusion.scores import conditioning, make_centres, unconditioning
    from stages.diffusion.temperature import shell_log_weights, shell_power, shell_precisions

    where, images = torch.from_numpy(points), torch.from_numpy(np.ascontiguousarray(centres))
    power, found = shell_power(points.shape[1]), make_centres(images)

    def evaluate(x: torch.Tensor) -> torch.Tensor:
        squared = ((x - images) ** 2).sum(dim=1)
        if form == "conditioning":
            return conditioning(found, x[None], (squared.detach().min() / len(x)).sqrt()[None])[0]
        if differentiated:
            return unconditioning(found, x[None], product.temperature(form))[0]
        weights = torch.softmax(shell_log_weights(squared, power, product.temperature(form)), dim=0)
        return (weights * shell_precisions(squared.detach(), power)) @ (images - x)

    return torch.stack([torch.autograd.functional.jacobian(evaluate, x) for x in where]).numpy()


def _fall_claim(rows: Table, cold: float, hot: float) -> Claim:
    """cold, hot: the two values of 1/T."""
    radii = [np.array([row["rho"] for row in rows if row["steepness"] == steepness]) for steepness in (cold, hot)]
    ratio, falls = float(radii[0].mean() / radii[1].mean()), cold / hot
    error = ratio * float(np.hypot(*(mean_error(radius) / radius.mean() for radius in radii)))
    reason = '"about": within half of the factor; λ̄ is subtracted and more images enter as T rises'
    return Statement(
        f"The spectral radius falls as 1/T: from T = {1 / cold:g} to T = {1 / hot:g}",
        "mean ρ(T)/mean ρ(T′) = T′/T where one pair of images dominates: ρ = ‖g_i − g_j‖²/(4T) − λ̄",
        "METHODS §2 [P]: about tenfold per tenfold T, up to T = 100",
        f"power iteration at {len(radii[0])} bisector points, d = {rows[0]['d']}",
    ).equals(ratio, falls, falls * 0.5, reason, error=error)  # fmt: skip


def _order_claim(rows: Table) -> Claim:
    by_point: dict[int, list[tuple[float, float]]] = {}
    for row in rows:
        by_point.setdefault(row["point"], []).append((row["steepness"], row["lambda_bar"]))
    pairs = [pair for values in by_point.values() for pair in zip(sorted(values), sorted(values)[1:])]
    return Statement(
        "The hotter the weights, the smaller λ̄, at every point",
        "dλ̄/d(1/T) = Cov_w(p, −(d−2) ln r) ≥ 0, because p_i = (d−2)/r_i² falls with r_i",
        "METHODS §2; sign of the covariance [ours]",
        f"{len(pairs)} comparisons at {len(by_point)} bisector points, d = {rows[0]['d']}",
    ).holds(sum(hot[1] > cold[1] * (1 + 1e-9) for hot, cold in pairs), ORDER)  # fmt: skip


def _cifar10_claims(rows: Table) -> list[Claim]:
    """λ̄ against the published and the checked numbers (METHODS §2), for the temperatures at hand."""
    values = {row["score"]: [] for row in rows}
    for row in rows:
        values[row["score"]].append(row["lambda_bar"])
    checked = "METHODS §2 [chk], re-compressed CIFAR-10, midpoints"
    cases = [
        (
            name,
            name,
            checked,
            (low + high) / 2,
            (high - low) / 2,
            f"half of {low:g} to {high:g}, found before",
        )
        for name, (low, high) in CHECKED.items()
        if name in values
    ]
    if "T = ∞" in values:
        reason = "four standard errors over points; the paper's number is of the images before their re-compression"
        tolerance = 4 * mean_error(np.array(values["T = ∞"]))
        cases.append(("T = ∞", "T = ∞, the paper's number", "METHODS §2 [P]", 13.11, tolerance, reason))
    return [
        Statement(
            f"CIFAR-10: λ̄ at {title}", "λ̄ = Σ_i w_i (d−2)/r_i²", source,
            f"mean over {len(values[name])} bisector points",
        ).equals(np.mean(values[name]), expected, tolerance, reason, error=mean_error(np.array(values[name])))
        for name, title, source, expected, tolerance, reason in cases
    ]  # fmt: skip
