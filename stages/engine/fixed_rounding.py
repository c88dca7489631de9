"""Layers whose float32 rounding on a CPU does not depend on how many images are in the batch.

With a single thread torch computes a small convolution of fewer than 16 images by another routine than a larger one;
a product of one or two rows has a routine of its own, too. They sum in another order, so that the last bits of sample i
would depend on the batch in which it is drawn. Measured with batches from 1 to 64 on processors with AVX-512, the
layers here take up to a tenth longer at 4 images, and no longer at 64.
"""

import torch
from torch import Tensor, nn

MIN_ROWS = 16  # rows of a product from which on torch uses one routine


class OneDnnConv(nn.Conv2d):
    """A convolution that oneDNN computes at every size."""

    def forward(self, x: Tensor) -> Tensor:
        """x float32 (B, C, H, W)."""
        last = self.weight.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if last else torch.contiguous_format
        return torch.mkldnn_convolution(
            x.contiguous(memory_format=layout),
            self.weight,
            self.bias,
            self.padding,
            self.stride,
            self.dilation,
            self.groups,
        )


class FilledLinear(nn.Linear):
    """A product of at least MIN_ROWS rows; the rows that were added are dropped again."""

    def forward(self, x: Tensor) -> Tensor:
        """x (B, inputs)."""
        full = x if len(x) >= MIN_ROWS else torch.cat((x, x[-1:].expand(MIN_ROWS - len(x), -1)))
        return super().forward(full)[: len(x)]


def with_fixed_rounding(network: nn.Module) -> nn.Module:
    """Turn the network's layers into these, in place, and return it; without oneDNN they stay as they are."""
    if torch.backends.mkldnn.is_available():
        kinds = {nn.Conv2d: OneDnnConv, nn.Linear: FilledLinear}
        for layer in network.modules():
            layer.__class__ = kinds.get(type(layer), type(layer))
    return network
