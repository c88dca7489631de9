"""Everything that may run on a GPU, on a simulated one: nothing is left on the other device, and the results agree."""

import numpy as np
import pytest
import torch
from simulated_gpu import simulated_gpu
from torch.nn.functional import scaled_dot_product_attention as attention

from stages.device import pick_device, uses_bfloat16
from stages.diffusion import network as networks
from stages.diffusion import training_set
from stages.diffusion.alignment import align
from stages.diffusion.model import make_model, prepare_network
from stages.diffusion.network import NCSNpp
from stages.diffusion.noise import normal
from stages.diffusion.parameters import (
    AlignmentParams,
    NetworkParams,
    NoiseParams,
    OptimizationParams,
    ScoreSpec,
    Variant,
)
from stages.diffusion.sampling import sample_batch
from stages.diffusion.trainer import Trainer
from stages.diffusion.training import build_training
from stages.diffusion.variants import network_score
from stages.features.encoders import load_encoder
from stages.features.feature_search import nearest_features
from stages.features.weights import EncoderParams
from stages.search.nearest import nearest
from stages.search.nearest_float import min_distance, prepare

CPU, GPU = torch.device("cpu"), torch.device("cuda")
LEVELS = NoiseParams(sigma_min=0.05, sigma_max=5.0)
NETWORK = NetworkParams(
    channels=8, multipliers=[1, 2], blocks=1, attention=[8], patch=1, dropout=0.0, embedding="positional", fir=True,
    progressive_input=True, amplitude="raw", skip_above=None,
)  # fmt: skip
OPTIMIZATION = OptimizationParams(
    steps=6, batch=4, microbatch=None, learning_rate=1e-3, betas=(0.9, 0.999), weight_decay=0.0, warmup=2,
    decay="cosine", clip=1.0, ema=0.9, levels=100, flip=True, precision="float32", compile=False,
    checkpoint_every=3, keep=2, log_every=2, max_seconds=None,
)  # fmt: skip
EULER = {"name": "euler", "levels": 5}
SHELLS = {"score": "closed-form", "form": "temperature", "temperature": "1/sigma"}
SDE = {"name": "reverse-sde", "levels": 5, "snr": 0.16}
CLOSED = {
    "conditioning": {"score": "closed-form", "form": "conditioning", "sampler": EULER},
    "mixture": {"score": "closed-form", "form": "mixture", "sampler": SDE},
    "unconditioning": {
        "score": "closed-form", "form": "unconditioning",
        "sampler": {"name": "actual-noise", "levels": 5, "step": 0.6, "exact_below": 1.0},
    },
    "temperature": {
        **SHELLS, "smooth_below": 2.0, "sampler": {"name": "gradient-ascent", "levels": 5, "step": 0.3,
                                                   "stop_below": 0.1},
    },
    "nearest": {**SHELLS, "temperature": "sqrt_d", "neighbors": {"space": "pixel", "k": 3}, "sampler": SDE},
    "scheduled": {**SHELLS, "temperature": "d", "precision": "scheduled", "sampler": {**SDE, "name": "reverse-ode"}},
    "kernel-smoothed": {
        "score": "closed-form", "form": "kernel-smoothed", "kernel": {"h": 0.3, "draws": 4},
        "sampler": {"name": "heun", "levels": 4},
    },
    "cfdm": {
        "score": "closed-form", "form": "cfdm", "kernel": {"h": 0.2, "draws": 4}, "sampler": {**EULER, "name": "cfdm"},
    },
}  # fmt: skip


def pictures(count=12, side=16, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, channels), dtype=np.uint8)


def network(conditioned=True, params=NETWORK):
    """Weights away from their initial zeros, so that every layer matters."""
    torch.manual_seed(0)
    made = NCSNpp(params, 3, 16, conditioned, LEVELS.sigma_min, LEVELS.sigma_max)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return made


def test_the_simulated_gpu_refuses_what_a_gpu_refuses():
    here = torch.ones(3)
    with simulated_gpu():
        there = torch.ones(3, device="cuda")
        assert (there + 1).device.type == there.to(torch.float64).device.type == "cuda"
        assert there.cpu().device.type == there.to("cpu").device.type == "cpu"
        assert (there * torch.tensor(2.0)).tolist() == [2, 2, 2]
        for wrong in (lambda: there + here, lambda: torch.cat([there, here]), lambda: here * there.sum(),
                      lambda: torch.where(there > 0, here, there), lambda: here[there.long()]):  # fmt: skip
            with pytest.raises(RuntimeError, match="same device"):
                wrong()
        for wrong in (lambda: there.numpy(), lambda: np.asarray(there)):
            with pytest.raises(TypeError, match="numpy"):
                wrong()
    assert not torch.cuda.is_available() or torch.cuda.get_device_name() != "simulated"


