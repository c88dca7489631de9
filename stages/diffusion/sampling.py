"""From a described score to samples: the model is loaded once, then batches of sample numbers become images."""

import copy
import dataclasses
import functools
import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from stages.device import memory_format, pick_device, uses_bfloat16
from stages.diffusion import noise, samplers, winograd
from stages.diffusion.checkpoint import differing
from stages.diffusion.network import NCSNpp
from stages.diffusion.parameters import NetworkParams, NoiseParams, Variant
from stages.diffusion.scores import Centres, cfdm_velocity, make_centres
from stages.diffusion.variants import Batch, as_images, closed_form_score, kernel_draws, network_score, pixel_rows
from stages.engine.fixed_rounding import with_fixed_rounding
from stages.errors import InputError
from stages.files.tensors import load_tensors
from stages.search.nearest_float import Reference, min_distance, prepare

READY_BYTES = 1 << 32
"""Memory that the training images may take as float32, for the actual noise level; more are converted in blocks."""

_NO_SAMPLER = {"name": "euler", "levels": 2}  # a network is the same whatever samples it


@dataclasses.dataclass(frozen=True)
class Model:
    """A score ready to be sampled.

    Attributes:
        variant: the variant as data.
        sigmas: float64 (L,), the sampler's levels in descending order.
        images: the training images, uint8 (M, H, W, C), memory-mapped if they come so; what needs their pixels on the
            device takes them there.
        device: where samples are drawn.
        network: None for closed forms.
        bfloat16: whether the network's products run in it.
    """

    variant: Variant
    sigmas: Tensor
    images: np.ndarray
    device: torch.device
    network: torch.nn.Module | None
    bfloat16: bool = False

    @functools.cached_property
    def pixels(self) -> Tensor:
        """The training images as rows of `pixel_rows`, uint8 (M, d) on the device: on a CPU no copy."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nobody writes
            return torch.from_numpy(self.images.reshape(len(self.images), -1)).to(self.device)

    @functools.cached_property
    def centres(self) -> Centres:
        """The training images as centres of the closed-form scores."""
        return make_centres(self.pixels)

    @functools.cached_property
    def _reference(self) -> Reference | Tensor:
        """For `actual_level`: made ready once, if that takes not too much memory."""
        few = 4 * self.images.size <= READY_BYTES
        return prepare(self.pixels, self.device) if few else self.pixels

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W)."""
        height, width, channels = self.images.shape[1:]
        return channels, height, width

    def training_images(self, rows: Tensor) -> Tensor:
        """uint8 (n, C, H, W) on the device; rows: int64 (n,)."""
        images = torch.from_numpy(self.images[rows.cpu().numpy()]).to(self.device).movedim(-1, 1)
        return images.clone(memory_format=torch.contiguous_format)  # strides, too, are those of (C, H, W)

    def score(self, batch: Batch) -> samplers.Score:
        """score(x, sigma) for the samples of a batch."""
        if self.network is not None:
            return network_score(self.network, self.variant.conditioned, self.bfloat16)
        return closed_form_score(self.variant, self.centres, self.sigmas, batch)

    def actual_level(self, x: Tensor) -> Tensor:
        """sigma_hat = min_i |x - x_i| / sqrt d of x float32 (B, C, H, W), exact: float64 (B,) (METHODS §1.3)."""
        return min_distance(pixel_rows(x), self._reference)[1] / x[0].numel() ** 0.5


def load_model(
    score: dict[str, Any],
    sampler: dict[str, Any],
    images: np.ndarray,
    weights: str | None,
    device: str,
    precision: str = "float32",
    compiled: bool = False,
) -> Model:
    """A model from score.json's content, the sampler's parameters, the training images uint8 (M, H, W, C) and, for a
    network, the path of its weights, the precision of its products (float32, bfloat16 or auto), and whether it goes
    through torch.compile.

    Raises InputError when that describes no score, or the weights are not those of the described network.
    """
    network, where = None, torch.device(pick_device(device))
    variant, levels = _described(score, sampler)
    if weights is not None:
        height, width, channels = images.shape[1:]
        network = load_network(score, Path(weights), (channels, height, width))
    return make_model(variant, levels, images, network, where, precision, compiled)


