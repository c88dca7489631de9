"""The report: one self-contained HTML file. What it says is gathered here; report.html and .css say how it looks."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from stages.files.artifacts import sha256_file
from stages.memorization.vocabulary import MEANING, VERDICTS
from stages.reporting import figures
from stages.reporting.answer import Opening, frontier_row
from stages.reporting.changes import signed
from stages.reporting.checks import Check
from stages.reporting.evaluations import evaluation_figure, evaluation_groups
from stages.reporting.frontier_figure import frontier_figure
from stages.reporting.inputs import Inputs, Variant
from stages.reporting.kernel_widths import width_figure, width_groups
from stages.reporting.most_copied import Across
from stages.reporting.onsets import onset_rows
from stages.reporting.pictures import file_uri, png_uri
from stages.reporting.provenance import provenance
from stages.reporting.results import STRICT, kind, result_row
from stages.reporting.theory_figures import theory_figures
from stages.reporting.words import cell, interval, limit, number, percent, times

FOLDER = Path(__file__).parent
PACKAGES = ("torch", "torchvision", "numpy", "scipy", "pyarrow", "faiss-gpu", "clean-fid", "pillow", "matplotlib")
FORMS = {
    "conditioning": "The score is given the noise level σ (METHODS §1.1).",
    "unconditioning": "The score reads the noise level from the image itself: optimal-shell weights (METHODS §1.4).",
    "temperature": "Unconditioning with weights softened by a temperature T (METHODS §1.5).",
    "kernel-smoothed": "Conditioning, averaged over Gaussian shifts of the input: LED-KDE (METHODS §1.7).",
    "kernel-density": "The score of a kernel density: training images with Gaussian noise of width h (METHODS §1.7).",
    "cfdm": "σ-CFDM: the posterior mean, averaged over Gaussian shifts (METHODS §1.8).",
    "mixture": "The unified mixture over all noise levels (METHODS §1.2).",
    "wiener": "The score of a Gaussian with the training set's mean and covariance (METHODS §8b).",
    "local": "The posterior mean of every pixel given the patch around it (METHODS §8b).",
    "pca-locality": "The posterior mean of every pixel given the pixels that a linear denoiser uses (METHODS §8b).",
    "tikhonov": "Conditioning, shortened at levels below the penalty's: Tikhonov (METHODS §8b).",
    "consistency": "Where the path of a noise-blind network ends, distilled from it (METHODS §8b).",
    "loader-batches": "The posterior mean with a softmax normalised inside each loader batch (METHODS §8b).",
}
SYMBOLS = {"r1/r2": "r₁/r₂", "l1..lk": "ℓ₁..ℓₖ", "l1": "ℓ₁", "<=": "≤", " x ": " × ", "rho": "ρ"}
BESIDE = 12  # samples of every variant in the rows beside each other
IN_A_GROUP = 12  # images shown of one group of duplicates


def render(
    inputs: Inputs,
    opening: Opening,
    found: Sequence[Check],
    contrasts: Sequence[dict[str, Any]],
    published: Sequence[dict[str, Any]],
    across: Across,
    params: dict[str, Any],
) -> str:
    """Write the whole page.

    contrasts: of `contrast_row`; published: of `published_tables`; params: the sections `report` and `variants` of
    params.yaml.
    """
    variants, shown = inputs.variants, params["report"]
    evaluations, widths = evaluation_groups(variants), width_groups(variants)
    return (
        _environment()
        .get_template("report.html")
        .render(
            css=(FOLDER / "report.css").read_text(encoding="utf-8"),
            script=(FOLDER / "report.js").read_text(encoding="utf-8"),
            opening=opening,
            frontier=[frontier_row(compared) for compared in opening.compared],
            onsets=onset_rows(variants),
            frontier_figure=frontier_figure(variants),
            contrasts=contrasts,
            published=published,
            inputs=inputs,
            metrics=variants[0].filter["metrics"],
            strict=STRICT,
            limits=[limit(value) for value in inputs.variants[0].limits],
            checks=found,
            failing=[check for check in found if not check.passed],
            loud=sorted((c for c in found if not (c.sanity and c.passed)), key=lambda check: check.passed),
            quiet=[check for check in found if check.sanity and check.passed],
            copy_figure=figures.copy_figure(variants),
            ratio_figure=figures.ratio_figure(variants, inputs.holdout_ratio),
            loss_figure=figures.loss_figure(variants),
            evaluations=evaluations,
            evaluation_figure=evaluation_figure(evaluations, variants[0].fid["name"]),
            widths=widths,
            width_figure=width_figure(widths, variants[0].fid["name"]),
            beside=BESIDE,
            across=across,
            neighbors=neighbor_rows(_most_copied(variants), inputs.train.images),
            nearest_of=_most_copied(variants),
            curve_figure=figures.copy_curve_figure(variants),
            sections=[section(variant, inputs, shown["pictures"]) for variant in variants],
            groups=duplicate_groups(inputs, shown["duplicate_groups"]),
            rejected=inputs.rejected.slice(0, shown["rejected_images"]).to_pylist(),
            verdicts=VERDICTS,
            meaning=MEANING,
            failed_claims=sum(not claim["passed"] for claim in inputs.claims),
            provenance=provenance(),
            precisions=sorted({variant.sample["precision"] for variant in variants if variant.network}),
            params=compact(params, indent=2),
            packages={name: version(name) for name in PACKAGES},
            digests={str(path): sha256_file(path)[:16] for path in inputs.files},
        )
    )


def _environment() -> Environment:
    loader = FileSystemLoader(FOLDER)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        filter_.__name__: filter_ for filter_ in (percent, number, times, compact, math, plain, words, signed)
    }
    environment.globals |= {"interval": interval, "cell": cell, "theory_figures": theory_figures, "file_uri": file_uri}
    return environment


def math(text: str) -> Markup:
    """Escape a text and set its sub- and superscripts: σ_{j+1}, x_i, e^{18}, d^2."""
    marked = re.sub(r"_(?:\{([^{}]*)\}|(\w))", r"<sub>\1\2</sub>", str(escape(text)))
    return Markup(re.sub(r"\^(?:\{([^{}]*)\}|(\w))", r"<sup>\1\2</sup>", marked))


def plain(definition: str) -> str:
    """A metric's definition in the page's symbols, without a full stop."""
    for typed, symbol in SYMBOLS.items():
        definition = definition.replace(typed, symbol)
    return definition.rstrip(".")


def compact(value: Any, indent: int | None = None) -> str:
    """A value as JSON without its null entries."""
    return json.dumps(_without_nulls(value), indent=indent, ensure_ascii=False)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return value


def section(variant: Variant, inputs: Inputs, count: int) -> dict[str, Any]:
    """One variant's row and part of the page, with its first `count` samples beside their nearest training images."""
    return {
        "variant": variant,
        "row": result_row(variant, inputs.over_seeds),
        "kind": kind(variant),
        "broken": variant.broken,
        "description": FORMS.get(variant.form, ""),
        "tiles": tiles(variant, inputs, count),
        "verdicts": verdict_words(variant),
        "pairs": file_uri(variant.pairs_picture),
    }


