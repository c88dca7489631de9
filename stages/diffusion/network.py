"""NCSN++ (Song et al. 2021, https://arxiv.org/abs/2011.13456), noise-conditioned or noise-blind (METHODS §4).

BigGAN residual blocks, FIR resampling, residual progressive input, attention, skip connections scaled by 1/sqrt 2.
Without `noise_conditioning` sigma does not reach the network, without `classes` no class does, and with neither
it has no embedding parameters.
"""

import functools
import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from stages.diffusion.parameters import NetworkParams, NoiseParams, ScoreSpec

SQRT_HALF = 1 / math.sqrt(2)  # keeps the variance of a sum of two
MANY_PIXELS = 256  # from this number on attention's layers are matrix products in bfloat16 on a CPU


def _initialise(layer: nn.Conv2d | nn.Linear, scale: float = 1.0) -> nn.Conv2d | nn.Linear:
    """Variance scaling by the mean of fan-in and fan-out, uniform, as in NCSN++."""
    fan_in, fan_out = nn.init._calculate_fan_in_and_fan_out(layer.weight)
    bound = math.sqrt(3 * max(scale, 1e-10) / ((fan_in + fan_out) / 2))
    nn.init.uniform_(layer.weight, -bound, bound)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def _conv(inputs: int, outputs: int, kernel: int = 3, scale: float = 1.0) -> nn.Module:
    return _initialise(nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2), scale)


