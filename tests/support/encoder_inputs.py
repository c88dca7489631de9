"""Parameters of encoders and random images for them."""

import numpy as np

from stages.features.weights import EncoderParams

OUTSIDE = {"weights": None, "sha256": None, "resize": None}


def parameters(name, **changes):
    return EncoderParams(name=name, **OUTSIDE | changes)


def pictures(count, side=20, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, size=(count, side, side, channels), dtype=np.uint8)
