"""A small project of the filter stage in the working folder, with planted copies, and its run."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import yaml
from filter_inputs import TREE, write_index

from stages.files.images import image_table, write_images
from stages.memorization.verdict_log import Act, VerdictLog, now
from stages.protocol import run_plain

IDENTICAL, NOISY, COUNT = 10, 20, 100


def smooth_images(rng: np.random.Generator, count: int) -> np.ndarray:
    """Random smooth RGB images: near neighbours differ in distance, as those of photographs do."""
    coarse = rng.integers(20, 236, (count, 3, 3, 3)).astype(np.float64)
    return np.rint(np.kron(coarse, np.ones((1, 4, 4, 1)))).astype(np.uint8)


def write_small_project() -> None:
    """60 training, 80 held-out and 100 sample images: 10 equal a training image, 20 are noisy copies, 70 are new."""
    rng = np.random.default_rng(0)
    train, holdout, new = smooth_images(rng, 60), smooth_images(rng, 80), smooth_images(rng, 70)
    noisy = np.clip(train[10:30] + 4 * rng.standard_normal((NOISY, 12, 12, 3)), 0, 255).astype(np.uint8)
    samples = np.concatenate([train[:IDENTICAL], noisy, new])
    for path, images in (("deduplicate/train", train), ("deduplicate/holdout", holdout), ("sample/v/samples", samples)):
        write_images(Path("data") / f"{path}.arrow", image_table(images))
    write_index(train)
    Path("params.yaml").write_text(yaml.safe_dump(TREE))


def run(**changes) -> tuple[dict, list[dict]]:
    tree = {**TREE, "filter": {**TREE["filter"], **changes}}
    Path("params.yaml").write_text(yaml.safe_dump(tree))
    run_plain("filter", "v")
    summary = json.loads(Path("data/filter/v/filter.json").read_text())
    return summary, pq.read_table("data/filter/v/pairs.parquet").to_pylist()


def decide(path: Path, decisions: list[tuple[str, str, str, str]]) -> None:
    """Write (reviewer, sample id, train id, verdict) as a log of verdicts."""
    log = VerdictLog(path)
    for number, (reviewer, sample, nearest, verdict) in enumerate(decisions):
        log.append(Act(str(number), now(), reviewer, (sample, nearest), verdict))
    log.close()


VERDICTS = {"verdicts": {"v": "data/verdicts/v/verdicts.jsonl"}}