def _norm(channels: int) -> nn.GroupNorm:
    """min(C/4, 32) groups as in NCSN++, or the next smaller number that divides C."""
    groups = next(g for g in range(min(channels // 4, 32), 0, -1) if channels % g == 0)
    return nn.GroupNorm(groups, channels, eps=1e-6)


@functools.cache
def _fir_matrix(size: int, dtype: torch.dtype) -> Tensor:
    """Return the filter [1,3,3,1]/8 with stride 2 along one side of an image, zeros outside, (size, size/2)."""
    with torch.inference_mode(False):  # it is cached, and a gradient may pass through it later
        places = torch.arange(size)[:, None] - 2 * torch.arange(size // 2)  # -1, 0, 1, 2 within the filter
        taps = torch.tensor([0.0, 1.0, 3.0, 3.0, 1.0, 0.0]) / 8
        return taps[(places + 2).clamp(0, 5)].to(dtype)


class Resample(nn.Module):
    """Halve or double the resolution: FIR [1,3,3,1] or nearest/average.

    On a CPU the filter is a matrix on either side of the image, since in bfloat16 the gradient of the depthwise
    convolution takes ten times as long, that of the interpolation two to six times.
    """

    def __init__(self, direction: Literal["up", "down"], fir: bool) -> None:
        super().__init__()
        self.direction, self.fir = direction, fir
        if fir and direction == "down":
            taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
            self.register_buffer("kernel", torch.outer(taps, taps)[None, None] / 64, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if not self.fir:
            return (
                functional.avg_pool2d(x, 2) if self.direction == "down" else functional.interpolate(x, scale_factor=2)
            )
        return self._by_matrices(x) if x.device.type == "cpu" else self._by_convolution(x)

    def _by_convolution(self, x: Tensor) -> Tensor:
        if self.direction == "down":
            weight = self.kernel.to(x.dtype).expand(x.shape[1], 1, 4, 4)
            return functional.conv2d(x, weight, stride=2, padding=1, groups=x.shape[1])
        # inside a border of zeros bilinear interpolation is this filter; a transposed convolution loops over channels
        padded = functional.pad(x, (1, 1, 1, 1))
        return functional.interpolate(padded, scale_factor=2, mode="bilinear")[..., 2:-2, 2:-2]

    def _by_matrices(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        if self.direction == "down":
            return _fir_matrix(height, x.dtype).T @ (x @ _fir_matrix(width, x.dtype))
        rows, columns = (2 * _fir_matrix(2 * size, x.dtype) for size in (height, width))
        return rows @ (x @ columns.T)


class Blur(nn.Module):
    """The FIR filter [1,3,3,1] at full resolution, zeros outside: (B, C, H, W) to (B, C, H + 1, W + 1).

    With a 3 x 3 convolution of stride 2 without padding after it, it is NCSN++'s `Downsample` with a convolution, as in
    the residual progressive input.
    """

    def __init__(self) -> None:
        super().__init__()
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
        self.register_buffer("kernel", torch.outer(taps, taps)[None, None] / 64, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self._by_sums(x) if x.device.type == "cpu" else self._by_convolution(x)

    def _by_convolution(self, x: Tensor) -> Tensor:
        weight = self.kernel.to(x.dtype).expand(x.shape[1], 1, 4, 4)
        return functional.conv2d(x, weight, padding=2, groups=x.shape[1])

    def _by_sums(self, x: Tensor) -> Tensor:
        """Sum in float32: the rounding of small products depends on an image's place in memory, hence in the batch."""
        y = functional.pad(x.float(), (2, 2, 2, 2))
        y = y[..., :-3] + 3 * (y[..., 1:-2] + y[..., 2:-1]) + y[..., 3:]
        y = y[..., :-3, :] + 3 * (y[..., 1:-2, :] + y[..., 2:-1, :]) + y[..., 3:, :]
        return (y / 64).to(x.dtype)


class Dropout(nn.Dropout):
    """Dropout whose masks on a CPU take 16 random bits per value, in less than half the time of torch's own.

    The share of dropped values is rounded to a multiple of 2^-16, and the values kept are scaled accordingly.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0 or x.device.type != "cpu":
            return super().forward(x)
        dropped = round(self.p * 65536)
        words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        kept = words.view(torch.int16)[: x.numel()].view(x.shape) >= dropped - 32768
        return x * kept.to(x.dtype).mul_(65536 / (65536 - dropped))


class ResidualBlock(nn.Module):
    """BigGAN residual block: norm, swish, (resample,) conv, + embedding, norm, swish, dropout, conv; skip / sqrt 2."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        params: NetworkParams,
        embedding: int | None,
        resample: Literal["up", "down"] | None = None,
    ) -> None:
        super().__init__()
        self.norm_in, self.norm_out = _norm(inputs), _norm(outputs)
        self.conv_in, self.conv_out = _conv(inputs, outputs), _conv(outputs, outputs, scale=0.0)
        self.project = _initialise(nn.Linear(embedding, outputs)) if embedding else None
        self.resample = Resample(resample, params.fir) if resample else None
        self.skip = _conv(inputs, outputs, kernel=1) if inputs != outputs or resample else None
        self.dropout = Dropout(params.dropout)

    def forward(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        h = _silu(self.norm_in(x))
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = self.conv_in(h)
        if self.project is not None:
            h.add_(self.project(functional.silu(embedding))[:, :, None, None])
        h = self.conv_out(self.dropout(_silu(self.norm_out(h))))
        return h.add_(x if self.skip is None else self.skip(x)).mul_(SQRT_HALF)


def _silu(normed: Tensor) -> Tensor:
    """Return swish of x, computed in place where no gradient needs x."""
    return functional.silu(normed, inplace=not torch.is_grad_enabled())


class Attention(nn.Module):
    """Self-attention over the pixels, one head; skip / sqrt 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.query, self.key, self.value = (_conv(channels, channels, 1, 0.1) for _ in range(3))
        self.out = _conv(channels, channels, 1, scale=0.0)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        if h.device.type == "cpu" and h.dtype == torch.bfloat16 and h[0, 0].numel() >= MANY_PIXELS:
            pixels = h.flatten(2).transpose(1, 2)
            q, k, v = (_product(layer, pixels) for layer in (self.query, self.key, self.value))
            out = _product(self.out, _attend(q, k, v)).transpose(1, 2).reshape(x.shape)
        else:
            q, k, v = (layer(h).flatten(2).transpose(1, 2) for layer in (self.query, self.key, self.value))
            out = self.out(_attend(q, k, v).transpose(1, 2).reshape(x.shape))
        return (x + out) * SQRT_HALF


def _product(layer: nn.Conv2d, pixels: Tensor) -> Tensor:
    """Return the 1 x 1 convolution of pixels (B, n, c) as a matrix product."""
    return functional.linear(pixels, layer.weight[:, :, 0, 0], layer.bias)


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return softmax(q k^T / sqrt c) v for q, k, v (B, n, c). A CPU evaluates the formula, since torch's fused kernel
    takes nine times as long in bfloat16 as in float32."""
    if q.is_cuda:  # the fused kernels expect a dimension of heads
        return functional.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
    return torch.softmax(q @ k.transpose(1, 2) / math.sqrt(q.shape[2]), dim=2) @ v


class LevelEmbedding(nn.Module):
    """Embedding of sigma (B,) as (B, 4 nf): sinusoids of the level's index, or random Fourier features of ln sigma."""

    def __init__(self, params: NetworkParams, sigma_min: float, sigma_max: float, levels: int = 1000) -> None:
        super().__init__()
        nf, self.kind = params.channels, params.embedding
        self.sigma_min, self.log_range, self.top = sigma_min, math.log(sigma_max / sigma_min), levels - 1
        if self.kind == "fourier":
            self.register_buffer("frequencies", torch.randn(nf) * 16)
        else:
            self.register_buffer("frequencies", torch.exp(-math.log(1e4) * torch.arange(nf // 2) / (nf // 2 - 1)))
        width = 2 * nf if self.kind == "fourier" else nf
        self.layers = nn.Sequential(
            _initialise(nn.Linear(width, 4 * nf)), nn.SiLU(), _initialise(nn.Linear(4 * nf, 4 * nf))
        )

    def forward(self, sigma: Tensor) -> Tensor:
        if self.kind == "fourier":
            phase = 2 * math.pi * torch.log(sigma)[:, None] * self.frequencies
        else:
            phase = (torch.log(sigma / self.sigma_min) / self.log_range * self.top)[:, None] * self.frequencies
        return self.layers(torch.cat((torch.sin(phase), torch.cos(phase)), dim=1))


def _pyramid_step(inputs: int, outputs: int, fir: bool) -> nn.Sequential:
    """Halves the resolution of the image that enters, and gives it the features' channels."""
    if not fir:
        return nn.Sequential(Resample("down", fir), _conv(inputs, outputs))
    return nn.Sequential(Blur(), _initialise(nn.Conv2d(inputs, outputs, 3, stride=2)))


class NCSNpp(nn.Module):
    """F of METHODS §4: the score is F/sigma, and F(x) approximates -z for x = x_0 + sigma z.

    forward(x, sigma, label): x float32 (B, C, H, W) in [0,1] units plus noise, sigma (B,) or None, label int64 (B,),
    the place of each image's class, or None; returns (B, C, H, W). A noise-blind network accepts sigma=None alone, so
    that no sigma can leak in. A class-conditional one adds the class's learned vector to the embedding of sigma; where
    it is noise-blind, that vector is the embedding.
    """

    def __init__(
        self,
        params: NetworkParams,
        image_channels: int,
        resolution: int,
        noise_conditioning: bool,
        sigma_min: float = 0.01,
        sigma_max: float = 50.0,
        classes: int = 0,
    ) -> None:
        super().__init__()
        params.check_resolution(resolution)
        self.params, self.noise_conditioning = params, noise_conditioning
        self.image_channels, self.resolution = image_channels, resolution
        image_channels, resolution = image_channels * params.patch**2, resolution // params.patch
        self.embed = LevelEmbedding(params, sigma_min, sigma_max) if noise_conditioning else None
        self._width = 4 * params.channels if noise_conditioning or classes else None
        self.stem = _conv(image_channels, params.channels)
        widths = self._build_down(image_channels, resolution)
        middle = widths[-1]
        self.middle = nn.ModuleList([self._block(middle, middle), Attention(middle), self._block(middle, middle)])
        final = self._build_up(middle, widths, resolution)
        self.norm, self.head = _norm(final), _conv(final, image_channels, scale=0.0)
        # drawn last, so that the other weights are those of the network without classes
        self.classes = nn.Embedding(classes, self._width) if classes else None

    def _block(self, inputs: int, outputs: int, resample: Literal["up", "down"] | None = None) -> ResidualBlock:
        return ResidualBlock(inputs, outputs, self.params, self._width, resample)

    def _attend(self, width: int, resolution: int) -> nn.Module:
        return Attention(width) if resolution in self.params.attention else nn.Identity()

    def _build_down(self, image_channels: int, resolution: int) -> list[int]:
        """Build the encoder; returns the widths of the skip connections in order."""
        nf, p = self.params.channels, self.params
        width, widths = nf, [nf]
        pyramid = image_channels
        self.down, self.reduce, self.enter = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for stage, multiplier in enumerate(p.multipliers):
            level = nn.ModuleList()
            for _ in range(p.blocks):
                level.append(
                    nn.ModuleList([self._block(width, nf * multiplier), self._attend(nf * multiplier, resolution)])
                )
                width = nf * multiplier
                widths.append(width)
            self.down.append(level)
            if stage < len(p.multipliers) - 1:
                self.reduce.append(self._block(width, width, "down"))
                if p.progressive_input:
                    self.enter.append(_pyramid_step(pyramid, width, p.fir))
                    pyramid = width
                widths.append(width)
                resolution //= 2
        return widths

    def _build_up(self, width: int, widths: list[int], resolution: int) -> int:
        nf, p = self.params.channels, self.params
        remaining = list(widths)
        self.up, self.enlarge = nn.ModuleList(), nn.ModuleList()
        for stage, multiplier in reversed(list(enumerate(p.multipliers))):
            level = nn.ModuleList()
            for _ in range(p.blocks + 1):
                level.append(self._block(width + remaining.pop(), nf * multiplier))
                width = nf * multiplier
            level.append(self._attend(width, resolution // 2**stage))
            self.up.append(level)
            if stage:
                self.enlarge.append(self._block(width, width, "up"))
        return width

    def _enter(self, x: Tensor) -> Tensor:
        x = 2 * x - 1
        if self.params.amplitude == "normalised":
            x = x / amplitude(x)
        return functional.pixel_unshuffle(x, self.params.patch)

    def _skip(self, x: Tensor) -> Tensor:
        """Return (1 - (skip_above / level)^2)_+ x^, what is taken off the output: x^ is nearly z at a high noise level.

        level = amplitude/2 is read from x, which a noise-blind network may do, and x^ = (2x-1)/amplitude.
        """
        x = 2 * x - 1
        divisor = amplitude(x)
        return (1 - (2 * self.params.skip_above / divisor).square()).clamp_min(0) * x / divisor

    def _embedding(self, sigma: Tensor | None, label: Tensor | None) -> Tensor | None:
        if (sigma is None) == self.noise_conditioning:
            raise ValueError("a noise-conditioned network needs sigma, a noise-blind one takes None")
        if (label is None) != (self.classes is None):
            raise ValueError("a class-conditional network needs labels, any other takes None")
        level = None if self.embed is None else self.embed(sigma)
        if self.classes is None:
            return level
        return self.classes(label) if level is None else level + self.classes(label)

    def forward(self, x: Tensor, sigma: Tensor | None, label: Tensor | None = None) -> Tensor:
        embedding = self._embedding(sigma, label)
        h, skips = self._encode(self._enter(x), embedding)
        first, attention, second = self.middle
        h = second(attention(first(h, embedding)), embedding)
        h = self._decode(h, skips, embedding)
        out = functional.pixel_shuffle(self.head(functional.silu(self.norm(h))), self.params.patch)
        return out if self.params.skip_above is None else out - self._skip(x)

    def _encode(self, pyramid: Tensor, embedding: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        h = self.stem(pyramid)
        skips = [h]
        for stage, level in enumerate(self.down):
            for block, attention in level:
                h = attention(block(h, embedding))
                skips.append(h)
            if stage < len(self.reduce):
                h = self.reduce[stage](h, embedding)
                if self.params.progressive_input:
                    pyramid = (self.enter[stage](pyramid) + h) * SQRT_HALF
                    h = pyramid
                skips.append(h)
        return h, skips

    def _decode(self, h: Tensor, skips: list[Tensor], embedding: Tensor | None) -> Tensor:
        for stage, level in enumerate(self.up):
            *blocks, attention = level
            for block in blocks:
                h = block(torch.cat((h, skips.pop()), dim=1), embedding)
            h = attention(h)
            if stage < len(self.enlarge):
                h = self.enlarge[stage](h, embedding)
        return h


def amplitude(x: Tensor) -> Tensor:
    """Return sqrt(mean square + 1/4) of every image, about 2 sigma at a high noise level, (B, 1, 1, 1).

    x: 2 times an image minus 1, (B, C, H, W).
    """
    return torch.sqrt((x * x).mean((1, 2, 3), keepdim=True) + 0.25)


def build_network(
    params: NetworkParams, spec: ScoreSpec, noise: NoiseParams, image_shape: tuple[int, int, int], classes: int = 0
) -> NCSNpp:
    """Return the network of a specification for images (C, H, W), H = W, with random weights, on the CPU.

    classes: their number, for a class-conditional network.
    """
    channels, height, _ = image_shape
    return NCSNpp(params, channels, height, spec.conditioned, noise.sigma_min, noise.sigma_max, classes)
