"""NCSN++: the published parameter counts, blindness to sigma, resampling against an independent implementation."""

import pytest
import torch
from networks import PAPER, SMALL, perturbed
from scipy.signal import convolve, upfirdn

from stages.device import uses_bfloat16
from stages.diffusion import network
from stages.diffusion.model import prepare_network
from stages.diffusion.network import Attention, Blur, Dropout, NCSNpp, Resample, _attend
from stages.diffusion.variants import network_score
from stages.errors import InputError


def parameters(network):
    return sum(p.numel() for p in network.parameters())


def test_parameter_counts_are_those_of_cifar10():
    """62.69 M positional, 62.76 M fourier (METHODS §4); blind is smaller by exactly its embedding and dense layers."""
    with torch.device("meta"):
        positional, fourier = (
            NCSNpp(PAPER, 3, 32, True),
            NCSNpp(PAPER.model_copy(update={"embedding": "fourier"}), 3, 32, True),
        )
        blind = NCSNpp(PAPER, 3, 32, False)
    assert round(parameters(positional) / 1e6, 2) == 62.69
    assert round(parameters(fourier) / 1e6, 2) == 62.76
    dense = sum(
        p.numel() for name, p in positional.named_parameters() if name.startswith("embed") or ".project." in name
    )
    assert parameters(blind) == parameters(positional) - dense
    assert not any("embed" in name or "project" in name for name, _ in blind.named_parameters())


@pytest.mark.parametrize("amplitude", ["raw", "normalised"])
@pytest.mark.parametrize(("channels", "patch", "resolution"), [(1, 1, 8), (3, 2, 16), (1, 2, 8)])
def test_shapes_gradients_and_blindness(amplitude, channels, patch, resolution):
    params = SMALL.model_copy(update={"amplitude": amplitude, "patch": patch})
    x = torch.randn(2, channels, resolution, resolution)
    for conditioned in (True, False):
        network = NCSNpp(params, channels, resolution, conditioned)
        sigma = torch.tensor([0.1, 3.0]) if conditioned else None
        out = network(x, sigma)
        assert out.shape == x.shape
        out.square().sum().backward()
        assert all(p.grad is not None for p in network.parameters())
        with pytest.raises(ValueError, match="sigma"):
            network(x, None if conditioned else torch.ones(2))


def test_conditioned_network_reads_sigma_and_a_blind_one_reads_the_amplitude():
    x = torch.randn(2, 1, 8, 8)
    conditioned = perturbed(NCSNpp(SMALL, 1, 8, True))
    assert not torch.allclose(conditioned(x, torch.tensor([0.1, 0.1])), conditioned(x, torch.tensor([5.0, 5.0])))
    for amplitude in ("raw", "normalised"):
        blind = perturbed(NCSNpp(SMALL.model_copy(update={"amplitude": amplitude}), 1, 8, False))
        assert not torch.allclose(blind(x, None), blind(20 * x, None), atol=1e-3)


def test_a_blind_networks_output_does_not_change_with_sigma():
    """Its score is F(x)/sigma: times sigma it is the same numbers, whatever sigma is said to be."""
    network = perturbed(NCSNpp(SMALL, 1, 8, False))
    x, sigma = torch.randn(3, 1, 8, 8), torch.full((3,), 0.25)
    with torch.no_grad():
        out = network(x, None)
        for factor in (1, 8, 1024):  # powers of two divide exactly
            assert torch.equal(network_score(network, False)(x, factor * sigma) * 0.25 * factor, out)
        reading = perturbed(NCSNpp(SMALL, 1, 8, True))
        assert not torch.allclose(
            network_score(reading, True)(x, sigma) * 0.25, network_score(reading, True)(x, 8 * sigma) * 2
        )


def test_what_enters_is_the_centred_image_as_it_is_or_divided_by_its_amplitude():
    x = torch.randn(3, 1, 8, 8) * torch.tensor([0.1, 1.0, 30.0])[:, None, None, None]
    entered = {
        a: NCSNpp(SMALL.model_copy(update={"amplitude": a}), 1, 8, False)._enter(x) for a in ("raw", "normalised")
    }
    assert torch.equal(entered["raw"], 2 * x - 1)
    for i in range(3):
        divisor = ((2 * x[i] - 1).square().mean() + 0.25) ** 0.5
        torch.testing.assert_close(entered["normalised"][i], (2 * x[i] - 1) / divisor)


