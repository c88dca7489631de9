"""Who is copied: fit the logistic model of stages/memorization/risk.py on our own runs, and test it on other ones.

    python -m benchmarks.risk [--cifar PATH/train.parquet] [--onset onset.jsonl] [--keep FOLDER] [--out risk.jsonl]
    python -m benchmarks.risk --parts closed use    # closed forms alone; --sizes 100 200 fits on more of them

The runs are those of benchmarks/risk_runs.py. Fitted on digits (seeds 0 to 3; closed forms of --sizes images, networks
of 100); tested on other seeds, on twice as many images, on other digits (scikit-learn's), on two classes of CIFAR-10,
and on the networks of benchmarks.onset (--onset with its --keep), which repeat no image. AUC and slope are means over
sources and seeds, each of which draws the images, with t-intervals. Beside the model's AUC stand that of the number of
duplicates, and that of the copies among ten other samples per image of the very same model, which knows it, but counts
few. Part `use` then removes 5 % of the images, or puts their four shifts by one pixel in their place: the riskiest, or
some at random.
"""

import argparse
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import risk_runs, small_models
from benchmarks.places import out_path
from benchmarks.risk_runs import CLOSED, NETWORKS
from benchmarks.samplers import cell
from stages.features.frechet import frechet_from_features
from stages.memorization.risk import FEATURES, auc, calibration_slope, features, fit
from stages.memorization.seeds import over_seeds

FITTED, TESTED = range(4), (10, 11, 12)
DUPLICATES = FEATURES.index("duplicates")
RIDGE = 10.0  # penalty: of the fit's runs, one closed form left out at a time, mean slope 1.06 (0.83 at 1, 1.32 at 30)
REMOVED = 0.05
IMAGES = 100  # of a network's training set, and of those that are changed
PARTS = ("closed", "networks", "use")
ONSET = "digits without repeats"
Row = dict[str, Any]
Key = tuple[str, str, int, int, int | None]


def key(row: Row) -> Key:
    """What names a run."""
    return row["source"], row["score"], row["size"], row["seed"], row["steps"]


def plan(options: argparse.Namespace) -> list[Key]:
    """The runs, in the order in which they are made: closed forms, then networks; of each those of the fit first."""
    others = [name for name in risk_runs.sources(options.cifar) if name != "digits"]
    closed = [("digits", size, seed) for size in options.sizes for seed in FITTED]
    closed += [(name, IMAGES, seed) for name in ("digits", *others) for seed in TESTED]
    closed += [("digits", 2 * max(options.sizes), seed) for seed in TESTED]
    made: list[Key] = []
    if "closed" in options.parts:
        made += [(source, form, size, seed, None) for source, size, seed in closed for form in CLOSED]
    if "networks" in options.parts:
        made += [("digits", "plain", IMAGES, seed, None) for seed in (*FITTED, *TESTED)]
        made += [(name, "plain", IMAGES, seed, None) for name in others[-1:] for seed in TESTED]
    if options.onset is not None:
        rows = [json.loads(line) for line in options.onset.read_text().splitlines()]
        made += [(ONSET, row["variant"], row["size"], row["seed"], row["steps"][-1]) for row in rows]
    return made


def training_set(source: str, size: int, seed: int, cifar: Path | None) -> np.ndarray:
    """The images of a run."""
    if source == ONSET:
        return small_models.drawn(size, 1000, seed)[0]
    return risk_runs.repeated(risk_runs.sources(cifar)[source], size, seed)


def measured(options: argparse.Namespace, done: set[Key]) -> Iterator[Row]:
    """Yield a row for every run of the plan that is not done."""
    for source, name, size, seed, steps in plan(options):
        if (source, name, size, seed, steps) not in done:
            train = training_set(source, size, seed, options.cifar)
            yield risk_runs.run(source, name, train, seed, steps, options.keep)


def joined(rows: list[Row], name: str) -> np.ndarray:
    """A column of several runs, one after the other."""
    return np.concatenate([row[name] for row in rows])


