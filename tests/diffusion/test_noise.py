"""Counter-based noise against published vectors, its distribution, and its independence of the batch."""

import numpy as np
import pytest
import torch
from scipy import stats

from stages.diffusion.noise import Stream, integers, levels, normal, philox, uniform
from stages.diffusion.parameters import NoiseParams


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [  # the known-answer vectors published with Random123 for philox4x32-10
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_words(counter, key, words):
    result = philox(tuple(torch.tensor([c]) for c in counter), key)
    assert tuple(int(w) for w in result) == words


def test_normal_depends_on_seed_index_and_draw_only():
    everything = normal(7, torch.arange(100), 3, (2, 5))
    for rows in (torch.tensor([41]), torch.arange(40, 47), torch.tensor([99, 41, 0])):
        assert torch.equal(normal(7, rows, 3, (2, 5)), everything[rows])
    assert not torch.equal(normal(8, torch.arange(100), 3, (2, 5)), everything)
    assert not torch.equal(normal(7, torch.arange(100), 4, (2, 5)), everything)


def test_normal_is_standard_normal_and_uncorrelated():
    z = normal(0, torch.arange(2000), 0, (101,)).double().numpy()
    assert stats.kstest(z.ravel(), "norm").pvalue > 1e-3
    assert abs(np.corrcoef(z[:, 0], z[:, 1])[0, 1]) < 5 / np.sqrt(2000)
    assert abs(np.corrcoef(z[:-1, 0], z[1:, 0])[0, 1]) < 5 / np.sqrt(2000)
    assert abs(np.corrcoef(z[:, 0], normal(0, torch.arange(2000), 1, (101,))[:, 0])[0, 1]) < 5 / np.sqrt(2000)


def test_large_indices_and_seeds_do_not_collide():
    far = torch.tensor([5, 5 + 2**32])
    z = normal(2**40 + 3, far, 0, (8,))
    assert not torch.equal(z[0], z[1])
    assert not torch.equal(z, normal(3, far, 0, (8,)))


def test_integers_are_uniform():
    counts = torch.bincount(integers(1, torch.arange(10000), 0, 10), minlength=10)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_levels_are_log_uniform_and_descend():
    sigma = levels(NoiseParams(sigma_min=0.01, sigma_max=50), 116)
    ratio = sigma[:-1] / sigma[1:]
    assert float(sigma[0]) == pytest.approx(50)
    assert float(sigma[-1]) == pytest.approx(0.01)
    torch.testing.assert_close(ratio, ratio[:1].expand(115))


def test_levels_must_be_ordered():
    with pytest.raises(ValueError, match="sigma_min"):
        NoiseParams(sigma_min=1, sigma_max=0.5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_cpu_and_gpu_draw_the_same_noise():
    """The same words, to the bit; normals to float32's rounding of the device's own log, cos and sin."""
    indices = torch.arange(64) + 2**33
    words, normals = (
        [draw(5, indices.to(device), 9, size).cpu() for device in ("cpu", "cuda")]
        for draw, size in ((uniform, 3072), (normal, (3, 32, 32)))
    )
    assert torch.equal(*words)
    torch.testing.assert_close(normals[1], normals[0], rtol=1e-6, atol=1e-6)


def test_streams_over_the_same_index_share_no_draw():
    """Samplers take as many draws as they have levels, kernels as many as they have shifts; alignment's lie between."""
    assert [Stream.PREDICTOR.draw(n) for n in range(3)] == [1, 3, 5]
    assert [Stream.CORRECTOR.draw(n) for n in range(3)] == [2, 4, 6]
    assert [Stream.KERNEL.draw(n) for n in range(2)] == [1 << 30, (1 << 30) + 1]
    of_samples = [stream for stream in Stream if stream.value[0] in ("sample", "alignment")]
    drawn = [stream.draw(n) for stream in of_samples for n in range(1000 if stream.value[2] else 1)]
    assert len(drawn) == len(set(drawn))
    assert len(Stream) == len(Stream.__members__)  # no two names for one stream
