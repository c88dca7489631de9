"""How hot trained networks are: four readings of T_eff along training, over seeds, sizes and targets, beside copies.

    python -m benchmarks.thermometer --onset onset.jsonl --keep FOLDER [--out thermometer.jsonl]
    python -m benchmarks.thermometer --onset onset.jsonl --keep FOLDER --minimisers

--onset and --keep are what `python -m benchmarks.onset --keep FOLDER` leaves: its rows, with the copies at every
snapshot, and its networks. Each network is read at every level by the functions that write alignment.json. A table per
reading has the mean over the seeds with its t-interval (of ln T), and in how many seeds T is identified; then stands
how the reading goes with copies along a training: Spearman's rank correlation over its steps. The last tables say over
how many nearest training images the closed form matches a network best: the error at the best T over each number K, at
the end of the trainings. A line of JSON per network is kept in --out, from which an interrupted run continues.

--minimisers reads what these networks would become where their loss is least, exactly: a target over the neighbours of
the source image is no closed form over those of x, so its own minimiser says what the thermometer should read.
"""

import argparse
import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from benchmarks import small_models
from benchmarks.places import out_path
from benchmarks.samplers import cell
from benchmarks.small_models import BASE
from stages.beyond import small_models as small
from stages.diffusion.alignment import at_noised_images, eigenvalue_row, expansion_row, temperature_rows
from stages.diffusion.model import Model, make_model
from stages.diffusion.parameters import AlignmentParams, Variant
from stages.diffusion.targets import build_target
from stages.diffusion.temperature import shell_power
from stages.diffusion.thermometer import by_error, closed_scores
from stages.memorization.seeds import SHARE, SeedMean, over_seeds, paired_difference, rate_variance
from stages.memorization.statistics import Z95

LEVELS = (0.18, 0.36, 0.7)
POINTS, PAIRS, SEED = 48, 24, 0
NEIGHBORS = (2, 4, 8, 16, None)  # K; None: all training images
READINGS = ("error", "direction", "expansion", "jacobian")
Row = dict[str, Any]


@torch.inference_mode()
def readings(model: Model) -> list[Row]:
    """The readings of a model at LEVELS: sigma, reading, t_eff, low, high (None without points), identified."""
    found = []
    for number, sigma in enumerate(LEVELS):
        x, learned = at_noised_images(model, sigma, number, POINTS, SEED)
        for row in temperature_rows(model, sigma, x, learned, SEED):
            if row["neighbors"] is None:
                found.append({key: row[key] for key in ("sigma", "reading", "t_eff", "low", "high", "identified")})
        params = AlignmentParams(**BASE["sample"]["alignment"] | {"pairs": PAIRS, "expansion_pairs": PAIRS})
        pairs = expansion_row(model, sigma, number, params, SEED) | eigenvalue_row(model, sigma, number, PAIRS, SEED)
        for name in ("expansion", "jacobian"):
            own = {key: pairs[f"{name}_{key}"] for key in ("t_eff", "low", "high", "identified")}
            found.append({"sigma": sigma, "reading": name, **own})
    return found


@torch.inference_mode()
def over_neighbors(model: Model) -> list[Row]:
    """The T of least error, and that error, of the closed form over the K nearest training images, at LEVELS."""
    found = []
    for number, sigma in enumerate(LEVELS):
        x, learned = at_noised_images(model, sigma, number, POINTS, SEED)
        for k in (k for k in NEIGHBORS if k is None or k < len(model.images)):
            power = shell_power(x.shape[1], model.variant.power)
            closed = closed_scores(model.centres, x, sigma, power=power, nearest=k)
            read = by_error(learned, closed, np.random.default_rng(SEED))
            found.append({"sigma": sigma, "k": k, "t_eff": read.t_eff, "error": read.error})
    return found