def places(rows: list[Row]) -> np.ndarray:
    """The place of the run of every image, int64."""
    return np.repeat(np.arange(len(rows)), [len(row["copied"]) for row in rows])


def described(row: Row, cifar: Path | None) -> Row:
    """A run with the features of its images and which of them are copied."""
    x = features(training_set(row["source"], row["size"], row["seed"], cifar))
    return row | {"x": x, "copied": np.array(row["copies"]) > 0}


def tested(rows: list[Row], weights: np.ndarray) -> Row | None:
    """AUC of the model, of duplicates and of the copies among other samples, and slopes; over sources and seeds."""
    rows = [row for row in rows if 0 < row["copied"].sum() < len(row["copied"])]
    if not rows:
        return None
    found = {
        "auc": _by_images(rows, lambda row: auc(row["x"] @ weights, row["copied"])),
        "alone": _by_images(rows, lambda row: auc(row["x"][:, DUPLICATES], row["copied"])),
        "others": _by_images(rows, lambda row: auc(np.array(row["again"], float), row["copied"])),
        "slope": [],
    }
    for source, seed in sorted({(row["source"], row["seed"]) for row in rows}):
        own = [row for row in rows if (row["source"], row["seed"]) == (source, seed)]
        found["slope"].append(calibration_slope(joined(own, "x") @ weights, joined(own, "copied"), places(own)))
    share = np.mean([row["copied"].mean() for row in rows])
    return {"runs": len(rows), "share": share, **{name: over_seeds(values) for name, values in found.items()}}


def _by_images(rows: list[Row], value: Callable[[Row], float]) -> list[float]:
    """The mean of a value over the runs of each source and seed: they share images, and are no independent draws."""
    found: dict[tuple[str, int], list[float]] = {}
    for row in rows:
        found.setdefault((row["source"], row["seed"]), []).append(value(row))
    return [float(np.mean(each)) for each in found.values()]


def kinds(rows: list[Row]) -> dict[str, list[Row]]:
    """The tests: the runs of the fit, and every kind of the others."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        what = "networks" if row["score"] in NETWORKS else "closed forms"
        if row["source"] == ONSET:
            name = ONSET + ", networks"
        elif row["seed"] in FITTED:
            name = f"fitted: {what}"
        else:
            name = f"{row['source']}, {row['size']} images, {what}"
        found.setdefault(name, []).append(row)
        if row["seed"] not in FITTED or row["source"] == ONSET:
            found.setdefault(f"all others: {row['score']}", []).append(row)
            found.setdefault("all others", []).append(row)
    return dict(sorted(found.items(), key=lambda item: (item[0].startswith("all"), not item[0].startswith("fitted"))))


def table(rows: list[Row], weights: np.ndarray) -> Iterator[str]:
    """A Markdown line per kind of test."""
    yield "| tested on | runs | copied % | AUC | duplicates alone | other samples | calibration slope |"
    yield "|---" * 7 + "|"
    for name, own in kinds(rows).items():
        found = tested(own, weights)
        if found is not None:
            cells = [cell(found[key], 1, 2) for key in ("auc", "alone", "others", "slope")]
            yield f"| {name} | {found['runs']} | {100 * found['share']:.0f} | {' | '.join(cells)} |"


def shifts(images: np.ndarray) -> np.ndarray:
    """The four shifts by one pixel of images (N, H, W, C), edges repeated, (4N, H, W, C)."""
    wide = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    height, width = images.shape[1:3]
    return np.concatenate([wide[:, y : y + height, x : x + width] for y, x in ((0, 1), (2, 1), (1, 0), (1, 2))])


def changed(train: np.ndarray, weights: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """The training set as it is, without 5 % of its images, and with their shifts instead: the riskiest or random."""
    out, sets = round(REMOVED * len(train)), {"all images": train}
    chance = np.random.default_rng(seed).permutation(len(train))
    for name, order in (("riskiest", np.argsort(features(train) @ weights)), ("random", chance)):
        kept = train[np.sort(order[:-out])]
        sets |= {f"{name} removed": kept, f"{name} shifted": np.concatenate([kept, shifts(train[order[-out:]])])}
    return sets


def used(name: str, weights: np.ndarray, seed: int, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Share of copies (of any image of the whole set) and FD of the pixels, for each of the changed training sets."""
    images = risk_runs.sources(options.cifar)["digits"]
    train = risk_runs.repeated(images, IMAGES, seed)
    held_out = small_models.drawn(IMAGES, risk_runs.HELD_OUT, seed, images)[1]
    group, real, found = risk_runs.groups(train), small_models.flat(held_out) / 255, {}
    for kind, some in changed(train, weights, seed).items():
        made = risk_runs.model(name, some, seed, risk_runs.STEPS * IMAGES, options.keep)
        samples = risk_runs.drawn(made, seed, risk_runs.SAMPLES * IMAGES)
        copied = len(risk_runs.copied_groups(samples, train, group)) / len(samples)
        found[kind] = {"copies": copied, "fd": frechet_from_features(small_models.flat(samples) / 255, real)}
    return found


