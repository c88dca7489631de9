"""Who is copied: fit the logistic model of stages/memorization/risk.py on our own runs, and test it on other ones.

    python -m benchmarks.risk [--cifar PATH/train.parquet] [--fashion SOURCE] [--onset onset.jsonl] [--keep FOLDER]
    python -m benchmarks.risk --parts closed use    # closed forms alone; --sizes 100 200 fits on more of them
    python -m benchmarks.risk --parts --onset onset.jsonl --keep FOLDER   # the order as it is, on those networks alone

The runs are those of benchmarks/risk_runs.py. Fitted on digits (seeds 0 to 7; closed forms of --sizes images); tested
on other seeds, on twice as many images, on other digits (scikit-learn's), on two classes of CIFAR-10, on FashionMNIST,
and on networks, those of benchmarks.onset among them (--onset with its --keep), which repeat no image. All numbers are
means over sources and seeds, each of which draws the images, with t-intervals. The images are told apart by two labels:

copied: at least one of five samples per image copies it. A draw.
likely: the probability of that, from AGAIN further samples per image of the very same model, is at least one half.

Beside the model's AUC stand the number of duplicates alone; low coverage alone; the copies among the further samples,
the order of the probabilities themselves; the copies by the other scores that were measured on the same images; and
what no common order of the images can exceed over these scores (`common_order`). Part `use` is benchmarks/risk_use.py.
"""

import argparse
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import risk_runs, risk_use, small_models
from benchmarks.places import out_path
from benchmarks.risk_runs import NETWORKS
from benchmarks.samplers import cell
from stages.beyond.copied_images import CLOSED
from stages.memorization import risk
from stages.memorization.risk import FEATURES, auc, calibration_slope, fit, log_odds
from stages.memorization.seeds import SeedMean, over_seeds

FITTED, TESTED = range(8), range(10, 15)
RIDGE = 1.0  # penalty: of the fit's runs, one closed form left out at a time, mean slope 1.04 (1.07 at 3, 1.16 at 10)
FEW = 0.05
IMAGES = 100  # of a network's training set
PARTS = ("closed", "networks", "use")
COLUMNS = {
    "auc": "AUC", "alone": "duplicates", "gain": "AUC less that", "low": "low coverage", "further": "further samples",
    "others": "other scores", "common": "a common order, at most", "slope": "calibration slope",
}  # fmt: skip
LABELS = {"copied": tuple(COLUMNS), "likely": ("auc", "alone", "gain", "low", "others", "common")}
ONSET = "digits without repeats"
Row = dict[str, Any]
Key = tuple[str, str, int, int, int | None]


def key(row: Row) -> Key:
    """What names a run."""
    return row["source"], row["score"], row["size"], row["seed"], row["steps"]


def plan(options: argparse.Namespace) -> list[Key]:
    """The runs, in the order in which they are made: closed forms, then networks; of each those of the fit first."""
    others = [name for name in risk_runs.sources(options.cifar, options.fashion, options.classes) if name != "digits"]
    closed = [("digits", size, seed) for size in options.sizes for seed in FITTED]
    closed += [(name, IMAGES, seed) for name in ("digits", *others) for seed in options.seeds]
    closed += [("digits", 2 * max(options.sizes), seed) for seed in options.seeds]
    made: list[Key] = []
    if "closed" in options.parts:
        made += [(source, form, size, seed, None) for source, size, seed in closed for form in CLOSED]
    if "networks" in options.parts:
        made += [(name, "plain", IMAGES, seed, None) for name in ("digits", *others[-1:]) for seed in options.seeds]
    if options.onset is not None:
        rows = [json.loads(line) for line in options.onset.read_text().splitlines()]
        made += [(ONSET, row["variant"], row["size"], row["seed"], row["steps"][-1]) for row in rows]
    return made


def training_set(row: Key, options: argparse.Namespace) -> np.ndarray:
    """The images of a run."""
    source, _, size, seed, _ = row
    if source == ONSET:
        return small_models.drawn(size, 1000, seed)[0]
    images = risk_runs.sources(options.cifar, options.fashion, options.classes)[source]
    return risk_runs.repeated(images, size, seed)


