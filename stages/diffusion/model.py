"""A score ready to be sampled: the specification, the training images, and a network with its weights on its device."""

import copy
import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from stages.device import memory_format, pick_device, uses_bfloat16
from stages.diffusion import noise
from stages.diffusion.classes import places
from stages.diffusion.network import NCSNpp, build_network
from stages.diffusion.parameters import NetworkParams, NoiseParams, ScoreSpec, Variant
from stages.diffusion.samplers import Level, Score
from stages.diffusion.scores import Centres, make_centres
from stages.diffusion.variants import Batch, build_score, network_score, pixel_rows
from stages.engine.fixed_rounding import with_fixed_rounding
from stages.errors import InputError
from stages.files.artifacts import differing
from stages.files.tensors import load_tensors, shared_tensor
from stages.search.nearest_float import Reference, min_distance, prepare

READY_BYTES = 1 << 32
"""Memory that the training images may take as float32, for the actual noise level; more are converted in blocks."""


@dataclasses.dataclass(frozen=True)
class Model:
    """A score ready to be sampled.

    Attributes:
        variant: the score's specification and the sampler.
        sigmas: float64 (L,), the sampler's levels in descending order.
        images: the training images, uint8 (M, H, W, C), possibly memory-mapped; pixels move to the device when used.
        device: where samples are drawn.
        network: None for closed forms.
        bfloat16: whether the network's products run in it.
        labels: int64 (M,), for a class-conditional network the place of each training image's class.
    """

    variant: Variant
    sigmas: Tensor
    images: np.ndarray
    device: torch.device
    network: torch.nn.Module | None
    bfloat16: bool = False
    labels: np.ndarray | None = None

    @functools.cached_property
    def pixels(self) -> Tensor:
        """The training images as rows of `pixel_rows`, uint8 (M, d) on the device; on a CPU they are not copied."""
        return shared_tensor(self.images.reshape(len(self.images), -1)).to(self.device)

    @functools.cached_property
    def centres(self) -> Centres:
        """The training images as centres of the closed-form scores."""
        return make_centres(self.pixels)

    @functools.cached_property
    def _reference(self) -> Reference | Tensor:
        """The images that `actual_level` searches, prepared once where READY_BYTES allow it."""
        return prepare(self.pixels, self.device) if 4 * self.images.size <= READY_BYTES else self.pixels

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W)."""
        height, width, channels = self.images.shape[1:]
        return channels, height, width

    def training_images(self, rows: Tensor) -> Tensor:
        """Return images uint8 (n, C, H, W), contiguous, on the device; rows: int64 (n,)."""
        images = torch.from_numpy(self.images[rows.cpu().numpy()]).to(self.device).movedim(-1, 1)
        return images.clone(memory_format=torch.contiguous_format)

    def score(self, batch: Batch) -> Score:
        """Return score(x, sigma) for the samples of a batch."""
        if self.network is None:
            return build_score(self.variant, self.centres, self.sigmas, batch)
        return network_score(self.network, self.variant.conditioned, self.bfloat16, self.sample_classes(batch.indices))

    def sample_classes(self, indices: Tensor) -> Tensor | None:
        """Return the places of the samples' classes, which take turns, int64 (B,); None without classes."""
        return None if self.labels is None else (indices % (int(self.labels.max()) + 1)).to(self.device)

    @functools.cached_property
    def of_class(self) -> "Callable[[int], Model]":
        """of_class(place): the model among the training images of one class. Its network is told that class always."""

        @functools.cache
        def model(place: int) -> Model:
            images = self.images[self.labels == place]
            return dataclasses.replace(self, images=images, network=OneClass(self.network, place), labels=None)

        return model

    def level(self, indices: Tensor) -> Level:
        """Return the actual noise level of the samples `indices`; with classes, among the images of each one's own."""
        label = self.sample_classes(indices)
        if label is None:
            return self.actual_level

        def level(x: Tensor) -> Tensor:
            found = torch.empty(len(x), dtype=torch.float64, device=x.device)
            for place in label.unique().tolist():
                rows = label == place
                found[rows] = self.of_class(place).actual_level(x[rows])
            return found

        return level

    def actual_level(self, x: Tensor) -> Tensor:
        """Return min_i |x - x_i| / sqrt d of x float32 (B, C, H, W), exact, float64 (B,) (METHODS §1.3)."""
        return min_distance(pixel_rows(x), self._reference)[1] / x[0].numel() ** 0.5


