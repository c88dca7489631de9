"""The theory's formulas on cases small enough to work by hand, and the verify stage on small numbers."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
from small_verify import BLOCKS, section

from stages import verify
from stages.errors import InputError
from stages.files.artifacts import read_json
from stages.files.images import image_table, write_images
from stages.protocol import run_plain
from stages.theory import domination, expansion, mismatch, product, shell
from stages.theory.claims import Claim, Statement


def claim(**changes) -> Claim:
    row = {"claim": "", "formula": "", "source": "", "computed": "", "reason": ""}
    return Claim(**{**row, "expected": 1.0, "tolerance": 0.1, "measured": 1.05, **changes})


STATEMENT = Statement("", "", "", "")


def test_a_statement_makes_the_row_of_a_claim():
    one = STATEMENT.equals(1.05, 1.0, 0.1)
    assert (one.measured, one.expected, one.tolerance, one.deviation, one.passed) == (1.05, 1.0, 0.1, None, True)
    many = STATEMENT.equals(np.array([1.0, -3.0]), np.array([1.5, -3.0]), 0.3, relative_to=np.array([2.0, 1.0]))
    assert (many.measured, many.expected, many.deviation, many.passed) == (2.0, 2.25, 0.25, True)
    assert not STATEMENT.equals(np.array([math.nan, 1.0]), 1.0, 0.1).passed
    assert STATEMENT.holds(0).passed
    assert not STATEMENT.holds(True).passed


def test_a_mean_passes_within_four_standard_errors():
    values = np.array([1.0, 3.0])  # mean 2, standard deviation √2, standard error 1
    found = STATEMENT.mean(values, 6.0)
    assert (found.uncertainty, found.tolerance, found.passed) == (pytest.approx(1), pytest.approx(4), True)
    assert not STATEMENT.mean(values, 6.1).passed
    assert STATEMENT.mean(values, 6.1, extra=0.2, reason="").passed


def test_claim_passes_within_its_tolerance_only():
    assert claim().passed
    assert not claim(measured=1.2).passed
    assert not claim(measured=math.nan).passed
    assert not claim(deviation=0.2).passed, "the largest deviation decides, not the mean"


def test_shell_mass_in_two_dimensions_is_an_exponential():
    # d = 2: ‖z‖² is exponential with mean 2 and the shell has no inner edge: 1 − exp(−(√2 + 3/√2)²/2) = 1 − e^{−6.25}
    assert shell.shell_mass(2) == pytest.approx(1 - math.exp(-6.25), abs=1e-15)


def test_shell_mass_reference_values():
    assert round(shell.shell_mass(64), 5) == 0.99741
    assert round(shell.shell_mass(3072), 6) == 0.997303


def test_shell_count_agrees_with_the_exact_mass_and_ignores_the_block():
    count = shell.shell_count(16, 20_000, seed=1)
    exact = shell.shell_mass(16)
    assert abs(count / 20_000 - exact) < 4 * math.sqrt(exact * (1 - exact) / 20_000)
    assert shell.shell_count(16, 20_000, seed=1, block=160) == count


def test_touch_ratio_is_three_in_eighteen_dimensions():
    # √18 = 2 · 3/√2, so γ = (2 + 1)/(2 − 1) = 3, and 1, 3, 9 are three levels
    assert shell.touch_ratio(18) == pytest.approx(3, rel=1e-14)
    assert shell.level_count(np.array([9.0, 1.0]), 3) == pytest.approx(3, rel=1e-14)


def test_exact_shell_touch_count_is_not_the_papers():
    block = shell.ShellTouch(dimensions=[3072], smallest=0.01, largest=50)
    rows = {row.claim: row for row in block.findings(0, None).claims}
    failed = [text for text, row in rows.items() if not row.passed]
    assert failed == ["The paper's 116 levels are the exact shell-touch count"]


@pytest.mark.parametrize(("alpha", "squared"), [(0.0, 18), (0.5, 72), (1.0, 162)])
def test_sigma_ratio_in_eighteen_dimensions(alpha, squared):
    # levels 1 and 3 at radius (1 + 2α)√18: 16 ln 3 − (r²/2)(1 − 1/9)
    assert domination.sigma_ratio(alpha, 18) == pytest.approx(16 * math.log(3) - squared * 4 / 9, abs=1e-12)


def test_the_mixtures_score_has_the_weights_of_its_levels():
    # of one centre the score is −(w_1/σ_1² + w_2/σ_2²) x
    x = np.full((1, 18), 1.1)
    precision = -product.mixture(np.zeros((1, 18)), [1.0, 1.5])(x)[0, 0] / 1.1
    ratio = (precision - 1.5**-2) / (1 - precision)
    logs = [product.level_log_weight(18 * 1.21, sigma, 18) for sigma in (1.0, 1.5)]
    assert math.log(ratio) == pytest.approx(logs[0] - logs[1])


def test_sigma_series_has_the_error_of_its_first_neglected_term():
    for alpha in (0.0, 1 / 3, 0.8):
        for dimension in (10_000, 1_000_000):
            series, neglected = domination.sigma_series(alpha, dimension)
            assert series - domination.sigma_ratio(alpha, dimension) == pytest.approx(neglected, rel=0.2, abs=1e-7)


def test_a_wrong_limit_would_fail():
    found = domination.limit_claim(1 / 3)
    assert found.passed
    assert domination.sigma_limit(1 / 3) == pytest.approx(6)
    assert not claim(expected=6.01, measured=found.measured, tolerance=1e-5).passed


def test_the_mixture_over_fine_levels_is_the_unconditioning_score():
    # ∫ σ^{−(d−2)} e^{−r²/2σ²} dσ/σ ∝ r^{−(d−2)}, and the mean precision of a centre is (d−2)/r²
    generator = np.random.default_rng(0)
    centres, x = generator.random((3, 10)), generator.random((1, 10))
    levels = domination.fine_levels(((x - centres) ** 2).sum(axis=1), 10)
    assert product.mixture(centres, levels)(x) == pytest.approx(product.unconditioning(centres)(x), abs=1e-9)


def test_weights_are_read_back_from_a_score():
    # d = 3, T = 1: r² = 1 and 4, so w = 2/3, 1/3 and p = 1, 1/4
    centres, x = np.array([[1.0, 0, 0], [0.0, 2, 0]]), np.zeros(3)
    pulls = product.pulls(product.unconditioning(centres)(x[None])[0], x, centres)
    assert pulls == pytest.approx([2 / 3, 1 / 12])
    found = domination.Pairs(centres[None], x[None]).log_ratios(product.unconditioning, np.array([[1.0, 0.25]]))
    assert found == pytest.approx([math.log(2)])


def test_pairs_lie_beside_the_line_near_the_bisector():
    pairs = domination.random_pairs(64, 0)
    ratios = pairs.shell_ratio()
    assert ratios == pytest.approx(31 * np.log(pairs.squared[:, 1] / pairs.squared[:, 0]))
    assert 1 < np.abs(ratios).max() < 15


@pytest.mark.parametrize("dimension", [8, 64])
def test_every_claim_about_two_images_holds(dimension):
    block = domination.ImageDomination(dimension=dimension, temperatures=[1.0, 50.0])
    assert all(claim.passed for claim in block.findings(1, None).claims)


def test_place_puts_the_points_where_it_says():
    generator = np.random.default_rng(0)
    pair = expansion.place(generator.random((2, 7)), 0.8, 1.3, generator.standard_normal(7))
    distances = np.linalg.norm(pair.centres - pair.point, axis=1)
    assert distances[1] == pytest.approx(0.8 * pair.gap)
    assert distances[0] == pytest.approx(1.3 * distances[1])
    assert np.linalg.norm(pair.centres - pair.mirror, axis=1)[::-1] == pytest.approx(distances)
    with pytest.raises(ValueError, match="raise reach"):
        expansion.place(pair.centres, 0.3, 1.1, generator.standard_normal(7))


def test_a_point_exists_where_a_triangle_does():
    # sides 1 (L), r, 2r: possible from r = 1/3 (on the line between) to r = 1 (on the line beyond)
    assert [expansion.point_exists(reach, 2.0) for reach in (0.33, 0.34, 0.99, 1.01)] == [False, True, True, False]


def test_pairs_lie_at_their_noise_level():
    images = np.array([[0.0, 0, 0, 0], [0.0, 0, 0, 0], [1.0, 0, 0, 0], [1.0, 1, 1, 1]])
    found = list(expansion.draw_pairs(images, 20, 0.45, seed=0))  # r_1 = 0.9, C = 1.5: only L in [0.45, 2.25] can be
    assert len(found) == 20
    for pair in found:
        assert np.linalg.norm(pair.point - pair.centres[1]) == pytest.approx(0.9)
        assert np.linalg.norm(pair.point - pair.centres[0]) == pytest.approx(1.35)
    assert {round(pair.gap, 9) for pair in found} == {1.0, round(math.sqrt(3), 9), 2.0}
    with pytest.raises(
        InputError, match=r"verify\.blocks\.expansion\.sigmas: hardly any two images have a point at noise 0\.1"
    ):
        list(expansion.draw_pairs(images, 20, 0.1, seed=0))


def line() -> expansion.Pair:
    """Centres at 0 and 1 on a line of R³, C = 2, r_1 = 1: the point is 2, its mirror image −1."""
    centres = np.array([[0.0, 0, 0], [1.0, 0, 0]])
    pair = expansion.place(centres, 1.0, 2.0, np.array([0.0, 1, 0]))
    assert pair.point == pytest.approx([2, 0, 0])
    assert pair.mirror == pytest.approx([-1, 0, 0])
    return pair


def factor(form: product.Form, eta: float) -> float:
    (found,) = expansion.exact_factors(line(), eta, [form])
    return found


def test_unconditioning_factor_by_hand():
    # a = 2^{1} = 2: weights 2/3, 1/3; the point goes to 2 − (2/3 · 1 + 1/3 · 1/4 · 2) = 7/6, its mirror to −1/6: 4/9
    assert factor(1.0, 1.0) == pytest.approx(4 / 9)
    assert expansion.factor_unconditioning(3, 2.0, 1.0, 1 / 3, 1.0) == pytest.approx(4 / 9)
    assert line().stretch == pytest.approx(1 / 3)


def test_unconditioning_factor_at_infinite_temperature_by_hand():
    # equal weights: 2 − ½(1 + ¼ · 2) = 5/4 and −1/4: ½
    assert factor("infinity", 1.0) == pytest.approx(1 / 2)
    assert expansion.factor_unconditioning(3, 2.0, 1.0, 1 / 3, math.inf) == pytest.approx(1 / 2)


def test_conditioning_factor_by_hand():
    # a = e^{9/2} at d = 3; with η = ½ the points move half-way to the posterior means a/(a+1) and 1/(a+1)
    share = (math.exp(4.5) - 1) / (math.exp(4.5) + 1)
    expected = (1 - 0.5) + 0.5 * share / 3
    assert expansion.factor_conditioning(3, 2.0, 0.5, 1 / 3) == pytest.approx(expected)
    assert factor("conditioning", 0.5) == pytest.approx(expected)


def test_factors_come_in_the_order_of_their_forms():
    forms = [10.0, "conditioning", "infinity"]
    assert expansion.exact_factors(line(), 1.0, forms) == pytest.approx([factor(form, 1.0) for form in forms])


def test_a_wrong_closed_form_would_fail():
    pairs = expansion.draw_pairs(np.random.default_rng(0).random((8, 64)), 3, 0.4, seed=0)
    exact = np.array([expansion.exact_factors(pair, 1.0, [10.0])[0] for pair in pairs])
    assert not expansion.factor_claim(10.0, 64, 1.0, exact * (1 + 1e-6), exact).passed


def levels(beta: float, ode: bool) -> np.ndarray:
    """R after one step of the pipeline's sampler from R = √2 at x = (2, 0), (1,)."""
    sigmas = np.sqrt([2 * beta + 1, 1.0])  # β = (σ_1² − σ_2²)/R²
    start, after = mismatch.actual_levels(np.array([[2.0, 0.0]]), sigmas, ode, [0])[0]
    assert start == pytest.approx(math.sqrt(2))
    return after


