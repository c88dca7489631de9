"""Closed-form scores against float64 autograd of the densities they are gradients of, and against hand-made sums."""

import math

import pytest
import torch
from live_memory import LiveMemory

from stages.diffusion import scores as closed


@pytest.fixture
def points():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(23, 12, generator=generator, dtype=torch.float64), torch.rand(
        9, 12, generator=generator, dtype=torch.float64
    )


def centres_in_blocks(pixels, block):
    made = closed.make_centres(pixels)
    return closed.Centres(made.pixels, made.norms, block)


def gradient(log_density, x):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(log_density(x).sum(), x)[0]


@pytest.mark.parametrize("block", [1, 5, 100])
@pytest.mark.parametrize("sigma", [0.05, 0.4, 20.0])
def test_conditioning_is_the_gradient_of_the_log_density(points, block, sigma):
    pixels, x = points
    level = torch.full((9,), sigma, dtype=torch.float64)
    truth = gradient(lambda y: torch.logsumexp(-((y[:, None] - pixels) ** 2).sum(2) / (2 * sigma**2), 1), x)
    torch.testing.assert_close(
        closed.conditioning(centres_in_blocks(pixels, block), x, level), truth, rtol=1e-8, atol=1e-9
    )


@pytest.mark.parametrize("block", [4, 100])
def test_mixture_is_the_gradient_of_its_log_density(points, block):
    pixels, x = points
    sigmas = torch.logspace(-2, 1, 40, dtype=torch.float64)

    def log_density(y):
        r2 = ((y[:, None] - pixels) ** 2).sum(2)
        return torch.logsumexp((-10 * torch.log(sigmas) - r2[..., None] / (2 * sigmas**2)).flatten(1), 1)

    got = closed.mixture(centres_in_blocks(pixels, block), x, sigmas)
    torch.testing.assert_close(got, gradient(log_density, x), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("temperature", [1.0, 7.0])
@pytest.mark.parametrize("block", [4, 100])
def test_temperature_is_the_gradient_of_t_log_sum_of_powers(points, temperature, block):
    """grad of T log sum_i r_i^(-(d-2)/T) is -sum softmax(...) (x - x_i)(d-2)/r_i^2: §1.4-1.5 for any T."""
    pixels, x = points

    def log_density(y):
        return temperature * torch.logsumexp(
            -(10 / (2 * temperature)) * torch.log(((y[:, None] - pixels) ** 2).sum(2)), 1
        )

    got = closed.unconditioning(centres_in_blocks(pixels, block), x, temperature)
    torch.testing.assert_close(got, gradient(log_density, x), rtol=1e-8, atol=1e-8)


def test_mixture_over_all_levels_tends_to_the_shell_form(points):
    """Integrating sigma^-(d-2) exp(-r^2/2 sigma^2) d ln sigma gives r^-(d-2): the shell weights are exact, and the
    mean precision of a level under its posterior is (d-2)/r^2."""
    pixels, x = points
    sigmas = torch.logspace(-3, 3, 4000, dtype=torch.float64)
    centres = closed.make_centres(pixels)
    torch.testing.assert_close(
        closed.mixture(centres, x, sigmas), closed.unconditioning(centres, x), rtol=1e-6, atol=1e-6
    )


def test_temperature_per_sample_and_scheduled_precision(points):
    pixels, x = points
    centres = closed.make_centres(pixels)
    t = torch.linspace(1, 40, 9, dtype=torch.float64)
    sigma = torch.linspace(0.1, 2, 9, dtype=torch.float64)
    whole = closed.unconditioning(centres, x, t, precision="scheduled", sigma=sigma)
    for i in range(9):
        r2 = ((x[i] - pixels) ** 2).sum(1)
        w = torch.softmax(-(10 / (2 * t[i])) * torch.log(r2), 0)
        torch.testing.assert_close(whole[i], -(w[:, None] * (x[i] - pixels)).sum(0) / sigma[i] ** 2)


@pytest.mark.parametrize("block", [1, 3, 100])
def test_nearest_centres_are_the_whole_sum_over_a_list_of_them(points, block):
    pixels, x = points
    got = closed.unconditioning(centres_in_blocks(pixels, block), x, 5.0, nearest=4)
    for i in range(9):
        rows = ((x[i] - pixels) ** 2).sum(1).argsort()[:4]
        own = closed.unconditioning(closed.make_centres(pixels[rows]), x[i : i + 1], 5.0)
        torch.testing.assert_close(got[i : i + 1], own)
    everything = closed.unconditioning(centres_in_blocks(pixels, block), x, 5.0, nearest=100)
    torch.testing.assert_close(everything, closed.unconditioning(closed.make_centres(pixels), x, 5.0))


def test_temperature_one_over_every_centre_is_the_unconditioning_score(points):
    pixels, x = points
    centres = closed.make_centres(pixels)
    whole = closed.unconditioning(centres, x)
    torch.testing.assert_close(closed.unconditioning(centres, x, torch.ones(9).double(), nearest=23), whole)
    torch.testing.assert_close(closed.unconditioning(centres, x, 1.0, nearest=23), whole)
    assert not torch.allclose(closed.unconditioning(centres, x, 1.001), whole, rtol=1e-6)


def test_on_a_centre_the_score_is_zero_and_finite(points):
    pixels, _ = points
    got = closed.unconditioning(closed.make_centres(pixels), pixels[:3])
    assert torch.isfinite(got).all()
    assert float(got.abs().max()) < 1e-3


def test_kernel_smoothing_tends_to_the_plain_score_and_averages_a_linear_one_exactly(points):
    pixels, x = points
    centres = closed.make_centres(pixels)
    level = torch.full((9,), 0.3, dtype=torch.float64)
    draws = torch.randn(64, 12, dtype=torch.float64)
    draws = torch.cat((draws, -draws))

    def plain(y, sigma):
        return closed.conditioning(centres, y, sigma)

    near = closed.smoothed(plain, 1e-5, draws)(x, level)
    torch.testing.assert_close(near, plain(x, level), rtol=1e-4, atol=1e-4)
    linear = closed.smoothed(lambda y, sigma: -y / sigma[:, None] ** 2, 0.5, draws)(x, level)
    torch.testing.assert_close(linear, -x / 0.09)


def test_kernel_draws_of_each_sample_match_a_loop(points):
    pixels, x = points
    centres = closed.make_centres(pixels)
    draws = torch.randn(9, 6, 12, dtype=torch.float64)
    level = torch.full((9,), 0.3, dtype=torch.float64)
    got = closed.smoothed(lambda y, s: closed.conditioning(centres, y, s), 0.4, draws)(x, level)
    for i in range(9):
        shifted = x[i] + 0.4 * draws[i]
        one = closed.conditioning(centres, shifted, torch.full((6,), 0.3, dtype=torch.float64)).mean(0)
        torch.testing.assert_close(got[i], one)


def test_cfdm_velocity_is_its_formula(points):
    pixels, z = points
    t, smoothing = 0.7, 0.2
    draws = torch.randn(5, 12, dtype=torch.float64)
    got = closed.cfdm_velocity(closed.make_centres(pixels), z, t, draws, smoothing)
    for i in range(9):
        k = torch.zeros(12, dtype=torch.float64)
        for e in draws:
            weight = torch.softmax(-((z[i] + smoothing * e - t * pixels) ** 2).sum(1) / (2 * (1 - t) ** 2), 0)
            k += weight @ pixels * t / len(draws)
        score = (k - z[i]) / (1 - t) ** 2
        torch.testing.assert_close(got[i], (z[i] + (1 - t) * score) / t)


def test_distances_keep_the_digits_of_near_copies_at_high_noise():
    """A centre 1e-3 away among pixels of norm 32, d = 3072: r^2 = 1e-6 must survive |x|^2 + |x_i|^2 - 2 x.x_i."""
    x = torch.rand(1, 3072, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    shift = torch.zeros(3072, dtype=torch.float64)
    shift[0] = 1e-3
    r2, _ = next(closed.make_centres(x + shift).squared_distances(x))
    assert float(r2) == pytest.approx(1e-6, rel=1e-4)


def test_shell_power_conventions():
    assert closed.shell_power(3072) == 3070
    assert closed.shell_power(3072, "d") == 3072
    assert closed.shell_power(2) == 2


def test_uint8_images_are_scaled_to_the_unit_interval():
    images = torch.tensor([[[0, 255]]], dtype=torch.uint8)
    assert closed.make_centres(images).pixels.tolist() == [[0.0, 1.0]]


def test_empty_training_set_is_refused():
    with pytest.raises(ValueError, match="empty"):
        closed.make_centres(torch.zeros(0, 4))


def test_mean_precision_matches_the_two_point_formula():
    """Two centres at distances r and R r: the shell weights are 1/(1+R^-(d-2)); by hand for d = 4, R = 2: 0.8, 0.2."""
    pixels = torch.tensor([[1.0, 0, 0, 0], [-2.0, 0, 0, 0]], dtype=torch.float64)
    got = closed.unconditioning(closed.make_centres(pixels), torch.zeros(1, 4, dtype=torch.float64))
    by_hand = 0.8 * 1 * 2 / 1 + 0.2 * (-2) * 2 / 4
    assert float(got[0, 0]) == pytest.approx(by_hand)
    assert math.isclose(by_hand, 1.4)


@pytest.mark.parametrize("way", ["many", "norms kept", "norms computed"])
def test_images_kept_as_bytes_give_the_same_scores(monkeypatch, way):
    """uint8 centres, in blocks and through `truncated_score`, against the float64 ones; all forms."""
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (300, 48), dtype=torch.uint8, generator=generator)
    x = (images[:6].double() / 255 + 0.2 * torch.randn(6, 48, generator=generator).double()).float().double()
    plain = closed.make_centres(images)
    monkeypatch.setattr(closed, "MANY", 0)
    kept = closed.make_centres(images, memory_budget=1 << 22)
    assert kept.pixels.dtype == torch.uint8
    assert kept.block < 300
    assert kept.norms is None  # 8 bytes of memory per image
    if way != "many":
        kept = closed.Centres(kept.pixels, plain.norms if way == "norms kept" else None, kept.block)
    level, t = torch.linspace(0.1, 3, 6, dtype=torch.float64), torch.linspace(1, 9, 6, dtype=torch.float64)
    sigmas = torch.logspace(-2, 1, 20, dtype=torch.float64)
    for form in (
        lambda centres: closed.conditioning(centres, x, level),
        lambda centres: closed.unconditioning(centres, x),
        lambda centres: closed.unconditioning(centres, x, t, precision="scheduled", sigma=level),
        lambda centres: closed.unconditioning(centres, x, 5.0, nearest=7),
        lambda centres: closed.mixture(centres, x, sigmas),
        lambda centres: closed.cfdm_velocity(centres, x, 0.4, torch.randn(4, 48, generator=generator) * 0, 0.1),
    ):
        torch.testing.assert_close(form(kept), form(plain), rtol=1e-5, atol=1e-5)


FORMS = {
    "conditioning": lambda centres, x, n: closed.conditioning(centres, x, torch.full_like(x[:, 0], 0.5)),
    "unconditioning": lambda centres, x, n: closed.unconditioning(centres, x, 5.0),
    "nearest": lambda centres, x, n: closed.unconditioning(centres, x, 5.0, nearest=20),
    "mixture": lambda centres, x, n: closed.mixture(centres, x, torch.logspace(-2, 1, n, dtype=torch.float64)),
    "kernel-smoothed": lambda centres, x, n: closed.smoothed(
        lambda y, sigma: closed.conditioning(centres, y, sigma), 0.3, shifts(len(x), n)
    )(x, torch.full_like(x[:, 0], 0.5)),
    "cfdm": lambda centres, x, n: closed.cfdm_velocity(centres, x, 0.4, shifts(len(x), n), 0.3),
}


def shifts(count, draws):
    return closed.Draws(draws, lambda start, stop: torch.randn(count, stop - start, 48))


@pytest.mark.parametrize("sigma", [0.0, 1e-6, 1e-5, 1e-4, 1e-3])
@pytest.mark.parametrize("precision", ["optimal", "scheduled"])
def test_next_to_a_centre_the_score_keeps_its_digits(sigma, precision):
    """d = 3072, where |x|^2 + |x_i|^2 - 2 x.x_i has lost r^2 for sigma below 1e-4: against differences, in float64."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (20, 3072), dtype=torch.uint8, generator=generator).double() / 255
    x = pixels[:3] + sigma * torch.randn(3, 3072, dtype=torch.float64, generator=generator)
    level = torch.full((3,), max(sigma, 1e-6), dtype=torch.float64)
    got = closed.unconditioning(closed.make_centres(pixels), x, 5.0, precision=precision, sigma=level)
    away = pixels - x[:, None]
    r2 = away.square().sum(2)
    weight = torch.softmax(-3070 / 10 * torch.log(r2.clamp_min(1e-300)), dim=1)
    pull = 3070 / r2.clamp_min(1e-300) if precision == "optimal" else 1 / level[:, None] ** 2
    wanted = ((weight * pull)[..., None] * away).sum(1)
    assert torch.linalg.vector_norm(got - wanted) <= 1e-9 * torch.linalg.vector_norm(wanted)
    assert sigma or not got.any()


@pytest.mark.parametrize("form", FORMS)
def test_memory_is_bounded_whatever_the_centres_the_levels_and_the_draws(form):
    """Twice the samples' own arrays and the budget; as much for four times the centres, levels and draws."""
    generator, peaks = torch.Generator().manual_seed(0), []
    x, budget = torch.rand(512, 48, dtype=torch.float64, generator=generator), 1 << 22
    for centres, n in ((250, 5), (1000, 20)):
        images = torch.randint(0, 256, (centres, 48), dtype=torch.uint8, generator=generator)
        made = closed.make_centres(images, memory_budget=budget)
        with LiveMemory() as memory:
            FORMS[form](made, x, n)
        peaks.append(memory.peak)
    assert peaks[1] <= 1.01 * peaks[0]
    points = closed.ROWS if form in ("kernel-smoothed", "cfdm") else len(x)
    assert peaks[0] < budget + 8 * points * x[0].nbytes