def test_auto_is_the_gpu_and_bfloat16():
    with simulated_gpu():
        assert pick_device("auto") == "cuda"
        assert uses_bfloat16("auto", GPU)
        assert not uses_bfloat16("float32", GPU)


@pytest.mark.parametrize("name", CLOSED)
def test_closed_forms_and_their_samplers(name):
    variant, images = Variant(**CLOSED[name]), pictures()
    own = sample_batch(make_model(variant, LEVELS, images, None, CPU), 0, torch.arange(3))
    with simulated_gpu():
        found = sample_batch(make_model(variant, LEVELS, images, None, GPU), 0, torch.arange(3))
    np.testing.assert_array_equal(found, own)


@pytest.mark.parametrize("changes", [{}, {"embedding": "fourier", "fir": False, "amplitude": "normalised"}])
@pytest.mark.parametrize("sampler", [EULER, SDE, CLOSED["unconditioning"]["sampler"]])
def test_networks_are_sampled_alike(sampler, changes):
    conditioned = sampler["name"] != "actual-noise"
    variant = Variant(score="network", form="conditioning" if conditioned else "unconditioning", sampler=sampler)
    made, images = network(conditioned, NETWORK.model_copy(update=changes)), pictures()
    own = sample_batch(make_model(variant, LEVELS, images, made, CPU), 0, torch.arange(3))
    with simulated_gpu():
        found = sample_batch(make_model(variant, LEVELS, images, made, GPU), 0, torch.arange(3))
    assert np.abs(found.astype(int) - own).max() <= 1
    assert (found != own).mean() < 0.01


@pytest.mark.parametrize("conditioned", [True, False])
def test_a_network_in_bfloat16_is_near_itself_in_float32(conditioned):
    x, sigma = 2 * torch.randn(4, 3, 16, 16), torch.tensor([0.1, 0.5, 2.0, 5.0], dtype=torch.float64)
    made = network(conditioned)
    with torch.inference_mode():
        own = network_score(made.eval(), conditioned)(x, sigma)
        with simulated_gpu():
            there = network_score(prepare_network(made, GPU, True), conditioned, True)
            found = there(x.to(GPU), sigma.to(GPU)).cpu()
    assert torch.nn.functional.cosine_similarity(found.flatten(1), own.flatten(1)).min() > 0.999


def trainer(folder, device, form, images, **changes):
    spec, lists = {"score": "network", "form": form}, None
    if form == "temperature":
        lists = np.stack([np.roll(np.arange(len(images)), -n) for n in range(4)], 1)
        neighbors = {"space": "pixel", "k": 4, "radius": 1.5}
        spec |= {"temperature": "5/sigma", "smooth_below": 3.0, "neighbors": neighbors}
    params = OPTIMIZATION.model_copy(update=changes)
    return Trainer(
        build_training(ScoreSpec(**spec), LEVELS, NETWORK, params, images, lists, device, seed=1),
        folder,
        {"form": form},
    )


def curve(run):
    return torch.tensor([row.loss for row in run.run()])


@pytest.mark.parametrize("form", ["conditioning", "unconditioning", "temperature"])
@pytest.mark.parametrize("resident", [True, False])
def test_training_computes_the_same_and_resumes_on_either_device(tmp_path, monkeypatch, form, resident):
    images = pictures()
    own = trainer(tmp_path / "cpu", CPU, form, images)
    losses = curve(own)
    if not resident:
        monkeypatch.setattr(training_set, "GPU_SHARE", 0.0)
    with simulated_gpu():
        there = trainer(tmp_path / "gpu", GPU, form, images)
        assert there.training.data.images.device.type == ("cuda" if resident else "cpu")
        assert all(p.device.type == "cuda" for p in there.average.parameters())
        torch.testing.assert_close(curve(there), losses, rtol=1e-4, atol=0)
        again = trainer(tmp_path / "cpu", GPU, form, images)
        assert again.resume() == 6
    for a, b in zip(own.average.parameters(), again.average.parameters()):
        torch.testing.assert_close(a.data, b.data.cpu(), rtol=0, atol=0)
    assert trainer(tmp_path / "gpu", CPU, form, images).resume() == 6


@pytest.mark.parametrize("changes", [{"microbatch": 2}, {"precision": "auto"}])
def test_training_in_passes_and_in_bfloat16(tmp_path, changes):
    images = pictures()
    own = curve(trainer(tmp_path / "cpu", CPU, "temperature", images))
    with simulated_gpu():
        found = curve(trainer(tmp_path / "gpu", GPU, "temperature", images, **changes))
    torch.testing.assert_close(found, own, rtol=1e-4 if "microbatch" in changes else 0.02, atol=0)