def test_the_samplers_ode_step_by_hand():
    assert levels(1.0, ode=True) == pytest.approx(math.sqrt(2) / 2)  # x goes to (1, 0)
    assert levels(5.0, ode=True) == pytest.approx(1.5 * math.sqrt(2))  # overshoots to (−3, 0)
    assert mismatch.ode_level(math.sqrt(2), 5.0) == pytest.approx(1.5 * math.sqrt(2))


def test_the_samplers_sde_step_by_hand():
    # β = ½: x goes to (1, 0), plus noise of variance 1
    after = np.array([1.0, 0.0]) + product.draws([0], (1, 2))(1)
    assert levels(0.5, ode=False) == pytest.approx(math.sqrt((after**2).mean()))
    assert mismatch.sde_squared_level(math.sqrt(2), 0.5) == pytest.approx(1.5)


def test_sde_fixed_point_by_hand():
    # δ = 3/16 (γ = 4/√13): u² − u + 3/16 = 0 has the roots ¼ and ¾, and one step keeps u = ¼
    ratio = 4 / math.sqrt(13)
    assert mismatch.step_share(ratio) == pytest.approx(3 / 16)
    assert mismatch.sde_fixed_point(ratio) == pytest.approx(0.5)
    assert ratio**2 * mismatch.sde_squared_level(0.5, 3 / 16 / 0.25) == pytest.approx(0.25)


