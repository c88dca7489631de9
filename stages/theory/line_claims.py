"""Chen's one-dimensional solution against integration, sampling and quadrature (METHODS §7). All in float64 numpy."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import numpy as np
from pydantic import Field, model_validator

from stages.theory import line
from stages.theory.claims import Block, Claim, Findings

SOURCE = "METHODS §7 [B]"
FINAL = 1e-6  # t at which the sampled flow stops before its last step to 0


class Line(Block):
    """The smoothed score in one dimension (METHODS §7)."""

    TITLE: ClassVar[str] = "Smoothing in one dimension: interpolation without full memorization"

    kappas: list[float] = Field(min_length=1, description="κ of the smoothing δ_t = κ√t; each below 1/√start")
    start: float = Field(gt=0, lt=1, description="time at which smoothing begins; half the gap of the data is 1")
    samples: int = Field(ge=1000, description="samples of the limit law")
    bins: int = Field(ge=2, description="of the histogram on (−1, 1)")
    dimension: int = Field(ge=2, description="d of the space that the line lies in")

    @model_validator(mode="after")
    def _ramp(self) -> Self:
        for kappa in self.kappas:
            if not 0 < kappa * math.sqrt(self.start) < 1:
                raise ValueError(f"kappa {kappa:g} with start {self.start:g} leaves no ramp: needs 0 < κ√start < 1")
        return self

    def findings(self, seed: int, images: np.ndarray | None) -> Findings:
        """See verify_line."""
        return verify_line(self.kappas, self.start, self.samples, self.bins, self.dimension, seed)


def verify_line(kappas: Sequence[float], start: float, samples: int, bins: int, dimension: int, seed: int) -> Findings:
    """The closed-form flow, its limit law, non-smoothness, loss, box average, and the line in R^d.

    kappas: the κ of δ_t = κ√t; each needs κ√start < 1. start: time t_0 at which smoothing begins. samples: points drawn
    from p_start. bins: of the histogram on (−1, 1). dimension: d of the line in R^d.
    """
    generator = np.random.default_rng([seed, dimension])
    claims, tables = [], {"line_order": [], "line_limit_law": [], "line_atoms": []}
    for kappa in kappas:
        claims += _flow_claims(kappa, start)
        orders, rows = _order_claims(kappa, start)
        law, histogram, atoms = _limit_law(kappa, start, samples, bins, generator)
        claims += [*orders, _level_claim(kappa, start), *law]
        tables["line_order"] += rows
        tables["line_limit_law"] += histogram
        tables["line_atoms"] += atoms
        claims += [_variation_claim(kappa, start), _box_claim(kappa, start), _loss_claim(kappa)]
    claims += [_empirical_variation_claim(start), *_reference_claims()]
    space, tables["line_in_space"] = _space_claims(kappas[0], start, dimension, generator)
    return Findings([*claims, *space], tables)


def _starts(kappa: float, start: float, points: np.ndarray, count: int = 401) -> np.ndarray:
    """Points on either side of every gap, none within 2 % of the widest gap of an edge of a ramp or of a midpoint."""
    half = float(np.diff(points).max()) / 2
    x = np.linspace(points[0] - 3 * math.sqrt(start), points[-1] + 3 * math.sqrt(start), count)
    middle, own = line.gaps(x, points)
    offset = np.abs(x - middle)
    return x[(np.abs(offset - (own - kappa * math.sqrt(start))) > 0.02 * half) & (offset > 0.02 * half)]


def _integrated(method: str, x: np.ndarray, start: float, end: float, kappa: float, points: np.ndarray, steps: int):
    velocity = line.log_time_velocity(lambda x, t: line.smoothed_score(x, t, kappa, points))
    return line.integrate(line.METHODS[method][0], velocity, x, (math.log(start), math.log(end)), steps)


def _flow_claims(kappa: float, start: float, end: float = 1e-4, steps: int = 1024) -> list[Claim]:
    """The closed form against Runge–Kutta on {−1, 1} and on points with gaps of unequal width."""
    found = []
    for name, points in (("{−1, 1}", line.PAIR), ("{−1, 1, 4, 6}", np.array([-1.0, 1.0, 4.0, 6.0]))):
        x = _starts(kappa, start, points)
        closed = line.flow(x, start, end, kappa, points)
        deviation = np.abs(_integrated("Runge–Kutta", x, start, end, kappa, points, steps) - closed)
        found.append(
            Claim(
                claim=f"The smoothed flow in closed form, data {name}, κ = {kappa:g}",
                formula="x−m ∝ D−δ_t on the ramp, x−x_i ∝ √t beside it",
                source=SOURCE,
                computed=f"Runge–Kutta in ln t, {steps} steps from t = {start:g} to {end:g}, {len(x)} points",
                expected=float(np.abs(closed).mean()),
                tolerance=1e-9,
                reason="error of order 4 at this step, found by halving it, and rounding",
                measured=float(np.abs(closed).mean() + deviation.mean()),
                deviation=float(deviation.max()),
            )
        )
    return found


def _order_claims(kappa: float, start: float, end: float = 1e-3) -> tuple[list[Claim], list[dict[str, Any]]]:
    """Measured order of each method in ln t, from the error at n and 2n steps."""
    x = _starts(kappa, start, line.PAIR)
    closed = line.flow(x, start, end, kappa)
    claims, rows = [], []
    for method, (_, order) in line.METHODS.items():
        counts = [32 * 2**i for i in range(4 if order == 4 else 7)]
        errors = [
            float(np.abs(_integrated(method, x, start, end, kappa, line.PAIR, steps) - closed).max())
            for steps in counts
        ]
        rows += [
            {"kappa": kappa, "method": method, "steps": n, "step": math.log(start / end) / n, "error": e}
            for n, e in zip(counts, errors)
        ]
        claims.append(
            Claim(
                claim=f"Integrating the smoothed flow by {method} has order {order}, κ = {kappa:g}",
                formula="log₂(error(h)/error(h/2)), h the step in ln t",
                source="METHODS §7 [ours]",
                computed=f"{counts[-2]} and {counts[-1]} steps from t = {start:g} to {end:g}",
                expected=order,
                tolerance=0.1,
                reason="the next order's share at this step; orders differ by 1 or more",
                measured=math.log2(errors[-2] / errors[-1]),
            )
        )
    return claims, rows


def _level_claim(kappa: float, start: float, steps: int = 3) -> Claim:
    """In σ = √t every trajectory is a straight line, so Euler's steps are exact however long they are."""
    x = _starts(kappa, start, line.PAIR)
    velocity = line.level_velocity(lambda x, t: line.smoothed_score(x, t, kappa))
    found = line.integrate(line.euler, velocity, x, (math.sqrt(start), 0.01), steps)
    closed = line.flow(x, start, 1e-4, kappa)
    return Claim(
        claim=f"In σ = √t the smoothed flow runs along straight lines: {steps} Euler steps are exact, κ = {kappa:g}",
        formula="dx/dσ = −σ s is constant along a trajectory",
        source="METHODS §7 [ours]",
        computed=f"{steps} Euler steps from σ = {math.sqrt(start):g} to 0.01, {len(x)} points",
        expected=float(np.abs(closed).mean()),
        tolerance=1e-13,
        reason="float64 rounding",
        measured=float(np.abs(found).mean()),
        deviation=float(np.abs(found - closed).max()),
    )


