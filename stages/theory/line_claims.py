"""Chen's one-dimensional solution against integration, sampling and quadrature (METHODS §7). All in float64 numpy."""

import math
from typing import ClassVar, Self

import numpy as np
from pydantic import Field, model_validator

from stages.theory import line
from stages.theory.claims import Block, Claim, Findings, Statement, Table, binomial_error

SOURCE, OURS = "METHODS §7 [B]", "METHODS §7 [ours]"
ON_ATOM = 1e-9  # a sample this near to a data point has ended on it


class Line(Block):
    """The smoothed score in one dimension (METHODS §7): flow, limit law, non-smoothness, loss, box average, R^d."""

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
        generator = np.random.default_rng([seed, self.dimension])
        claims: list[Claim] = []
        tables: dict[str, Table] = {"line_order": [], "line_limit_law": [], "line_atoms": []}
        for kappa in self.kappas:
            found = Kappa(kappa, self.start)
            claims += [found.flow_claim(*data) for data in DATA.items()]
            for method in line.METHODS:
                claim, rows = found.order(method)
                claims.append(claim)
                tables["line_order"] += rows
            law, histogram, atoms = found.limit_law(self.samples, self.bins, generator)
            claims += [found.straight_claim(), *law, found.variation_claim(), found.box_claim(), found.loss_claim()]
            tables["line_limit_law"] += histogram
            tables["line_atoms"] += atoms
        claims += [_empirical_variation_claim(self.start), _reference_claim(1.0, 0.0753, 5e-5)]
        claims.append(_reference_claim(2.0, 0.00577, 5e-6))
        space, tables["line_in_space"] = space_claims(self.kappas[0], self.start, self.dimension, generator)
        return Findings([*claims, *space], tables)


DATA = {"{−1, 1}": line.PAIR, "{−1, 1, 4, 6}": np.array([-1.0, 1.0, 4.0, 6.0])}


