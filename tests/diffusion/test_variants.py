"""The variant table: temperature rules by hand, wrong combinations refused, scores the same for any batch."""

import dataclasses

import numpy as np
import pytest
import torch

from stages.diffusion import variants
from stages.diffusion.model import load_model
from stages.diffusion.noise import normal
from stages.diffusion.parameters import ScoreSpec, Variant
from stages.diffusion.sampling import sample_batch, to_uint8
from stages.diffusion.scores import make_centres
from stages.diffusion.temperature import temperature_rule
from stages.diffusion.variants import CLOSED_FORMS, Batch, build_score, kernel_draws
from stages.errors import InputError

EULER = {"name": "euler", "levels": 8}


@pytest.mark.parametrize(
    ("rule", "values"),
    [
        (10.0, [10, 10, 10]),
        (100, [100, 100, 100]),
        ("5/sigma", [500, 5, 1]),
        ("1/sigma", [100, 1, 1]),
        ("sqrt_d", [16, 16, 16]),
        ("d", [256, 256, 256]),
    ],
)
def test_temperature_rules(rule, values):
    sigma = torch.tensor([0.01, 1.0, 50.0], dtype=torch.float64)
    torch.testing.assert_close(temperature_rule(rule, 256)(sigma), torch.tensor(values, dtype=torch.float64))


@pytest.mark.parametrize("rule", ["five", "5/t", 0.5, "/sigma", 1e300])
def test_wrong_temperatures_are_refused(rule):
    with pytest.raises(ValueError, match="temperature"):
        temperature_rule(rule, 256)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"score": "closed-form", "form": "temperature"}, "do not go together"),
        ({"score": "closed-form", "form": "conditioning", "temperature": 5}, "do not go together"),
        ({"score": "closed-form", "form": "kernel-smoothed"}, "kernel"),
        ({"score": "closed-form", "form": "kernel-density"}, "kernel"),
        ({"score": "closed-form", "form": "kernel-density", "kernel": {"h": 0.1, "draws": 2}}, "and with no other"),
        ({"score": "closed-form", "form": "kernel-smoothed", "kernel": {"h": 0.1}}, "which need it"),
        ({"score": "network", "form": "mixture"}, "cannot be trained"),
        ({"score": "network", "form": "temperature", "temperature": 5}, "neighbors"),
        ({"score": "network", "form": "conditioning", "noise_conditioning": False}, "unconditioning"),
        ({"score": "closed-form", "form": "conditioning", "smooth_below": 1.0}, "form temperature"),
        ({"score": "closed-form", "form": "conditioning", "noise_conditioning": True}, "belongs to networks"),
        (
            {
                "score": "closed-form",
                "form": "temperature",
                "temperature": 5,
                "neighbors": {"space": "feature", "k": 3},
            },
            "pixel",
        ),
        (
            {"score": "closed-form", "form": "unconditioning", "neighbors": {"space": "pixel", "k": 3}},
            "form temperature",
        ),
        ({"score": "closed-form", "form": "cfdm", "kernel": {"h": 0.1, "draws": 2}}, "cfdm"),
        ({"score": "network", "form": "unconditioning", "noise_conditioning": True}, "is form conditioning"),
        ({"score": "closed-form", "form": "conditioning", "precision": "scheduled"}, "precision scheduled: remove"),
        ({"score": "closed-form", "form": "mixture", "precision": "scheduled"}, "precision scheduled: remove"),
        ({"score": "network", "form": "unconditioning", "precision": "scheduled"}, "precision scheduled: remove"),
        ({"score": "closed-form", "form": "conditioning", "power": "d"}, "power d: remove"),
        ({"score": "network", "form": "unconditioning", "power": "d"}, "power d: remove"),
    ],
)
def test_wrong_combinations_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Variant(**values, sampler=EULER)


SHELLS = {"score": "closed-form", "form": "temperature", "temperature": 9.0}


def score_of(options, images, x, sigma):
    """A closed-form variant's score of images x at sigma, float64 (B, d)."""
    spec = Variant(**{**SHELLS, **options}, sampler=EULER)
    score = build_score(spec, make_centres(images), torch.logspace(1, -2, 20).double(), Batch(0, torch.arange(2)))
    return score(x, sigma).reshape(len(x), -1)


def by_hand(images, x, power, temperature, keep, precision=None):
    """METHODS §1.4-1.6 for one x, float64 (d,): over the centres whose distances `keep` accepts, sorted."""
    r = (x.flatten() - images.reshape(len(images), -1)).norm(dim=1)
    rows = torch.tensor([i for i in range(len(r)) if keep(r[i], r.sort().values)])
    weight = torch.softmax(-power / temperature * r[rows].log(), 0)
    share = weight * (power / r[rows] ** 2 if precision is None else precision)
    return -(share[:, None] * (x.flatten() - images.reshape(len(images), -1)[rows])).sum(0)