@pytest.mark.parametrize("conditioned", [True, False])
@pytest.mark.parametrize(("level", "skip_above"), [(0.5, 2.0), (4e3, 2e3), (1e4, 2.0)])
def test_above_its_level_the_input_is_taken_off_the_output(conditioned, level, skip_above):
    """F - (1 - (skip_above/level)^2)_+ z at levels far above the image, whose own level is level times rms(z)."""
    torch.manual_seed(0)
    plain = perturbed(NCSNpp(SMALL, 1, 8, conditioned))
    skipping = NCSNpp(SMALL.model_copy(update={"skip_above": skip_above}), 1, 8, conditioned)
    skipping.load_state_dict(plain.state_dict())
    z, sigma = torch.randn(4, 1, 8, 8), torch.full((4,), level) if conditioned else None
    x = torch.rand(4, 1, 8, 8) + level * z
    rms = z.square().mean((1, 2, 3), keepdim=True).sqrt()
    share = (1 - (skip_above / level / rms) ** 2).clamp_min(0)
    torch.testing.assert_close(plain(x, sigma) - skipping(x, sigma), share * z / rms, rtol=0.0, atol=2e-3)


def test_weights_begin_as_published():
    """Uniform with variance scale / mean of fan-in and fan-out, biases 0; 1e-10 where a block, attention or the network
    ends, 0.1 within attention, 16 for the Fourier frequencies of ln sigma."""
    torch.manual_seed(0)
    made = NCSNpp(SMALL.model_copy(update={"channels": 64, "embedding": "fourier"}), 3, 8, True)
    block, attention = made.down[0][0][0], made.middle[1]
    for layer, fans, scale in [
        (made.stem, (27 + 64 * 9) / 2, 1.0),
        (block.conv_in, 64 * 9, 1.0),
        (block.conv_out, 64 * 9, 1e-10),
        (block.project, (256 + 64) / 2, 1.0),
        (made.embed.layers[0], (128 + 256) / 2, 1.0),
        (attention.query, 128, 0.1),
        (attention.out, 128, 1e-10),
        (made.head, (64 * 9 + 27) / 2, 1e-10),
    ]:
        assert float(layer.weight.var()) == pytest.approx(scale / fans, rel=0.15)
        assert float(layer.weight.abs().max()) <= (3 * scale / fans) ** 0.5
        assert not layer.bias.any()
    assert float(made.embed.frequencies.std()) == pytest.approx(16, rel=0.4)


@pytest.mark.parametrize("embedding", ["positional", "fourier"])
def test_embeddings_tell_neighbouring_levels_apart(embedding):
    network = perturbed(NCSNpp(SMALL.model_copy(update={"embedding": embedding}), 1, 8, True))
    e = network.embed(torch.tensor([0.01, 0.0101, 1.0, 50.0])).detach()
    assert torch.isfinite(e).all()
    assert float((e[0] - e[1]).abs().max()) > 1e-4
    assert float((e[2] - e[3]).abs().max()) > 1e-2


@pytest.mark.parametrize("way", ["_by_matrices", "_by_convolution"])
def test_fir_resampling_matches_scipy(way):
    x = torch.randn(1, 1, 8, 8)
    taps = torch.tensor([1.0, 3, 3, 1]) / 8

    def along(array, axis, up, down, gain):
        full = upfirdn(gain * taps.numpy(), array, up=up, down=1, axis=axis)
        return full

    down = getattr(Resample("down", True), way)(x)[0, 0].numpy()
    wanted = along(along(x[0, 0].numpy(), 0, 1, 1, 1), 1, 1, 1, 1)[2:-1:2, 2:-1:2]
    torch.testing.assert_close(torch.tensor(down), torch.tensor(wanted[:4, :4]), rtol=1e-5, atol=1e-5)
    up = getattr(Resample("up", True), way)(x)[0, 0].numpy()
    wanted = along(along(x[0, 0].numpy(), 0, 2, 1, 2), 1, 2, 1, 2)[1:17, 1:17]
    torch.testing.assert_close(torch.tensor(up), torch.tensor(wanted), rtol=1e-5, atol=1e-5)