def measured(options: argparse.Namespace, done: set[Key]) -> Iterator[Row]:
    """Yield a row for every run of the plan that is not done."""
    for wanted in plan(options):
        if wanted not in done:
            source, name, _, seed, steps = wanted
            yield risk_runs.run(source, name, training_set(wanted, options), seed, steps, options.keep)


def joined(rows: list[Row], name: str) -> np.ndarray:
    """A column of several runs, one after the other."""
    return np.concatenate([row[name] for row in rows])


def places(rows: list[Row]) -> np.ndarray:
    """The place of the run of every image, int64."""
    return np.repeat(np.arange(len(rows)), [len(row["copied"]) for row in rows])


def described(rows: list[Row], options: argparse.Namespace) -> list[Row]:
    """The runs with the features of their images, both labels, their probability, and what other scores copy.

    others: mean of ln(1/2 + copies) over the other scores on the same images, None without any: of closed forms the
    other three, of networks the other target from the same weights.
    """
    sets: dict[tuple[str, int, int], list[Row]] = {}
    for row in rows:
        sets.setdefault((row["source"], row["size"], row["seed"]), []).append(row)
    found = []
    for own in sets.values():
        known = risk.described(training_set(key(own[0]), options))
        x = np.stack([known[name] for name in FEATURES], axis=1)
        logs = [np.log(0.5 + np.array(row["again"])) for row in own]
        for place, row in enumerate(own):
            kind = [i for i, other in enumerate(own) if (other["score"] in NETWORKS) == (row["score"] in NETWORKS)]
            rest = [logs[i] for i in kind if i != place]
            # expm1: five draws per image, each of which copies with this probability, all miss the image
            p = -np.expm1(-np.array(row["again"]) * risk_runs.SAMPLES / row["further"])
            labels = {"copied": np.array(row["copies"]) > 0, "likely": p >= 0.5}
            found.append(row | known | {"x": x, "p": p, "others": np.mean(rest, 0) if rest else None, **labels})
    return found


def common_order(labels: list[np.ndarray]) -> float:
    """What the mean AUC of one order of the images over several labels, bool (M,) each, cannot exceed.

    Each pair of images has its better place, as if pairs could be ordered one by one. NaN for fewer than two labels.
    """
    if len(labels) < 2:
        return float("nan")
    above = sum((own[:, None] & ~own) / (own.sum() * (~own).sum()) for own in labels)
    return float(np.triu(np.maximum(above, above.T), 1).sum() / len(labels))


def tested(rows: list[Row], weights: np.ndarray, label: str) -> dict[str, SeedMean | float | None] | None:
    """AUC of the model and of what stands beside it, for a label, and calibration slopes; over sources and seeds."""
    rows = [row for row in rows if 0 < row[label].sum() < len(row[label])]
    if not rows:
        return None
    orders: dict[str, Callable[[Row], np.ndarray]] = {
        "auc": lambda row: row["x"] @ weights,
        "alone": lambda row: row["duplicates"],
        "low": lambda row: -row["coverage"],
        "further": lambda row: np.array(row["again"], float),
        "others": lambda row: row["others"],
    }
    found = {name: _by_images(rows, lambda own, order=order: _mean_auc(own, order, label)) for name, order in
             orders.items()}  # fmt: skip
    found["gain"] = np.subtract(found["auc"], found["alone"])
    found["common"] = _by_images(rows, lambda own: _common(own, label))
    if "slope" in LABELS[label]:
        found["slope"] = _by_images(rows, lambda own: _slope(own, weights, label))
    finite = {name: [value for value in values if np.isfinite(value)] for name, values in found.items()}
    means = {name: over_seeds(values) if values else None for name, values in finite.items()}
    return {"runs": len(rows), "share": np.mean([row[label].mean() for row in rows]), **means}


def _slope(rows: list[Row], weights: np.ndarray, label: str) -> float:
    score = np.concatenate([log_odds(row["x"], weights) for row in rows])
    return calibration_slope(score, joined(rows, label), places(rows))


def _mean_auc(rows: list[Row], order: Callable[[Row], np.ndarray | None], label: str) -> float:
    values = [auc(score, row[label]) for row in rows if (score := order(row)) is not None]
    return float(np.mean(values)) if values else float("nan")