class OneClass(torch.nn.Module):
    """A class-conditional network that is told the same class for every image."""

    def __init__(self, network: torch.nn.Module, place: int) -> None:
        super().__init__()
        self.network, self.place = network, place

    def forward(self, x: Tensor, sigma: Tensor | None) -> Tensor:
        """Return F(x, sigma) of the class."""
        return self.network(x, sigma, torch.full((len(x),), self.place, device=x.device))


def load_model(
    score: dict[str, Any],
    sampler: dict[str, Any],
    images: np.ndarray,
    weights: str | None,
    device: str,
    precision: str = "float32",
    compiled: bool = False,
    labels: np.ndarray | None = None,
) -> Model:
    """Return the model of a trained or closed-form score.

    Args:
        score: the content of score.json.
        sampler: the sampler's parameters.
        images: the training images, uint8 (M, H, W, C).
        weights: path of a network's weights; None for a closed form.
        device: auto, cpu or cuda.
        precision: type of the network's products, float32, bfloat16 or auto.
        compiled: whether the network goes through torch.compile.
        labels: int64 (M,), the training images' labels, which a class-conditional score needs.
    Raises InputError where score.json describes no score, or the weights are not those of the described network.
    """
    height, width, channels = images.shape[1:]
    variant, levels = _describe(score, Variant, sampler=sampler)
    network = None if weights is None else load_network(score, Path(weights), (channels, height, width))
    model = make_model(variant, levels, images, network, torch.device(pick_device(device)), precision, compiled)
    return dataclasses.replace(model, labels=places(labels, score["classes"])) if "classes" in score else model


def _describe(score: Any, kind: type[ScoreSpec] = ScoreSpec, **more: Any) -> tuple[Any, NoiseParams]:
    try:
        return kind(**score["spec"], **more), NoiseParams(**score["noise"])
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
    """Return a model on `device`, the network included; the other arguments are those of `load_model`."""
    half = uses_bfloat16(precision, device)
    if network is not None:
        network = prepare_network(network, device, half, compiled)
    return Model(variant, noise.levels(levels, variant.sampler.levels), images, device, network, half)


def prepare_network(network: NCSNpp, device: torch.device, bfloat16: bool, compiled: bool = False) -> torch.nn.Module:
    """Return the network on `device`, ready for `network_score`: itself, or a copy that shares what it can.

    bfloat16: the weights of its products are cast once, which autocast would do at every evaluation, to the same bits.
    In float32 on a CPU the rounding becomes the same for every batch (`fixed_rounding`), except for the compiler's own
    kernels.
    """
    network = network.to(device, memory_format=memory_format(device, bfloat16)).eval()
    if bfloat16:
        network = copy.deepcopy(network).requires_grad_(False)
        for layer in network.modules():
            if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
                layer.to(torch.bfloat16)
    elif device.type == "cpu" and not compiled:
        network = with_fixed_rounding(copy.deepcopy(network, {id(p): p for p in network.parameters()}))
    return torch.compile(network, dynamic=False) if compiled else network  # all batches have one size


def load_network(score: dict[str, Any], weights: Path, image_shape: tuple[int, int, int] | None = None) -> NCSNpp:
    """Return the network that score.json describes, with the weights of a file that train wrote, on the CPU.

    Raises InputError naming the file where it is missing or damaged, belongs to another score (naming the keys that
    differ) or to images of another shape than `image_shape` (C, H, W), holds NaN or infinity, or is not from train.
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
    shape, classes = (channels, height, width), len(score.get("classes", ()))
    network = build_network(NetworkParams(**score["network"]), *_describe(score), shape, classes)
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise InputError(
            f"{weights} does not fit its score.json: rerun train ({' '.join(str(error).split())})"
        ) from error
    if broken := [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]:
        raise InputError(f"{weights} holds weights that are not finite ({broken[0]}): rerun train")
    return network.eval()
