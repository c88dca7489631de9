"""The same weights under four samplers: copies and Fréchet distance, for every network of a finished run.

    python -m benchmarks.samplers [VARIANT ...] [--count 100] [--out FILE]

Run it in a project whose train stage has finished. Every seed's final weights draw --count samples with each sampler;
the first noise of sample i is the same throughout. A noise-blind network's score is that of the scheduled level, except
under the actual-noise sampler. Prints a Markdown table per measure: the mean over the training seeds with its
t-interval. --out adds every measured row as a line of JSON at once; rows that it has already are not measured again.
"""

import argparse
import itertools
import json
from collections.abc import Iterator, Sequence

import numpy as np

from benchmarks.places import out_path
from stages.beyond.measures import nearness
from stages.diffusion.model import load_model
from stages.diffusion.parameters import SamplerParams
from stages.diffusion.sampling import draw_samples
from stages.features.encoders import load_encoder
from stages.features.frechet import frechet_from_features
from stages.features.weights import EncoderParams
from stages.files.artifacts import read_json
from stages.files.features import read_features
from stages.files.images import read_images
from stages.files.paths import DATA, features_of, images_of, runs_of, score_of
from stages.files.runs import Run, read_runs
from stages.memorization.calibrated_metrics import Nearness, calibrated_table
from stages.memorization.seeds import SHARE, SeedMean, over_seeds, rate_variance
from stages.protocol import load_tree

SAMPLERS = {
    "Euler 60": SamplerParams(name="euler", levels=60),
    "SDE 60": SamplerParams(name="reverse-sde", levels=60),
    "SDE + corrector": SamplerParams(name="reverse-sde", levels=60, snr=0.16),
    "actual noise": SamplerParams(name="actual-noise", levels=60, step=0.12, exact_below=5.0),
}
MEASURES = {"copied": "copied %", "calibrated_distance": "nearer %", "blend": "blends %", "fd": "FD"}
Row = dict[str, float | int | str]


def ends(variant: str) -> list[Run]:
    """Return every seed's final run."""
    return list({run.seed: run for run in read_runs(runs_of(variant))}.values())


def flagged(own: Nearness, held_out: Nearness) -> Row:
    """Return how many images each measure flags; a number under cross-fitted thresholds may end in a half."""
    calibrated = {name: entry["flagged"] for name, entry in calibrated_table(own, held_out).items()}
    return {"copied": int(own.copied.sum()), **calibrated}


def rows(variants: Sequence[str], count: int, known: Sequence[Row]) -> Iterator[Row]:
    """Yield a row for each network, seed and sampler that is not `known`."""
    tree = load_tree()
    below, options = tree["filter"]["ratios"]["near_copy_below"], tree["sample"]
    train, test = read_images(images_of("train")).images, read_features(features_of("test")).features
    held_out = nearness(read_images(images_of("holdout")).images, train, below)
    encoder = load_encoder(EncoderParams(**tree["embed"]["encoder"]), "cpu")
    done = {(row["variant"], row["seed"], row["sampler"], row["count"]) for row in known}
    for variant in variants:
        for run, (name, sampler) in itertools.product(ends(variant), SAMPLERS.items()):
            key = {"variant": variant, "seed": run.seed, "sampler": name, "count": count}
            if tuple(key.values()) not in done:
                how = sampler.model_dump(), train, str(run.weights), "cpu", options["precision"]
                model = load_model(read_json(score_of(variant)), *how)
                images = draw_samples(model, options["seed"], count, options["batch"])
                distance = frechet_from_features(encoder(images), test)
                yield {**key, **flagged(nearness(images, train, below), held_out), "fd": distance}


def summary(found: Sequence[Row], name: str) -> SeedMean:
    """Return the mean of a measure over the seeds; a share in percent of the samples."""
    values = np.array([row[name] for row in found], np.float64)
    if name == "fd":
        return over_seeds(values)
    count = found[0]["count"]
    return over_seeds(values / count, rate_variance(values, count), SHARE)


def cell(mean: SeedMean, scale: float, digits: int) -> str:
    """Return MEAN [LOW, HIGH]; with one seed there is no interval."""
    ends = "" if mean.low is None else f" [{scale * mean.low:.{digits}f}, {scale * mean.high:.{digits}f}]"
    return f"{scale * mean.mean:.{digits}f}{ends}"


def table(found: Sequence[Row], name: str) -> str:
    """Return a Markdown table of one measure: a row per network, a column per sampler."""
    scale, digits = (1, 0) if name == "fd" else (100, 1)
    lines = [f"| {MEASURES[name]} | {' | '.join(SAMPLERS)} |", "|---" * (1 + len(SAMPLERS)) + "|"]
    for variant in dict.fromkeys(row["variant"] for row in found):
        cells = []
        for sampler in SAMPLERS:
            own = [row for row in found if (row["variant"], row["sampler"]) == (variant, sampler)]
            cells.append(cell(summary(own, name), scale, digits) if own else "–")
        lines.append(f"| {variant} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("variants", nargs="*", help="networks; without any, all whose trainings differ")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--out", type=out_path)
    options = parser.parse_args()
    trained = sorted(path.parent.name for path in (DATA / "train").glob("*/runs.json"))
    variants = options.variants or [name for name in trained if not name.endswith("-actual")]
    found = []
    if options.out and options.out.exists():
        found = [json.loads(line) for line in options.out.read_text(encoding="utf-8").splitlines()]
    for row in rows(variants, options.count, found):
        found.append(row)
        line = json.dumps(row)
        print(line, flush=True)
        if options.out:
            with options.out.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
    for name in MEASURES:
        print(f"\n{table(found, name)}")


if __name__ == "__main__":
    main()