@pytest.mark.parametrize("power", ["d-2", "d"])
@pytest.mark.parametrize(
    ("neighbors", "keep"),
    [
        (None, lambda r, ordered: True),
        ({"k": 7}, lambda r, ordered: r <= ordered[6]),
        ({"k": 7, "radius": 1.05}, lambda r, ordered: r <= min(ordered[6], 1.05 * ordered[1])),
        ({"k": 1, "radius": 2.0}, lambda r, ordered: r <= ordered[0]),
        ({"k": 30, "radius": 1.2}, lambda r, ordered: r <= 1.2 * ordered[1]),
    ],
)
def test_power_neighbours_and_radius_of_a_closed_form_are_those_of_its_formula(power, neighbors, keep):
    generator = torch.Generator().manual_seed(2)
    images, x = (torch.rand(n, 1, 3, 3, generator=generator).double() for n in (30, 6))
    options = {"power": power} | ({} if neighbors is None else {"neighbors": {"space": "pixel", **neighbors}})
    sigma = torch.full((6,), 0.4).double()
    got, divided = (score_of(options | more, images, x, sigma) for more in ({}, {"precision": "scheduled"}))
    plain = score_of({"power": power}, images, x, sigma)
    c = {"d-2": 7, "d": 9}[power]
    for i in range(6):
        torch.testing.assert_close(got[i], by_hand(images, x[i], c, 9.0, keep))
        torch.testing.assert_close(divided[i], by_hand(images, x[i], c, 9.0, keep, 1 / sigma[i] ** 2))
    assert torch.equal(got, plain) == (neighbors is None)