class Kappa:
    """The claims about one κ, on data {−1, 1} from time `start` where nothing else is said."""

    def __init__(self, kappa: float, start: float) -> None:
        self.kappa, self.start = kappa, start

    def starts(self, points: np.ndarray = line.PAIR, count: int = 401) -> np.ndarray:
        """Points on either side of every gap, none within 2 % of the widest gap of an edge of a ramp or a midpoint."""
        half, reach = float(np.diff(points).max()) / 2, 3 * math.sqrt(self.start)
        x = np.linspace(points[0] - reach, points[-1] + reach, count)
        middle, own = line.gaps(x, points)
        offset = np.abs(x - middle)
        return x[(np.abs(offset - (own - self.kappa * math.sqrt(self.start))) > 0.02 * half) & (offset > 0.02 * half)]

    def integrated(self, method: str, x: np.ndarray, end: float, steps: int, points: np.ndarray = line.PAIR):
        """x at time `end`, by steps in ln t."""
        velocity = line.log_time_velocity(lambda x, t: line.smoothed_score(x, t, self.kappa, points))
        return line.METHODS[method][0](velocity, x, (math.log(self.start), math.log(end)), steps)

    def flow_claim(self, name: str, points: np.ndarray, end: float = 1e-4, steps: int = 1024) -> Claim:
        """The closed form against Runge–Kutta, also on points with gaps of unequal width."""
        x = self.starts(points)
        found, closed = (
            self.integrated("Runge–Kutta", x, end, steps, points),
            line.flow(x, self.start, end, self.kappa, points),
        )
        return Statement(
            f"The smoothed flow in closed form, data {name}, κ = {self.kappa:g}",
            "x−m ∝ D−δ_t on the ramp, x−x_i ∝ √t beside it", SOURCE,
            f"Runge–Kutta in ln t, {steps} steps from t = {self.start:g} to {end:g}, {len(x)} points",
        ).equals(found, closed, 1e-9, "error of order 4 at this step, found by halving it, and rounding")  # fmt: skip

    def order(self, method: str, end: float = 1e-3) -> tuple[Claim, Table]:
        """Measured order of a method in ln t, from the error at n and 2n steps."""
        x, order = self.starts(), line.METHODS[method][1]
        closed = line.flow(x, self.start, end, self.kappa)
        counts = [32 * 2**i for i in range(4 if order == 4 else 6)]
        errors = [float(np.abs(self.integrated(method, x, end, n) - closed).max()) for n in counts]
        about, length = {"kappa": self.kappa, "method": method}, math.log(self.start / end)
        rows = [{**about, "steps": n, "step": length / n, "error": e} for n, e in zip(counts, errors)]
        whose = "" if method == "Runge–Kutta" else "the pipeline's "
        claim = Statement(
            f"Integrating the smoothed flow by {whose}{method} has order {order}, κ = {self.kappa:g}",
            "log₂(error(h)/error(h/2)), h the step in ln t", OURS,
            f"{counts[-2]} and {counts[-1]} steps from t = {self.start:g} to {end:g}",
        ).equals(
            math.log2(errors[-2] / errors[-1]), order, 0.1,
            "the next order's share at this step; orders differ by 1 or more",
        )  # fmt: skip
        return claim, rows

    def straight_claim(self, steps: int = 3) -> Claim:
        """In σ = √t every trajectory is a straight line, so Euler's steps are exact however long they are."""
        x, sigmas = self.starts(), np.linspace(math.sqrt(self.start), 0.01, steps + 1)
        *_, found, _ = line.euler_path(self.kappa, x, sigmas)
        return Statement(
            f"In σ = √t the smoothed flow runs along straight lines: {steps} steps of the pipeline's Euler sampler are "
            f"exact, κ = {self.kappa:g}",
            "dx/dσ = −σ s is constant along a trajectory", OURS,
            f"{steps} Euler steps from σ = {math.sqrt(self.start):g} to 0.01, {len(x)} points",
        ).equals(found[:, 0], line.flow(x, self.start, 1e-4, self.kappa), 1e-13)  # fmt: skip

    def limit_law(self, count: int, bins: int, generator: np.random.Generator) -> tuple[list[Claim], Table, Table]:
        """Where samples end: on the data points with the predicted mass, between them with the predicted density."""
        _, final = line.sample_limit(self.kappa, self.start, count, generator)
        mass, about = line.atom_mass(self.start, self.kappa), {"kappa": self.kappa}
        shares = [float((np.abs(final - side) < ON_ATOM).mean()) for side in line.PAIR]
        atoms = [{**about, "atom": float(a), "sampled": s, "predicted": mass} for a, s in zip(line.PAIR, shares)]
        claims = [self._atom_claim(*side, mass, count) for side in zip(line.PAIR, shares)]
        inside = np.sort(final[np.abs(final) < 1 - ON_ATOM])
        edges = np.linspace(-1, 1, bins + 1)
        sampled, middle = np.histogram(inside, edges)[0] / (count * np.diff(edges)), (edges[1:] + edges[:-1]) / 2
        columns = zip(middle.tolist(), sampled.tolist(), line.limit_density(middle, self.start, self.kappa).tolist())
        histogram = [{**about, **dict(zip(("u", "sampled", "predicted"), row))} for row in columns]
        return [*claims, self._density_claim(inside, count)], histogram, atoms

    def _atom_claim(self, side: float, share: float, mass: float, count: int) -> Claim:
        return Statement(
            f"The smoothed flow ends on the data point {side:+g} with the predicted mass, κ = {self.kappa:g}",
            "P(±x ≥ 1−δ_{t_0}) under p_{t_0}", SOURCE,
            f"{count:,} draws of p_{{t_0}}, t_0 = {self.start:g}, taken down by the pipeline's Euler sampler",
        ).near(share, mass, binomial_error(mass, count), "four binomial standard errors")  # fmt: skip

    def _density_claim(self, inside: np.ndarray, count: int) -> Claim:
        """Kolmogorov–Smirnov distance of the samples off the atoms to the predicted law, times √n."""
        n, predicted = len(inside), line.interior_distribution(inside, self.kappa, self.start)
        ranks = np.arange(n + 1) / n
        distance = max(np.abs(predicted - ranks[1:]).max(), np.abs(predicted - ranks[:-1]).max())
        return Statement(
            f"Between the data points the samples follow the predicted density, κ = {self.kappa:g}",
            "(1−δ) p_{t_0}((1−δ)u) on (−1, 1): interpolation without full memorization", SOURCE,
            f"√n times the Kolmogorov–Smirnov distance of the {n:,} of {count:,} samples off the atoms",
        ).equals(
            distance * math.sqrt(n), 0.0, 2.28, "exceeded once in 16,000 runs by samples of the predicted law"
        )  # fmt: skip

    def variation_claim(self) -> Claim:
        """∫|s''| of the ramp."""
        x, expected = np.linspace(-3, 3, 6001), line.smoothed_variation(self.start, self.kappa)
        found = line.variation_of_slope(x, line.smoothed_score(x, self.start, self.kappa))
        return Statement(
            f"Non-smoothness of the smoothed score, κ = {self.kappa:g}", "R[s_t] = ∫|s_t''| = 2/(t(1−δ_t))", SOURCE,
            f"variation of the slope on {len(x):,} points at t = {self.start:g}",
        ).equals(found, expected, 1e-7 * expected, "float64 rounding of second differences")  # fmt: skip

    def box_claim(self, count: int = 101) -> Claim:
        """The ramp is a box average."""
        x, half_width = np.linspace(-2, 2, count), 1 - self.kappa * math.sqrt(self.start)
        box = np.array([line.box_average(float(point), self.start, half_width) for point in x])
        return Statement(
            f"The smoothed score is the box average of the jump, on the ramp and beside it, κ = {self.kappa:g}",
            "mean of (sgn y − y)/t over |y−x| ≤ 1−δ_t", "METHODS §7 [chk]; beside the ramp [ours]",
            f"adaptive quadrature split at the jump, {count} points in [−2, 2], t = {self.start:g}",
        ).equals(
            box, line.smoothed_score(x, self.start, self.kappa), 1e-10,
            "the quadrature's own error estimate and rounding",
        )  # fmt: skip

    def loss_claim(self, t: float = 1e-3) -> Claim:
        """At small t the two data points do not see each other, and t·E‖·‖² is ε(κ)/(1−δ_t)²."""
        expected, found = line.loss_limit(self.kappa), line.loss(t, self.kappa) * (1 - self.kappa * math.sqrt(t)) ** 2
        return Statement(
            f"What smoothing costs in the loss stays bounded as t → 0, κ = {self.kappa:g}",
            "t·E‖s_smoothed − s_empirical‖² (1−δ_t)² → ε(κ) = (1+κ²)Φ(−κ) − κφ(κ)", SOURCE,
            f"Gauss–Legendre quadrature under p_t at t = {t:g}, the pipeline's empirical score",
        ).equals(
            found, expected, 1e-8 * expected,
            "the quadrature's error; what the points see of each other is below e^{−1/2t}",
        )  # fmt: skip


