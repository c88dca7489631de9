"""The variant table: temperature rules by hand, wrong combinations refused, scores the same for any batch."""

import numpy as np
import pytest
import torch

from stages.diffusion.parameters import Variant
from stages.diffusion.sampling import load_model, sample_batch
from stages.diffusion.variants import CLOSED_FORMS, Batch, kernel_draws, temperature_rule

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


@pytest.mark.parametrize("rule", ["five", "5/t", 0.5, "/sigma"])
def test_wrong_temperatures_are_refused(rule):
    with pytest.raises(ValueError, match="temperature"):
        temperature_rule(rule, 256)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"score": "closed-form", "form": "temperature"}, "do not go together"),
        ({"score": "closed-form", "form": "conditioning", "temperature": 5}, "do not go together"),
        ({"score": "closed-form", "form": "kernel-smoothed"}, "kernel"),
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
    ],
)
def test_wrong_combinations_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Variant(**values, sampler=EULER)


def variant(form):
    extra = {
        "temperature": {"temperature": 9.0},
        "kernel-smoothed": {"kernel": {"h": 0.3, "draws": 6}},
        "cfdm": {"kernel": {"h": 0.3, "draws": 6}},
    }.get(form, {})
    return {"score": "closed-form", "form": form, **extra}


def model(form, sampler):
    images = np.random.default_rng(0).integers(0, 256, (30, 4, 4, 1), dtype=np.uint8)
    score = {"spec": variant(form), "noise": {"sigma_min": 0.01, "sigma_max": 5.0}}
    return load_model(score, sampler, images, None, "cpu"), images


@pytest.mark.parametrize("form", [*CLOSED_FORMS, "cfdm"])
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


def test_unconditioning_with_the_actual_noise_sampler_ends_on_training_images():
    drawn, images = model("unconditioning", {"name": "actual-noise", "levels": 130, "step": 0.09, "exact_below": 5.0})
    got = sample_batch(drawn, 0, torch.arange(20))
    assert all(any(np.abs(sample.astype(int) - image).max() <= 1 for image in images) for sample in got)


def test_actual_level_is_the_distance_to_the_nearest_image():
    drawn, images = model("unconditioning", EULER)
    x = torch.rand(6, 1, 4, 4)
    flat = torch.from_numpy(images.reshape(30, -1)).double() / 255
    wanted = (x.reshape(6, 1, 16).double() - flat).norm(dim=2).min(1).values / 4
    torch.testing.assert_close(drawn.actual_level(x), wanted)


def test_kernel_draws_come_in_opposite_pairs_and_belong_to_the_sample():
    spec = Variant(**variant("kernel-smoothed"), sampler=EULER)
    draws = kernel_draws(spec, 10, Batch(0, torch.arange(4)))
    assert draws.shape == (4, 6, 10)
    torch.testing.assert_close(draws.sum(1), torch.zeros(4, 10))
    assert torch.equal(kernel_draws(spec, 10, Batch(0, torch.tensor([2])))[0], draws[2])


def test_weights_that_do_not_fit_are_named(tmp_path):
    from stages.diffusion.checkpoint import save_tensors

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