def sample_limit(kappa: float, start: float, count: int, generator: np.random.Generator, steps: int = 20):
    """Draws of p_start on {−1, 1}, float64 (count,), and where the integrated flow takes them.

    Euler in σ to t = 1e-6, then one step to the posterior mean: a sample on an atom ends there exactly. In ln t a step
    takes samples near a ramp's edge to its other side, which shows in the histogram beside the atoms.
    """
    x = generator.choice(line.PAIR, count) + math.sqrt(start) * generator.standard_normal(count)
    velocity = line.level_velocity(lambda x, t: line.smoothed_score(x, t, kappa))
    late = line.integrate(line.euler, velocity, x, (math.sqrt(start), math.sqrt(FINAL)), steps)
    return x, line.posterior_mean(late, kappa * math.sqrt(FINAL))


def _limit_law(kappa: float, start: float, count: int, bins: int, generator: np.random.Generator):
    _, final = sample_limit(kappa, start, count, generator)
    mass = line.atom_mass(start, kappa)
    error = math.sqrt(mass * (1 - mass) / count)
    shares = [float((final == side).mean()) for side in line.PAIR]
    claims = [
        Claim(
            claim=f"The smoothed flow ends on the data point {side:+g} with the predicted mass, κ = {kappa:g}",
            formula="P(±x ≥ 1−δ_{t_0}) under p_{t_0}",
            source=SOURCE,
            computed=f"{count:,} draws of p_{{t_0}}, t_0 = {start:g}, flow integrated by Euler in σ",
            expected=mass,
            tolerance=4 * error,
            reason="four binomial standard errors",
            measured=share,
            uncertainty=error,
        )
        for side, share in zip(line.PAIR, shares)
    ]
    inside = np.sort(final[np.abs(final) < 1])
    claims.append(_density_claim(inside, kappa, start, count))
    atoms = [
        {"kappa": kappa, "atom": float(side), "sampled": s, "predicted": mass} for side, s in zip(line.PAIR, shares)
    ]
    return claims, _histogram(inside, kappa, start, count, bins), atoms


