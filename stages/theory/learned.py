"""Claims about trained scores, from what stage sample measured of each (stages/diffusion/alignment.py; METHODS §2, §3).

They compare variants, so they are made where all variants are known: in stage report.
"""

import math
from typing import Any

from stages.theory.claims import Claim, Table

DTYPE = "float32 network, float64 measure"


def learned_claims(learned_levels: Table, learned_paths: Table) -> list[Claim]:
    """One claim per network about its highest level; and for every network trained on temperature-smoothed targets,
    two beside the first noise-conditioned network.

    The tables: rows of alignment.json with `variant`, `form` and `smooth_below` (None: all levels) of each network.
    """
    names = list(dict.fromkeys(row["variant"] for row in learned_levels))
    own = {name: [row for row in learned_levels if row["variant"] == name] for name in names}
    routes = {name: [row for row in learned_paths if row["variant"] == name] for name in names}
    found = [_highest_claim(name, own[name]) for name in names]
    base = next((name for name in names if own[name][0]["form"] == "conditioning"), None)
    for name in names:
        if own[name][0]["form"] == "temperature" and base is not None:
            claim = _expansion_claim(name, own[name], base, own[base])
            found += [*([claim] if claim else []), _path_claim(name, routes[name], base, routes[base])]
    return found


def _highest_claim(name: str, rows: Table) -> Claim:
    top = max(rows, key=lambda row: row["sigma"])
    return Claim(
        claim=f"At the highest noise level the trained score points along the empirical score ({name})",
        formula="cos(s_θ(x_i + σz), s(x_i + σz)) → 1",
        source="METHODS §3 [P]; threshold [ours]",
        computed=f"mean over noised training images at σ = {top['sigma']:.3g}, angle {top['angle']:.1f}°",
        expected=1.0,
        tolerance=0.01,
        reason="8°: there the empirical score is nearly −(x − mean)/σ², which any network can learn",
        measured=top["cosine"],
        dtype=DTYPE,
    )


def _expansion_claim(name: str, rows: Table, base: str, other: Table) -> Claim | None:
    """None where no level below the smoothed ones has mirrored points."""
    below = rows[0]["smooth_below"] or math.inf
    plain = {row["sigma"]: row for row in other}
    both = [
        (row, plain[row["sigma"]])
        for row in rows
        if row["sigma"] < below and row["expansion_error"] and plain.get(row["sigma"], {}).get("expansion_error")
    ]
    if not both:
        return None
    ratio = math.exp(_mean([math.log(own["expansion"] / conditioned["expansion"]) for own, conditioned in both]))
    larger = [_excess(own, conditioned) > 2 for own, conditioned in both]
    listing = "; ".join(
        f"{own['expansion']:.2f} against {conditioned['expansion']:.2f} at σ = {own['sigma']:.2g}"
        for own, conditioned in both
    )
    return Claim(
        claim=f"One step of the temperature-smoothed network pulls points less apart ({name} against {base})",
        formula="γ_ex = ‖x'⁺−x⁺‖/‖x'−x‖, x⁺ = x + σ² s_θ(x)",
        source="METHODS §2 [P]",
        computed=f"mean factors on mirrored pairs of training images: {listing}; geometric mean of the quotients "
        f"{ratio:.2f}",
        expected=0.0,
        tolerance=0.0,
        reason="counts smoothed levels with a factor larger by two standard errors, and a mean quotient above 1",
        measured=float(sum(larger) + (ratio >= 1)),
        dtype=DTYPE,
    )


def _excess(own: dict[str, Any], other: dict[str, Any]) -> float:
    """By how many standard errors of their difference the first factor is the larger one."""
    return (own["expansion"] - other["expansion"]) / math.hypot(own["expansion_error"], other["expansion_error"])


def _path_claim(name: str, rows: Table, base: str, other: Table) -> Claim:
    own, plain = (_mean([row["longest_step"] for row in part]) for part in (rows, other))
    return Claim(
        claim=f"Between two noised images the temperature-smoothed network moves more evenly ({name} against {base})",
        formula="longest step over the length of the path of denoised mixtures",
        source="METHODS §3 [P]; measure [ours]",
        computed=f"mean over {len(rows)} paths, linear and spherical: {own:.3f} against {plain:.3f}",
        expected=0.0,
        tolerance=0.0,
        reason="counts 1 where it does not",
        measured=float(own >= plain),
        dtype=DTYPE,
    )


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
