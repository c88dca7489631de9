"""A planted benchmark of copy detectors: known copies of known images, and what each detector finds of them.

From one source: training images, held-out images in two halves, and copies of training images, equally many of every
kind and strength of stages.memorization.planting. A detector gives every image a score, the lower the more it is a
copy. The first half of the held-out images sets its threshold at FALSE_POSITIVES, the second half measures the false
positives that it has there.
Everything follows from the source, the sizes and the seed; the version changes when the same arguments give others.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from stages.errors import InputError
from stages.files.arrow import write_parquet
from stages.files.artifacts import sha256_json, write_json, write_text
from stages.files.images import image_id, image_table, write_images
from stages.images.sources.base import Source
from stages.images.subset import read_subset
from stages.memorization import planting
from stages.memorization.statistics import rate_with_interval

VERSION = 2
FALSE_POSITIVES = 0.0025


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """Images uint8 (·, H, W, C) and what is known of them.

    Attributes:
        train, threshold, control, planted: the training images, the two halves of the held-out ones, and the copies.
        original: int64 (P,), the training image that each copy shows.
        kind: P names "kind" or "kind strength".
        about: version, source, seed, sizes and digests.
    """

    train: np.ndarray
    threshold: np.ndarray
    control: np.ndarray
    planted: np.ndarray
    original: np.ndarray
    kind: np.ndarray
    about: dict[str, Any]

    @property
    def queries(self) -> np.ndarray:
        """All images that a detector scores: threshold, control, planted."""
        return np.concatenate([self.threshold, self.control, self.planted])


def plant_benchmark(
    source: Source, train: int, holdout: int, copies: int, seed: int, resolution: int | None
) -> Benchmark:
    """Draw the sets and plant `copies` of every kind and strength. InputError where the source has too few images."""
    wanted = train + holdout
    if len(source) < wanted or holdout < 2 or train < copies:
        raise InputError(f"{source.spec} holds {len(source)} images, {wanted} are needed: lower --train or --holdout")
    order = np.random.default_rng([VERSION, seed]).permutation(len(source))[:wanted]
    images = read_subset(source, np.sort(order), resolution)[np.argsort(np.argsort(order))]
    own, unseen = images[:train], images[train:]
    planted, kinds, originals = [], [], []
    for number, (kind, strength) in enumerate(variants()):
        rows = np.random.default_rng([VERSION, seed, number]).permutation(train)[:copies]
        planted.append(planting.plant(own[rows], kind, seed, *([] if strength is None else [strength])))
        kinds += [kind if strength is None else f"{kind} {strength:g}"] * copies
        originals.append(rows)
    made = np.concatenate(planted)
    sets = {"train": own, "threshold": unseen[: holdout // 2], "control": unseen[holdout // 2 :], "planted": made}
    digests = {name: sha256_json([image_id(image) for image in part]) for name, part in sets.items()}
    sizes = {name: len(part) for name, part in sets.items()}
    about = {"version": VERSION, "source": source.spec, "seed": seed, "copies": copies, "resolution": resolution}
    about |= {"shape": list(own.shape[1:]), "sizes": sizes, "digests": digests, "false_positives": FALSE_POSITIVES}
    return Benchmark(*sets.values(), np.concatenate(originals), np.array(kinds), about)


def variants() -> list[tuple[str, float | None]]:
    """Every kind with each of its strengths. `duplicated` needs training images that repeat and is left out."""
    strengths: Mapping[str, tuple[float, ...]] = getattr(planting, "STRENGTHS", {})
    kinds = [kind for kind in planting.WORDS if kind != "duplicated"]
    return [(kind, strength) for kind in kinds for strength in strengths.get(kind, (None,))]


def threshold(held_out: np.ndarray, share: float = FALSE_POSITIVES) -> float:
    """Return the score below which `share` of the held-out scores lie, rounded down to an image; "below" is strict."""
    return float(np.sort(held_out)[int(len(held_out) * share)])


def measure(bench: Benchmark, scores: np.ndarray) -> dict[str, Any]:
    """Return the recall of a detector by kind, in all, and its false positives, with 95 % Wilson intervals.

    scores: float (N,), of `bench.queries`, lower where an image is more of a copy. InputError where one is NaN.
    """
    sizes = [len(bench.threshold), len(bench.control), len(bench.planted)]
    if np.shape(scores) != (sum(sizes),) or np.isnan(scores).any():
        raise InputError("a detector must give one number for every image, and none of them may be NaN")
    unseen, control, planted = np.split(scores, np.cumsum(sizes)[:2])
    limit = threshold(unseen)
    flags = planted < limit

    def rate(flagged: np.ndarray) -> dict[str, Any]:
        return rate_with_interval(int(flagged.sum()), len(flagged))

    kinds = dict.fromkeys(bench.kind.tolist())
    return {
        "threshold": limit,
        "false_positives": rate(control < limit),
        "recall": {kind: rate(flags[bench.kind == kind]) for kind in kinds},
        "recall_all": rate(flags),
    }


def markdown(results: Mapping[str, dict[str, Any]]) -> str:
    """Return recall in percent with its interval as a table: a row for each kind, a column for each detector."""

    def cell(rate: dict[str, Any]) -> str:
        return f"{100 * rate['rate']:.0f} [{100 * rate['ci_low']:.0f}, {100 * rate['ci_high']:.0f}]"

    first = next(iter(results.values()))
    lines = [["planted copies", *results], ["---"] * (1 + len(results))]
    lines += [[kind, *(cell(found["recall"][kind]) for found in results.values())] for kind in first["recall"]]
    lines.append(["**all**", *(cell(found["recall_all"]) for found in results.values())])
    positives = [f"{r['flagged']} of {r['count']}" for r in (found["false_positives"] for found in results.values())]
    lines.append(["other held-out images flagged", *positives])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def write_benchmark(out: Path, bench: Benchmark, results: Mapping[str, dict[str, Any]]) -> None:
    """Write benchmark.json, planted.parquet (ids), the images of every set, results.json and results.md."""
    tables = {name: image_table(getattr(bench, name)) for name in ("train", "threshold", "control", "planted")}
    for name, table in tables.items():
        write_images(out / f"{name}.arrow", table)
    columns = {
        "planted_id": tables["planted"].ids,
        "kind": bench.kind.tolist(),
        "train_index": bench.original,
        "train_id": [tables["train"].ids[row] for row in bench.original],
    }
    write_parquet(out / "planted.parquet", pa.table(columns), bench.about)
    write_json(out / "benchmark.json", bench.about)
    write_json(out / "results.json", {"benchmark": bench.about, "detectors": dict(results)})
    write_text(out / "results.md", markdown(results))
