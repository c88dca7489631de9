"""Section verify of params.yaml and its blocks at sizes that a test can afford."""

from typing import Any

BLOCKS: dict[str, Any] = {
    "shell_mass": {"dimensions": [64, 256], "draws": 2000, "normals": 200_000},
    "shell_touch": {"dimensions": [64, 3072], "smallest": 0.01, "largest": 50.0},
    "sigma_domination": {"dimensions": [256, 3072], "alphas": [0.25, 0.5]},
    "image_domination": {"dimension": 64, "temperatures": [1.0, 50.0]},
    "denoising": {
        "dimension": 6,
        "centres": 5,
        "levels": 20,
        "largest": 2.0,
        "smallest": 0.1,
        "draws": 2000,
        "dimensions": [8, 64],
    },
    "jacobian": {
        "images": 20,
        "points": 4,
        "noise": 0.001,
        "scores": ["conditioning", 1.0, "infinity"],
        "tolerance": 1e-4,
        "iterations": 100,
        "cifar10": False,
    },
    "collapse": {
        "images": 20,
        "trajectories": 2,
        "levels": 30,
        "largest": 20.0,
        "smallest": 0.01,
        "scores": ["conditioning", 1.0],
        "cuts": [0.5],
        "shown": 3,
        "cifar10": False,
    },
    "mismatch_trajectory": {
        "dimension": 256,
        "levels": 120,
        "largest": 50.0,
        "smallest": 0.01,
        "starts": [0.5, 1.0, 1.5],
        "draws": 8,
    },
    "expansion": {
        "images": 20,
        "pairs": 3,
        "sigmas": [0.5, 2.0],
        "temperatures": [1.0, 10.0],
        "eta": 0.7,
    },
    "mismatch": {"dimension": 64, "betas": [1.0, 5.0], "draws": 50},
    "relu_networks": {
        "data": ["2 points, d = 1", "8 points on a circle, d = 2"],
        "decay": 0.1,
        "highest": 0.5,
        "lowest": 0.2,
        "levels": 2,
        "width": 32,
        "steps": 1600,
        "batch": 64,
        "samples": 4000,
    },
    "bias_variance": {
        "time": 0.1,
        "count": 500,
        "sets": 400,
        "level": 0.2,
        "counts": [20, 80],
        "repeats": 3,
        "widths": [0, 0.1, 0.2, 0.5],
    },
    "score_noise": {"times": [0.2, 0.05], "separations": [0.1, 0.3], "count": 1500, "sets": 200, "width": 0.3},
    "generated_density": {
        "largest": 2.0,
        "smallest": 0.15,
        "levels": 12,
        "counts": [4, 24],
        "repeats": 24,
        "widths": [0, 0.1, 0.3, 0.8],
    },
    "smoothed_circle": {
        "points": 6,
        "samples": 300,
        "levels": 15,
        "lowest": 0.02,
        "draws": 8,
        "widths": [0.2, 0.4],
        "bandwidths": [0.1, 0.2, 0.4],
    },
    "smoothed_images": {
        "images": 40,
        "dataset": None,
        "held_out": 10,
        "samples": 20,
        "levels": 12,
        "lowest": 0.05,
        "highest": 3.0,
        "draws": 4,
        "widths": [0.4, 1.5],
        "bandwidths": [0.1, 3.0],
    },
    "line": {"kappas": [1.0], "start": 0.16, "samples": 2000, "bins": 10, "dimension": 5},
}

SECTION: dict[str, Any] = {"mode": "quick", "seed": 3, "dataset": None, "resolution": None, "cifar10": True}


def section(**changes: Any) -> dict[str, Any]:
    """The section with some of its keys or blocks changed."""
    own = {key: value for key, value in changes.items() if key not in BLOCKS}
    return {**SECTION, **own, "blocks": {**BLOCKS, **{key: changes[key] for key in changes if key in BLOCKS}}}
