"""Temperatures that depend on the point, in networks: copies at equal Fréchet distance, against early stopping.

    python -m benchmarks.adaptive [--size 50] [--seeds 0 1 2] [--steps 800] [--keep FOLDER] [--out adaptive.jsonl]
    python -m benchmarks.adaptive --closed [--size 1000] [--out closed.jsonl]

The networks of presets adaptive-temperature and onset (a constant temperature), trained on the images of
benchmarks.onset, whose folder --keep has the plain ones. 200 samples are measured, of plain at every snapshot (sqrt 2
apart) and of the others at the end of their training: copies (r1/r2 < 0.7), nearer than all but 1 % of held-out images,
blends, and the Frechet distance of their pixels to 500 held-out images; 500 others are the control. Each smoothed
network is then compared with the plain one at the step where that one first has the same distance, as the report's
frontier does, and at the same step; with the paired t-interval over seeds. Rows are kept in --out, from which an
interrupted run continues.

--closed: the same targets as closed forms, without training. A constant temperature from 64, the dimension, down to 1
then stands for the training: each temperature that depends on the point is compared with the constant one of the same
distance.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import small_models
from benchmarks.league import ACTUAL
from benchmarks.places import out_path
from benchmarks.samplers import cell, flagged
from stages.beyond.copying_onset import grid
from stages.beyond.measures import nearness
from stages.diffusion.model import make_model
from stages.diffusion.parameters import Variant
from stages.diffusion.sampling import draw_samples
from stages.features.frechet import frechet_interval
from stages.memorization.seeds import SHARE, SeedMean, over_seeds, paired_difference, paired_rates, rate_variance
from stages.reporting.frontier import at_equal_distance
from stages.reporting.runs import RATIO, SHARES, Columns, final, seeds

PLAIN, SMOOTHED = "plain", ("smoothed", "five-over-sigma", "nonexpansive", "perplexity-3")
SAMPLES, HELD_OUT, FIRST = 200, 1000, 50
CONSTANT = tuple(2 ** (i / 2) for i in range(12, -1, -1))
FOLLOWING = ("5/sigma", "nonexpansive", "perplexity(3)")
Row = dict[str, Any]


def measure(images: np.ndarray, train: np.ndarray, held_out: np.ndarray) -> Row:
    """The columns of the report's runs for images uint8 (N, H, W, C)."""
    control, reference = np.split(held_out, 2)
    found = flagged(nearness(images, train), nearness(control, train))
    fd, low, high = frechet_interval(*(small_models.flat(part) / 255 for part in (images, reference)))
    own = {"count": len(images), RATIO: found.pop("copied"), **found}
    return own | {"fd": fd, "fd_low": low, "fd_high": high}


def measured(name: str, size: int, seed: int, steps: list[int], keep: Path | None) -> Iterator[Row]:
    """A row for every snapshot of one training."""
    spec, (train, held_out) = small_models.variant(name), small_models.drawn(size, HELD_OUT, seed)
    for step, network in small_models.snapshots(name, train, seed, steps, keep):
        images = small_models.samples(spec, network, train, SAMPLES, seed)
        yield {"variant": name, "size": size, "seed": seed, "step": step, **measure(images, train, held_out)}


def closed_form(temperature: float | str) -> Variant:
    """The target of preset adaptive-temperature as a closed form, blind to the noise level, with a sampler for it."""
    smoothing = {"smooth_below": 0.5, "neighbors": {"space": "pixel", "k": 8}}
    return Variant(score="closed-form", form="temperature", temperature=temperature, **smoothing, sampler=ACTUAL)


def closed_rows(size: int, seed: int) -> Iterator[Row]:
    """A row for every constant temperature, by its place in CONSTANT, and for each that follows the point."""
    train, held_out = small_models.drawn(size, HELD_OUT, seed)
    named = [("constant", i, value) for i, value in enumerate(CONSTANT, 1)] + [(name, 1, name) for name in FOLLOWING]
    for name, place, temperature in named:
        model = make_model(closed_form(temperature), small_models.NOISE, train, None, small_models.CPU)
        images = draw_samples(model, seed, SAMPLES, 50)
        yield {"variant": name, "size": size, "seed": seed, "step": place, **measure(images, train, held_out)}


def closed_lines(rows: list[Row]) -> Iterator[str]:
    """The shares and distances of every temperature, then the comparisons at equal distance."""
    yield "| temperature | copies % | nearer % | blends % | FD-pixels |"
    yield "|---" * 5 + "|"
    runs = {name: columns(rows, name) for name in dict.fromkeys(row["variant"] for row in rows)}
    for name, own in runs.items():
        for place in sorted(set(own["step"])):
            some = {key: values[own["step"] == place] for key, values in own.items()}
            nothing = np.zeros(len(some["fd"]))
            shares = [cell(share(some[key]), 100, 1) for key in SHARES]
            label = f"{CONSTANT[int(place) - 1]:.1f}" if name == "constant" else name
            yield f"| {label} | {' | '.join(shares)} | {cell(paired_difference(some['fd'], nothing), 1, 2)} |"
    for name in FOLLOWING:
        found = at_equal_distance(name, "constant", runs)
        where = ", ".join(f"{2 ** ((13 - place) / 2):.1f}" for place in found.stopped)
        outside = "; ".join(f"{why} in seeds {', '.join(map(str, own))}" for why, own in found.outside.items() if own)
        change = "no comparison over all seeds" if found.change is None else found.change.words
        yield f"{name}, as far as T = {where or '–'}{f' ({outside})' if outside else ''}: {change}"