def test_levels_at_or_above_smooth_below_are_not_smoothed():
    generator = torch.Generator().manual_seed(2)
    images, x = (torch.rand(n, 1, 3, 3, generator=generator).double() for n in (30, 3))
    sigma = torch.tensor([0.3, 0.5, 0.8], dtype=torch.float64)
    got = score_of({"smooth_below": 0.5}, images, x, sigma)
    smooth, plain = (score_of(more, images, x, sigma) for more in ({}, {"form": "unconditioning", "temperature": None}))
    torch.testing.assert_close(got, torch.cat((smooth[:1], plain[1:])), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(smooth[1], plain[1])
    few = {"neighbors": {"space": "pixel", "k": 3}}
    truncated, cut = (score_of(few | more, images, x, sigma) for more in ({"smooth_below": 0.5}, {}))
    torch.testing.assert_close(truncated, torch.cat((cut[:1], plain[1:])), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(cut[1], plain[1])


def test_values_are_rounded_to_the_nearest_grey_level_and_clipped():
    x = torch.tensor([-1.0, 0.49 / 255, 0.51 / 255, 254.4 / 255, 254.6 / 255, 7.0]).reshape(1, 2, 1, 3)
    assert to_uint8(x).tolist() == [[[[0, 254], [0, 255], [1, 255]]]]


def test_power_d_of_the_mixture_is_the_loss_weight_one():
    """Joint log-weights -d ln sigma - r^2/2 sigma^2: the gradient of their log-sum."""
    generator = torch.Generator().manual_seed(2)
    images, x = (torch.rand(n, 1, 3, 3, generator=generator).double() for n in (30, 6))
    sigmas = torch.logspace(1, -2, 20).double()
    for power, c in (("d-2", 7), ("d", 9)):
        y = x.clone().requires_grad_()
        r2 = (y.reshape(6, 1, 9) - images.reshape(30, 9)).square().sum(2)
        log_density = torch.logsumexp((-c * sigmas.log() - r2[..., None] / (2 * sigmas**2)).flatten(1), 1)
        (wanted,) = torch.autograd.grad(log_density.sum(), y)
        got = score_of({"form": "mixture", "temperature": None, "power": power}, images, x, torch.ones(6).double())
        torch.testing.assert_close(got, wanted.reshape(6, 9))


def test_a_closed_form_over_more_neighbours_than_there_are_images_is_refused():
    images = torch.rand(5, 1, 2, 2)
    with pytest.raises(
        InputError, match=r"neighbors\.k is 6 but the training set has 5 images: lower k or ingest.train"
    ):
        score_of({"neighbors": {"space": "pixel", "k": 6}}, images, images[:2], torch.ones(2))


def variant(form):
    extra = {
        "temperature": {"temperature": 9.0},
        "kernel-smoothed": {"kernel": {"h": 0.3, "draws": 6}},
        "kernel-density": {"kernel": {"h": 0.3}},
        "cfdm": {"kernel": {"h": 0.3, "draws": 6}},
        "local": {"patch": 3},
        "pca-locality": {"mask_threshold": 0.1},
        "tikhonov": {"penalty": 0.1},
        "loader-batches": {"loader_batch": 7},
    }.get(form, {})
    return {"score": "closed-form", "form": form, **extra}


def model(form, sampler):
    images = np.random.default_rng(0).integers(0, 256, (30, 4, 4, 3), dtype=np.uint8)
    score = {"spec": variant(form), "noise": {"sigma_min": 0.01, "sigma_max": 5.0}}
    return load_model(score, sampler, images, None, "cpu"), images


@pytest.mark.parametrize("form", CLOSED_FORMS)
def test_sample_i_is_the_same_for_any_batch(form):
    """Kernel draws and noise belong to the sample; float64 rounding by batch stays far below one grey level."""
    sampler = {"name": "cfdm", "levels": 8} if form == "cfdm" else {"name": "reverse-sde", "levels": 12, "snr": 0.16}
    drawn, _ = model(form, sampler)
    together = sample_batch(drawn, 5, torch.arange(7))
    for i in range(7):
        assert np.array_equal(sample_batch(drawn, 5, torch.tensor([i]))[0], together[i])
    assert not np.array_equal(sample_batch(drawn, 6, torch.arange(7)), together)


SAMPLER_SETTINGS = [
    {"name": "reverse-sde", "levels": 9},
    {"name": "reverse-sde", "levels": 9, "snr": 0.16},
    {"name": "reverse-ode", "levels": 9, "snr": 0.16},
    {"name": "euler", "levels": 9},
    {"name": "heun", "levels": 9},
    {"name": "actual-noise", "levels": 9, "step": 0.3, "exact_below": 1.0},
    {"name": "gradient-ascent", "levels": 9, "step": 0.6, "stop_below": 0.3},
]


@pytest.mark.parametrize("sampler", SAMPLER_SETTINGS, ids=lambda settings: "-".join(map(str, settings.values())))
def test_every_sampler_draws_sample_i_the_same_in_batches_of_1_7_and_64(sampler):
    drawn, _ = model("unconditioning" if "step" in sampler else "conditioning", sampler)
    together = sample_batch(drawn, 5, torch.arange(64))
    assert together.std() > 0
    for rows in (torch.arange(7), torch.arange(57, 64), torch.tensor([0]), torch.tensor([63])):
        assert np.array_equal(sample_batch(drawn, 5, rows), together[rows.numpy()])


@pytest.mark.parametrize("sampler", [{"name": "euler", "levels": 40}, {"name": "heun", "levels": 20}])
def test_the_conditioning_score_ends_on_training_images(sampler):
    drawn, images = model("conditioning", sampler)
    got = sample_batch(drawn, 0, torch.arange(20))
    assert all(any(np.abs(sample.astype(int) - image).max() <= 1 for image in images) for sample in got)


def test_a_kernel_densitys_score_is_the_gradient_of_its_noised_logarithm():
    """log Σ exp(−|x − x_i|²/(2(σ² + h²))), differentiated by autograd."""
    images, sigma = torch.rand(30, 1, 4, 4, dtype=torch.float64), torch.tensor([0.05, 0.4, 2.0], dtype=torch.float64)
    spec = Variant(**variant("kernel-density"), sampler=EULER)
    x = torch.rand(3, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    squared = (x[:, None] - images).square().flatten(2).sum(2)
    torch.logsumexp(-squared / (2 * (sigma**2 + 0.3**2))[:, None], 1).sum().backward()
    score = build_score(spec, make_centres(images), sigma, Batch(0, torch.arange(3)))
    torch.testing.assert_close(score(x.detach(), sigma), x.grad)


def test_samples_of_a_kernel_density_are_training_images_with_noise_of_its_width():
    """In the middle of the range nothing is clipped; |x − x_i|² over the images drawn is h² d with Gaussian noise."""
    images = np.random.default_rng(0).integers(100, 156, (30, 8, 8, 3), dtype=np.uint8)
    spec = {"score": "closed-form", "form": "kernel-density", "kernel": {"h": 0.05}}
    score = {"spec": spec, "noise": {"sigma_min": 0.002, "sigma_max": 2.0}}
    drawn = load_model(score, {"name": "reverse-sde", "levels": 200}, images, None, "cpu")
    got = sample_batch(drawn, 0, torch.arange(200)).reshape(200, -1) / 255
    squared = np.square(got[:, None] - images.reshape(30, -1) / 255).sum(2)
    noise = (got - images.reshape(30, -1)[squared.argmin(1)] / 255).ravel()
    assert len(set(squared.argmin(1))) > 20
    assert noise.std() == pytest.approx(0.05, rel=0.03)
    assert np.mean(noise**4) == pytest.approx(3 * noise.std() ** 4, rel=0.05)


def test_unconditioning_with_the_actual_noise_sampler_ends_on_training_images():
    drawn, images = model("unconditioning", {"name": "actual-noise", "levels": 130, "step": 0.09, "exact_below": 5.0})
    got = sample_batch(drawn, 0, torch.arange(20))
    assert all(any(np.abs(sample.astype(int) - image).max() <= 1 for image in images) for sample in got)


def test_actual_level_is_the_distance_to_the_nearest_image():
    drawn, images = model("unconditioning", EULER)
    x = torch.rand(6, 3, 4, 4)
    flat = torch.from_numpy(images.transpose(0, 3, 1, 2).reshape(30, -1)).double() / 255
    wanted = (x.reshape(6, 1, 48).double() - flat).norm(dim=2).min(1).values / 48**0.5
    torch.testing.assert_close(drawn.actual_level(x), wanted)


def test_kernel_draws_come_in_opposite_pairs_and_belong_to_the_sample():
    spec = Variant(**variant("kernel-smoothed"), sampler=EULER)
    shifts = kernel_draws(spec, 10, Batch(0, torch.arange(4)))
    draws = shifts.take(0, shifts.count)
    assert draws.shape == (4, 6, 10)
    torch.testing.assert_close(draws.sum(1), torch.zeros(4, 10))
    assert torch.equal(kernel_draws(spec, 10, Batch(0, torch.tensor([2]))).take(0, 6)[0], draws[2])
    assert torch.equal(shifts.take(2, 5), draws[:, 2:5])


def test_few_shifts_at_once_give_the_same_sample(monkeypatch):
    drawn, _ = model("kernel-smoothed", {"name": "reverse-sde", "levels": 12, "snr": 0.16})
    whole = sample_batch(drawn, 5, torch.arange(7))
    monkeypatch.setattr("stages.diffusion.scores.ROWS", 30)  # 4 of 6 shifts, then the other 2
    assert np.array_equal(sample_batch(drawn, 5, torch.arange(7)), whole)


def test_training_images_stay_in_their_file_until_a_score_needs_them(tmp_path):
    """A memory map is not copied: neither for a network, which needs no pixels, nor as centres on a CPU."""
    images = np.random.default_rng(0).integers(0, 256, (30, 4, 4, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    drawn = dataclasses.replace(model("conditioning", EULER)[0], images=mapped)
    assert "pixels" not in vars(drawn)
    assert drawn.centres.dimension == 48
    assert drawn.pixels.data_ptr() == mapped.ctypes.data
    rows = torch.tensor([3, 0])
    np.testing.assert_array_equal(drawn.training_images(rows).numpy(), images[[3, 0]].transpose(0, 3, 1, 2))


def test_weights_that_do_not_fit_are_named(tmp_path):
    from stages.files.tensors import save_tensors

    network = {
        "channels": 8,
        "multipliers": [1],
        "blocks": 1,
        "attention": [],
        "patch": 1,
        "dropout": 0.0,
        "embedding": "positional",
        "fir": False,
        "progressive_input": False,
        "amplitude": "raw",
        "skip_above": None,
    }
    score = {
        "spec": {"score": "network", "form": "conditioning"},
        "noise": {"sigma_min": 0.01, "sigma_max": 5.0},
        "network": network,
    }
    notes = {"score": score, "image_shape": [1, 4, 4]}
    path = save_tensors(tmp_path / "model.safetensors", {"a": torch.zeros(1)}, notes)
    with pytest.raises(ValueError, match="does not fit its score.json"):
        load_model(score, EULER, np.zeros((2, 4, 4, 1), np.uint8), str(path), "cpu")


def test_kernel_draws_are_made_once_and_the_same_whatever_memory_they_may_take(monkeypatch):
    """Made at every evaluation they took 40 % of a kernel form's time with 128 draws."""
    kernel = ScoreSpec(score="closed-form", form="kernel-smoothed", kernel={"h": 0.5, "draws": 7})
    batch, made = Batch(3, torch.arange(5), (1, 4, 4)), []

    def counted(*arguments):
        made.append(arguments[2])
        return normal(*arguments)

    monkeypatch.setattr(variants, "normal", counted)
    taken = []
    for memory, times in ((variants.DRAWN_BYTES, 1), (0, 2)):
        monkeypatch.setattr(variants, "DRAWN_BYTES", memory)
        draws, made[:] = variants.kernel_draws(kernel, 16, batch), []
        taken += [torch.cat([draws.take(0, 3), draws.take(3, 7)], dim=1) for _ in range(2)]
        assert len(made) >= 4 * times
        assert (len(made) == len(set(made))) is (times == 1)
    assert all(torch.equal(taken[0], other) for other in taken)
    assert torch.equal(taken[0][:, :3], -taken[0][:, 4:])
