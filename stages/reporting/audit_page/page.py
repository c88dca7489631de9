"""The report of an audit: one self-contained HTML file, sortable and filterable, without a network."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from stages.files.png import as_picture
from stages.images.common_size import ImageSet
from stages.images.decode import CHANGES
from stages.memorization.audit_results import following
from stages.memorization.crops import shrunk
from stages.memorization.judge import Judged
from stages.memorization.vocabulary import MEANING, VERDICTS
from stages.reporting.pictures import png_uri
from stages.reporting.words import interval, number, percent

SHOWN = 400  # samples with pictures, see `chosen`
AMPLIFIED = 4  # times the difference
SIDE = 96  # pixels: larger pictures are reduced
BINS = 60
MOST_GROUPS = 100  # listed
WORDS = {
    "copy": "copies",
    "near_copy": "near copies",
    "blend": "blends",
    "same_content": "same content",
    "unsure": "unsure",
    "novel": "novel",
}


TITLES = {
    "two_stage": "two-stage",
    "byte_identical": "byte-identical",
    "nn_ratio_copy": "r₁/r₂ < ⅓",
    "nn_ratio_copy_grouped": "r₁/r₂ < ⅓, grouped",
    "nn_ratio_near_copy": "r₁/r₂ < 0.7",
    "nn_ratio_near_copy_grouped": "r₁/r₂ < 0.7, grouped",
    "carlini_sample": "Carlini, around the sample",
    "carlini_train": "Carlini, around the match",
    "authenticity": "not authentic",
    "authenticity_grouped": "not authentic, grouped",
}


def render(
    result: dict[str, Any], pairs: pa.Table, samples: Judged, control: Judged, images: np.ndarray, train: ImageSet
) -> str:
    """Return the whole page. result: what audit.json holds; pairs: the table of pairs.parquet; images: the samples."""
    here = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(here), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "percent": percent,
        "number": number,
        "title": lambda name: TITLES.get(name, name.replace("_", " ")),
    }
    environment.globals |= {"interval": interval}
    return environment.get_template("page.html").render(
        css="".join(path.read_text(encoding="utf-8") for path in (here.parent / "report.css", here / "page.css")),
        script="".join(path.read_text(encoding="utf-8") for path in (here.parent / "report.js", here / "page.js")),
        result=result,
        metric=result["metrics"]["calibrated"],
        answer=_answer(result),
        cards=_cards(pairs, samples, images, train, result["settings"]["no_images"]),
        total=len(samples),
        verdicts=VERDICTS,
        words=WORDS,
        meaning={name: MEANING[name.replace("_", " ")] for name in VERDICTS},
        figure=_histogram(samples, control, result["thresholds"]),
        amplified=AMPLIFIED,
        changes=CHANGES,
        most_groups=MOST_GROUPS,
        distances=[name for name in ("frechet", "kid", "precision", "recall", "density", "coverage_prdc")],
        pixelated=train.table.images.shape[1] <= SIDE,
    )


def _answer(result: dict[str, Any]) -> str:
    if result["failure"]:
        return f"No answer: {result['failure']}."
    m = result["metrics"]["calibrated"]
    copies = f"{m['flagged']:,} of {m['count']:,} samples {'is a copy' if m['flagged'] == 1 else 'are copies'}"
    rate = f"{copies} of training images ({percent(m['rate'])} {interval(m['ci_low'], m['ci_high'])})"
    more = "more" if m["excess_low"] > 0 else "no more"
    leaked = result["holdout"]["leaked"]
    apart = f" {leaked:,} of the images given as unseen are training images and are left out." if leaked else ""
    return (
        f"{rate}: {more} than the {percent(m['holdout_rate'])} of unseen real images that the same rule flags.{apart}"
    )


def _cards(
    pairs: pa.Table, samples: Judged, images: np.ndarray, train: ImageSet, no_images: bool
) -> list[dict[str, Any]]:
    """Return the values and pictures that are shown of each chosen pair."""
    names = (
        "sample_index", "sample_where", "train_index", "train_where", "transform", "distance", "ratio",
        "ratio_grouped", "rho_star", "verdict", "reason", "tile_max_distance",
    )  # fmt: skip
    if no_images:
        return []
    rows = pairs.select(list(names)).take(pa.array(chosen(pairs["verdict"].to_pylist(), SHOWN))).to_pylist()
    after = following(samples)
    pictures, drawn = train.table.images, {}

    def picture(row: int) -> str:
        if row not in drawn:
            drawn[row] = png_uri(_reduced(pictures[row]))
        return drawn[row]

    for card in rows:
        index, match = card["sample_index"], card["train_index"]
        sample, found = images[index], pictures[match]
        card["sample"], card["match"] = png_uri(_reduced(sample)), picture(match)
        card["difference"] = png_uri(_reduced(_difference(sample, found, card["transform"], samples, index)))
        card["next"] = [(int(row), picture(int(row))) for row in after[index] if row >= 0]
        card["order"] = np.inf if card["rho_star"] is None else card["rho_star"]
    return rows


def chosen(verdicts: list[str], most: int) -> np.ndarray:
    """Return which rows of pairs (sorted by verdict) are shown, int64, ascending, at most `most`.

    Every verdict gets an equal share of the room for its first rows; what one leaves over goes to the first rows of
    the others, in the order of the verdicts.
    """
    verdict = np.array(verdicts)
    names = list(dict.fromkeys(verdicts))
    share = [np.flatnonzero(verdict == name)[: most // len(names)] for name in names]
    taken = np.zeros(len(verdict), bool)
    taken[np.concatenate(share)] = True
    taken[np.flatnonzero(~taken)[: most - int(taken.sum())]] = True
    return np.flatnonzero(taken)


def _reduced(image: np.ndarray) -> np.ndarray:
    if max(image.shape[:2]) <= SIDE:
        return image
    picture = as_picture(image)
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return np.asarray(picture, np.uint8).reshape(picture.height, picture.width, -1)


def _difference(sample: np.ndarray, match: np.ndarray, transform: str, samples: Judged, index: int) -> np.ndarray:
    """Return AMPLIFIED times |sample − match| where the two overlap under the transform; the rest is black."""
    if transform.startswith("mirrored"):
        sample = sample[:, ::-1]
    height, width = sample.shape[:2]
    result = np.zeros(sample.shape, np.uint8)
    if "enlarged" in transform:
        y, x, side = samples.searched.matches.crop_window[index].tolist()
        inside = slice(y, y + side), slice(x, x + side)
        result[inside] = _amplified(shrunk(sample[None], side)[0], match[inside])
        return result
    dy, dx = samples.searched.matches.shift[index].tolist() if "shifted" in transform else (0, 0)
    ys, xs = slice(max(0, -dy), height - max(0, dy)), slice(max(0, -dx), width - max(0, dx))
    other = match[ys.start + dy : ys.stop + dy, xs.start + dx : xs.stop + dx]
    result[ys, xs] = _amplified(sample[ys, xs], other)
    return result


def _amplified(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.minimum(255, AMPLIFIED * np.abs(a.astype(np.int64) - b)).astype(np.uint8)


def _histogram(samples: Judged, control: Judged, thresholds: dict[str, float]) -> dict[str, Any]:
    """Return the shares of samples and control per bin of ρ*, in the coordinates of the page's SVG (1000 × 240)."""
    edges = np.linspace(0, 1.2, BINS + 1)
    shares = []
    for judged in (samples, control):
        values = judged.searched.scores.best
        values = np.clip(values[~np.isnan(values)], 0, edges[-1])
        shares.append(np.histogram(values, edges)[0] / max(1, len(values)))
    # square roots, so that a few copies among thousands are visible
    top = float(np.sqrt(max(share.max() for share in shares))) or 1.0
    width = 1000 / BINS
    bars, line = [], []
    for place, (ours, theirs) in enumerate(zip(*shares)):
        x = place * width
        if ours > 0:
            tall = 220 * float(np.sqrt(ours)) / top
            name = "copy" if edges[place] < thresholds["copy"] - 1e-9 else "rest"
            bars.append({"x": x + 1, "y": 230 - tall, "width": width - 2, "height": tall, "kind": name})
        y = 230 - 220 * float(np.sqrt(theirs)) / top
        line += [f"{x:.1f},{y:.1f}", f"{x + width:.1f},{y:.1f}"]
    marks = {name: 1000 * value / float(edges[-1]) for name, value in thresholds.items()}
    ticks = [{"x": 1000 * value / 1.2, "label": f"{value:g}"} for value in (0, 0.2, 0.4, 0.6, 0.8, 1.0)]
    return {"bars": bars, "line": " ".join(line), "marks": marks, "ticks": ticks}
