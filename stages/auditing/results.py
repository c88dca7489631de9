"""What an audit writes: audit.json, pairs.parquet, candidates.parquet, samples-kept.txt, rejected.parquet."""

import platform
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from stages.auditing.groups import Duplicates
from stages.auditing.judging import Judged, metric_definitions
from stages.auditing.loading import ImageSet
from stages.auditing.scores import TRANSFORMS
from stages.files.artifacts import write_parquet, write_text
from stages.memorization.candidates import NAME as CANDIDATES
from stages.memorization.candidates import choose, write_candidates
from stages.memorization.metrics import Rules, compare
from stages.memorization.ratios import rho
from stages.memorization.verdicts import VERDICTS, order

PACKAGES = ("scoresmooth", "torch", "numpy", "scipy", "pyarrow", "numba", "pillow")
MOST_CANDIDATES = 2_000  # rows of candidates.parquet, for a person to judge
MOST_HIT = 100  # training images listed with their hits
FOLLOWING = 4  # training images shown after the match


def metrics_table(
    samples: Judged, control: Judged, rules: Rules, encoder: str, compared: int, thresholds: Any
) -> dict[str, dict[str, Any]]:
    """Every metric: definition, threshold, rate with interval, the control's, and the excess with its interval."""
    words = metric_definitions(rules, thresholds, encoder, compared)
    return {
        name: {"definition": text, "threshold": value, **compare(samples.flags[name], control.flags[name])}
        for name, (text, value) in words.items()
    }


def agreement(samples: Judged) -> dict[str, dict[str, int]]:
    """How many samples each pair of metrics flags together; on the diagonal what each flags."""
    flags = samples.flags
    return {a: {b: int((flags[a] & flags[b]).sum()) for b in flags} for a in flags}


def extraction(samples: Judged, train: ImageSet, duplicates: Duplicates) -> dict[str, Any]:
    """Which training images the copies and near copies are of, how often each, and per class."""
    rows = samples.match_row[samples.copied]
    hits = Counter(rows.tolist()).most_common()
    names = train.classes
    labels = [int(train.table.labels[row]) for row in rows]
    per_class = Counter(("unlabelled" if v < 0 else names[v] if names else str(v)) for v in labels)
    return {
        "copies": len(rows),
        "unique_training_images": len(hits),
        "unique_duplicate_groups": len(np.unique(duplicates.group[rows])),
        "hits_per_image": [
            {"train_index": row, "train_id": train.table.ids[row], "where": train.where[row], "hits": count}
            for row, count in hits[:MOST_HIT]
        ],
        "images_by_hits": {str(n): count for n, count in sorted(Counter(count for _, count in hits).items())},
        "per_class": dict(sorted(per_class.items())),
    }


def following(samples: Judged) -> np.ndarray:
    """The training images to show after each match, int64 (N, FOLLOWING): nearest in the match's orientation."""
    m = samples.searched.matches
    turned = np.array([word.startswith("mirrored") for word in samples.transform])
    index = np.where(turned[:, None], m.mirrored_index, m.index)
    order = np.argsort(index == samples.match_row[:, None], axis=1, kind="stable")  # the match itself goes last
    rows = np.take_along_axis(index, order, 1)[:, :FOLLOWING]
    rows = np.where(rows == samples.match_row[:, None], -1, rows)
    return np.pad(rows, ((0, 0), (0, FOLLOWING - rows.shape[1])), constant_values=-1)


