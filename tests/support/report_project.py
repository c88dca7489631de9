"""A project's data folder as the other stages would leave it, for the report to read; the pictures are given."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml
from PIL import Image

from stages.files.arrow import write_parquet
from stages.files.artifacts import write_json, write_tsv
from stages.files.images import image_table, write_images

IMAGES = np.random.default_rng(0).integers(0, 256, (100, 8, 8, 1), dtype=np.uint8)
VARIANTS = {
    "closed-conditioning": {"score": "closed-form", "form": "conditioning"},
    "closed-temperature": {"score": "closed-form", "form": "temperature", "temperature": 100.0},
    "net-conditioning": {"score": "network", "form": "conditioning"},
    "net-temperature": {
        "score": "network",
        "form": "temperature",
        "temperature": "7/sigma",
        "neighbors": {"space": "pixel", "k": 10},
    },
}
LEVELS = {
    "noise": {"sigma_min": 0.05, "sigma_max": 5.0},
    "start": {"chosen": "auto", "fitting_sigma_max": 5.0, "lead": 0.5, "largest_distance": 4.99},
}
COPIED = {"closed-conditioning": 1.0, "closed-temperature": 0.5, "net-conditioning": 0.75, "net-temperature": 0.125}
REPORT = {
    "pictures": 8,
    "duplicate_groups": 2,
    "rejected_images": 1,
    "published": None,
    "contrasts": [
        {"name": "temperature", "of": "net-temperature", "against": "net-conditioning"},
        {"name": "closed temperature", "of": "closed-temperature", "against": "closed-conditioning"},
    ],
}


def wilson(flagged: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """The Wilson score interval, written out once more."""
    p = flagged / count
    middle, half = p + z * z / (2 * count), z * np.sqrt(p * (1 - p) / count + z * z / (4 * count**2))
    return float((middle - half) / (1 + z * z / count)), float((middle + half) / (1 + z * z / count))


def metric(definition: str, threshold: float | None, flagged: int, count: int, held_out: int, held_count: int) -> dict:
    """One entry of filter.json's metrics."""
    low, high = wilson(flagged, count)
    held_low, held_high = wilson(held_out, held_count)
    own, other = flagged / count, held_out / held_count
    return {
        "definition": definition, "threshold": threshold, "flagged": flagged, "count": count, "rate": own,
        "ci_low": low, "ci_high": high, "holdout_flagged": held_out, "holdout_count": held_count,
        "holdout_rate": other, "holdout_ci_low": held_low, "holdout_ci_high": held_high,
        "excess": own - other, "excess_low": low - other, "excess_high": high - other,
    }  # fmt: skip


def verified_counts(count: int) -> dict[str, Any]:
    """filter.json's `verified` of a variant that two people reviewed: 9 copies, 4 without repeated training images."""
    rates = [dict(zip(("ci_low", "ci_high"), wilson(n, count))) | {"flagged": n, "count": count} for n in (9, 4)]
    with_all, without = ({**rate, "rate": rate["flagged"] / count, "unique_training_images": 3} for rate in rates)
    outcomes = {"copy": 9, "not": 5, "unsure": 2, "disputed": 1, "undecided": count - 17}
    pair = {"reviewers": ["anna", "bert"], "pairs": 12, "alike": 11, "kappa": 0.8125}
    return {
        **with_all, "without_repeated": {**without, "repeated_images": 2}, "repeated_within": 0.02,
        "reviewers": {"anna": 17, "bert": 12}, "agreement": [pair], "outcomes": outcomes, "suspected": 20,
        "offered": 20, "open": 3,
        "stale": 2, "stale_pairs": [["a", "b"], ["c", "d"]], "file": "verdicts.jsonl", "sha256": "0", "torn_bytes": 0,
    }  # fmt: skip


def neighbor_table(seed: int, train: int) -> pa.Table:
    """Three training images of each of four samples, in pixels, and in features, which sample 3 lacks."""
    rows = [
        {
            "sample_index": sample, "space": space, "rank": rank, "train_index": (7 * sample + 3 * rank + seed) % train,
            "distance": (0.01 if space == "pixel" else 1.0) * (10 * sample + rank + seed),
        }
        for space, count in (("pixel", 4), ("feature", 3)) for sample in range(count) for rank in (1, 2, 3)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows)


