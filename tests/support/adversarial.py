"""Images that break searches."""

import numpy as np

KINDS = ("noise", "extreme", "constant", "near", "duplicates", "low-rank", "outliers")


def draw_images(kind: str, rng: np.random.Generator, count: int, d: int) -> np.ndarray:
    """uint8 (count, d): ties everywhere, extremes, subspaces that leave no residual."""
    images = {
        "noise": lambda: rng.integers(0, 256, (count, d)),
        "extreme": lambda: 255 * rng.integers(0, 2, (count, d)),
        "constant": lambda: np.full((count, d), rng.integers(0, 256)),
        "near": lambda: rng.integers(0, 256, (1, d)) + rng.integers(-2, 3, (count, d)),
        "duplicates": lambda: np.repeat(rng.integers(0, 256, (-(-count // 3), d)), 3, axis=0)[:count],
        # directions that are fitted to the many pale images miss the few others
        "outliers": lambda: 128 + rng.integers(-1, 2, (count, d)) * np.where(rng.random((count, 1)) < 0.05, 127, 1),
        "low-rank": lambda: 128 + 40 * rng.standard_normal((count, 5)) @ rng.standard_normal((5, d)),
    }[kind]()
    return np.clip(images, 0, 255).astype(np.uint8)