def test_ode_fixed_points_are_kept_and_left():
    upper, lower = mismatch.ode_fixed_points(1.1)
    delta = mismatch.step_share(1.1)
    for level in (upper, lower):
        assert 1.1 * mismatch.ode_level(level, delta / level**2) == pytest.approx(level)
    assert lower**2 == pytest.approx((1 - 1 / 1.1) / 2)
    for level in (upper, lower):  # a small step away grows
        moved = 1.1 * mismatch.ode_level(level * 1.001, delta / (level * 1.001) ** 2)
        assert abs(moved / level - 1) > 1.001e-3


def trajectories(**changes) -> mismatch.MismatchTrajectory:
    return mismatch.MismatchTrajectory(**{**BLOCKS["mismatch_trajectory"], **changes})


def test_along_a_schedule_the_ode_overshoots_and_the_sde_returns():
    found = trajectories().findings(1, None)
    assert all(claim.passed for claim in found.claims), [claim.claim for claim in found.claims if not claim.passed]
    assert [claim.claim.split(" (")[0] for claim in found.claims if "start R/σ = 0.5" in claim.claim][1:] == [
        "The SDE corrects itself: R/σ settles at its stable fixed point"
    ]
    last = {row["start"]: row for row in found.tables["mismatch_trajectory"] if row["level"] == 120}
    assert last[0.5]["ode"] > 100
    assert last[0.5]["sde"] == pytest.approx(last[0.5]["sde_expected"], rel=0.05)
    assert last[1.5]["sde"] > 1000, "excess noise stays"


