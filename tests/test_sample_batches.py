"""Sample i of a network is the same bits whatever else is drawn with it; in batches of other sizes up to rounding.

Stage sample fills its last batch up, so that all its batches have one size and sample i one place in them: shards and
the number of samples change no bit (test_train_sample.py). Another `sample.batch` may change the last bits in float32,
since torch and oneDNN choose a convolution's algorithm by the number of images. The closed forms, in float64, keep
their images in batches of 1, 7 and 64 (test_variants.py); over many centres their scores keep every bit
(test_truncated_score.py).
"""

import numpy as np
import pytest
import torch
from test_network import SMALL, perturbed

from stages.diffusion.network import NCSNpp
from stages.diffusion.parameters import NoiseParams, Variant
from stages.diffusion.sampling import Model, make_model, trajectory

SAMPLERS = {
    "reverse-sde": {"levels": 5, "snr": 0.16},
    "heun": {"levels": 4},
    "actual-noise": {"levels": 5, "step": 0.3, "exact_below": 1.0},
}


def model(sampler: str, precision: str) -> Model:
    form = "unconditioning" if sampler == "actual-noise" else "conditioning"
    variant = Variant(score="network", form=form, sampler={"name": sampler, **SAMPLERS[sampler]})
    torch.manual_seed(0)
    network = perturbed(NCSNpp(SMALL, 1, 8, variant.conditioned, 0.05, 3.0))
    images = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 1), dtype=np.uint8)
    noise = NoiseParams(sigma_min=0.05, sigma_max=3.0)
    return make_model(variant, noise, images, network, torch.device("cpu"), precision)


def drawn(found: Model, indices: list[int]) -> torch.Tensor:
    """The last states of these samples, float32 (B, 1, 8, 8)."""
    for state in trajectory(found, 5, torch.tensor(indices)):
        x = state
    return x


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_companions_and_the_place_in_the_batch_change_no_bit(sampler, precision):
    found = model(sampler, precision)
    together = drawn(found, list(range(7)))
    assert torch.equal(drawn(found, [900, 800, 700, 3, 4, 5, 6])[3:], together[3:])
    order = [5, 0, 6, 3, 1, 4, 2]
    assert torch.equal(drawn(found, order), together[order])
    assert not torch.equal(together[0], together[1])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_batches_of_1_7_and_64_agree_to_the_rounding_of_float32(sampler):
    """Within 8 units of the last place of the largest value; up to 1.5 were measured."""
    found = model(sampler, "float32")
    together = drawn(found, list(range(64)))
    bound = 8 * torch.finfo(torch.float32).eps * float(together.abs().max())
    for rows in (list(range(7)), list(range(57, 64)), [0], [63]):
        assert float((drawn(found, rows) - together[rows]).abs().max()) <= bound