def interior_distribution(u: np.ndarray, kappa: float, start: float) -> np.ndarray:
    """P(x ≤ u | not on an atom) of the limit law: p_start's distribution function at (1−δ)u, rescaled."""
    width, root = 1 - kappa * math.sqrt(start), math.sqrt(start)

    def mass(x: np.ndarray | float) -> np.ndarray:
        return (line.ndtr((x + 1) / root) + line.ndtr((x - 1) / root)) / 2

    return (mass(width * u) - mass(-width)) / (mass(width) - mass(-width))


def _density_claim(inside: np.ndarray, kappa: float, start: float, count: int) -> Claim:
    """Kolmogorov–Smirnov distance of the samples off the atoms to the predicted law, times √n."""
    n = len(inside)
    predicted = interior_distribution(inside, kappa, start)
    ranks = np.arange(n + 1) / n
    distance = float(max(np.abs(predicted - ranks[1:]).max(), np.abs(predicted - ranks[:-1]).max()))
    return Claim(
        claim=f"Between the data points the samples follow the predicted density, κ = {kappa:g}",
        formula="(1−δ) p_{t_0}((1−δ)u) on (−1, 1): interpolation without full memorization",
        source=SOURCE,
        computed=f"√n times the Kolmogorov–Smirnov distance of the {n:,} of {count:,} samples off the atoms",
        expected=0.0,
        tolerance=2.28,
        reason="exceeded once in 16,000 runs by samples of the predicted law",
        measured=distance * math.sqrt(n),
    )


def _histogram(inside: np.ndarray, kappa: float, start: float, count: int, bins: int) -> list[dict[str, Any]]:
    edges = np.linspace(-1, 1, bins + 1)
    sampled = np.histogram(inside, edges)[0] / (count * np.diff(edges))
    middle = (edges[1:] + edges[:-1]) / 2
    predicted = line.limit_density(middle, start, kappa)
    return [
        {"kappa": kappa, "u": float(u), "sampled": float(s), "predicted": float(p)}
        for u, s, p in zip(middle, sampled, predicted)
    ]


def _variation_claim(kappa: float, start: float) -> Claim:
    x = np.linspace(-3, 3, 6001)
    expected = line.smoothed_variation(start, kappa)
    return Claim(
        claim=f"Non-smoothness of the smoothed score, κ = {kappa:g}",
        formula="R[s_t] = ∫|s_t''| = 2/(t(1−δ_t))",
        source=SOURCE,
        computed=f"variation of the slope on {len(x):,} points at t = {start:g}",
        expected=expected,
        tolerance=1e-7 * expected,
        reason="float64 rounding of second differences",
        measured=line.variation_of_slope(x, line.smoothed_score(x, start, kappa)),
    )


def _empirical_variation_claim(start: float) -> Claim:
    x = np.linspace(-3, 3, 60_001)
    return Claim(
        claim="Non-smoothness of the empirical score: it grows like 1/t², the smoothed score's like 1/t",
        formula="∫|d²/dx² (tanh(x/t)−x)/t| = 2/t²",
        source="METHODS §7 [ours]",
        computed=f"variation of the slope on {len(x):,} points at t = {start:g}",
        expected=2 / start**2,
        tolerance=1e-5 * 2 / start**2,
        reason="the grid's error of order (step/t)²",
        measured=line.variation_of_slope(x, line.empirical_score(x, start)),
    )


def _box_claim(kappa: float, start: float, count: int = 101) -> Claim:
    x = np.linspace(-2, 2, count)
    half_width = 1 - kappa * math.sqrt(start)
    box = np.array([line.box_average(float(point), start, half_width) for point in x])
    smoothed = line.smoothed_score(x, start, kappa)
    return Claim(
        claim=f"The smoothed score is the box average of the jump, on the ramp and beside it, κ = {kappa:g}",
        formula="mean of (sgn y − y)/t over |y−x| ≤ 1−δ_t",
        source="METHODS §7 [chk]; beside the ramp [ours]",
        computed=f"adaptive quadrature split at the jump, {count} points in [−2, 2], t = {start:g}",
        expected=float(np.abs(smoothed).mean()),
        tolerance=1e-10,
        reason="the quadrature's own error estimate and rounding",
        measured=float(np.abs(box).mean()),
        deviation=float(np.abs(box - smoothed).max()),
    )


def _loss_claim(kappa: float, t: float = 1e-3) -> Claim:
    """At small t the two data points do not see each other, and t·E‖·‖² is ε(κ)/(1−δ_t)²."""
    expected = line.loss_limit(kappa)
    return Claim(
        claim=f"What smoothing costs in the loss stays bounded as t → 0, κ = {kappa:g}",
        formula="t·E‖s_smoothed − s_empirical‖² (1−δ_t)² → ε(κ) = (1+κ²)Φ(−κ) − κφ(κ)",
        source=SOURCE,
        computed=f"Gauss–Legendre quadrature under p_t at t = {t:g}, exact empirical score",
        expected=expected,
        tolerance=1e-8 * expected,
        reason="the quadrature's error; what the points see of each other is below e^{−1/2t}",
        measured=line.loss(t, kappa) * (1 - kappa * math.sqrt(t)) ** 2,
    )