class Minimiser(torch.nn.Module):
    """What a noise-conditioned network of a target becomes where its loss is least: F(x, sigma) = E[F* | x, sigma].

    F = sum_i p_i F*(x_i, sigma, (x - x_i)/sigma), p_i = softmax(-r_i^2/2 sigma^2), over training images (M, H, W, C):
    each is as likely a source, and F* depends on the source where it sums over that one's own neighbours.
    """

    def __init__(self, spec: Variant, train: np.ndarray) -> None:
        super().__init__()
        self.images = torch.from_numpy(train).movedim(-1, 1).double() / 255
        self.target = build_target(spec, train[0].size)
        self.near = None if spec.neighbors is None else small.neighbors(train, spec.neighbors.k)

    def forward(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """F at x (B, C, H, W) and levels (B,), of the type of x."""
        noisy, level = x.double(), sigma.double()
        z = (noisy[:, None] - self.images) / level[:, None, None, None, None]
        share = torch.softmax(-z.flatten(2).square().sum(2) / 2, dim=1)
        found = torch.zeros_like(noisy)
        for i, image in enumerate(self.images):
            near = None if self.near is None else self.images[self.near[i]].expand(len(x), -1, -1, -1, -1)
            wanted = self.target(image.expand_as(noisy), level, z[:, i], near)
            found += share[:, i, None, None, None] * wanted
        return found.to(x.dtype)


def minimisers(rows: list[Row], held_out: int) -> Iterator[Row]:
    """Yield the readings of the exact minimiser of every target, size and seed among the rows of benchmarks.onset."""
    for name, size, seed in dict.fromkeys((row["variant"], row["size"], row["seed"]) for row in rows):
        train, _ = small_models.drawn(size, held_out, seed)
        spec = small_models.variant(name)
        model = make_model(spec, small_models.NOISE, train, Minimiser(spec, train), small_models.DEVICE)
        about = {"variant": f"{name}, minimiser", "size": size, "seed": seed, "step": 0, "samples": 1, "copies": 0}
        yield about | {"readings": readings(model), "over_neighbors": over_neighbors(model)}


def measured(onset: list[Row], keep: Path, done: set[tuple[Any, ...]], every: int = 1) -> Iterator[Row]:
    """Yield a row for every snapshot of the onset's trainings, or each `every`-th from the last, that is not done."""
    for row in onset:
        name, size, seed = row["variant"], row["size"], row["seed"]
        steps, counts = (row[key][::-every][::-1] for key in ("steps", "copies"))
        if all((name, size, seed, step) in done for step in steps):
            continue
        train, _ = small_models.drawn(size, row["held_out"], seed)
        networks = small_models.snapshots(name, train, seed, steps, keep)
        for (step, network), copies in zip(networks, counts):
            if (name, size, seed, step) not in done:
                model = make_model(small_models.variant(name), small_models.NOISE, train, network, small_models.DEVICE)
                about = {"variant": name, "size": size, "seed": seed, "step": step, "samples": row["samples"]}
                yield about | {"copies": copies, "readings": readings(model), "over_neighbors": over_neighbors(model)}


def reading(row: Row, sigma: float, name: str) -> Row:
    """One reading of a row."""
    return next(own for own in row["readings"] if (own["sigma"], own["reading"]) == (sigma, name))


def temperature(rows: list[Row], sigma: float, name: str) -> str:
    """T_eff over the seeds that identify it, as the geometric mean with its t-interval, and their number.

    The interval is never shorter than the readings' own intervals demand: two of three seeds may agree by chance.
    """
    known = [own for own in (reading(row, sigma, name) for row in rows) if own["identified"]]
    if not known:
        return f"- (0/{len(rows)})"
    variances = [(math.log(own["high"] / own["low"]) / (2 * Z95)) ** 2 for own in known]
    mean = over_seeds([math.log(own["t_eff"]) for own in known], variances)
    ends = "" if mean.low is None else f" [{math.exp(mean.low):.1f}, {math.exp(mean.high):.1f}]"
    return f"{math.exp(mean.mean):.1f}{ends}" + ("" if len(known) == len(rows) else f" ({len(known)}/{len(rows)})")


def table(rows: list[Row]) -> Iterator[str]:
    """A Markdown table per level: a line per target, size and step, and a column per reading."""
    for sigma in LEVELS:
        yield f"\nsigma {sigma}\n\n| target | images | step | copies % | {' | '.join(READINGS)} |\n{'|---' * 8}|"
        for name, size, step in sorted({(row["variant"], row["size"], row["step"]) for row in rows}):
            own = [row for row in rows if (row["variant"], row["size"], row["step"]) == (name, size, step)]
            copies = np.array([row["copies"] for row in own], float)
            count = own[0]["samples"]
            rate = over_seeds(copies / count, rate_variance(copies, count), SHARE)
            ends = "" if rate.low is None else f" [{rate.low:.0%}, {rate.high:.0%}]".replace("%", "")
            cells = [temperature(own, sigma, each) for each in READINGS]
            yield f"| {name} | {size} | {step} | {100 * rate.mean:.0f}{ends} | {' | '.join(cells)} |"


def neighbor_table(rows: list[Row]) -> Iterator[str]:
    """A Markdown table of the ends of the trainings: T over each K, the error there, and its change from all images."""
    yield f"\n| target | images | sigma | K | T | error | error − that over all |\n{'|---' * 7}|"
    ends = {(row["variant"], row["size"], row["seed"]): row for row in sorted(rows, key=lambda row: row["step"])}
    for name, size in sorted({key[:2] for key in ends}):
        own = [row["over_neighbors"] for key, row in ends.items() if key[:2] == (name, size)]
        for sigma, k in [(each["sigma"], each["k"]) for each in own[0]]:
            some, whole = (
                [each for each in itertools.chain(*own) if (each["sigma"], each["k"]) == (sigma, n)] for n in (k, None)
            )
            t = math.exp(np.mean([math.log(each["t_eff"]) for each in some]))
            error = np.mean([each["error"] for each in some])
            change = paired_difference(*(np.array([each["error"] for each in both]) for both in (some, whole)))
            last = "–" if k is None else cell(change, 1, 3)
            yield f"| {name} | {size} | {sigma} | {k or 'all'} | {t:.1f} | {error:.3f} | {last} |"


def along_training(rows: list[Row], sigma: float, name: str) -> SeedMean | None:
    """Spearman's correlation of T_eff and copies over the steps of each training, with its interval over the seeds.

    Trainings of one seed share images and count once, with their mean. None without two seeds in which a training has
    three identified steps.
    """
    found: dict[int, list[float]] = {}
    for size, seed in sorted({(row["size"], row["seed"]) for row in rows}):
        own = [
            row
            for row in rows
            if (row["size"], row["seed"]) == (size, seed) and reading(row, sigma, name)["identified"]
        ]
        points = np.array([(reading(row, sigma, name)["t_eff"], row["copies"]) for row in own])
        if len(own) > 2 and (points != points[0]).any(0).all():
            found.setdefault(seed, []).append(float(spearmanr(*points.T).statistic))
    return over_seeds([np.mean(each) for each in found.values()], within=(-1, 1)) if len(found) > 1 else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--onset", type=Path, required=True, help="the file of benchmarks.onset")
    parser.add_argument("--keep", type=Path, required=True, help="its folder of networks")
    parser.add_argument("--every", type=int, default=1, help="read every such snapshot, from the last one back")
    parser.add_argument("--minimisers", action="store_true", help="read the exact minimisers of the targets alone")
    small_models.add_options(parser)
    parser.add_argument("--out", type=out_path, default=Path("thermometer.jsonl"))
    arguments = parser.parse_args()
    small_models.use_options(arguments)
    onset = [json.loads(line) for line in arguments.onset.read_text().splitlines()]
    if arguments.minimisers:
        rows = list(minimisers(onset, onset[0]["held_out"]))
        print("\n".join([*table(rows), *neighbor_table(rows)]))
        return
    rows = [json.loads(line) for line in arguments.out.read_text().splitlines()] if arguments.out.exists() else []
    done = {(row["variant"], row["size"], row["seed"], row["step"]) for row in rows}
    for row in measured(onset, arguments.keep, done, arguments.every):
        rows.append(row)
        with arguments.out.open("a") as file:
            file.write(json.dumps(row) + "\n")
    print("\n".join([*table(rows), *neighbor_table(rows)]))
    for target, sigma, name in itertools.product(sorted({row["variant"] for row in rows}), LEVELS, READINGS):
        found = along_training([row for row in rows if row["variant"] == target], sigma, name)
        words = "too few" if found is None else f"{cell(found, 1, 2)}, {len(found.points)} seeds"
        print(f"{target}, sigma {sigma}, {name}: rank correlation with copies along training {words}")
    print(json.dumps({"networks": len(rows)}))


if __name__ == "__main__":
    main()