def _common(rows: list[Row], label: str) -> float:
    """The mean bound over training sets, weighted by their runs; NaN where each has one run."""
    sets: dict[int, list[np.ndarray]] = {}
    for row in rows:
        sets.setdefault(row["size"], []).append(row[label])
    several = [own for own in sets.values() if len(own) > 1]
    counts = [len(own) for own in several]
    return float(np.average([common_order(own) for own in several], weights=counts)) if several else float("nan")


def _by_images(rows: list[Row], value: Callable[[list[Row]], float]) -> list[float]:
    """A value of the runs of each source and seed together: they share images, and are no independent draws."""
    found: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        found.setdefault((row["source"], row["seed"]), []).append(row)
    return [value(each) for each in found.values()]


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
            found.setdefault(f"all others: {what}", []).append(row)
    return dict(sorted(found.items(), key=lambda item: (item[0].startswith("all"), not item[0].startswith("fitted"))))


def table(rows: list[Row], weights: np.ndarray, label: str) -> Iterator[str]:
    """A Markdown line per kind of test."""
    yield f"\n| tested on ({label}) | runs | share % | {' | '.join(COLUMNS[name] for name in LABELS[label])} |"
    yield "|---" * (3 + len(LABELS[label])) + "|"
    for name, own in kinds(rows).items():
        found = tested(own, weights, label)
        if found is not None:
            cells = ["–" if found[column] is None else cell(found[column], 1, 2) for column in LABELS[label]]
            yield f"| {name} | {found['runs']} | {100 * found['share']:.0f} | {' | '.join(cells)} |"


def in_the_few(rows: list[Row]) -> Iterator[str]:
    """Which share of all copies the 5 % of the images have that are copied most: the most that removing them can do."""
    for name in (*CLOSED, *NETWORKS):
        shares = []
        for row in [row for row in rows if row["score"] == name and sum(row["again"])]:
            each = np.sort(np.array(row["again"]) / np.exp(row["duplicates"]))[::-1]  # a group's copies once
            shares.append(each[: round(FEW * len(each))].sum() / each.sum())
        if shares:
            yield f"{name}: {cell(over_seeds(shares), 100, 0)} % of the copies are of the 5 % that are copied most"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cifar", type=Path, help="train.parquet of CIFAR-10")
    parser.add_argument("--classes", type=int, nargs="+", default=risk_runs.CLASSES, help="of CIFAR-10")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=TESTED, help="of the tests; those of the fit are 0 to 7"
    )
    parser.add_argument("--fashion", help="source of FashionMNIST: torchvision:FashionMNIST?root=FOLDER")
    parser.add_argument("--onset", type=Path, help="the file of benchmarks.onset")
    parser.add_argument("--keep", type=Path, help="folder that keeps the networks, of benchmarks.onset too")
    parser.add_argument("--sizes", type=int, nargs="+", default=[IMAGES], help="images of the fit's closed forms")
    parser.add_argument("--parts", nargs="*", default=PARTS, choices=PARTS)
    small_models.add_options(parser)
    parser.add_argument("--out", type=out_path, default=Path("risk.jsonl"))
    options = parser.parse_args()
    options.classes = tuple(options.classes)
    small_models.use_options(options)
    rows = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    for row in measured(options, {key(row) for row in rows}):
        rows.append(row)
        with options.out.open("a") as file:
            file.write(json.dumps(row) + "\n")
    wanted = set(plan(options))
    rows = described([row for row in rows if key(row) in wanted], options)
    learn = [row for row in rows if row["seed"] in FITTED and row["score"] in CLOSED]
    weights = fit(joined(learn, "x"), joined(learn, "p"), places(learn), RIDGE).weights if learn else risk.WEIGHTS
    print("weights", dict(zip(FEATURES, np.round(weights, 2).tolist())), "\n")
    lines = itertools.chain(*(table(rows, weights, label) for label in LABELS), in_the_few(rows))
    print("\n".join(lines), flush=True)
    if "use" in options.parts:
        names = [*(CLOSED if "closed" in options.parts else ()), *(["plain"] if "networks" in options.parts else ())]
        print("\n".join(risk_use.table(weights, names, options.keep)), flush=True)
    print(json.dumps({"runs": len(rows), "weights": weights.tolist()}))


if __name__ == "__main__":
    main()
