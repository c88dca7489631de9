"""A trained score beside the empirical one: on networks whose score is known, the numbers can be worked out."""

import dataclasses
import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from stages.diffusion import alignment
from stages.diffusion import scores as empirical_score
from stages.diffusion.model import Model
from stages.diffusion.parameters import AlignmentParams, Variant
from stages.theory import expansion, learned

SETTINGS = AlignmentParams(levels=3, images=6, expansion_pairs=7, pairs=4, paths=2, points=5, level=0.8, steps=40)
CONDITIONED = Variant(score="network", form="conditioning", sampler={"name": "euler", "levels": 4})
BLIND = Variant(
    score="network", form="unconditioning",
    sampler={"name": "actual-noise", "levels": 4, "step": 0.1, "exact_below": 1.0},
)  # fmt: skip


class Exact(torch.nn.Module):
    """F = σ s of the empirical score itself, `turn` times; blind to σ it takes the actual noise level."""

    def __init__(self, images, turn=1.0):
        super().__init__()
        self.images, self.turn = images, turn

    def forward(self, x, sigma):
        centres = empirical_score.make_centres(self.images)
        flat = x.flatten(1).double()
        if sigma is None:
            squared = torch.cat([block for block, _ in centres.squared_distances(flat)], dim=1)
            sigma = squared.min(1).values.sqrt() / math.sqrt(flat.shape[1])
        score = empirical_score.conditioning(centres, flat, sigma.double())
        return (self.turn * sigma.double()[:, None] * score).to(x.dtype).reshape(x.shape)


def images(count=5, side=6):
    return torch.from_numpy(np.random.default_rng(1).integers(0, 256, (count, 3, side, side), dtype=np.uint8))


def model(variant=CONDITIONED, turn=1.0, pictures=None):
    pictures = images() if pictures is None else pictures
    sigmas = torch.tensor([2.0, 0.6, 0.2, 0.05], dtype=torch.float64)
    return Model(variant, sigmas, pictures.movedim(1, -1).numpy(), torch.device("cpu"), Exact(pictures, turn))


def test_cosines_by_hand():
    one, other = torch.tensor([[3.0, 4.0], [1.0, 0.0]]).double(), torch.tensor([[4.0, 3.0], [0.0, 2.0]]).double()
    cosine, length = alignment.cosines(one, other)
    assert cosine == pytest.approx([24 / 25, 0])
    assert length == pytest.approx([1, 1 / 2])


@pytest.mark.parametrize(("turn", "cosine", "angle"), [(1.0, 1, 0), (-2.0, -1, 180)])
def test_the_empirical_score_itself_is_aligned(turn, cosine, angle):
    turned = model(turn=turn)
    row = alignment.cosine_row(turned, 0.5, *alignment.at_noised_images(turned, 0.5, 0, 8, seed=3))
    assert row["cosine"] == pytest.approx(cosine, abs=1e-6)
    assert row["cosine_low"] == pytest.approx(cosine, abs=1e-6)
    assert row["angle"] == pytest.approx(angle, abs=0.1)
    assert row["length_ratio"] == pytest.approx(abs(turn), rel=1e-5)


def pair_factor(pair):
    """γ_ex of the step to the posterior mean, written out at σ = r_1/√d."""
    step = []
    for x in (pair.point, pair.mirror):
        squared = ((x - pair.centres) ** 2).sum(axis=1)
        weights = np.exp(-(squared - squared.min()) / (2 * pair.radius**2 / len(x)))
        step.append(weights @ pair.centres / weights.sum())
    return np.linalg.norm(step[0] - step[1]) / np.linalg.norm(pair.point - pair.mirror)


def expansion_row(own, sigma, pairs, few=1):
    """The row of a level over `pairs` pairs of images, `few` of which the thermometer reads."""
    settings = SETTINGS.model_copy(update={"expansion_pairs": pairs, "pairs": few})
    return alignment.expansion_row(own, sigma, 0, settings, seed=0)


def test_expansion_of_two_centres_is_the_closed_form():
    # with two training images the empirical score is that of the two centres, and the factor the formula's
    pictures = images(2, 8)
    row = expansion_row(model(pictures=pictures), 2.0, 6)
    assert row["expansion_empirical"] == pytest.approx(row["expansion_closed_form"], rel=1e-7)
    assert row["expansion"] == pytest.approx(row["expansion_closed_form"], rel=1e-3)
    assert 0 < row["expansion_pairs"] <= 6  # a pair of an image with itself has no such points
    flat = pictures.flatten(1).double().numpy() / 255
    pair = expansion.place(
        flat, 2.0 * math.sqrt(192) / np.linalg.norm(flat[0] - flat[1]), 1 + 1 / math.sqrt(192), np.arange(192.0)
    )
    assert row["expansion_closed_form"] == pytest.approx(pair_factor(pair), rel=1e-9)


