"""Encoders: uint8 images to float32 features. An image's feature does not depend on the other images of its batch."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from stages.device import pick_device
from stages.errors import InputError
from stages.features import networks
from stages.features.weights import CLEAN_FID_SIZE, TIMM, EncoderParams, weights_file
from stages.files.artifacts import sha256_file
from stages.files.features import FeatureTable
from stages.files.images import ImageTable

PROGRESS_ROWS = 256  # images between two updates of a progress bar

# Every forward pass has exactly this many images, the last one filled up with black images: the size of a batch
# decides which kernels run, so a feature differs in its last bits between batches of 1 and of 16.
# 16 is also the fastest on a CPU, where the maps of a larger batch do not fit into the cache.
CPU_BATCH, GPU_BATCH = 16, 256
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A loaded encoder: call it with images uint8 (B, H, W, C), C 1 or 3, to get float32 (B, D).

    An encoder of colour images receives the channel of grey images three times.

    Attributes:
        name: as in params.yaml.
        metadata: encoder, weights_sha256, preprocessing, precision: features are comparable if these agree.
        dimension: D; None for `pixels`, where it is H·W·C of the images.
        embed: a full batch uint8 (batch, H, W, C) to float32 (batch, D).
        batch: images per forward pass; the result does not depend on how many are passed in a call.
    """

    name: str
    metadata: dict[str, Any]
    dimension: int | None
    embed: Callable[[np.ndarray], np.ndarray]
    batch: int

    def __call__(self, images: np.ndarray) -> np.ndarray:
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
            raise InputError(f"an encoder takes uint8 (B, H, W, 1 or 3) images, not {images.dtype} {images.shape}")
        features = np.empty((len(images), self.dimension or int(np.prod(images.shape[1:]))), np.float32)
        for start in range(0, len(images), self.batch):
            block = images[start : start + self.batch]
            black = np.zeros((self.batch - len(block), *block.shape[1:]), np.uint8)
            features[start : start + len(block)] = self.embed(np.concatenate([block, black]))[: len(block)]
        return features


def embed_rows(encoder: Encoder, table: ImageTable, rows: slice, title: str) -> FeatureTable:
    """The features of rows start..stop of an image table, under a progress bar called `title`."""
    features = []
    with tqdm(total=rows.stop - rows.start, desc=title, unit="img", mininterval=2) as bar:
        for first in range(rows.start, rows.stop, PROGRESS_ROWS):
            features.append(encoder(table.images[first : min(first + PROGRESS_ROWS, rows.stop)]))
            bar.update(len(features[-1]))
    return FeatureTable(np.concatenate(features), table.ids[rows], encoder.metadata)


def load_encoder(params: EncoderParams, device: str = "auto") -> Encoder:
    """Load the encoder that `params` names on `device` ("auto": a GPU if one is visible).

    On a GPU every encoder but inception_v3 runs under autocast (bfloat16, or float16 on GPUs without it);
    inception_v3 runs in float32, as clean-fid does. A CPU always computes in float32.

    Raises InputError when the weights are missing, have another sha256, or belong to another network.
    """
    if params.name == "pixels":
        metadata = {"encoder": "pixels", "weights_sha256": None, "preprocessing": "/255", "precision": "float32"}
        return Encoder("pixels", metadata, None, lambda x: x.reshape(len(x), -1).astype(np.float32) / 255, 1024)
    path, device = weights_file(params), pick_device(device)
    recipe, on_gpu = _recipe(params, path), device.startswith("cuda")
    precision = "float32"
    if on_gpu and params.name != "inception_v3":
        precision = "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
    metadata = {
        "encoder": params.name,
        "weights_sha256": sha256_file(path) if path else _sha256_state(recipe.network),
        "preprocessing": recipe.preprocessing,
        "precision": precision,
    }
    embed = _forward(recipe.network, recipe.prepare, device, precision)
    return Encoder(params.name, metadata, recipe.dimension, embed, GPU_BATCH if on_gpu else CPU_BATCH)


class Recipe(NamedTuple):
    """An encoder's network, its D, the map from uint8 images to the network's input, and that map's description."""

    network: nn.Module
    dimension: int
    prepare: Callable[[torch.Tensor], torch.Tensor]
    preprocessing: str


def _recipe(params: EncoderParams, path: Path | None) -> Recipe:
    if params.name == "inception_v3":
        words = f"clean-fid {CLEAN_FID_SIZE}: bicubic per channel, float; (x - 128)/128"
        return Recipe(networks.inception_v3(path), 2048, _clean_fid_input, words)
    if params.name.startswith(TIMM):
        network, config = networks.timm_model(params.name.removeprefix(TIMM), path)
        size, mean, deviation = params.resize or config.size, config.mean, config.deviation
        dimension, words = config.dimension, f"mean {mean}, deviation {deviation}"
    else:
        size, mean, deviation = params.resize or 224, IMAGENET_MEAN, IMAGENET_STD
        small = params.name == "resnet18"
        network = networks.resnet18(path) if small else networks.efficientnet_lite0(path, size)
        dimension, words = 512 if small else 1280, "ImageNet mean and deviation"
    prepare = functools.partial(_normalized_input, size=size, mean=mean, deviation=deviation)
    return Recipe(network, dimension, prepare, f"bilinear {size} (antialiased downwards), {words}")


def _normalized_input(
    images: torch.Tensor, size: int, mean: tuple[float, ...], deviation: tuple[float, ...]
) -> torch.Tensor:
    """uint8 (B, H, W, C) to float32 (B, 3, size, size): resized, then normalised as the network expects."""
    x = images.permute(0, 3, 1, 2).float() / 255
    x = nn.functional.interpolate(
        x, size=(size, size), mode="bilinear", align_corners=False, antialias=size < max(x.shape[2:])
    )
    centre, scale = (torch.tensor(v, device=x.device).view(1, 3, 1, 1) for v in (mean, deviation))
    return (x.expand(-1, 3, -1, -1) - centre) / scale


def _clean_fid_input(images: torch.Tensor) -> torch.Tensor:
    """uint8 (B, H, W, C) to float32 (B, 3, 299, 299) on the 0..255 scale, by clean-fid's own resizer."""
    from cleanfid.resize import build_resizer  # takes seconds, and only inception_v3 needs it

    resize = build_resizer("clean")
    colour = np.broadcast_to(images.cpu().numpy(), (*images.shape[:3], 3))
    resized = np.stack([resize(image) for image in colour])
    return torch.from_numpy(resized).to(images.device).permute(0, 3, 1, 2)


def _sha256_state(network: nn.Module) -> str:
    """Hex sha256 of all of a network's tensors: identifies weights that came without a file."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _forward(network: nn.Module, prepare: Callable, device: str, precision: str) -> Callable[[np.ndarray], np.ndarray]:
    """The forward pass of one full batch: channels last, no gradients, deterministic kernels, no TF32."""
    layout = torch.channels_last
    network = network.to(device, memory_format=layout)

    def embed(images: np.ndarray) -> np.ndarray:
        deterministic = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
        autocast = torch.autocast(device.split(":")[0], getattr(torch, precision), enabled=precision != "float32")
        with torch.inference_mode(), deterministic:
            # a copy, because memory-mapped pixels are read-only and torch has no read-only tensors
            x = prepare(torch.tensor(images, device=device)).contiguous(memory_format=layout)
            with autocast:
                return network(x).float().cpu().numpy()

    return embed
