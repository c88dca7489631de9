"""Which images of a set get features, before the threshold of the two-stage filter is known.

A shard of samples does not know which held-out images are training images, which are left out of the control and move
its percentile of ρ. `highest_threshold` bounds the threshold from above by a search of the held-out images alone, so
that a shard takes the features of the candidates and of hardly any other image.
"""

import numpy as np

from stages.memorization.calibrated_rates import below, below_limit
from stages.memorization.matching import mirrored
from stages.memorization.neighbors import BUDGET
from stages.memorization.ratios import rho
from stages.search.nearest import nearest
from stages.search.pixel_distance import squared_radius

FIRST = 4  # samples whose nearest training images are listed, in features too


def squared_distances(images: np.ndarray, train: np.ndarray, count: int) -> np.ndarray:
    """Return the squares to the `count` nearest training images, or all, int64 (N, k); uint8 (N, H, W, C) both."""
    flat, reference = (some.reshape(len(some), -1) for some in (images, train))
    return nearest(flat, reference, min(count, len(train)), memory_budget=BUDGET)[1]


def highest_threshold(
    held_out: np.ndarray, train: np.ndarray, neighbors: int, percentile: float, within: float
) -> float:
    """Return a ρ that no threshold of candidates exceeds, whichever of the held-out images prove to be training images.

    Args:
        held_out, train: uint8 (N, H, W, C) and (M, H, W, C).
        neighbors: k of ρ; percentile: q of the filter.
        within: the pixel distance, plain or mirrored, beyond which a held-out image is never left out.

    With q n of the n images below the threshold, leaving out some moves it to a higher image, at most to the one at the
    same place among those that are certainly kept. Infinite where these are too few.
    """
    squared = squared_distances(held_out, train, neighbors)
    turned = squared_distances(mirrored(held_out), train, 1)
    near = np.minimum(squared[:, 0], turned[:, 0]) <= squared_radius(within, held_out[0].size)
    kept, place = np.sort(rho(squared)[~near]), below_limit(len(held_out), percentile / 100)
    return float(kept[place]) if place < len(kept) else np.inf


def embedded(found: np.ndarray, threshold: float, start: int) -> np.ndarray:
    """Return the rows that get features: ρ below the threshold, and the FIRST samples of the set; int64, ascending.

    found: squared distances of images start.. of the set, int64 (N, k).
    """
    chosen = below(rho(found), threshold)
    chosen[: max(0, FIRST - start)] = True
    return np.flatnonzero(chosen)