@pytest.mark.parametrize("temperature", alignment.CLOSED_TEMPERATURES)
def test_the_closed_form_at_a_temperature_is_a_step_of_that_score(temperature):
    """Two training images: the shells' score at T, which knows no formula of a pair, has the same factor."""
    pictures = images(2, 8)
    own = model(BLIND, pictures=pictures)
    row = expansion_row(own, 2.0, 6)
    centres = empirical_score.make_centres(pictures.movedim(1, -1))
    (pair, *_) = alignment.mirrored_pairs(own, 2.0, 0, 6, 0)
    points = torch.from_numpy(np.stack([pair.point, pair.mirror]))
    shells = pair.radius**2 / (points.shape[1] - 2)
    after = points + shells * empirical_score.unconditioning(centres, points, float(temperature))
    factor = np.linalg.norm(after[1] - after[0]) / np.linalg.norm(points[1] - points[0])
    assert row[f"expansion_t_{temperature}"] == pytest.approx(factor, rel=1e-9)


def test_the_factors_are_the_same_in_batches_of_any_size(monkeypatch):
    """The mean over all pairs is the plain mean, however few are evaluated together; the first are always the same."""
    own = model()
    whole = expansion_row(own, 0.8, 9, few=3)
    single = [expansion_row(own, 0.8, count) for count in range(1, 10)]
    monkeypatch.setattr(alignment, "PAIRS_AT_ONCE", 2)
    batched = expansion_row(own, 0.8, 9, few=3)
    assert batched == pytest.approx(whole, rel=1e-6)
    assert 2 < whole["expansion_pairs"] <= 9
    counts = [row["expansion_pairs"] for row in single]
    assert counts == sorted(counts)
    last = [row for row in single if row["expansion_pairs"] == whole["expansion_pairs"]][-1]
    assert last["expansion"] == pytest.approx(whole["expansion"], rel=1e-6)


def test_the_error_over_pairs_counts_those_that_share_an_image():
    """All pairs of pairs with a common image, in two loops; pairs without one give the plain standard error."""
    generator = np.random.default_rng(0)
    images, effects = generator.integers(0, 6, (2, 60)), generator.normal(size=6)
    values = effects[images].sum(0) + 0.1 * generator.normal(size=60)
    residuals = values - values.mean()
    total = 0.0
    for p, one in enumerate(images.T):
        for q, other in enumerate(images.T):
            shared = sum(a == b for a in one for b in other) - (p == q)
            total += shared * residuals[p] * residuals[q]
    found = alignment.error_over_images(values, images)
    assert found == pytest.approx(math.sqrt(total) / 60)
    assert found > 2 * alignment.standard_error(values)
    apart = np.arange(120).reshape(2, 60)
    assert alignment.error_over_images(values, apart) == pytest.approx(alignment.standard_error(values), rel=0.02)
    assert alignment.error_over_images(values[:1], images[:, :1]) is None


def test_the_temperature_is_read_from_the_first_pairs_alone():
    own = model(turn=0.7)
    few, many = expansion_row(own, 0.8, 3, few=3), expansion_row(own, 0.8, 9, few=3)
    assert few["expansion"] != many["expansion"]
    for name in ("t_eff", "low", "high", "identified"):
        assert few[f"expansion_{name}"] == many[f"expansion_{name}"]


def test_more_pairs_for_the_temperature_than_there_are_is_an_error():
    with pytest.raises(ValueError, match="pairs 8 are more than expansion_pairs 7: lower pairs"):
        AlignmentParams(**{**SETTINGS.model_dump(), "pairs": 8})


def test_a_level_too_low_for_mirrored_points_has_none():
    row = expansion_row(model(), 0.01, 4)
    assert row.pop("expansion_pairs") == 0
    assert set(row.values()) == {None}


def test_mixtures_by_hand():
    one, other = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[0.0, 1.0]]]])
    found = alignment.mixtures(one, other, np.array([0, 1 / 3, 1 / 2, 1]))[:, 0, :, 0, 0]
    assert found[0].tolist() == pytest.approx(np.array([[1, 0], [2 / 3, 1 / 3], [0.5, 0.5], [0, 1]]))
    root, third = math.sqrt(0.5), math.sqrt(0.75)  # a quarter turn: the spherical mixtures stay on the circle
    assert found[1].tolist() == pytest.approx(np.array([[1, 0], [third, 0.5], [root, root], [0, 1]]), abs=1e-7)


@pytest.mark.parametrize("variant", [CONDITIONED, BLIND])
def test_the_empirical_score_leads_back_to_training_images(variant):
    exact = model(variant)
    start = exact.training_images(torch.tensor([3])).float() / 255
    noise = torch.randn(1, *exact.shape, generator=torch.Generator().manual_seed(0))
    final = alignment.denoise(exact, start + 0.3 * noise, 0.3, 40)
    assert (final - start).abs().max() < 1e-3
    assert alignment.nearest_ratios(exact, final)[0] < 1e-2