def test_the_blur_is_scipys_convolution():
    """At full resolution with a border of two: one row and column more than the image has."""
    x = torch.randn(2, 3, 6, 10)
    taps = torch.tensor([1.0, 3, 3, 1]) / 8
    for way in ("_by_sums", "_by_convolution"):
        got = getattr(Blur(), way)(x)
        assert got.shape == (2, 3, 7, 11)
        wanted = convolve(x.numpy(), torch.outer(taps, taps)[None, None].numpy())[..., 1:-1, 1:-1]
        torch.testing.assert_close(got, torch.tensor(wanted))


@pytest.mark.parametrize(
    ("make", "on_cpu"),
    [
        (lambda: Resample("down", True), "_by_matrices"),
        (lambda: Resample("up", True), "_by_matrices"),
        (Blur, "_by_sums"),
    ],
)
def test_both_ways_of_fir_resampling_and_their_gradients_agree(make, on_cpu):
    """Also on images that are not square, and after a first use without gradients."""
    layer, results = make(), []
    with torch.inference_mode():
        layer(torch.zeros(1, 1, 6, 10))
    for way in (getattr(layer, on_cpu), layer._by_convolution):
        torch.manual_seed(0)
        x = torch.randn(2, 3, 6, 10, requires_grad=True)
        out = way(x)
        (out * torch.randn(out.shape)).sum().backward()
        results.append((out, x.grad))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("fir", [True, False])
def test_resampling_keeps_a_constant_image_away_from_the_border(fir):
    x = torch.ones(1, 2, 8, 8)
    torch.testing.assert_close(Resample("down", fir)(x)[..., 1:-1, 1:-1], torch.ones(1, 2, 2, 2))
    torch.testing.assert_close(Resample("up", fir)(x)[..., 2:-2, 2:-2], torch.ones(1, 2, 12, 12))


COVERING = [  # every pair of values of two options meets
    (True, True, 1, "positional"),
    (True, False, 2, "fourier"),
    (False, True, 2, "positional"),
    (False, False, 1, "fourier"),
    (True, True, 4, "fourier"),
    (False, False, 4, "positional"),
]