def pairs_table(samples: Judged, images: ImageSet, train: ImageSet) -> pa.Table:
    """One row per sample, sorted by verdict, then ρ*, then sample."""
    m, found = samples.searched.matches, samples.searched.scores

    def number(values: np.ndarray) -> pa.Array:
        return pa.array(values, pa.float64(), mask=np.isnan(values))

    def reference(rows: np.ndarray, prefix: str) -> dict[str, Any]:
        return {f"{prefix}_index": rows, f"{prefix}_id": [train.table.ids[row] for row in rows]}

    columns = {
        "sample_index": np.arange(len(samples)),
        "sample_id": images.table.ids,
        "sample_where": images.where,
        **reference(samples.match_row, "train"),
        "train_where": [train.where[row] for row in samples.match_row],
        "transform": samples.transform,
        "distance": samples.match_distance,
        "ratio": found.ratio,
        "ratio_grouped": number(found.ratio_grouped),
        "verdict": samples.verdict,
        "reason": samples.reason,
        "rho_star": number(found.best),
        "rho": rho(m.squared),
        **{f"rho_{name}": number(found.rho[:, place]) for place, name in enumerate(TRANSFORMS)},
        **reference(m.index[:, 0], "nearest"),
        "nearest_distance": np.sqrt(m.squared[:, 0] / m.dimension) / 255,
        **reference(m.mirrored_index[:, 0], "mirrored"),
        "mirrored_distance": np.sqrt(m.mirrored_squared[:, 0] / m.dimension) / 255,
        **reference(m.shift_row, "shifted"),
        "shifted_distance": m.shift_distance,
        "shift_y": m.shift[:, 0],
        "shift_x": m.shift[:, 1],
        "shift_mirrored": m.shift_mirrored,
        **reference(m.crop_row, "cropped"),
        "cropped_distance": number(m.crop_distance),
        **{f"crop_{name}": m.crop_window[:, place] for place, name in enumerate(("y", "x", "side"))},
        "crop_mirrored": m.crop_mirrored,
        "tile_max_distance": m.tile,
        "candidate": samples.candidate,
        "feature_distance": number(samples.feature_distance),
        "feature_spacing": number(np.where(np.isinf(samples.feature_spacing), np.nan, samples.feature_spacing)),
        **{f"flag_{name}": flags for name, flags in samples.flags.items()},
    }
    return pa.table(columns).take(pa.array(order(samples.verdict, found.best)))


def write_pairs(out: Path, pairs: pa.Table, samples: Judged, images: ImageSet, train: ImageSet, digests: Any) -> None:
    """pairs.parquet, candidates.parquet (for `scoresmooth review`) and samples-kept.txt."""
    write_parquet(out / "pairs.parquet", pairs, digests)
    suspected = np.array([verdict != "novel" for verdict in samples.verdict])
    rows = choose(samples.searched.scores.best, samples.copied, suspected | samples.candidate, MOST_CANDIDATES)
    place = np.empty(len(samples), np.int64)
    place[pairs["sample_index"].to_numpy()] = np.arange(len(samples))
    chosen = pairs.take(pa.array(place[rows]))
    pixels = images.table.images, train.table.images
    write_candidates(out / CANDIDATES, chosen, following(samples)[rows], *pixels, digests)
    kept = [name for name, copied in zip(images.table.ids, samples.copied) if not copied]
    write_text(out / "samples-kept.txt", "".join(f"{name}\n" for name in kept))


def write_rejected(out: Path, sets: list[ImageSet]) -> None:
    """rejected.parquet: every image that could not be read, with the reason."""
    rows = [(images.role, *entry) for images in sets for entry in images.rejected]
    columns = {
        name: pa.array([row[i] for row in rows], pa.string()) for i, name in enumerate(("set", "where", "reason"))
    }
    write_parquet(out / "rejected.parquet", pa.table(columns))


def counts(images: ImageSet, duplicates: Duplicates) -> dict[str, Any]:
    """What audit.json says of one set."""
    return {
        "source": images.source,
        "count": len(images),
        "rejected": len(images.rejected),
        "resized": images.resized,
        "recoloured": images.recoloured,
        "duplicates_groups": duplicates.groups,
        "duplicates_images": duplicates.images,
        "digest": images.digest,
    }


def verdict_counts(judged: Judged) -> dict[str, int]:
    """How many of each verdict."""
    found = Counter(judged.verdict)
    return {name: found[name] for name in VERDICTS}


def versions() -> dict[str, str]:
    """Python and the packages that made the numbers."""
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}
