"""3 x 3 convolutions in float32 on a CPU by Winograd's F(4 x 4, 3 x 3) (Lavin & Gray 2016, arXiv 1509.09308).

With tiles d of 6 x 6 pixels and kernels g, 4 x 4 outputs take 36 products per pair of channels instead of 144:

    y = A' [ (G g G') o (B' d B) ] A

summed over channels, so that each of the 36 places is one matrix product (tiles x inputs) (inputs x outputs). The
transforms cost additions alone, and pay from about 128 channels on. Rounding is about ten times that of the direct sum:
1.5e-6 of the result's norm instead of 1.6e-7.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

CHANNELS = 128  # of input and output, from which on it is faster
SIDE = 8  # of the images, likewise
_KERNEL = [[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]  # 24 G


class WinogradConv(nn.Module):
    """A 3 x 3 convolution with padding 1 with fixed weights; images whose sides are no multiples of 4, or below SIDE,
    go through the convolution that it was made from."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.layer = layer
        g = torch.tensor(_KERNEL, dtype=torch.float64) / 24
        products = torch.einsum("ia,ocab,jb->ijco", g, layer.weight.detach().double(), g)
        self.register_buffer("products", products.flatten(0, 1).float().contiguous(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x float32 (B, C, H, W); returns (B, O, H, W)."""
        batch, channels, height, width = x.shape
        if height % 4 or width % 4 or min(height, width) < SIDE:
            return self.layer(x)
        tall, wide, outputs = height // 4, width // 4, self.layer.out_channels
        image = functional.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))  # channels last: the transforms add vectors
        rows = x.new_empty(6, batch, tall, width + 2, channels)
        _enter([image[:, k : k + height - 3 : 4] for k in range(6)], rows)
        tiles = x.new_empty(6, 6, batch, tall, wide, channels)
        _enter([rows[:, :, :, k : k + width - 3 : 4] for k in range(6)], tiles.transpose(0, 1))
        products = torch.bmm(tiles.view(36, -1, channels), self.products)
        columns = x.new_empty(4, 6, batch, tall, wide, outputs)
        _leave(products.view(6, 6, batch, tall, wide, outputs).unbind(0), columns)
        out = x.new_empty(batch, tall, 4, wide, 4, outputs)
        _leave(columns.unbind(1), out.permute(4, 2, 0, 1, 3, 5))
        out = out.view(batch, height, width, outputs).permute(0, 3, 1, 2)
        return torch.add(out, self.layer.bias[:, None, None], out=x.new_empty(batch, outputs, height, width))


def _enter(d: list[Tensor], out: Tensor) -> None:
    """out = B' d along one side: six lines of pixels to six."""
    torch.sub(d[4], d[2], alpha=5, out=out[0]).add_(d[0], alpha=4)
    torch.sub(d[1], d[3], alpha=1.25, out=out[5]).mul_(4).add_(d[5])
    even, odd = torch.sub(d[4], d[2], alpha=4), torch.sub(d[3], d[1], alpha=4)
    torch.add(even, odd, out=out[1])
    torch.sub(even, odd, out=out[2])
    torch.sub(d[4], d[2], out=even)
    torch.sub(d[3], d[1], out=odd)
    torch.add(even, odd, alpha=2, out=out[3])
    torch.sub(even, odd, alpha=2, out=out[4])


def _leave(m: tuple[Tensor, ...], out: Tensor) -> None:
    """out = A' m along one side: six lines to four."""
    near, far = m[1] + m[2], m[3] + m[4]
    torch.add(m[0], near, out=out[0]).add_(far)
    torch.add(near, far, alpha=4, out=out[2])
    torch.sub(m[1], m[2], out=near)
    torch.sub(m[3], m[4], out=far)
    torch.add(near, far, alpha=2, out=out[1])
    torch.add(near, far, alpha=8, out=out[3]).add_(m[5])


def suits(layer: nn.Module) -> bool:
    """Whether `layer` is a convolution that `WinogradConv` computes faster."""
    if not isinstance(layer, nn.Conv2d) or layer.bias is None:
        return False
    plain = layer.kernel_size == (3, 3) and layer.padding == (1, 1) and layer.stride == (1, 1) and layer.groups == 1
    return plain and min(layer.in_channels, layer.out_channels) >= CHANNELS


def with_winograd(network: nn.Module) -> nn.Module:
    """Replace the convolutions that it suits, in place; returns the network."""
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if suits(child):
                setattr(module, name, WinogradConv(child))
    return network