def _described(score: Any, sampler: dict[str, Any]) -> tuple[Variant, NoiseParams]:
    try:
        return Variant(**score["spec"], sampler=sampler), NoiseParams(**score["noise"])
    except (KeyError, TypeError, ValidationError) as error:
        words = " ".join(str(error).split())
        raise InputError(f"score.json does not describe a score ({words}): rerun its train stage") from error


def make_model(
    variant: Variant,
    levels: NoiseParams,
    images: np.ndarray,
    network: NCSNpp | None,
    device: torch.device,
    precision: str = "float32",
    compiled: bool = False,
) -> Model:
    """A model on `device`, network included; images: uint8 (M, H, W, C); the rest: as in `load_model`."""
    half = uses_bfloat16(precision, device)
    if network is not None:
        network = prepare_network(network, device, half, compiled)
    return Model(variant, noise.levels(levels, variant.sampler.levels), images, device, network, half)


def prepare_network(network: NCSNpp, device: torch.device, bfloat16: bool, compiled: bool = False) -> torch.nn.Module:
    """The network on `device`, ready to be evaluated by `network_score`: itself, or a copy that shares what it can.

    bfloat16: the weights of its products are cast once, which autocast would do at every evaluation, to the same bits.
    In float32 on a CPU rounding becomes that of any batch (`fixed_rounding`; the compiler's kernels have their own),
    and wide convolutions become `winograd`'s, with four times their weights in memory.
    """
    network = network.to(device, memory_format=memory_format(device)).eval()
    if bfloat16:
        network = copy.deepcopy(network).requires_grad_(False)
        for layer in network.modules():
            if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
                layer.to(torch.bfloat16)
    elif device.type == "cpu":
        network = copy.deepcopy(network, {id(p): p for p in network.parameters()})
        network = winograd.with_winograd(network)
        network = network if compiled else with_fixed_rounding(network)
    return torch.compile(network, dynamic=False) if compiled else network  # batches are all of one size


def load_network(score: dict[str, Any], weights: Path, image_shape: tuple[int, int, int] | None = None) -> NCSNpp:
    """The network that score.json describes, with the weights of a file that train wrote, on the CPU.

    Raises InputError naming the file where it is missing or damaged, belongs to another score (which keys differ), to
    images of another shape than `image_shape` (C, H, W), holds NaN or infinity, or is no file of train's.
    """
    tensors, metadata = load_tensors(weights)
    if not {"score", "image_shape"} <= set(metadata):
        raise InputError(f"{weights} does not say which score it holds: rerun its train stage")
    own, wanted = ({k: v for k, v in each.items() if k != "variant"} for each in (metadata["score"], score))
    if lines := differing(own, wanted):
        name = metadata["score"].get("variant")
        raise InputError(f"{weights} holds the weights of another score ({name}): {'; '.join(lines)}: rerun train")
    channels, height, width = metadata["image_shape"]
    if image_shape is not None and (channels, height, width) != image_shape:
        raise InputError(
            f"{weights} was trained on images of {height} x {width} x {channels}, these are "
            f"{image_shape[1]} x {image_shape[2]} x {image_shape[0]}: rerun train"
        )
    variant, levels = _described(score, _NO_SAMPLER)
    params = NetworkParams(**score["network"])
    network = NCSNpp(params, channels, height, variant.conditioned, levels.sigma_min, levels.sigma_max)
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise InputError(
            f"{weights} does not fit its score.json: rerun train ({' '.join(str(error).split())})"
        ) from error
    if broken := [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]:
        raise InputError(f"{weights} holds weights that are not finite ({broken[0]}): rerun train")
    return network.eval()


@torch.inference_mode()
def trajectory(model: Model, seed: int, indices: Tensor) -> Iterator[Tensor]:
    """States of the samples `indices` (int64 (B,)) after every step, float32 (B, C, H, W)."""
    indices = indices.to(model.device)
    batch = Batch(seed, indices)

    def draw(n: int) -> Tensor:
        return noise.normal(seed, indices, n, model.shape)

    yield from SAMPLERS[model.variant.sampler.name](model, batch, draw)


