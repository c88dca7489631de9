"""The published network, a small one, and weights at which every layer matters."""

import torch

from stages.diffusion.parameters import NetworkParams

PAPER = NetworkParams(
    channels=128,
    multipliers=[1, 2, 2, 2],
    blocks=4,
    attention=[16],
    patch=1,
    dropout=0.1,
    embedding="positional",
    fir=True,
    progressive_input=True,
    amplitude="raw",
    skip_above=None,
)
SMALL = PAPER.model_copy(update={"channels": 16, "multipliers": [1, 2], "blocks": 1, "attention": [4], "dropout": 0.0})


def perturbed(network):
    """The output layers start at almost zero; give every weight a size at which differences show."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return network.eval()
