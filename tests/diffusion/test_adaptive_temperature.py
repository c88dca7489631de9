"""Temperatures that depend on the point: against the Jacobian, the entropy, and targets against closed forms."""

import pytest
import torch

from stages.diffusion import scores
from stages.diffusion.adaptive_temperature import adaptive_rule, perplexity_temperature
from stages.diffusion.parameters import ScoreSpec
from stages.diffusion.targets import build_target
from stages.diffusion.temperature import shell_log_weights, shell_precisions
from stages.diffusion.variants import Batch, build_score

D, K, POWER = 16, 6, 14


@pytest.fixture
def points():
    """Points between, near and far from random centres: float64 (P, d) and (M, d)."""
    generator = torch.Generator().manual_seed(1)
    centres = torch.rand(K, D, generator=generator, dtype=torch.float64)
    pair = (centres[:3] + centres[3:]) / 2 + 1e-3 * torch.randn(3, D, generator=generator, dtype=torch.float64)
    near = centres[:2] + 0.02 * torch.randn(2, D, generator=generator, dtype=torch.float64)
    far = 3 * torch.randn(4, D, generator=generator, dtype=torch.float64)
    return torch.cat([pair, near, far]), centres


def jacobian_top(x, centres, temperature, precision="optimal", sigma=0.3):
    """The largest eigenvalue of J = Cov_w(g)/T - lambda-bar I in all d dimensions, at each point (METHODS §2)."""
    offsets = x[:, None] - centres
    r2 = offsets.square().sum(2)
    p = shell_precisions(r2, POWER, precision, torch.tensor([[sigma]], dtype=torch.float64))
    w = torch.softmax(shell_log_weights(r2, POWER, temperature[:, None]), dim=1)
    g = -offsets * p[..., None]
    centred = g - (w[..., None] * g).sum(1, keepdim=True)
    covariance = torch.einsum("bk,bki,bkj->bij", w, centred, centred)
    return torch.linalg.eigvalsh(covariance)[:, -1] / temperature - (w * p).sum(1)


@pytest.mark.parametrize("precision", ["optimal", "scheduled"])
def test_nonexpansive_is_the_least_temperature_without_expansion(points, precision):
    x, centres = points
    offsets = x[:, None] - centres
    r2 = offsets.square().sum(2)
    p = shell_precisions(r2, POWER, precision, torch.full((len(x), 1), 0.3, dtype=torch.float64))
    found = adaptive_rule("nonexpansive", POWER)(offsets, r2, p)
    assert (found >= 1).all()
    assert (jacobian_top(x, centres, found, precision) <= 1e-9).all()
    hot = found > 1
    assert 3 <= hot.sum() < len(x), "the points between two images expand at T = 1, those near one do not"
    assert (jacobian_top(x[hot], centres, found[hot] * 0.97, precision) > 0).all()
    for t in torch.linspace(1, 1.4, 9, dtype=torch.float64):  # no value on a fine grid below, either
        below = found * 0.97 > t
        assert (jacobian_top(x[below], centres, t.expand(int(below.sum())), precision) > 0).all()


def test_on_a_centre_nothing_expands_at_temperature_1(points):
    _, centres = points
    offsets = centres[:1, None] - centres
    r2 = offsets.square().sum(2)
    assert adaptive_rule("nonexpansive", POWER)(offsets, r2, shell_precisions(r2, POWER)).tolist() == [1.0]


@pytest.mark.parametrize("number", [1.5, 3.0, 5.9])
def test_perplexity_is_reached(points, number):
    x, centres = points
    r2 = (x[:, None] - centres).square().sum(2)
    found = perplexity_temperature(r2, POWER, number)
    w = torch.softmax(shell_log_weights(r2, POWER, found[:, None]), dim=1)
    reached = torch.special.entr(w).sum(1).exp()
    cold = found == 1
    assert (reached[cold] >= number - 1e-9).all()
    torch.testing.assert_close(reached[~cold], torch.full_like(reached[~cold], number), rtol=1e-5, atol=0)
    assert (found[~cold] > 1).any()


def spec(score, rule, **more):
    return ScoreSpec(score=score, form="temperature", temperature=rule, neighbors={"space": "pixel", "k": K}, **more)


@pytest.mark.parametrize("rule", ["nonexpansive", "perplexity(3)"])
def test_target_and_closed_form_agree_where_all_images_are_neighbours(rule):
    """Where T > 1 a network learns sigma s(x) of the same specification, at x = x0 + sigma z; else it learns -z."""
    generator = torch.Generator().manual_seed(2)
    pixels = torch.rand(K, 1, 4, 4, generator=generator)
    sigma, z = torch.tensor([0.02, 0.1, 0.3, 2.0]), torch.randn(4, 1, 4, 4, generator=generator)
    z[:2] = (
        (pixels[1:3] - pixels[:2]) / 2 / sigma[:2, None, None, None]
    )  # halfway to the next image, where scores expand
    order = torch.stack([torch.roll(torch.arange(K), -row) for row in range(4)])  # the image itself first
    target = build_target(spec("network", rule), D)(pixels[:4], sigma, z, pixels[order])
    levels = torch.tensor([2.0, 0.02], dtype=torch.float64)
    score = build_score(spec("closed-form", rule), scores.make_centres(pixels), levels, Batch(0, torch.arange(4)))
    wanted = sigma[:, None, None, None] * score(pixels[:4] + sigma[:, None, None, None] * z, sigma)
    plain = (target == -z).flatten(1).all(1)
    assert plain.any()
    assert not plain.all()
    torch.testing.assert_close(target[~plain], wanted[~plain], rtol=2e-3, atol=2e-3)  # the target runs in float32


@pytest.mark.parametrize("blocks", [1 << 28, 1])
def test_nearest_offsets_are_those_of_brute_force(points, blocks):
    x, centres = points
    offsets, r2 = scores.nearest_offsets(scores.make_centres(centres, memory_budget=blocks), x, 4)
    distances = torch.cdist(x, centres)
    rows = distances.argsort(1)[:, :4]
    torch.testing.assert_close(r2, distances.gather(1, rows).square())
    torch.testing.assert_close(offsets, x[:, None] - centres[rows])


@pytest.mark.parametrize(
    ("rule", "neighbors", "words"),
    [
        ("perplexity(1)", {"k": 8}, "perplexity"),
        ("perplexity(8)", {"k": 8}, "neighbors.k above 8"),
        ("nonexpansive", None, "needs neighbors"),
        ("nonexpansive", {"k": 8, "radius": 2.0}, "radius"),
        ("nonexpanding", {"k": 8}, "neither a number"),
    ],
)
def test_what_does_not_fit_is_refused(rule, neighbors, words):
    near = None if neighbors is None else {"space": "pixel", **neighbors}
    with pytest.raises(ValueError, match=words):
        ScoreSpec(score="closed-form", form="temperature", temperature=rule, neighbors=near)


def test_a_hot_limit_exists():
    """With optimal shells T = c always suffices (METHODS §2), so the least T never exceeds it."""
    generator = torch.Generator().manual_seed(3)
    offsets = torch.randn(200, K, D, generator=generator, dtype=torch.float64)
    r2 = offsets.square().sum(2)
    found = adaptive_rule("nonexpansive", POWER)(offsets, r2, shell_precisions(r2, POWER))
    assert found.max() <= POWER