def test_the_comparison_with_the_empirical_score():
    settings = AlignmentParams(levels=3, images=4, expansion_pairs=8, pairs=4, paths=2, points=3, level=1.0, steps=2)
    variant, images = Variant(score="network", form="conditioning", sampler=EULER), pictures()
    own = align(make_model(variant, LEVELS, images, network(), CPU), settings, 0)
    with simulated_gpu():
        found = align(make_model(variant, LEVELS, images, network(), GPU), settings, 0)
    for one, other in zip(own.levels + own.paths, found.levels + found.paths, strict=True):
        assert one.keys() == other.keys()
        for key, value in one.items():
            same = value is None or isinstance(value, str)
            # sigma^2 times a difference of float32 scores of norm 30, over steps of 1e-3: 0.25 * 30 * 6e-8 / 1e-3
            rounding = 5e-4 if key in ("jacobian", "jacobian_error") else 1e-12
            assert other[key] == (value if same else pytest.approx(value, rel=1e-3, abs=rounding)), key


def test_noise_is_the_same():
    indices = torch.tensor([0, 3, 1 << 40])
    with simulated_gpu():
        found = normal(7, indices.to(GPU), 2, (3, 5)).cpu()
    assert torch.equal(found, normal(7, indices, 2, (3, 5)))


def test_searches():
    rows, others = pictures(30).reshape(30, -1), pictures(8, seed=1).reshape(8, -1)
    x, features = torch.rand(5, rows.shape[1]), np.random.default_rng(2).standard_normal((30, 9))
    leave = np.arange(8)
    with simulated_gpu():
        exact = nearest(others, rows, 4, exclude=leave, device="cuda")
        index, distance = min_distance(x.to(GPU), prepare(rows, GPU))
        near = nearest_features(features[:8], features, 3, exclude=leave, device="cuda")
        assert index.device.type == distance.device.type == "cuda"
    for found, wanted in zip(exact, nearest(others, rows, 4, exclude=leave)):
        np.testing.assert_array_equal(found, wanted)
    for found, wanted in zip((index, distance), min_distance(x, rows)):
        torch.testing.assert_close(found.cpu(), wanted, rtol=0, atol=0)
    for found, wanted in zip(near, nearest_features(features[:8], features, 3, exclude=leave)):
        np.testing.assert_array_equal(found, wanted)


def test_an_encoder_on_the_gpu_is_near_itself_on_the_cpu():
    """Under autocast there, and in batches of another size; features of one network, so near, not equal."""
    pytest.importorskip("efficientnet_lite_pytorch", reason="efficientnet-lite0 is not installed")
    params, images = EncoderParams(name="efficientnet-lite0", weights=None, sha256=None, resize=32), pictures(3)
    own = load_encoder(params, "cpu")(images)
    with simulated_gpu():
        encoder = load_encoder(params, "auto")
        assert encoder.metadata["precision"] == "bfloat16"
        found = encoder(images)
    cosine = (own * found).sum(1) / np.linalg.norm(own, axis=1) / np.linalg.norm(found, axis=1)
    assert cosine.min() > 0.99


def test_weights_and_their_average_lie_alike_in_memory(tmp_path):
    """Otherwise they are averaged parameter by parameter on a GPU, and not in one pass."""
    with simulated_gpu():
        run = trainer(tmp_path, GPU, "conditioning", pictures())
        pairs = list(zip(run.training.network.parameters(), run.average.parameters(), strict=True))
        assert all(one.stride() == other.stride() for one, other in pairs)
        assert any(not one.is_contiguous() for one, _ in pairs)


@pytest.mark.parametrize("gpu", [True, False])
@pytest.mark.parametrize("half", [True, False])
def test_the_compiler_gets_the_network_in_one_graph(monkeypatch, gpu, half):
    """Forward and backward as they run on a GPU and on a CPU, traced whole (fullgraph) and differentiated, not lowered:
    the same values and gradients as without."""
    if gpu:
        monkeypatch.setattr(networks.Resample, "_by_matrices", networks.Resample._by_convolution)
        monkeypatch.setattr(networks.Blur, "_by_sums", networks.Blur._by_convolution)
        monkeypatch.setattr(networks, "_attend", lambda *qkv: attention(*(part[:, None] for part in qkv))[:, 0])
    made, x, sigma = network(), torch.randn(2, 3, 16, 16), torch.tensor([0.3, 2.0])
    traced = torch.compile(made, fullgraph=True, backend="aot_eager")
    results = []
    for forward in (made, traced):
        made.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            out = forward(x, sigma)
        out.float().square().sum().backward()
        gradient = torch.cat([parameter.grad.flatten() for parameter in made.parameters()])
        results.append((out.detach().float(), gradient))
    for one, other in zip(*results):
        assert torch.linalg.vector_norm(other - one) < (0.02 if half else 1e-5) * torch.linalg.vector_norm(one)