def _empirical_variation_claim(start: float) -> Claim:
    x, expected = np.linspace(-3, 3, 60_001), 2 / start**2
    return Statement(
        "Non-smoothness of the empirical score: it grows like 1/t², the smoothed score's like 1/t",
        "∫|d²/dx² (tanh(x/t)−x)/t| = 2/t²", OURS,
        f"variation of the slope of the pipeline's score on {len(x):,} points at t = {start:g}",
    ).equals(
        line.variation_of_slope(x, line.empirical_score(x, start)), expected, 1e-5 * expected,
        "the grid's error of order (step/t)²",
    )  # fmt: skip


def _reference_claim(kappa: float, expected: float, tolerance: float) -> Claim:
    return Statement(
        f"Reference value of the loss of smoothing at κ = {kappa:g}", "ε(κ) = lim_{t→0} t·E‖s_smoothed − s_empirical‖²",
        "METHODS §7 [chk]", "Gauss–Legendre quadrature under p_t at t = 1e-12, the pipeline's empirical score",
    ).equals(line.loss(1e-12, kappa), expected, tolerance, "half a unit of the last digit stated")  # fmt: skip


def space_claims(
    kappa: float, start: float, dimension: int, generator: np.random.Generator, end: float = 1e-4
) -> tuple[list[Claim], Table]:
    """The line in R^d: the tangent is slowed, the normal is not; slowing all of the score leaves the line."""
    direction = generator.standard_normal(dimension)
    direction /= np.linalg.norm(direction)
    x = np.outer(Kappa(kappa, start).starts(count=101), direction)
    x += math.sqrt(start) * generator.standard_normal(x.shape)
    along = x @ direction
    clear = np.abs(np.abs(along) - (1 - kappa * math.sqrt(start))) > 0.02  # Runge–Kutta must not step over an edge
    x, times = x[clear & (np.abs(along) > 0.02)], np.geomspace(start, end, 9)
    paths = {c: _path_in_space(x, times, kappa, direction, c) for c in (1.0, 0.5)}
    rows: Table = [
        {"score": "tangent slowed" if c == 1 else f"all of the score × {c:g}", "t": float(t),
         "distance_to_line": float(_across(at, direction).mean())}
        for c, path in paths.items() for t, at in zip(times, path)
    ]  # fmt: skip
    tangent = Statement(
        f"Along a line in R^{{{dimension}}} the flow is the one-dimensional one, κ = {kappa:g}",
        "x_∥ follows x−m ∝ 1−δ_t", SOURCE, f"Runge–Kutta in ln t on {len(x)} points",
    ).equals(
        paths[1.0][-1] @ direction, line.flow(x @ direction, start, end, kappa), 1e-8, "error of order 4 at 512 steps"
    )  # fmt: skip
    return [tangent, *(_normal_claim(path, direction, c, end / start) for c, path in paths.items())], rows


