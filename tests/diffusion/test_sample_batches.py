"""Sample i of a network is the same bits whatever else is drawn with it, in batches of 1, 7 and 64.

torch chooses a layer's algorithm by the number of images; `fixed_rounding` keeps it the same, which was measured on
processors with AVX-512; elsewhere they agree to rounding. Stage sample fills its last batch up, so that shards and the
number of samples change no bit anywhere (test_train_sample.py). The closed forms, in float64, keep their images in
batches of 1, 7 and 64 (test_variants.py); over many centres their scores keep every bit (test_truncated_score.py).
"""

import numpy as np
import pytest
import torch
from networks import SMALL, perturbed

from stages.diffusion.model import Model, make_model
from stages.diffusion.network import NCSNpp
from stages.diffusion.parameters import NetworkParams, NoiseParams, Variant
from stages.diffusion.sampling import trajectory

SAMPLERS = {
    "reverse-sde": {"levels": 5, "snr": 0.16},
    "heun": {"levels": 4},
    "actual-noise": {"levels": 5, "step": 0.3, "exact_below": 1.0},
}


def model(sampler: str, precision: str, params: NetworkParams = SMALL) -> Model:
    form = "unconditioning" if sampler == "actual-noise" else "conditioning"
    variant = Variant(score="network", form=form, sampler={"name": sampler, **SAMPLERS[sampler]})
    torch.manual_seed(0)
    network = perturbed(NCSNpp(params, 1, 8, variant.conditioned, 0.05, 3.0))
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


KNOWN = torch.backends.cpu.get_cpu_capability() == "AVX512"


@pytest.mark.skipif(not KNOWN, reason="which batches oneDNN computes alike is known for processors with AVX-512 only")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_batches_of_1_7_and_64_are_the_same_bits(sampler, precision):
    found = model(sampler, precision)
    together = drawn(found, list(range(64)))
    for rows in (list(range(7)), list(range(57, 64)), [0], [63]):
        assert torch.equal(drawn(found, rows), together[rows])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_batches_of_1_7_and_64_agree_to_the_rounding_of_float32(sampler):
    """Whatever the processor: within 8 units of the last place of the largest value."""
    found = model(sampler, "float32")
    together = drawn(found, list(range(64)))
    bound = 8 * torch.finfo(torch.float32).eps * float(together.abs().max())
    for rows in (list(range(7)), list(range(57, 64)), [0], [63]):
        assert float((drawn(found, rows) - together[rows]).abs().max()) <= bound
