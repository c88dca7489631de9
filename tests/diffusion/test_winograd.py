"""Winograd's convolutions against float64 ones, and the network that samples with them against the plain one."""

import pytest
import torch
from test_network import SMALL, perturbed
from torch.nn import functional

from stages.diffusion.network import NCSNpp
from stages.diffusion.sampling import prepare_network
from stages.diffusion.variants import network_score
from stages.diffusion.winograd import WinogradConv, suits

CPU = torch.device("cpu")
WIDE = SMALL.model_copy(update={"channels": 128, "multipliers": [1], "attention": [16], "embedding": "fourier"})


def wide_network():
    torch.manual_seed(0)
    return perturbed(NCSNpp(WIDE, 3, 16, True)).requires_grad_(False)


@pytest.fixture(autouse=True)
def _inference():
    with torch.inference_mode():
        yield


@pytest.mark.parametrize(("height", "width"), [(8, 8), (16, 12), (32, 8)])
@pytest.mark.parametrize(("inputs", "outputs"), [(128, 128), (160, 136)])
def test_a_convolution_is_the_one_in_float64(height, width, inputs, outputs):
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(inputs, outputs, 3, padding=1)
    x = torch.randn(3, inputs, height, width)
    truth = functional.conv2d(x.double(), layer.weight.double(), layer.bias.double(), padding=1)
    got = WinogradConv(layer)(x)
    assert got.is_contiguous()
    assert got.dtype == torch.float32
    assert float((got - truth).norm()) < 4e-6 * float(truth.norm())  # 1.6e-6 was measured
    assert float((got - truth).abs().max()) < 4e-5 * float(truth.abs().max())


@pytest.mark.parametrize("side", [4, 10])
def test_sides_without_whole_tiles_and_small_images_take_the_plain_way(side):
    layer = torch.nn.Conv2d(128, 128, 3, padding=1)
    x = torch.randn(2, 128, side, side)
    assert torch.equal(WinogradConv(layer)(x), layer(x))


def test_only_wide_3_x_3_convolutions_are_replaced():
    assert suits(torch.nn.Conv2d(128, 128, 3, padding=1))
    for layer in (
        torch.nn.Conv2d(64, 128, 3, padding=1),
        torch.nn.Conv2d(128, 128, 1),
        torch.nn.Conv2d(128, 128, 3),
        torch.nn.Conv2d(128, 128, 3, padding=1, stride=2),
        torch.nn.Conv2d(128, 128, 3, padding=1, groups=2),
        torch.nn.Linear(128, 128),
    ):
        assert not suits(layer)


def test_the_sampling_network_is_the_plain_one_to_float32s_rounding_and_leaves_it_as_it_was():
    plain = wide_network()
    x, sigma = torch.randn(4, 3, 16, 16), torch.tensor([0.05, 0.3, 2.0, 30.0])
    before = network_score(plain, True)(x, sigma)
    fast = prepare_network(plain, CPU, False)
    assert any(isinstance(layer, WinogradConv) for layer in fast.modules())
    assert not any(isinstance(layer, WinogradConv) for layer in plain.modules())
    assert torch.equal(network_score(plain, True)(x, sigma), before)
    truth = network_score(wide_network().double(), True)(x.double(), sigma.double())
    off, plain_off = (
        float((network_score(each, True)(x, sigma) - truth).norm() / truth.norm()) for each in (fast, plain)
    )
    assert off < 10 * plain_off
    assert {p.data_ptr() for p in fast.parameters()} == {p.data_ptr() for p in plain.parameters()}


def test_companions_and_the_place_in_the_batch_change_no_bit():
    score = network_score(prepare_network(wide_network(), CPU, False), True)
    x, sigma = torch.randn(7, 3, 16, 16), torch.linspace(0.05, 20, 7)
    together, order = score(x, sigma), [5, 0, 6, 3, 1, 4, 2]
    assert torch.equal(score(x[order], sigma[order]), together[order])
    other = torch.cat((torch.randn(3, 3, 16, 16), x[3:]))
    assert torch.equal(score(other, sigma)[3:], together[3:])
