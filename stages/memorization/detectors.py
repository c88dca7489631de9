"""Detectors of copies as scores, ours and others': lower is more of a copy (stages.memorization.copybench)."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from stages.device import pick_device
from stages.errors import InputError
from stages.features.encoders import load_encoder
from stages.files.artifacts import sha256_file
from stages.files.images import image_id
from stages.memorization.audit_settings import encoder_params
from stages.memorization.groups import find_duplicates
from stages.memorization.matching import (
    BLOCK,
    Matches,
    join,
    match,
    whole_reference,
    with_groups,
)
from stages.memorization.neighbors import BUDGET, own_neighbors
from stages.memorization.ratios import nn_ratio, over
from stages.memorization.scores import scores
from stages.search.pixel_distance import pixel_distance

COSINE, SCRIPT = "cosine:", "torchscript:"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PASS = 64  # images per pass of a TorchScript network

Embed = Callable[[np.ndarray], np.ndarray]
"""uint8 (N, H, W, C) → float32 (N, D)."""


def pixel_scores(train: np.ndarray, images: np.ndarray) -> dict[str, np.ndarray]:
    """Return the scores that follow from one search of pixels, by the detector's name.

    rho*: the audit's. r1/r2: nearest over second nearest distance. carlini: nearest over the mean of the 50 nearest.
    authenticity: nearest over the distance of that training image to its own nearest. distance: the nearest alone.
    """
    own = own_neighbors(train.reshape(len(train), -1), 0, len(train), BUDGET)
    group = find_duplicates([image_id(image) for image in train], own, train[0].size).group
    reference = whole_reference(train, group, (own["index"], own["squared"]))
    blocks = (images[start : start + BLOCK] for start in range(0, len(images), BLOCK))
    m = Matches(**join([with_groups(match(b, reference), b, reference) for b in blocks]), dimension=train[0].size)
    distance = pixel_distance(m.squared, m.dimension)
    nearest, best = distance[:, 0], scores(m).best
    return {
        "rho*": np.where(np.isnan(best), np.inf, best),
        "r1/r2": nn_ratio(m.squared),
        "carlini": over(nearest, distance.mean(axis=1)),
        "authenticity": over(nearest, pixel_distance(m.own_squared[:, 0], m.dimension)),
        "distance": nearest,
    }


def cosine_score(train: np.ndarray, images: np.ndarray, embed: Embed) -> np.ndarray:
    """Return 1 − the largest cosine of each image's feature with a training image's, float64 (N,)."""
    ours, theirs = (_unit(embed(some)) for some in (train, images))
    blocks = (theirs[start : start + BLOCK] @ ours.T for start in range(0, len(theirs), BLOCK))
    return 1 - np.concatenate([block.max(axis=1) for block in blocks])


def _unit(features: np.ndarray) -> np.ndarray:
    features = np.asarray(features, np.float64)
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-30)


def encoder(name: str, resolution: int, device: str = "auto") -> Embed:
    """Return what embeds images for a detector's name: cosine:ENCODER (of this project, or any of timm's), or
    torchscript:PATH?sha256=HEX&size=PIXELS, a network in TorchScript such as SSCD's."""
    if name.startswith(COSINE):
        return load_encoder(encoder_params(name.removeprefix(COSINE), None, resolution), device)
    found = re.fullmatch(rf"{SCRIPT}(.+)\?sha256=([0-9a-f]{{64}})&size=(\d+)", name)
    if not found:
        raise InputError(f"--detector {name}: write cosine:ENCODER or {SCRIPT}PATH?sha256=HEX&size=PIXELS")
    return torchscript(Path(found[1]), found[2], int(found[3]), pick_device(device))


def torchscript(path: Path, sha256: str, size: int, device: str) -> Embed:
    """Return what embeds images with a TorchScript file: resized to size × size, normalized as ImageNet's.

    A TorchScript file is a program: InputError unless it has the digest that its publisher states.
    """
    if not path.is_file() or sha256_file(path) != sha256:
        raise InputError(f"--detector {SCRIPT}{path}: there is no file with the sha256 {sha256}: get it again")
    network = torch.jit.load(str(path), map_location=device).eval()
    mean, std = (torch.tensor(v, device=device).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))

    @torch.inference_mode()
    def embed(images: np.ndarray) -> np.ndarray:
        parts = []
        for start in range(0, len(images), PASS):
            block = torch.from_numpy(np.ascontiguousarray(images[start : start + PASS])).to(device)
            block = block.permute(0, 3, 1, 2).expand(-1, 3, -1, -1).float() / 255
            block = torch.nn.functional.interpolate(block, (size, size), mode="bilinear", antialias=True)
            parts.append(network((block - mean) / std).float().cpu().numpy())
        return np.concatenate(parts)

    return embed