def _reference_claims() -> list[Claim]:
    return [
        Claim(
            claim=f"Reference value of the loss of smoothing at κ = {kappa:g}",
            formula="ε(κ) = lim_{t→0} t·E‖s_smoothed − s_empirical‖²",
            source="METHODS §7 [chk]",
            computed="Gauss–Legendre quadrature under p_t at t = 1e-12, exact empirical score",
            expected=expected,
            tolerance=tolerance,
            reason="half a unit of the last digit stated",
            measured=line.loss(1e-12, kappa),
        )
        for kappa, expected, tolerance in ((1.0, 0.0753, 5e-5), (2.0, 0.00577, 5e-6))
    ]


def _space_claims(kappa: float, start: float, dimension: int, generator: np.random.Generator, end: float = 1e-4):
    """The line in R^d: the tangent is slowed, the normal is not; slowing all of the score leaves the line."""
    direction = generator.standard_normal(dimension)
    direction /= np.linalg.norm(direction)
    x = np.outer(_starts(kappa, start, line.PAIR, 101), direction)
    x += math.sqrt(start) * generator.standard_normal(x.shape)
    along = x @ direction
    clear = np.abs(np.abs(along) - (1 - kappa * math.sqrt(start))) > 0.02  # Runge–Kutta must not step over an edge
    x, along = x[clear & (np.abs(along) > 0.02)], along[clear & (np.abs(along) > 0.02)]
    found, rows = {}, []
    for slowed in (1.0, 0.5):
        score = _slowed(slowed, kappa, direction)
        path = [x]
        times = np.geomspace(start, end, 9)
        for now, following in zip(times, times[1:]):
            velocity = line.log_time_velocity(score)
            ends = (math.log(now), math.log(following))
            path.append(line.integrate(line.runge_kutta, velocity, path[-1], ends, 64))
        found[slowed] = path[-1]
        rows += _path_rows(path, times, direction, slowed)
    return [
        _tangent_claim(found[1.0] @ direction, line.flow(along, start, end, kappa), dimension, kappa),
        *(_normal_claim(found[c], x, direction, c, end / start, dimension) for c in (1.0, 0.5)),
    ], rows


def _slowed(factor: float, kappa: float, direction: np.ndarray):
    return lambda x, t: factor * line.score_in_space(x, t, kappa, direction)


def _across(x: np.ndarray, direction: np.ndarray) -> np.ndarray:
    return np.linalg.norm(x - np.outer(x @ direction, direction), axis=1)


def _path_rows(path: list[np.ndarray], times: np.ndarray, direction: np.ndarray, slowed: float) -> list[dict[str, Any]]:
    score = "tangent slowed" if slowed == 1 else f"all of the score × {slowed:g}"
    return [
        {"score": score, "t": float(t), "distance_to_line": float(_across(x, direction).mean())}
        for t, x in zip(times, path)
    ]


def _tangent_claim(measured: np.ndarray, closed: np.ndarray, dimension: int, kappa: float) -> Claim:
    return Claim(
        claim=f"Along a line in R^{{{dimension}}} the flow is the one-dimensional one, κ = {kappa:g}",
        formula="x_∥ follows x−m ∝ 1−δ_t",
        source=SOURCE,
        computed=f"Runge–Kutta in ln t on {len(closed)} points",
        expected=float(np.abs(closed).mean()),
        tolerance=1e-8,
        reason="error of order 4 at 512 steps",
        measured=float(np.abs(measured).mean()),
        deviation=float(np.abs(measured - closed).max()),
    )


def _normal_claim(
    final: np.ndarray, x: np.ndarray, direction: np.ndarray, factor: float, ratio: float, dimension: int
) -> Claim:
    exponent = np.log(_across(final, direction) / _across(x, direction)) / math.log(ratio)
    slowed = "is not slowed: x_⊥ ∝ √t" if factor == 1 else "slowed by half as well leaves the line: x_⊥ ∝ t^{1/4}"
    return Claim(
        claim=f"Across a line in R^{{{dimension}}} the flow {slowed}",
        formula="x_⊥' = c x_⊥/(2t), so x_⊥ ∝ t^{c/2}",
        source=SOURCE if factor == 1 else "METHODS §7 [ours]",
        computed=f"exponent of t over a factor {1 / ratio:g} of t, Runge–Kutta on {len(x)} points",
        expected=factor / 2,
        tolerance=1e-8,
        reason="error of order 4 at 512 steps",
        measured=float(exponent.mean()),
        deviation=float(np.abs(exponent - factor / 2).max()),
    )
