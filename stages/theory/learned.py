"""Claims about trained scores, from what was measured of each network (stages/diffusion/alignment.py; METHODS §2, §3).

They compare variants, so they are made where all variants are known: in stage report.
"""

import math

from stages.theory.claims import Claim, Statement, Table

DTYPE = "float32 network, float64 measure"


def learned_claims(learned_levels: Table, learned_paths: Table) -> list[Claim]:
    """Return one claim per network about its highest level; and for every network trained on temperature-smoothed
    targets up to two, which compare single steps and paths with those of the first plain network that is alike in
    `conditioned`, so that they differ in nothing else.

    The tables: rows of alignment.json with `variant`, `form`, `conditioned` and `smooth_below` (None: all levels) of
    each network.
    """
    names = list(dict.fromkeys(row["variant"] for row in learned_levels))
    own = {name: [row for row in learned_levels if row["variant"] == name] for name in names}
    routes = {name: [row for row in learned_paths if row["variant"] == name] for name in names}
    found = [_highest_claim(name, own[name]) for name in names]
    plain = {own[name][0]["conditioned"]: name for name in reversed(names) if own[name][0]["form"] != "temperature"}
    for name in names:
        first = own[name][0]
        if first["form"] != "temperature":
            continue
        if other := plain.get(first["conditioned"]):
            if claim := _expansion_claim(f"{name} against {other}", own[name], own[other]):
                found.append(claim)
            found.append(_path_claim(f"{name} against {other}", routes[name], routes[other]))
    return found


def _highest_claim(name: str, rows: Table) -> Claim:
    top = max(rows, key=lambda row: row["sigma"])
    reason = "8°: there the empirical score is nearly −(x − mean)/σ², which any network can learn"
    return Statement(
        f"At the highest noise level the trained score points along the empirical score ({name})",
        "cos(s_θ(x_i + σz), s(x_i + σz)) → 1", "METHODS §3 [P]; threshold [ours]",
        f"mean over noised training images at σ = {top['sigma']:.3g}, angle {top['angle']:.1f}°", DTYPE,
    ).equals(top["cosine"], 1.0, 0.01, reason)  # fmt: skip


def _expansion_claim(names: str, rows: Table, other: Table) -> Claim | None:
    """None where no level below the smoothed ones has mirrored points."""
    below = rows[0]["smooth_below"] or math.inf
    plain = {row["sigma"]: row for row in other if row.get("expansion_error")}
    both = [
        (row, plain[row["sigma"]])
        for row in rows
        if row["sigma"] < below and row["expansion_error"] and row["sigma"] in plain
    ]
    if not both:
        return None
    ratio = math.exp(_mean([math.log(one["expansion"] / two["expansion"]) for one, two in both]))
    errors = [math.hypot(one["expansion_error"], two["expansion_error"]) for one, two in both]
    larger = sum(one["expansion"] - two["expansion"] > 2 * error for (one, two), error in zip(both, errors))
    listing = "; ".join(
        f"{one['expansion']:.2f} against {two['expansion']:.2f} at σ = {one['sigma']:.2g}" for one, two in both
    )
    counted = "counts smoothed levels with a factor larger by two standard errors, and a mean quotient above 1"
    return Statement(
        f"One step of the temperature-smoothed network pulls points less apart ({names})",
        "γ_ex = ‖x'⁺−x⁺‖/‖x'−x‖, x⁺ = x + σ² s_θ(x)", "METHODS §2 [P]",
        f"mean factors on mirrored pairs of training images: {listing}; geometric mean of the quotients {ratio:.2f}",
        DTYPE,
    ).holds(larger + (ratio >= 1), counted)  # fmt: skip


def _path_claim(names: str, rows: Table, other: Table) -> Claim:
    own, plain = (_mean([row["longest_step"] for row in part]) for part in (rows, other))
    return Statement(
        f"Between two noised images the temperature-smoothed network moves more evenly ({names})",
        "longest step over the length of the path of denoised mixtures", "METHODS §3 [P]; measure [ours]",
        f"mean over {len(rows)} paths, linear and spherical: {own:.3f} against {plain:.3f}", DTYPE,
    ).holds(own >= plain, "counts 1 where it does not")  # fmt: skip


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