def in_the_few(rows: list[Row]) -> Iterator[str]:
    """Which share of all copies the 5 % of the images have that are copied most: the most that removing them can do."""
    for name in (*CLOSED, *NETWORKS):
        shares = []
        for row in [row for row in rows if row["score"] == name and sum(row["again"])]:
            each = np.sort(np.array(row["again"]) / np.exp(row["x"][:, DUPLICATES]))[::-1]  # a group's copies once
            shares.append(each[: round(REMOVED * len(each))].sum() / each.sum())
        if shares:
            yield f"{name}: {cell(over_seeds(shares), 100, 0)} % of the copies are of the 5 % that are copied most"


def use(weights: np.ndarray, options: argparse.Namespace) -> Iterator[str]:
    """A Markdown table of the changed training sets, with paired differences over seeds."""
    yield "| model | training set | copies % | change, points | FD-pixels | change |"
    yield "|---" * 6 + "|"
    names = [*(CLOSED if "closed" in options.parts else ()), *(["plain"] if "networks" in options.parts else ())]
    for name in names:
        found = [used(name, weights, seed, options) for seed in TESTED]
        for kind in found[0]:
            cells = []
            for measure, scale, digits in (("copies", 100, 1), ("fd", 1, 3)):
                values = [own[kind][measure] for own in found]
                change = over_seeds([own[kind][measure] - own["all images"][measure] for own in found])
                cells += [cell(over_seeds(values), scale, digits), cell(change, scale, digits)]
            yield f"| {name} | {kind} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cifar", type=Path, help="train.parquet of CIFAR-10")
    parser.add_argument("--onset", type=Path, help="the file of benchmarks.onset")
    parser.add_argument("--keep", type=Path, help="folder that keeps the networks, of benchmarks.onset too")
    parser.add_argument("--sizes", type=int, nargs="+", default=[IMAGES], help="images of the fit's closed forms")
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=out_path, default=Path("risk.jsonl"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    for row in measured(options, {key(row) for row in rows}):
        rows.append(row)
        with options.out.open("a") as file:
            file.write(json.dumps(row) + "\n")
    wanted = set(plan(options))
    rows = [described(row, options.cifar) for row in rows if key(row) in wanted]
    learn = [row for row in rows if row["seed"] in FITTED and row["source"] != ONSET]
    weights = fit(joined(learn, "x"), joined(learn, "copied"), places(learn), RIDGE).weights
    print("weights", dict(zip(FEATURES, np.round(weights, 2).tolist())), "\n")
    tables = [table(rows, weights), in_the_few(rows), use(weights, options) if "use" in options.parts else ()]
    print("\n".join(itertools.chain(*tables)), flush=True)
    print(json.dumps({"runs": len(rows), "weights": weights.tolist()}))


if __name__ == "__main__":
    main()