def sample_batch(model: Model, seed: int, indices: Tensor) -> np.ndarray:
    """The samples `indices` as uint8 (B, H, W, C). A sample that is not finite raises FloatingPointError."""
    return to_uint8(last_states(model, seed, indices)[0])


def last_states(model: Model, seed: int, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Where the samples `indices` end, float32 (B, C, H, W), and after which step each moved no more, int64 (B,).

    A sample that is not finite raises FloatingPointError.
    """
    x, steps = None, torch.zeros(len(indices), dtype=torch.int64, device=model.device)
    for step, state in enumerate(trajectory(model, seed, indices), 1):
        moved = torch.ones_like(steps, dtype=torch.bool) if x is None else (state != x).flatten(1).any(1)
        x, steps = state, torch.where(moved, step, steps)
    if not torch.isfinite(x).all():
        wrong = indices[~torch.isfinite(x).flatten(1).all(1).cpu()][:5].tolist()
        raise FloatingPointError(f"samples {wrong} of variant form {model.variant.form} are not finite")
    return x, steps


def to_uint8(x: Tensor) -> np.ndarray:
    """x (B, C, H, W) in [0,1] units, clipped and rounded: uint8 (B, H, W, C)."""
    return (x.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def draw_samples(model: Model, seed: int, count: int, batch: int) -> np.ndarray:
    """Samples 0..count-1 as uint8 (count, H, W, C), `batch` at a time."""
    drawn = []
    for first in range(0, count, batch):  # the last batch is filled up, so that rounding is the same in all
        indices = torch.arange(first, first + batch)
        drawn.append(sample_batch(model, seed, indices)[: count - first])
    return np.concatenate(drawn)


def _reverse(ode: bool) -> Callable[[Model, Batch, samplers.Draw], Iterator[Tensor]]:
    def run(model: Model, batch: Batch, draw: samplers.Draw) -> Iterator[Tensor]:
        return samplers.reverse_diffusion(
            model.score(batch), draw, model.sigmas, ode=ode, snr=model.variant.sampler.snr
        )

    return run


def _karras(heun: bool) -> Callable[[Model, Batch, samplers.Draw], Iterator[Tensor]]:
    return lambda model, batch, draw: samplers.karras(model.score(batch), draw, model.sigmas, heun=heun)


def _actual_noise(model: Model, batch: Batch, draw: samplers.Draw) -> Iterator[Tensor]:
    params = model.variant.sampler
    return samplers.actual_noise(
        model.score(batch),
        draw,
        model.sigmas,
        step=params.step,
        exact_below=params.exact_below,
        level=model.actual_level,
    )


def _gradient_ascent(model: Model, batch: Batch, draw: samplers.Draw) -> Iterator[Tensor]:
    params = model.variant.sampler
    return samplers.gradient_ascent(
        model.score(batch),
        draw,
        model.sigmas,
        step=params.step,
        stop_below=params.stop_below,
        level=model.actual_level,
    )


def _cfdm(model: Model, batch: Batch, draw: samplers.Draw) -> Iterator[Tensor]:
    shifts = kernel_draws(model.variant, math.prod(model.shape), batch)

    def velocity(z: Tensor, t: float) -> Tensor:
        found = cfdm_velocity(model.centres, pixel_rows(z).double(), t, shifts, model.variant.kernel.h)
        return as_images(found, z)

    return samplers.cfdm(velocity, draw, model.variant.sampler.levels)


SAMPLERS: dict[str, Callable[[Model, Batch, samplers.Draw], Iterator[Tensor]]] = {
    "reverse-sde": _reverse(ode=False),
    "reverse-ode": _reverse(ode=True),
    "euler": _karras(heun=False),
    "heun": _karras(heun=True),
    "actual-noise": _actual_noise,
    "gradient-ascent": _gradient_ascent,
    "cfdm": _cfdm,
}