def _path_in_space(x: np.ndarray, times: np.ndarray, kappa: float, direction: np.ndarray, factor: float):
    """The states at `times` when the whole score is multiplied by `factor`; 64 Runge–Kutta steps between two times."""
    velocity = line.log_time_velocity(lambda x, t: factor * line.score_in_space(x, t, kappa, direction))
    path = [x]
    for now, following in zip(times, times[1:]):
        path.append(line.runge_kutta(velocity, path[-1], (math.log(now), math.log(following)), 64))
    return path


def _across(x: np.ndarray, direction: np.ndarray) -> np.ndarray:
    return np.linalg.norm(x - np.outer(x @ direction, direction), axis=1)


def _normal_claim(path: list[np.ndarray], direction: np.ndarray, factor: float, ratio: float) -> Claim:
    exponent = np.log(_across(path[-1], direction) / _across(path[0], direction)) / math.log(ratio)
    slowed = "is not slowed: x_⊥ ∝ √t" if factor == 1 else "slowed by half as well leaves the line: x_⊥ ∝ t^{1/4}"
    return Statement(
        f"Across a line in R^{{{len(direction)}}} the flow {slowed}", "x_⊥' = c x_⊥/(2t), so x_⊥ ∝ t^{c/2}",
        SOURCE if factor == 1 else OURS,
        f"exponent of t over a factor {1 / ratio:g} of t, Runge–Kutta on {len(path[0])} points",
    ).equals(exponent, factor / 2, 1e-8, "error of order 4 at 512 steps")  # fmt: skip
