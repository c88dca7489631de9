"""Layers whose float32 rounding on a CPU does not depend on how many images are in the batch.

torch sends a small convolution of fewer than 16 images elsewhere than a larger one when it has a single thread, and a
product of one or two rows is another routine's. Both sum in another order, so that sample i would differ in its last
bits with the batch that it is drawn in. Measured with batches from 1 to 64 on processors with AVX-512; it costs up to a
tenth at 4 images, and nothing at 64.
"""

import torch
from torch import Tensor, nn

ROWS = 16  # of a product


class OneDnnConv(nn.Conv2d):
    """A convolution by oneDNN, whatever its size."""

    def forward(self, x: Tensor) -> Tensor:
        """x float32 (B, C, H, W)."""
        return torch.mkldnn_convolution(
            x.contiguous(), self.weight, self.bias, self.padding, self.stride, self.dilation, self.groups
        )


class FilledLinear(nn.Linear):
    """A product of at least ROWS rows, of which those that were asked for are kept."""

    def forward(self, x: Tensor) -> Tensor:
        """x (B, inputs)."""
        full = x if len(x) >= ROWS else torch.cat((x, x[-1:].expand(ROWS - len(x), -1)))
        return super().forward(full)[: len(x)]


def with_fixed_rounding(network: nn.Module) -> nn.Module:
    """Make these of the network's layers, in place; returns the network. Without oneDNN they stay as they are."""
    if torch.backends.mkldnn.is_available():
        kinds = {nn.Conv2d: OneDnnConv, nn.Linear: FilledLinear}
        for layer in network.modules():
            layer.__class__ = kinds.get(type(layer), type(layer))
    return network
