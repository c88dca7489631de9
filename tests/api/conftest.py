"""Images that the tests of this folder share."""

import numpy as np
import pytest

from stages.images.decode import to_pixels
from stages.images.sources.open import open_source


@pytest.fixture(scope="session")
def digits() -> np.ndarray:
    """450 digits of 14 × 14 in random order, uint8 (450, 14, 14, 1)."""
    source = open_source("mnist5k")
    rows = np.sort(np.random.default_rng(0).permutation(len(source))[:450])
    images = np.stack([to_pixels(item.image, 14, 1) for item in source.read(rows)])
    return images[np.random.default_rng(1).permutation(450)]
