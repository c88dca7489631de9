"""Encoders: uint8 images to float32 features, the same for an image whatever its batch, shard or neighbours."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from stages.device import pick_device
from stages.errors import InputError
from stages.features.weights import CLEAN_FID_SIZE, TIMM, EncoderParams, pinned, weights_file
from stages.files.artifacts import sha256_file
from stages.files.features import FeatureTable
from stages.files.images import ImageTable

if TYPE_CHECKING:
    import torch

__all__ = ["Encoder", "EncoderParams", "embed_rows", "load_encoder", "pinned"]

PROGRESS_ROWS = 256  # images between two updates of a progress bar

# Every forward pass has exactly this many images, the last one filled up with black ones: the kernels that run
# depend on the batch's size (a feature differs in its last bits between batches of 1 and of 16), not on its content.
# 16 is also the fastest on a CPU, where the maps of a larger batch leave the cache.
CPU_BATCH, GPU_BATCH = 16, 256
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A loaded encoder: call it with images uint8 (B, H, W, C), C 1 or 3, to get float32 (B, D).

    Grey images go to a colour encoder with their one channel in all three places.

    Attributes:
        name: as in params.yaml.
        metadata: encoder, weights_sha256, preprocessing, precision: what makes features comparable.
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
            missing = self.batch - len(block)
            full = np.concatenate([block, np.zeros((missing, *block.shape[1:]), np.uint8)]) if missing else block
            features[start : start + len(block)] = self.embed(full)[: len(block)]
        return features


def load_encoder(params: EncoderParams, device: "str | torch.device" = "auto") -> Encoder:
    """Load the encoder that `params` names on `device` ("auto": the GPU where there is one).

    On a GPU efficientnet-lite0 and resnet18 run under autocast (bfloat16, or float16 on GPUs without it);
    inception_v3 always runs in float32, as clean-fid does. Nothing is autocast on a CPU.

    Raises InputError when the weights are missing, of another sha256, or of another network.
    """
    if params.name == "pixels":
        return _pixels()
    path = weights_file(params)
    device = pick_device(str(device))
    build, dimension, prepare, preprocessing = _recipe(params, path)
    network, half = build(), params.name != "inception_v3" and device.startswith("cuda")
    precision = _autocast_type() if half else "float32"
    metadata = {
        "encoder": params.name,
        "weights_sha256": sha256_file(path) if path else _sha256_state(network),
        "preprocessing": preprocessing,
        "precision": precision,
    }
    embed = _forward(network, prepare, device, precision)
    return Encoder(params.name, metadata, dimension, embed, GPU_BATCH if device.startswith("cuda") else CPU_BATCH)


def embed_rows(encoder: Encoder, table: ImageTable, rows: slice, title: str) -> FeatureTable:
    """The features of rows start..stop of an image table, under a progress bar called `title`."""
    features = []
    with tqdm(total=rows.stop - rows.start, desc=title, unit="img", mininterval=2) as bar:
        for first in range(rows.start, rows.stop, PROGRESS_ROWS):
            features.append(encoder(table.images[first : min(first + PROGRESS_ROWS, rows.stop)]))
            bar.update(len(features[-1]))
    return FeatureTable(np.concatenate(features), table.ids[rows], encoder.metadata)


def _pixels() -> Encoder:
    metadata = {"encoder": "pixels", "weights_sha256": None, "preprocessing": "/255", "precision": "float32"}
    return Encoder("pixels", metadata, None, lambda x: x.reshape(len(x), -1).astype(np.float32) / 255, 1024)


def _recipe(params: EncoderParams, path: Path) -> tuple[Callable, int, Callable, str]:
    """(network's builder, D, images to the network's input, how that is called) of an encoder."""
    from stages.features import networks

    if params.name == "inception_v3":
        words = f"clean-fid {CLEAN_FID_SIZE}: bicubic per channel, float; (x - 128)/128"
        return (lambda: networks.inception_v3(path)), 2048, _clean_fid_input, words
    if params.name.startswith(TIMM):
        return _timm_recipe(params, path)
    size = params.resize or 224
    words = f"bilinear {size} (antialiased downwards), ImageNet mean and deviation"
    if params.name == "resnet18":
        return (lambda: networks.resnet18(path)), 512, lambda x: _imagenet_input(x, size), words
    return (lambda: networks.efficientnet_lite0(path, size)), 1280, lambda x: _imagenet_input(x, size), words


def _timm_recipe(params: EncoderParams, path: Path | None) -> tuple[Callable, int, Callable, str]:
    """A model of timm at its own mean and deviation, and at its own size unless `resize` says otherwise."""
    from stages.features import networks

    network, config = networks.timm_model(params.name.removeprefix(TIMM), path)
    size = params.resize or config.size
    words = f"bilinear {size} (antialiased downwards), mean {config.mean}, deviation {config.deviation}"
    prepare = functools.partial(_imagenet_input, size=size, mean=config.mean, deviation=config.deviation)
    return lambda: network, config.dimension, prepare, words


def _imagenet_input(
    images: "torch.Tensor",
    size: int,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    deviation: tuple[float, ...] = IMAGENET_STD,
) -> "torch.Tensor":
    """uint8 (B, H, W, C) to float32 (B, 3, size, size): resized, then normalised as the network expects."""
    import torch

    x = images.permute(0, 3, 1, 2).float() / 255
    x = torch.nn.functional.interpolate(
        x, size=(size, size), mode="bilinear", align_corners=False, antialias=size < max(x.shape[2:])
    )
    centre, scale = (torch.tensor(v, device=x.device).view(1, 3, 1, 1) for v in (mean, deviation))
    return (x.expand(-1, 3, -1, -1) - centre) / scale


def _clean_fid_input(images: "torch.Tensor") -> "torch.Tensor":
    """uint8 (B, H, W, C) to float32 (B, 3, 299, 299) on the 0..255 scale, by clean-fid's own resizer."""
    import torch
    from cleanfid.resize import build_resizer

    resize = build_resizer("clean")
    colour = np.broadcast_to(images.cpu().numpy(), (*images.shape[:3], 3))
    resized = np.stack([resize(image) for image in colour])
    return torch.from_numpy(resized).to(images.device).permute(0, 3, 1, 2)


def _sha256_state(network: Any) -> str:
    """Hex sha256 of all of a network's tensors: names weights that came without a file."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _autocast_type() -> str:
    import torch

    return "bfloat16" if torch.cuda.is_bf16_supported() else "float16"


def _forward(network: Any, prepare: Callable, device: str, precision: str) -> Callable[[np.ndarray], np.ndarray]:
    """The pass over one full batch: channels last, no gradients, deterministic kernels, no TF32."""
    import torch

    layout = torch.channels_last
    network = network.to(device, memory_format=layout)
    half = precision != "float32"

    def embed(images: np.ndarray) -> np.ndarray:
        deterministic = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
        autocast = torch.autocast(device.split(":")[0], getattr(torch, precision), enabled=half)
        with torch.inference_mode(), deterministic:
            # a copy: memory-mapped pixels are read-only, and torch has no read-only tensors
            x = prepare(torch.tensor(images, device=device)).contiguous(memory_format=layout)
            with autocast:
                return network(x).float().cpu().numpy()

    return embed
