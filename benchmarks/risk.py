"""Who is copied: fit the logistic model of stages/memorization/risk.py on our own runs, and test it on other ones.

    python -m benchmarks.risk [--cifar PATH/train.parquet] [--onset onset.jsonl] [--out risk.jsonl]

A run is a training set of which a tenth of the images is repeated up to three times, and samples of a closed form that
smooths the empirical score, five per training image. An image is copied if a sample has r1/r2 < 0.7 (r2 outside the
duplicate group) and its nearest image in the same group. Fitted on digits (8 x 8, seeds 0 to 3, 100 and 200 images);
tested on other seeds, on 400 images, on another set of digits (scikit-learn's), on classes of CIFAR-10, and on the
networks of benchmarks.onset, which repeat no image. AUC and slope are means over runs with t-intervals; the number of
duplicates alone stands beside them. Then the riskiest 5 % of the images are removed, beside 5 % drawn at random.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import small_models
from benchmarks.audit import read
from benchmarks.league import FORMS
from stages.diffusion.model import make_model
from stages.diffusion.parameters import Variant
from stages.diffusion.sampling import draw_samples
from stages.features.frechet import frechet_from_features
from stages.files.images import image_id
from stages.images.decode import to_pixels
from stages.memorization.groups import find_duplicates
from stages.memorization.matching import BUDGET, own_neighbors
from stages.memorization.risk import FEATURES, auc, calibration_slope, features, fit
from stages.memorization.seeds import over_seeds
from stages.search.nearest import nearest

SIDE, PER_IMAGE, RATIO, HELD_OUT = 8, 5, 0.7, 500
SCORES = {
    "kernel": {**FORMS["kernel"], "kernel": {"h": 0.4, "draws": 16}},
    **{name: FORMS[name] for name in ("temperature", "loader-25", "tikhonov")},
}
DUPLICATES = FEATURES.index("duplicates")


def repeated(images: np.ndarray, count: int, seed: int) -> np.ndarray:
    """`count` images of a seed's order, of which a tenth stands in place of others up to three more times."""
    train = small_models.drawn(count, HELD_OUT, seed, images)[0].copy()
    generator, place = np.random.default_rng([seed, 1]), count - 1
    for source in range(count // 10):
        for _ in range(int(generator.integers(1, 4))):
            train[place], place = train[source], place - 1
    return train


def groups(train: np.ndarray) -> np.ndarray:
    """The duplicate group of every image."""
    flat = small_models.flat(train)
    own = own_neighbors(flat, 0, len(flat), BUDGET)
    return find_duplicates([image_id(image) for image in train], own, flat.shape[1]).group


def copied_images(images: np.ndarray, train: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Which training images a sample copies, bool (M,)."""
    flat = small_models.flat(train)
    index, squared = nearest(small_models.flat(images), flat, min(12, len(flat)))
    away = group[index] != group[index[:, :1]]
    beyond = np.where(away, squared, np.iinfo(np.int64).max).min(1)
    close = np.sqrt(squared[:, 0]) < RATIO * np.sqrt(beyond)
    return np.isin(group, group[index[close, 0]])


def drawn(name: str, train: np.ndarray, seed: int) -> np.ndarray:
    """Samples of a closed form, PER_IMAGE for each training image."""
    model = make_model(Variant(score="closed-form", **SCORES[name]), small_models.NOISE, train, None, small_models.CPU)
    return draw_samples(model, seed, PER_IMAGE * len(train), 100)


def run(source: str, name: str, images: np.ndarray, count: int, seed: int) -> dict[str, Any]:
    """Features and copies of one run."""
    train = repeated(images, count, seed)
    copied = copied_images(drawn(name, train, seed), train, groups(train))
    row = {"source": source, "score": name, "size": count, "seed": seed}
    return row | {"x": np.round(features(train), 6).tolist(), "copied": copied.astype(int).tolist()}


def sources(cifar: Path | None) -> dict[str, np.ndarray]:
    """Images of 8 x 8 by name."""
    from sklearn.datasets import load_digits

    found = {"digits": small_models.digits("mnist5k", SIDE)}
    found["scikit-learn digits"] = np.round(load_digits().images * 255 / 16).astype(np.uint8)[..., None]
    if cifar is not None:
        import pyarrow.parquet as pq

        label = pq.read_table(cifar, columns=["label"])["label"].to_numpy()[:12000]
        images = np.stack([to_pixels(small_models.picture(image), SIDE, 3) for image in read(cifar, 12000)])
        found |= {f"CIFAR-10 class {wanted}": images[label == wanted] for wanted in (1, 7)}
    return found


def networks(path: Path) -> Iterator[dict[str, Any]]:
    """The runs of benchmarks.onset: the copies of the last snapshot's 100 samples."""
    for line in path.read_text().splitlines():
        row = json.loads(line)
        train, _ = small_models.drawn(row["size"], row["held_out"], row["seed"])
        copied = np.array(row["sources"][-1]) > 0
        about = {"source": "digits, networks", "score": row["variant"], "size": row["size"], "seed": row["seed"]}
        yield about | {"x": features(train).tolist(), "copied": copied.astype(int).tolist()}


def tested(rows: list[dict[str, Any]], weights: np.ndarray) -> dict[str, Any]:
    """AUC of the model and of duplicates alone over runs, and the calibration slope of runs of one seed together."""
    rows = [row for row in rows if 0 < sum(row["copied"]) < len(row["copied"])]
    ours, alone, slopes = [], [], []
    for row in rows:
        x, copied = np.array(row["x"]), np.array(row["copied"], bool)
        ours.append(auc(x @ weights, copied))
        alone.append(auc(x[:, DUPLICATES], copied))
    for seed in sorted({row["seed"] for row in rows}):
        own = [row for row in rows if row["seed"] == seed]
        place = np.repeat(np.arange(len(own)), [len(row["copied"]) for row in own])
        x, copied = (np.concatenate([np.array(row[key]) for row in own]) for key in ("x", "copied"))
        slopes.append(calibration_slope(x @ weights, copied.astype(bool), place))
    share = np.mean([np.mean(row["copied"]) for row in rows])
    found = {name: over_seeds(values) for name, values in (("auc", ours), ("alone", alone), ("slope", slopes))}
    return {"runs": len(rows), "share": share, **found}


def cells(found: dict[str, Any]) -> str:
    """The means with their intervals."""
    words = []
    for name in ("auc", "alone", "slope"):
        mean = found[name]
        words.append(f"{name} {mean.mean:.2f}" + ("" if mean.low is None else f" [{mean.low:.2f}, {mean.high:.2f}]"))
    return "  ".join(words)


def removed(images: np.ndarray, weights: np.ndarray, name: str, count: int, seed: int) -> dict[str, float]:
    """Share of copies and FD of the pixels: with all images, and without the riskiest 5 % or 5 % drawn at random."""
    train, held_out = repeated(images, count, seed), small_models.drawn(count, HELD_OUT, seed, images)[1]
    out, order = round(0.05 * count), np.argsort(features(train) @ weights)
    chance = np.random.default_rng(seed).permutation(count)
    found = {}
    for kind, kept in (("all", order), ("riskiest removed", order[:-out]), ("random removed", chance[:-out])):
        samples = drawn(name, train[np.sort(kept)], seed)
        close = nearest(small_models.flat(samples), small_models.flat(train), 12)
        group = groups(train)
        beyond = np.where(group[close[0]] != group[close[0][:, :1]], close[1], np.iinfo(np.int64).max).min(1)
        found[f"copies, {kind}"] = float((np.sqrt(close[1][:, 0]) < RATIO * np.sqrt(beyond)).mean())
        found[f"FD, {kind}"] = frechet_from_features(*(small_models.flat(part) / 255 for part in (samples, held_out)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cifar", type=Path)
    parser.add_argument("--onset", type=Path, help="the file of benchmarks.onset")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("risk.jsonl"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    images = sources(arguments.cifar)
    plan = [("digits", size, seed) for size in (100, 200) for seed in range(4)]
    plan += [("digits", 100, seed) for seed in (10, 11, 12)]
    plan += [(name, 200, seed) for seed in (10, 11, 12) for name in images if name != "digits"]
    plan += [("digits", 400, seed) for seed in (10, 11, 12)]  # the longest ones last
    rows = [json.loads(line) for line in arguments.out.read_text().splitlines()] if arguments.out.exists() else []
    done = {(row["source"], row["score"], row["size"], row["seed"]) for row in rows}
    with arguments.out.open("a") as file:
        for name, size, seed in plan:
            for score in SCORES:
                if (name, score, size, seed) not in done:
                    rows.append(run(name, score, images[name], size, seed))
                    file.write(json.dumps(rows[-1]) + "\n")
                    file.flush()
    learn = [row for row in rows if row["seed"] < 4]
    place = np.repeat(np.arange(len(learn)), [len(row["copied"]) for row in learn])
    x, copied = (np.concatenate([np.array(row[key]) for row in learn]) for key in ("x", "copied"))
    weights = fit(x, copied.astype(bool), place).weights
    print("weights", dict(zip(FEATURES, np.round(weights, 3).tolist())))
    tests: dict[str, list[dict[str, Any]]] = {}
    for row in [row for row in rows if row["seed"] >= 4]:
        kind = f"{row['source']}, {row['size']} images" if row["source"] == "digits" else row["source"]
        for key in (kind, f"score {row['score']}"):
            tests.setdefault(key, []).append(row)
    if arguments.onset is not None:
        tests["digits, networks"] = list(networks(arguments.onset))
    for name, own in tests.items():
        found = tested(own, weights)
        print(f"{name:28} runs {found['runs']:3} copied {found['share']:5.1%}  {cells(found)}")
    for score in ("kernel", "temperature"):
        without = [removed(images["digits"], weights, score, 200, seed) for seed in (10, 11, 12)]
        for key in without[0]:
            mean = over_seeds([own[key] for own in without])
            print(f"{score}, {key}: {mean.mean:.3f} [{mean.low:.3f}, {mean.high:.3f}]")
    print(json.dumps({"runs": len(rows), "weights": weights.tolist()}))


if __name__ == "__main__":
    main()