def share(flagged: np.ndarray) -> SeedMean:
    """Return the mean share of SAMPLES over seeds, flagged (seeds,)."""
    return over_seeds(flagged / SAMPLES, rate_variance(flagged, SAMPLES), SHARE)


def columns(rows: list[Row], name: str) -> Columns:
    """The runs of a variant, sorted by seed, then step."""
    own = sorted((row for row in rows if row["variant"] == name), key=lambda row: (row["seed"], row["step"]))
    return {key: np.array([row[key] for row in own], float) for key in own[0] if key not in ("variant", "size")}


def table(rows: list[Row], steps: int) -> Iterator[str]:
    """Markdown lines of the ends of all trainings, and of the differences from plain at the same step."""
    yield "| target | copies % | change at the same step | FD-pixels | change |"
    yield "|---" * 5 + "|"
    rows = [row for row in rows if row["step"] <= steps]
    plain = columns(rows, PLAIN)
    for name in [name for name in (PLAIN, *SMOOTHED) if any(row["variant"] == name for row in rows)]:
        own = columns(rows, name)
        common = sorted(seeds(own) & seeds(plain))
        one, other = final(own, common), final(plain, common)
        nothing = np.zeros(len(common))
        shares = [share(one[RATIO]), paired_rates(one[RATIO], other[RATIO], SAMPLES)]
        distances = [paired_difference(one["fd"], against) for against in (nothing, other["fd"])]
        cells = [cell(shares[0], 100, 1), cell(shares[1], 100, 1), cell(distances[0], 1, 2), cell(distances[1], 1, 2)]
        cells[1::2] = cells[1::2] if name != PLAIN else "––"
        yield f"| {name} | {' | '.join(cells)} |"


def frontier(rows: list[Row], steps: int) -> Iterator[str]:
    """A line for each smoothed network at equal distance; plain may be any of its steps."""
    runs = {name: columns([row for row in rows if row["step"] <= steps or row["variant"] == PLAIN], name)
            for name in {row["variant"] for row in rows}}  # fmt: skip
    for name in [name for name in SMOOTHED if name in runs]:
        found = at_equal_distance(name, PLAIN, runs)
        where = ", ".join(f"{step:.0f}" for step in found.stopped)
        outside = "; ".join(f"{why} in seeds {', '.join(map(str, own))}" for why, own in found.outside.items() if own)
        change = "no comparison over all seeds" if found.change is None else found.change.words
        yield f"{name}, plain stopped at {where or 'no step'}{f' ({outside})' if outside else ''}: {change}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=50)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=800, help="the end of the trainings, of the grid 50 * 2^(i/2)")
    parser.add_argument("--variants", nargs="+", default=[PLAIN, *SMOOTHED], choices=[PLAIN, *SMOOTHED])
    parser.add_argument("--closed", action="store_true", help="closed forms against constant temperatures")
    parser.add_argument("--keep", type=Path, help="folder that keeps the networks; that of benchmarks.onset has some")
    small_models.add_options(parser)
    parser.add_argument("--out", type=out_path, default=Path("adaptive.jsonl"))
    options = parser.parse_args()
    small_models.use_options(options)
    rows = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    if options.closed:
        for seed in options.seeds:
            if not any((row["size"], row["seed"]) == (options.size, seed) for row in rows):
                rows += (found := list(closed_rows(options.size, seed)))
                with options.out.open("a") as file:
                    file.writelines(json.dumps(row) + "\n" for row in found)
        rows = [row for row in rows if row["size"] == options.size and row["seed"] in options.seeds]
        print("\n".join(closed_lines(rows)))
        return
    done, steps = {(row["variant"], row["size"], row["seed"], row["step"]) for row in rows}, grid(FIRST, options.steps)
    for seed in options.seeds:
        for name in options.variants:
            wanted = steps if name == PLAIN else steps[-1:]
            left = [step for step in wanted if (name, options.size, seed, step) not in done]
            for row in measured(name, options.size, seed, left, options.keep) if left else ():
                rows.append(row)
                with options.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    rows = [row for row in rows if row["size"] == options.size and row["seed"] in options.seeds]
    print("\n".join([*table(rows, options.steps), *frontier(rows, options.steps)]))
    print(json.dumps({"runs": len(rows)}))


if __name__ == "__main__":
    main()