def test_an_interpolation_through_training_images_jumps():
    rows, pictures = alignment.interpolate(model(), SETTINGS, seed=5)
    assert pictures.shape == (2, 2, 5, 6, 6, 3)
    assert [(row["mixture"], row["path"]) for row in rows] == [
        ("linear", 0), ("linear", 1), ("spherical", 0), ("spherical", 1)
    ]  # fmt: skip
    for row in rows:
        assert row["median_ratio"] < 0.05
        assert row["length"] == 0 or row["longest_step"] > 0.4  # an even path of four steps would have 0.25


def test_everything_is_a_function_of_the_seed():
    first, again = (alignment.align(model(), SETTINGS, seed=2) for _ in range(2))
    assert first.levels == again.levels
    assert first.temperatures == again.temperatures
    assert first.paths == again.paths
    assert np.array_equal(first.images, again.images)
    assert alignment.align(model(), SETTINGS, seed=3).levels != first.levels
    assert [row["sigma"] for row in first.levels] == pytest.approx([0.05, math.sqrt(0.1), 2.0])


def test_one_training_image_has_no_second_nearest():
    alone = dataclasses.replace(model(), images=images()[:1].movedim(1, -1).numpy())
    assert alignment.nearest_ratios(alone, images()[:2].float() / 255).tolist() == [1, 1]


def level(variant, form, sigma, factor, error=0.01, cosine=0.995, smooth_below=1.0, conditioned=True):
    return {
        "variant": variant, "form": form, "conditioned": conditioned, "smooth_below": smooth_below, "sigma": sigma,
        "cosine": cosine, "angle": 5.0, "expansion": factor, "expansion_error": error,
    }  # fmt: skip


def path(variant, longest):
    return {"variant": variant, "longest_step": longest}


BASE = [level("net", "conditioning", 0.3, 2.0), level("net", "conditioning", 3.0, 0.1)]


def judged(*rows):
    """measured of the expansion claim of a temperature network with these levels; None without one."""
    claims = learned.learned_claims([*BASE, *rows], [path("net", 0.5), path("t", 0.4)])
    return next((claim.measured for claim in claims if "pulls points less apart" in claim.claim), None)


def test_expansion_claims_count_levels_that_are_clearly_larger():
    above = level("t", "temperature", 3.0, 0.2)  # not smoothed: not counted
    assert judged(level("t", "temperature", 0.3, 1.5), above) == 0
    assert judged(level("t", "temperature", 0.3, 2.01), above) == 1  # within the error, but the mean quotient is not
    assert judged(level("t", "temperature", 0.3, 2.5), above) == 2
    assert judged(level("t", "temperature", 0.3, None, None), above) is None


def test_claims_of_the_highest_level_and_of_the_paths():
    rows = [*BASE, level("t", "temperature", 3.0, 0.2, cosine=0.98)]
    claims = learned.learned_claims(rows, [path("net", 0.5), path("t", 0.4), path("t", 0.7)])
    assert [claim.passed for claim in claims] == [True, False, False]  # cosines 0.995 and 0.98; 0.55 against 0.5
    assert "0.550 against 0.500" in claims[2].computed


def test_paths_are_compared_under_one_sampler():
    """A blind network takes actual-noise steps, a conditioned one Euler steps."""
    blind = level("t", "temperature", 3.0, 0.2, conditioned=False)
    routes = [path("net", 0.5), path("t", 0.4), path("plain", 0.6)]
    assert not [c for c in learned.learned_claims([*BASE, blind], routes) if "moves more evenly" in c.claim]
    plain = level("plain", "unconditioning", 3.0, 0.2, conditioned=False)
    (claim,) = (c for c in learned.learned_claims([*BASE, plain, blind], routes) if "moves more evenly" in c.claim)
    assert "(t against plain)" in claim.claim
    assert "0.400 against 0.600" in claim.computed


def test_without_a_conditioned_network_nothing_is_compared():
    claims = learned.learned_claims([level("t", "temperature", 3.0, 0.2)], [path("t", 0.4)])
    assert len(claims) == 1


def test_the_numbers_of_images_are_the_same_in_every_process():
    """Sums go over the images in the order of these numbers, so their last bits depend on it."""
    code = (
        "import numpy as np\nfrom types import SimpleNamespace\nfrom stages.diffusion.alignment import _images\n"
        "pairs = [SimpleNamespace(centres=np.array([[i, 1.5], [i % 3, 0.5]])) for i in range(9)]\n"
        "print(_images(pairs).tolist())"
    )
    found = set()
    for seed in ("1", "2"):
        variables = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=True)
        found.add(done.stdout)
    (printed,) = found
    one, other = json.loads(printed)
    assert len(set(one)) == 9
    assert len(set(other)) == 3