def test_a_wrong_fixed_point_would_fail(monkeypatch):
    monkeypatch.setattr(mismatch, "sde_fixed_point", lambda ratio: 1.02 * 0.38)
    assert not all(claim.passed for claim in trajectories(starts=[0.5]).findings(0, None).claims)


def test_too_few_levels_are_refused():
    with pytest.raises(InputError, match=r"verify\.blocks\.mismatch_trajectory: .*30 levels are too few"):
        params(mismatch_trajectory={**BLOCKS["mismatch_trajectory"], "levels": 30})


def params(**changes) -> verify.Params:
    return verify.Params.from_tree({"verify": section(**changes)})


def test_verify_writes_every_claim_and_table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(json.dumps({"verify": section()}))
    noise = np.random.default_rng(0).integers(0, 256, (30, 12, 12, 1), dtype=np.uint8)
    write_images(verify.TRAIN, image_table(noise))
    run_plain("verify")
    first = Path("data/verify/verify.json").read_bytes()
    claims = read_json("data/verify/verify.json")["claims"]
    assert {row["topic"] for row in claims} == set(verify.Blocks.kinds())
    blocks = read_json("data/verify/blocks.json")["blocks"]
    assert [block["name"] for block in blocks] == list(verify.Blocks.kinds())
    files = {f"{name}.tsv" for block in blocks for name in block["tables"]}
    files |= {f"{picture['name']}.png" for block in blocks for picture in block["pictures"]}
    assert {path.name for path in Path("data/verify").iterdir()} == {"verify.json", "blocks.json", *files}
    assert {"collapse_conditioning.png", "collapse_t1.png"} <= files
    keys = {"claim", "formula", "source", "computed", "expected", "tolerance", "reason", "measured", "uncertainty"}
    assert all({*keys, "passed"} <= set(row) for row in claims)
    asked = {block["name"] for block in blocks if block["question"]}  # at toy size their answers say nothing
    assert asked == {"adaptive_targets", "copying_onset", "two_halves", "loader_batches", "league", "copied_images"}
    assert [row["claim"] for row in claims if not row["passed"] and row["topic"] not in asked] == [
        "The paper's 116 levels are the exact shell-touch count",
        "Smoothing the score brings what the reverse SDE generates nearer to the truth",  # too few sets to be clear
        "With fewer than half copies, log-domain smoothing still draws as diverse images as real ones",
    ]
    with open("data/verify/sigma_domination.tsv", newline="") as file:
        table = list(csv.DictReader(file, delimiter="\t"))
    assert [(float(row["alpha"]), int(row["d"])) for row in table] == [(a, d) for a in (0.25, 0.5) for d in (256, 3072)]
    run_plain("verify")
    assert Path("data/verify/verify.json").read_bytes() == first


def test_a_topic_does_not_depend_on_the_others():
    before = {shard.name: shard.settings for shard in verify.plan(params())}
    after = {shard.name: shard.settings for shard in verify.plan(params(mismatch={**BLOCKS["mismatch"], "draws": 60}))}
    assert [name for name in before if before[name] != after[name]] == ["mismatch"]


def test_a_dimension_without_a_shell_is_refused():
    with pytest.raises(InputError, match=r"verify\.blocks\.shell_touch\.dimensions\.0"):
        params(shell_touch={**BLOCKS["shell_touch"], "dimensions": [4]})


def test_a_schedule_must_rise():
    with pytest.raises(InputError, match=r"verify\.blocks\.shell_touch: .*smallest 50\.0 must be below largest 0\.01"):
        params(shell_touch={"dimensions": [64], "smallest": 50.0, "largest": 0.01})