def words(verdict: str) -> str:
    """A verdict as a person reads it: near_copy → near copy."""
    return verdict.replace("_", " ")


def verdict_words(variant: Variant) -> str:
    """The number of samples with every verdict, and for r₁/r₂ how those that the headline counts divide."""
    metric = variant.filter["metrics"][variant.metric]
    pairs = variant.pairs.select(["verdict", "ratio"]).to_pylist()
    every = Counter(pair["verdict"] for pair in pairs)
    if not re.fullmatch(r"nn_ratio(?!.*grouped).*", variant.metric):
        return (
            f"All {len(pairs):,} samples by verdict: {_counted(every)}. Verdicts go by r₁/r₂ and features, the "
            f"headline by {variant.metric}, so that their numbers differ."
        )
    inside = Counter(pair["verdict"] for pair in pairs if pair["ratio"] < metric["threshold"])
    rest = every - inside
    copied = f"{inside.total():,} copied (r₁/r₂ < {metric['threshold']:.3g}), by verdict: {_counted(inside)}"
    return f"{copied if inside else 'None copied'}. {rest.total():,} others: {_counted(rest)}."


def _counted(verdicts: Counter[str]) -> str:
    return ", ".join(f"{verdicts[name]:,} {words(name)}" for name in VERDICTS if verdicts[name]) or "none"


def tiles(variant: Variant, inputs: Inputs, count: int) -> list[dict[str, Any]]:
    """The first samples in order: picture, nearest training image, verdict and numbers."""
    pairs = variant.pairs.select(["sample_index", "train_index", "distance", "ratio", "verdict"]).to_pylist()
    by_sample = {pair["sample_index"]: pair for pair in pairs}
    return [
        {
            **by_sample[index],
            "image": png_uri(variant.samples.images[index]),
            "nearest": png_uri(inputs.train.images[by_sample[index]["train_index"]]),
        }
        for index in range(min(count, len(variant.samples)))
    ]


def _most_copied(variants: Sequence[Variant]) -> Variant:
    """The network that copies most by the headline; without networks the closed form."""
    return max([v for v in variants if v.network] or variants, key=lambda variant: variant.copies.rate)


def neighbor_rows(variant: Variant, train: np.ndarray) -> list[dict[str, Any]]:
    """The first samples, each with its nearest training images in pixels, then in features where these are known.

    train: uint8 (M, H, W, C).
    """
    rows: dict[tuple[int, str], dict[str, Any]] = {}
    for found in variant.neighbors.to_pylist():
        sample, space = found["sample_index"], found["space"]
        if (sample, space) not in rows:
            image = png_uri(variant.samples.images[sample])
            rows[sample, space] = {"sample_index": sample, "space": space, "image": image, "nearest": []}
        rows[sample, space]["nearest"].append({**found, "image": png_uri(train[found["train_index"]])})
    return [rows[key] for key in sorted(rows, key=lambda key: (key[0], key[1] != "pixel"))]


def duplicate_groups(inputs: Inputs, count: int) -> list[dict[str, Any]]:
    """The `count` largest groups of duplicates, each with its images, the kept one first."""
    columns = inputs.duplicates.select(["group", "split", "row", "kept", "reason", "distance"]).to_pylist()
    groups: dict[int, list[dict[str, Any]]] = {}
    for entry in columns:
        groups.setdefault(entry["group"], []).append(entry)
    largest = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))[:count]
    return [{"size": len(members), "images": _pictured(inputs, members)} for _, members in largest]


def _pictured(inputs: Inputs, members: list[dict[str, Any]]) -> list[dict[str, Any]]:
    kept_first = sorted(members, key=lambda member: not member["kept"])[:IN_A_GROUP]
    return [{**m, "image": png_uri(inputs.splits[m["split"]].images[m["row"]])} for m in kept_first]