@pytest.mark.parametrize("resolution", [32, 64, 256])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_option_at_every_size(resolution, channels):
    """On the meta device: shapes, and no parameter of an embedding in a noise-blind network. (The published networks
    are built in test_preset.py.)"""
    x, sigma = torch.empty(2, channels, resolution, resolution, device="meta"), torch.empty(2, device="meta")
    for fir, progressive, patch, embedding in COVERING:
        options = {"fir": fir, "progressive_input": progressive, "patch": patch, "embedding": embedding}
        params = SMALL.model_copy(update={**options, "attention": [resolution // patch // 2]})
        with torch.device("meta"):
            assert NCSNpp(params, channels, resolution, True)(x, sigma).shape == x.shape
            blind = NCSNpp(params, channels, resolution, False)
            assert blind(x, None).shape == x.shape
        assert not any("embed" in name or "project" in name for name, _ in blind.named_parameters())


@pytest.mark.parametrize("p", [0.1, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_drops_independently_the_share_asked_for_and_keeps_the_mean(p, dtype):
    torch.manual_seed(0)
    layer, x = Dropout(p), torch.full((1, 3, 701, 499), 2.0, dtype=dtype, requires_grad=True)  # no multiple of 4 values
    out = layer(x)
    out.sum().backward()
    kept = (out != 0).flatten()
    scale = torch.tensor(65536 / (65536 - round(65536 * p))).to(dtype)
    assert torch.equal(out.unique(), torch.stack((torch.zeros_like(scale), 2 * scale)))
    assert torch.equal(x.grad.flatten(), torch.where(kept, scale, torch.zeros_like(scale)))
    count = len(kept)
    assert abs(float(kept.double().mean()) - (1 - p)) < 5 * (p * (1 - p) / count) ** 0.5
    for lag in range(1, 9):  # four values share a 64-bit word
        both = float((kept[:-lag] & kept[lag:]).double().mean())
        assert abs(both - (1 - p) ** 2) < 5 * ((1 - p) ** 2 / count) ** 0.5
    torch.manual_seed(0)
    assert torch.equal(layer(x), out)
    assert layer.eval()(x) is x


def test_resolution_that_cannot_be_halved_is_refused():
    with pytest.raises(ValueError, match=r"resolution 12 is not a multiple of 8"):
        NCSNpp(PAPER, 3, 12, True)


def test_attention_where_there_are_no_maps_is_refused():
    """It would be left out without a word."""
    with pytest.raises(InputError, match=r"attention: .* no maps of side 16, only 24, 12, 6"):
        NCSNpp(PAPER, 3, 24, True)


def test_attention_is_torchs_own():
    q, k, v = torch.randn(3, 2, 9, 5, dtype=torch.float64)
    torch.testing.assert_close(_attend(q, k, v), torch.nn.functional.scaled_dot_product_attention(q, k, v))


def test_attention_of_many_pixels_in_bfloat16_is_the_one_of_few_and_so_are_its_gradients(monkeypatch):
    """As products and as 1 x 1 convolutions. The gradient of the keys' bias is 0 but for rounding."""
    torch.manual_seed(0)
    layer, found = perturbed(Attention(16)), []
    x, weight = torch.randn(2, 16, 16, 16), torch.randn(2, 16, 16, 16)
    for many in (256, 257):
        monkeypatch.setattr(network, "MANY_PIXELS", many)
        own = x.bfloat16().requires_grad_()
        layer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            out = layer(own)
        (out.float() * weight).sum().backward()
        gradients = {name: p.grad for name, p in layer.named_parameters() if name != "key.bias"}
        found.append({"out": out.detach(), "x": own.grad, **gradients})
    for name, one in found[0].items():
        assert float((one.float() - found[1][name].float()).norm()) < 0.01 * float(one.float().norm()), name


def test_a_score_in_bfloat16_is_float32_and_near_the_one_in_float32():
    """8 bits of mantissa: a few parts in a thousand per layer. Sigma stays float32: the score is F/sigma exactly."""
    network = perturbed(NCSNpp(SMALL.model_copy(update={"embedding": "fourier"}), 1, 8, True))
    x, sigma = torch.randn(4, 1, 8, 8), torch.tensor([0.0123, 0.2, 3.0, 40.0])
    with torch.no_grad():
        plain, half = (network_score(network, True, bfloat16)(x, sigma) for bfloat16 in (False, True))
    assert half.dtype == torch.float32
    off = ((half - plain).flatten(1).norm(dim=1) / plain.flatten(1).norm(dim=1)).tolist()
    assert all(1e-5 < value < 0.05 for value in off), off


@pytest.mark.parametrize("conditioned", [True, False])
def test_weights_cast_once_give_the_bits_of_autocast_and_leave_the_network_as_it_was(conditioned):
    small = SMALL.model_copy(update={"attention": [8]})
    plain, cpu = perturbed(NCSNpp(small, 1, 16, conditioned)), torch.device("cpu")
    x, sigma = torch.randn(3, 1, 16, 16), torch.tensor([0.02, 0.5, 30.0])
    half = prepare_network(plain, cpu, True)
    assert half.stem.weight.dtype == torch.bfloat16
    assert {p.dtype for p in plain.parameters()} == {torch.float32}
    with torch.inference_mode():
        assert torch.equal(*(network_score(each, conditioned, True)(x, sigma) for each in (plain, half)))
    other = prepare_network(plain, cpu, False)
    assert all(one is its_own for one, its_own in zip(plain.parameters(), other.parameters(), strict=True))
    assert type(plain.stem) is torch.nn.Conv2d


@pytest.mark.parametrize("able", [True, False])
def test_auto_precision_asks_the_processor(monkeypatch, able):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: able)
    cpu = torch.device("cpu")
    assert uses_bfloat16("auto", cpu) == able
    assert uses_bfloat16("bfloat16", cpu)
    assert not uses_bfloat16("float32", cpu)
