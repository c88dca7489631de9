"""Features for an audit: only of the images that need them, each block kept in the store."""

import numpy as np
from pydantic import ValidationError

from stages.auditing.store import Store
from stages.errors import InputError
from stages.features.encoders import load_encoder
from stages.features.weights import ENCODERS, TIMM, EncoderParams
from stages.files.artifacts import sha256_json

BLOCK = 256
SECONDS_PER_IMAGE = 6e-3
SMALL_IMAGE, SMALL_INPUT = 64, 112  # images up to this side are embedded at the smaller input size


class Embedder:
    """One encoder for the whole audit, so that no two encoders' features can meet.

    Attributes:
        name: the encoder.
        metadata: what makes features comparable (`Encoder.metadata`).
    """

    def __init__(self, params: EncoderParams, device: str, store: Store):
        self.encoder = load_encoder(params, device)
        self.name, self.metadata = params.name, self.encoder.metadata
        self.store, self._known = store, dict[str, np.ndarray]()

    def __call__(self, images: np.ndarray, ids: list[str]) -> np.ndarray:
        """Features float32 (N, D) of images uint8 (N, H, W, C) with these ids, N ≥ 1."""
        parts = []
        for start in range(0, len(images), BLOCK):
            block = images[start : start + BLOCK]
            key = [self.metadata, sha256_json(ids[start : start + BLOCK])]
            cost = SECONDS_PER_IMAGE * len(block)
            found = self.store.arrays("features", key, cost, lambda block=block: {"feature": self.encoder(block)})
            parts.append(found["feature"])
        return np.concatenate(parts)

    def remembering(self, images: np.ndarray, ids: list[str]) -> np.ndarray:
        """The same, each id embedded once in the whole audit: pairs share images, judged sets share pairs."""
        new = {name: row for row, name in reversed(list(enumerate(ids))) if name not in self._known}
        rows = sorted(new.values())
        if rows:
            names = [ids[row] for row in rows]
            self._known |= zip(names, self(images[rows], names))
        return np.stack([self._known[name] for name in ids])


def encoder_params(name: str, weights: str | None, resolution: int) -> EncoderParams:
    """The parameters of an encoder by its name, for images of this resolution.

    efficientnet-lite0 and resnet18 read images of up to SMALL_IMAGE pixels a side at SMALL_INPUT: enlarging them
    further costs time and adds nothing. Larger ones are read at the encoder's own size. A name that is none of ours is
    one of timm's, with or without "timm:". InputError names the option that is wrong.
    """
    name = name if name in ENCODERS or name.startswith(TIMM) else TIMM + name
    resizable = name in ("efficientnet-lite0", "resnet18")
    resize = SMALL_INPUT if resizable and resolution <= SMALL_IMAGE else None
    try:
        return EncoderParams(name=name, weights=weights, sha256=None, resize=resize)
    except ValidationError as error:
        raise InputError(f"--encoder {name}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from error