def write_variant(
    root: Path, name: str, spec: dict[str, Any], train: np.ndarray, rest: np.ndarray, count: int, copied: float,
    median: float, distance: float, seed: int, sampler: dict[str, Any],
) -> None:  # fmt: skip
    """The artifacts of one variant: the share `copied` of its samples are training images, others from `rest`."""
    generator = np.random.default_rng(seed)
    copies = round(copied * count)
    nearest = generator.integers(len(train), size=count)
    flags = np.zeros(count, bool)
    flags[generator.permutation(count)[:copies]] = True
    samples = np.where(flags[:, None, None, None], train[nearest], rest[generator.integers(len(rest), size=count)])
    ratio = np.where(flags, generator.beta(1.5, 14, count), np.clip(generator.beta(18, 2, count), 0.36, 1))
    verdict = np.where(flags, "copy", np.where(ratio < 0.7, "near_copy", "novel"))
    order = np.lexsort((ratio, verdict))
    columns = {
        "sample_index": pa.array(np.arange(count)[order]), "train_index": pa.array(nearest[order]),
        "distance": pa.array((0.2 * ratio)[order]), "ratio": pa.array(ratio[order]),
        "verdict": pa.array(verdict[order].tolist()),
    }  # fmt: skip
    data = root / "data"
    write_parquet(data / "filter" / name / "pairs.parquet", pa.table(columns))
    write_parquet(data / "filter" / name / "neighbors.parquet", neighbor_table(seed, len(train)))
    shape = train.shape[1:]
    strip = np.concatenate([samples[order[:12]], train[nearest[order[:12]]]], axis=1).transpose(1, 0, 2, 3)
    picture = strip.reshape(2 * shape[0], 12 * shape[1], shape[2])
    picture = picture[:, :, 0] if shape[2] == 1 else picture
    Image.fromarray(picture).resize((12 * 48, 96), 0).save(data / "filter" / name / "pairs.png")
    half = int((ratio < 0.7).sum())
    metrics = {
        "byte_identical": metric("its pixels equal a training image's", None, copies // 2, count, 0, 400),
        "nn_ratio_copy": metric("r₁/r₂ is below 1/3", 1 / 3, copies, count, 1, 400),
        "nn_ratio_near_copy": metric("r₁/r₂ is below 0.7", 0.7, half, count, 9, 400),
        "calibrated_distance": metric("nearer than held-out images", 0.06, copies, count, 4, 400),
        "blend": metric("in the hull of training images", 0.05, count // 20, count, 2, 400),
    }
    multiple = {"median": 0.09 * median, "holdout_median": 0.09, "median_multiple": median}
    summary = {"mean": float(ratio.mean()), "median": float(np.median(ratio)), "min": float(ratio.min())}
    content = {
        "variant": name, "count": count, "metrics": metrics, "headline": "nn_ratio_copy", "distance": multiple,
        "ratio": {**summary, "holdout_mean": 0.91, "holdout_median": 0.93, "holdout_min": 0.31},
        "verdicts": {kind: int((verdict == kind).sum()) for kind in ("copy", "near_copy", "novel")},
        "unique_training_images": len(set(nearest[flags].tolist())), "verified": None, "faults": {}, "leaks": [],
    }  # fmt: skip
    write_json(data / "filter" / name / "filter.json", content)
    write_images(data / "sample" / name / "samples.arrow", image_table(np.ascontiguousarray(samples)))
    drawn = {"count": count, "nfe": 100, "sampler": sampler, "seed": 1, "precision": "bfloat16"}
    write_json(data / "sample" / name / "sample.json", drawn)
    fid = {"name": "FD-efficientnet-lite0", "encoder": "efficientnet-lite0", "samples": count}
    ends = {"train": distance * 0.8, "test": distance, "floor": 0.021}
    fid |= {end: {"distance": v, "low": 0.9 * v, "high": 1.1 * v, "count": 400} for end, v in ends.items()}
    described = {"recall": (0.4, 0.8), "coverage": (0.7, 0.9), "vendi": (5.5, 6.25), "sharpness": (0.95, 1.0)}
    fid |= {key: dict(zip(("samples", "holdout"), values)) for key, values in described.items()}
    held_out = {key: values[1] for key, values in described.items()}
    counted = {"first_holdout": {"count": 200, "fd": 0.03, **held_out}}
    if spec["score"] != "network":
        own = {key: values[0] for key, values in described.items()}
        counted["first"] = {"count": 200, "fd": 1.2 * distance, "fd_low": distance, "fd_high": 1.4 * distance, **own}
    write_json(data / "fid" / name / "fid.json", fid | counted)
    write_json(data / "train" / name / "score.json", {"variant": name, "spec": spec, **LEVELS})
    if spec["score"] == "network":
        write_learned(data / "sample" / name, train[:4], seed)
        steps = np.arange(100, 4001, 100)
        loss = 0.06 + 0.4 / np.sqrt(steps) + generator.normal(0, 0.002, len(steps)) + 0.01 * seed
        thirds = {"loss_low_sigma": 1.5, "loss_middle_sigma": 1.0, "loss_high_sigma": 0.5}
        rows = [
            {"step": int(s), "loss": float(v), **{third: share * float(v) for third, share in thirds.items()}}
            for s, v in zip(steps, loss)
        ]
        write_tsv(data / "train" / name / "seed-42" / "loss.tsv", rows)
        end = {"step": 4000, "fd": distance, "ratio": half / count, "distance": copies / count, "blend": 0.05}
        write_runs(data, name, {42: [end]})
        run = {"seed": 42, "step": 4000, "weights": "seed-42/model.safetensors"}
        write_json(data / "train" / name / "runs.json", {"runs": [run]})


def write_runs(data: Path, name: str, runs: dict[int, list[dict[str, float]]]) -> None:
    """runs.tsv of filter and fid. runs: seed -> its steps, each with step, fd and shares of 200 samples by measure."""
    measured, distances = [], []
    for seed, steps in runs.items():
        for run in steps:
            about = {"seed": seed, "step": run["step"], "count": 200}
            share = {"nn_ratio_near_copy": run["ratio"], "calibrated_distance": run["distance"], "blend": run["blend"]}
            share |= {"nn_ratio_copy": run["ratio"] / 2, "carlini_train": run["ratio"]}
            flagged = {measure: round(200 * value) for measure, value in share.items()}
            measured.append({**about, **flagged, "median_effective": 1.5, "unique_training_images": 12})
            ends = {"fd": run["fd"], "fd_low": run["fd"] - 2, "fd_high": run["fd"] + 2}
            distances.append({**about, **ends, "recall": 0.4, "coverage": 0.7, "vendi": 5.5, "sharpness": 0.95})
    write_tsv(data / "filter" / name / "runs.tsv", measured)
    write_tsv(data / "fid" / name / "runs.tsv", distances)


def write_learned(folder: Path, images: np.ndarray, seed: int) -> None:
    """alignment.json and interpolation.arrow of one network: two levels, one path of two points."""
    level = {
        "sigma": 0.1, "cosine": 0.8, "cosine_low": 0.7, "cosine_high": 0.9, "angle": 36.0, "length_ratio": 0.9,
        "expansion": None, "expansion_error": None, "expansion_empirical": None,
        "expansion_closed_form": None, "expansion_t_1": None, "expansion_t_10": None, "expansion_t_100": None,
        "expansion_t_1000": None, "expansion_pairs": 0,
    }  # fmt: skip
    some = {
        "expansion": 2.0 - 0.1 * seed,
        "expansion_error": 0.01,
        "expansion_empirical": 3.0,
        "expansion_closed_form": 3.1,
        **{f"expansion_t_{t}": 3.0 / t for t in (1, 10, 100, 1000)},
    }
    higher = {**level, **some, "sigma": 1.0, "cosine": 0.999, "expansion_pairs": 4}
    path = {"path": 0, "length": 3.0, "longest_step": 0.9 - 0.1 * seed, "even_step": 1.0, "median_ratio": 0.2}
    paths = [{"mixture": mixture, **path} for mixture in ("linear", "spherical")]
    ends = {"t_eff": 5.0 + seed, "low": 4.0 + seed, "high": 7.0 + seed}
    reading = {**ends, "identified": True, "error": 0.2, "error_at_1": 0.3}
    unread = {**reading, "low": 1.0, "high": 20.0 + seed, "identified": False}
    temperatures = [
        {"sigma": sigma, "neighbors": None, "reading": name, **row}
        for name in ("error", "direction")
        for sigma, row in ((0.1, unread), (1.0, reading))
    ]
    rows = {"levels": [level, higher], "temperatures": temperatures, "paths": paths}
    content = {**rows, "grid": [2, 1, 2], "settings": {"level": 1.0}}
    write_json(folder / "alignment.json", content)
    write_images(folder / "interpolation.arrow", image_table(np.ascontiguousarray(images)))


def write_shared(root: Path, images: np.ndarray, train: int) -> None:
    """The artifacts of ingest, deduplicate, index and verify: `train` images, then as many test, then held-out ones."""
    data = root / "data"
    splits = {"train": images[:train], "test": images[train : 2 * train], "holdout": images[2 * train : 3 * train]}
    for split, own in splits.items():
        write_images(data / "ingest" / f"{split}.arrow", image_table(np.ascontiguousarray(own)))
        write_images(data / "deduplicate" / f"{split}.arrow", image_table(np.ascontiguousarray(own)))
    counts = {split: len(own) for split, own in splits.items()}
    ingest = {"source": "mnist5k", "shape": list(images.shape[1:]), "counts": counts, "seen": 3 * train + 1}
    write_json(data / "ingest" / "ingest.json", {**ingest, "rejected": 2, "classes": None})
    rejected = {"where": ["a/broken.png", "b.png"], "reason": ["truncated <PNG> after 120 bytes", "not an image"]}
    write_parquet(data / "ingest" / "rejected.parquet", pa.table(rejected))
    groups = {
        "group": pa.array([0, 0, 1, 1, 1, 2, 2], pa.int32()), "id": ["x"] * 7,
        "split": ["train", "test", "train", "train", "holdout", "train", "train"],
        "row": pa.array([0, 0, 1, 2, 1, 3, 4], pa.int64()), "kept": [True, False, True, False, False, True, False],
        "reason": ["exact", "exact", "near", "near", "near", "near", "near"],
        "distance": [0.0, 0.0, 0.0, 0.012, 0.018, 0.0, 0.01],
    }  # fmt: skip
    write_parquet(data / "deduplicate" / "groups.parquet", pa.table(groups))
    before = {split: {"before": n + 1, "after": n} for split, n in counts.items()}
    summary = {"counts": before, "groups": 3, "images_in_groups": 7, "removed": 4}
    reasons = {"exact": 1, "near": 4, "feature": 0}
    write_json(data / "deduplicate" / "deduplicate.json", {**summary, "pairs_by_reason": reasons})
    write_json(data / "index" / "index.json", {"kind": "flat", "count": train, "dimension": 1280})
    claim = {
        "topic": "shell_mass", "claim": "noise lies in the shell", "formula": "P(|‖z‖ − √d| ≤ 3/√2)", "source": "§3",
        "computed": "chi-square", "expected": 0.9973, "tolerance": 1e-4, "reason": "last digit", "measured": 0.9973,
        "uncertainty": 1e-5, "deviation": None, "dtype": "float64", "passed": True, "low": None, "high": None,
    }  # fmt: skip
    answer = {**claim, "topic": "two_halves", "claim": "halves differ", "deviation": 0.0, "low": 0.99, "high": 1.01}
    wrong = {**claim, "claim": "a claim that fails", "measured": 0.9, "uncertainty": None, "passed": False}
    rows = [
        {"d": d, "exact": 0.9974, "monte_carlo": 0.9972, "standard_error": 1e-4, "limit": 0.9973} for d in (64, 256)
    ]
    write_tsv(data / "verify" / "shell_mass.tsv", rows)
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(data / "verify" / "states.png")
    block = {
        "name": "shell_mass",
        "title": "Gaussian shell",
        "mode": "quick",
        "dataset": "digits",
        "tables": ["shell_mass"],
        "pictures": [{"name": "states", "caption": "x_i"}],
        "question": None,
    }
    halves = [
        {"form": form, "seed": seed, "alikeness": 0.5, "low": 0.4, "high": 0.6, "copies": 0.2, "control": 0.1}
        for form in ("conditioning", "wiener") for seed in (0, 1)
    ]  # fmt: skip
    write_tsv(data / "verify" / "two_halves.tsv", halves)
    asked = {"title": "Two halves", "tables": ["two_halves"], "pictures": [], "question": "Do halves agree?"}
    write_json(data / "verify" / "blocks.json", {"blocks": [block, {**block, "name": "two_halves", **asked}]})
    write_json(data / "verify" / "verify.json", {"claims": [claim, wrong, answer]})


def write_project(
    root: Path, images: np.ndarray, *, train: int = 20, count: int = 200, variants: dict[str, Any] = VARIANTS,
    copied: dict[str, float] = COPIED, medians: dict[str, float] | None = None,
    distances: dict[str, float] | None = None, report: dict[str, Any] = REPORT,
    samplers: dict[str, dict[str, Any]] | None = None,
) -> None:  # fmt: skip
    """params.yaml and data/ under `root`. images: uint8 (N, H, W, C), N > 3 · train; the last ones become samples."""
    write_shared(root, images, train)
    for seed, (name, spec) in enumerate(variants.items()):
        median = (medians or {}).get(name, 0.05 if copied[name] > 0.5 else 0.95)
        distance = (distances or {}).get(name, 0.05)
        write_variant(
            root,
            name,
            spec,
            images[:train],
            images[3 * train :],
            count,
            copied[name],
            median,
            distance,
            seed,
            (samplers or {}).get(name, {"name": "euler", "levels": 100}),
        )
    (root / "params.yaml").write_text(yaml.safe_dump({"report": report, "variants": variants}, sort_keys=False))
