"""A preset at toy size: the same variants, networks a few channels wide, and few images, steps and samples.

It shows that every row of a published table appears, on a CPU in minutes. Its numbers say nothing about the paper's.
"""

from typing import Any

SHARE = 1000
"""Samples are divided by this, down to 20; images are as few as the neighbour lists need."""

BLOCKS = "pipeline/toy_blocks.yaml"
"""The theory's blocks: those of mode quick took four fifths of a small preset's time."""


def shrink(document: dict[str, Any]) -> None:
    """Shrink a parameter tree in place; what the variants and the tables are made of stays."""
    train, sample, index = document["train"], document["sample"], document["index"]
    # more training images than neighbours are listed, also within a class of ten
    images = (10 if index["within_class"] else 1) * (index["neighbors"] + 28)
    document["ingest"] |= {"train": images, "test": 60, "holdout": 60, "shards": 1}
    document["deduplicate"] |= {"shards": 1}
    document["embed"] |= {"shards": 1, "encoder": _packaged(64)}
    if index["encoder"] is not None:
        index["encoder"] = _packaged(32)
    index |= {"shards": 1}
    document["fid"] |= {"reference_count": None, "shards": 1}
    document["verify"] |= {"mode": "quick", "cifar10": False, "blocks": BLOCKS}
    train["network"] |= {"channels": 4, "blocks": 1}
    optimization = train["optimization"]
    optimization |= {"steps": 10, "batch": 4, "microbatch": None, "warmup": 2, "compile": False}
    optimization |= {"checkpoint_every": 10, "log_every": 2}
    train |= {"threads": 1, "seeds": train["seeds"][:1], "snapshots": [5] if sample["checkpoint"] == "best_fid" else []}
    count = _count(sample["count"])
    sample |= {"count": count, "batch": 20, "shards": 1, "compile": False, "curve_count": 20}
    sample |= {"choice_samples": 20, "choice_images": 20}
    sample["alignment"] |= {
        "levels": 2,
        "images": 4,
        "expansion_pairs": 4,
        "pairs": 2,
        "paths": 1,
        "points": 3,
        "steps": 2,
    }
    for variant in document["variants"].values():
        if variant.get("count"):
            variant["count"] = _count(variant["count"])
        if variant.get("distillation"):
            variant["distillation"]["steps"] = 10
        if variant.get("kernel") and variant["kernel"].get("draws"):
            variant["kernel"]["draws"] = 4
        variant["sampler"]["levels"] = min(variant["sampler"]["levels"], 5)
    if document["fid"]["samples"] is not None:
        document["fid"]["samples"] = min(document["fid"]["samples"], count)
    document["report"]["pictures"] = 4


def _count(samples: int) -> int:
    return max(20, samples // SHARE)


def _packaged(resize: int) -> dict[str, Any]:
    """Return the encoder whose weights need no download."""
    return {"name": "efficientnet-lite0", "weights": None, "sha256": None, "resize": resize}
