"""A consistency function distilled from a noise-blind network: against known functions, and from end to end."""

import functools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusion_project import small_params, write_params

from stages.diffusion import noise, samplers
from stages.diffusion.noise import Stream
from stages.diffusion.parameters import NoiseParams, OptimizationParams, ScoreSpec, Variant
from stages.diffusion.targets import consistency_target
from stages.diffusion.training import start_training, train_steps
from stages.diffusion.training_set import open_training_set
from stages.files.artifacts import read_json
from stages.files.images import read_images
from stages.files.tensors import load_tensors
from stages.protocol import run_plain
from stages.reporting.contrasts import ContrastParams, contrast

SPREAD, SIDE = 0.2, 8
DIMENSION = SIDE * SIDE
SMALLEST = 0.05
CONSISTENCY = {"name": "consistency", "levels": 2}


def one_centre(centre, x):
    """F of the noise-blind score of one training image: (c - x) over the actual level |x - c|/sqrt d."""
    pull = centre - x
    return pull * (math.sqrt(centre.numel()) / pull.flatten(1).norm(dim=1)).reshape(-1, 1, 1, 1)


def gaussian(x):
    """F of the noise-blind score of N(0, s^2 I): -sigma x/(s^2 + sigma^2), where |x|^2 = d (s^2 + sigma^2)."""
    whole = x.square().flatten(1).mean(1).reshape(-1, 1, 1, 1)
    return -x * (whole - SPREAD**2).clamp_min(0).sqrt() / whole


def on_the_sphere(count, generator):
    """Normal noise (count, 1, 8, 8) of norm sqrt d, so that the actual level is the scheduled one."""
    z = torch.randn(count, 1, SIDE, SIDE, generator=generator)
    return z * (math.sqrt(DIMENSION) / z.flatten(1).norm(dim=1)).reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("sigma", [0.051, 0.4, 3.0])
def test_the_teacher_of_one_image_is_consistent_itself(sigma):
    generator = torch.Generator().manual_seed(0)
    centre = torch.rand(1, 1, SIDE, SIDE, generator=generator)
    z, teacher = on_the_sphere(5, generator), functools.partial(one_centre, centre)
    target = consistency_target(teacher, teacher, 0.1, SMALLEST)
    found = target(centre.expand(5, -1, -1, -1), torch.full((5,), sigma), z, None)
    x = centre + sigma * z
    torch.testing.assert_close(found, teacher(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(x + sigma * found, centre.expand_as(x), rtol=0, atol=1e-5)


def end_of_path(x, sigma, hops):
    """x + sigma F(x) of the F that the target defines level by level, from the lowest up."""
    step = 1 - (SMALLEST / sigma) ** (1 / hops)

    def own(level, left):
        if left == 0:
            return gaussian
        target = consistency_target(gaussian, own((1 - step) * level, left - 1), step, SMALLEST * (1 - 1e-6))
        return lambda y: target(y, torch.full((len(y),), level), torch.zeros_like(y), None)

    return x + sigma * own(sigma, hops)(x)


def test_of_a_gaussian_it_converges_to_the_known_function():
    """The path is the probability-flow ODE at the actual level: at level sigma |x| is sqrt(d (s^2 + sigma^2)). From
    sigma_min its last step leads to s^2/sqrt(s^2 + sigma_min^2)."""
    direction = on_the_sphere(4, torch.Generator().manual_seed(1)).double()
    wanted = direction * SPREAD**2 / math.sqrt(SPREAD**2 + SMALLEST**2)
    x = direction * math.sqrt(SPREAD**2 + 2.0**2)
    errors = [float((end_of_path(x, 2.0, hops) - wanted).norm() / wanted.norm()) for hops in (10, 20, 40, 160)]
    assert errors[0] > 2 * errors[1] > 4 * errors[2]
    assert errors[0] < 0.05
    assert errors[3] < 3e-4  # float32 of the target


class Radial(torch.nn.Module):
    """F(x) = (x - 1/2) g(|x - 1/2|): what the Gaussian's consistency function needs."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(1, 64), torch.nn.SiLU(), torch.nn.Linear(64, 64), torch.nn.SiLU(), torch.nn.Linear(64, 1)
        )

    def forward(self, x, sigma=None):
        centred = x - 0.5
        size = centred.square().flatten(1).mean(1, keepdim=True).sqrt()
        return centred * (self.layers(size.log()) / size).reshape(-1, 1, 1, 1)


def test_the_training_loop_learns_the_gaussians_consistency_function():
    """Images N(1/2, s^2); the teacher is the exact score. f(x) = 1/2 + (x - 1/2) s sqrt(d)/|x - 1/2|."""
    pixels = np.random.default_rng(0).normal(0.5, SPREAD, (2000, SIDE, SIDE, 1))
    data = open_training_set((pixels.clip(0, 1) * 255).round().astype(np.uint8), None, torch.device("cpu"))
    options = small_params()["train"]["optimization"]
    options |= {"steps": 1500, "batch": 64, "learning_rate": 0.003, "decay": "cosine", "precision": "float32"}
    levels = NoiseParams(sigma_min=SMALLEST, sigma_max=2.0)
    training = start_training(OptimizationParams(**options), levels, Radial, data, lambda *_: None, False, 0)
    training.target = consistency_target(lambda x: gaussian(x - 0.5), training.network, 0.05, SMALLEST)
    for _ in train_steps(training):
        pass
    direction = on_the_sphere(50, torch.Generator().manual_seed(2))
    for sigma in (0.1, 0.5, 1.5):
        x = 0.5 + direction * math.sqrt(SPREAD**2 + sigma**2)
        with torch.no_grad():
            ends = x + sigma * training.network(x) - 0.5
        wanted = SPREAD * direction
        assert float((ends - wanted).norm() / wanted.norm()) < 0.1, sigma


def test_the_sampler_denoises_and_adds_noise_level_by_level():
    levels = torch.tensor([4.0, 1.0], dtype=torch.float64)
    centre = torch.full((3, 1, 2, 2), 0.25)
    draws = {n: torch.full((3, 1, 2, 2), float(n + 1)) for n in range(4)}
    params = Variant(score="closed-form", form="conditioning", sampler=CONSISTENCY).sampler
    states = samplers.sample(
        params, levels, None, lambda x, sigma: (centre - x) / sigma.float().view(-1, 1, 1, 1) ** 2, draws.get
    )
    first, last = states
    # levels 4 and sqrt(4 * 1) = 2: everything goes to the centre, and noise of level 2 is added once
    torch.testing.assert_close(first, centre + 2 * draws[Stream.PREDICTOR.draw(0)])
    torch.testing.assert_close(last, centre)


@pytest.mark.parametrize(
    ("count", "expected"), [(1, [5.0, 0.0]), (2, [5.0, 0.5, 0.0]), (4, [5.0, 1.58114, 0.5, 0.158114, 0.0])]
)
def test_the_levels_divide_the_range_evenly_and_leave_out_its_end(count, expected):
    sigmas = noise.levels(NoiseParams(sigma_min=0.05, sigma_max=5.0), count)
    found, scale = samplers.few_levels(sigmas)
    assert found == pytest.approx(expected, rel=1e-5)
    assert scale == pytest.approx(5.0)
    sampler = Variant(score="closed-form", form="conditioning", sampler={**CONSISTENCY, "levels": count}).sampler
    assert sampler.evaluations == count


SPEC = {
    "score": "network", "form": "consistency", "teacher": {"form": "unconditioning"},
    "distillation": {"steps": 6, "step": 0.3},
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": None}, "teacher goes with form consistency"),
        ({"distillation": None}, "distillation goes with form consistency"),
        ({"form": "unconditioning"}, "teacher goes with form consistency"),
        ({"noise_conditioning": True}, "blind to the noise level: remove noise_conditioning"),
        ({"conditioning": "class"}, "form consistency has no class: remove conditioning"),
        ({"score": "closed-form"}, "distilled from a network: use score: network"),
        ({"teacher": {"form": "temperature", "temperature": 5.0}}, "neighbors are needed"),
        ({"sampler": {"name": "euler", "levels": 4}}, "form consistency is no score"),
        ({"sampler": {"name": "euler", "levels": 1}}, "needs at least 2 levels"),
    ],
)
def test_what_does_not_go_with_it_is_said(changes, message):
    with pytest.raises(ValueError, match=message):
        Variant(**{"sampler": CONSISTENCY, **SPEC, **changes})


def distilled_project(**teacher):
    tree = small_params()
    actual = {"name": "actual-noise", "levels": 6, "step": 0.3, "exact_below": 5.0}
    teacher = {"form": "unconditioning", **teacher}
    tree["variants"] = {
        "teacher": {"score": "network", **teacher, "sampler": actual},
        "student": {**SPEC, "teacher": teacher, "sampler": CONSISTENCY},
    }
    write_params(tree)


@pytest.mark.parametrize(
    "teacher", [{}, {"form": "temperature", "temperature": 5.0, "neighbors": {"space": "pixel", "k": 4}}]
)
def test_the_student_starts_as_its_teacher_and_is_sampled_in_two_evaluations(project, monkeypatch, teacher):
    from stages.diffusion import train_network

    distilled_project(**teacher)
    run_plain("train", "teacher")
    kept, starts = {}, []
    make = train_network.make_student
    monkeypatch.setattr(
        train_network, "make_student", lambda *given: starts.append(make(*given)) or kept_start(starts, kept)
    )
    run_plain("train", "student")
    taught = load_tensors("data/train/teacher/seed-42/model.safetensors")[0]
    assert kept.keys() == taught.keys()
    assert all(torch.equal(kept[name], taught[name]) for name in taught)  # bit by bit the teacher of its own variant
    student, notes = load_tensors("data/train/student/seed-42/model.safetensors")
    assert notes["step"] == 6
    assert any(not torch.equal(student[name], taught[name]) for name in taught)
    assert read_json("data/train/student/runs.json")["runs"] == [
        {"seed": 42, "step": 6, "weights": "seed-42/model.safetensors"}
    ]
    run_plain("sample", "student")
    assert len(read_images("data/sample/student/samples.arrow")) == 23
    assert read_json("data/sample/student/sample.json")["nfe"] == 2
    assert not Path("data/sample/student/alignment.json").exists()


def kept_start(starts, kept):
    kept |= {name: tensor.clone() for name, tensor in starts[-1].training.network.state_dict().items()}
    return starts[-1]


def test_an_interrupted_distillation_gives_the_same_and_keeps_the_teacher(project, monkeypatch):
    from stages.diffusion import train_network
    from stages.diffusion.trainer import Trainer

    distilled_project()
    run_plain("train", "student")
    whole = load_tensors("data/train/student/seed-42/model.safetensors")[0]
    trained, make = [], train_network.make_trainer
    steps = Trainer.steps

    def interrupted(self):
        for losses in steps(self):
            yield losses
            if self.training.params.steps == 6 and losses.step == 2:
                self.save()
                raise KeyboardInterrupt

    monkeypatch.setattr(
        train_network, "make_trainer", lambda shard, *rest: trained.append(shard.name) or make(shard, *rest)
    )
    monkeypatch.setattr(Trainer, "steps", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_plain("train", "student")
    monkeypatch.setattr(Trainer, "steps", steps)
    run_plain("train", "student")
    assert [name.endswith("teacher") for name in trained] == [True, False, False]
    again = load_tensors("data/train/student/seed-42/model.safetensors")[0]
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_contrasts_of_students_and_of_a_student_with_its_teacher_have_one_factor():
    hot = {"form": "temperature", "temperature": 5.0, "neighbors": {"space": "pixel", "k": 4}}

    def tree(**spec):
        return {"spec": Variant(score="network", sampler=CONSISTENCY, **spec).model_dump(mode="json"), "train": {}}

    own = {"form": "consistency", "distillation": SPEC["distillation"]}
    plain, smooth = tree(form="unconditioning"), tree(**hot)
    students = tree(teacher={"form": "unconditioning"}, **own), tree(teacher=hot, **own)
    pairs = {(0, 1): (students[1], students[0]), "plain": (students[0], plain), "smooth": (students[1], smooth)}
    entry = ContrastParams(name="x", of="a", against="b")
    found = {name: contrast(entry, *pair).factors for name, pair in pairs.items()}
    assert found == {
        (0, 1): ("the target's smoothing",), "plain": ("distillation",), "smooth": ("distillation",)
    }  # fmt: skip
    assert len(contrast(entry, students[1], plain).factors) == 2


def test_what_the_teacher_learned_is_what_the_specification_says():
    spec = ScoreSpec(
        **{
            **SPEC,
            "teacher": {"form": "temperature", "temperature": "5/sigma", "neighbors": {"space": "feature", "k": 3}},
        }
    )
    assert (spec.trained.form, spec.trained.temperature, spec.trained.neighbors.k) == ("temperature", "5/sigma", 3)
    assert not spec.conditioned
    assert not spec.trained.conditioned
