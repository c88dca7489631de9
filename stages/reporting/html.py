"""The report: one self-contained HTML file. What it says is gathered here; how it looks is in report.html and .css."""

import dataclasses
import json
import re
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stages.files.artifacts import sha256_file
from stages.reporting import figures
from stages.reporting.checks import BrokenRule, Check, answer
from stages.reporting.inputs import Inputs, TheoryBlock, Variant
from stages.reporting.pictures import file_uri, png_uri
from stages.reporting.results import THIRD, kind, result_row
from stages.reporting.theory_figures import theory_figures
from stages.reporting.words import interval, number, percent, rate_words, times

if TYPE_CHECKING:
    from markupsafe import Markup

PACKAGES = ("torch", "torchvision", "numpy", "scipy", "pyarrow", "faiss-gpu", "clean-fid", "pillow", "matplotlib")
FORMS = {
    "conditioning": "The score is told the noise level σ (METHODS §1.1).",
    "unconditioning": "The score reads the noise level from the image itself: optimal-shell weights (METHODS §1.4).",
    "temperature": "Unconditioning with weights softened by a temperature T (METHODS §1.5).",
    "kernel-smoothed": "Conditioning, averaged over Gaussian shifts of the input: LED-KDE (METHODS §1.7).",
    "cfdm": "σ-CFDM: the posterior mean, averaged over Gaussian shifts (METHODS §1.8).",
    "mixture": "The unified mixture over all noise levels (METHODS §1.2).",
}
SYMBOLS = {"r1/r2": "r₁/r₂", "l1..lk": "ℓ₁..ℓₖ", "l1": "ℓ₁", "<=": "≤", " x ": " × ", "rho": "ρ"}
VERDICTS = {
    "copy": "copy of a training image",
    "near_copy": "near copy",
    "same_content": "same content",
    "unsure": "unsure",
    "novel": "novel",
}


@dataclasses.dataclass(frozen=True)
class Shown:
    """How much the page shows: samples per variant, groups of duplicates, rejected files."""

    samples: int
    groups: int
    rejected: int


def render(inputs: Inputs, found: Sequence[Check], broken: BrokenRule, shown: Shown, params: dict[str, Any]) -> str:
    """The whole page. params: what the provenance section prints as the parameters at work."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    folder = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "number": number,
        "words": rate_words,
        "times": times,
        "compact": compact,
        "math": math,
        "plain": plain,
    }
    environment.globals |= {"interval": interval, "kind": kind, "png": png_uri}
    variants = inputs.variants
    return environment.get_template("report.html").render(
        css=(folder / "report.css").read_text(encoding="utf-8"),
        script=(folder / "report.js").read_text(encoding="utf-8"),
        sentence=answer(variants, broken),
        inputs=inputs,
        metric=variants[0].filter["metrics"][inputs.metric],
        metrics=variants[0].filter["metrics"],
        rows=[{**result_row(variant), "broken": broken.reasons(variant)} for variant in variants],
        third=THIRD,
        checks=found,
        loud=sorted((c for c in found if not (c.sanity and c.passed)), key=lambda check: check.passed),
        quiet=[check for check in found if check.sanity and check.passed],
        copy_figure=figures.copy_figure(variants, broken.median),
        ratio_figure=figures.ratio_figure(variants, inputs.holdout_ratio),
        loss_figure=figures.loss_figure(variants),
        curve_figure=figures.copy_curve_figure(variants),
        sections=[section(variant, inputs, broken, shown.samples) for variant in variants],
        groups=duplicate_groups(inputs, shown.groups),
        rejected=inputs.rejected.slice(0, shown.rejected).to_pylist(),
        theory=[theory_part(block) for block in inputs.theory],
        broken=broken,
        forms=FORMS,
        verdicts=VERDICTS,
        params=compact(params, indent=2),
        packages={name: version(name) for name in PACKAGES},
        digests={str(path): sha256_file(path)[:16] for path in inputs.files},
    )


def math(text: str) -> "Markup":
    """Escaped text with its sub- and superscripts set: σ_{j+1}, x_i, e^{18}, d^2."""
    from markupsafe import Markup, escape

    marked = re.sub(r"_(?:\{([^{}]*)\}|(\w))", r"<sub>\1\2</sub>", str(escape(text)))
    return Markup(re.sub(r"\^(?:\{([^{}]*)\}|(\w))", r"<sup>\1\2</sup>", marked))


def plain(definition: str) -> str:
    """A metric's definition with its symbols as the rest of the page writes them, without a full stop."""
    for typed, symbol in SYMBOLS.items():
        definition = definition.replace(typed, symbol)
    return definition.rstrip(".")


def compact(value: Any, indent: int | None = None) -> str:
    """A value as JSON that people read: empty settings left out."""
    return json.dumps(_without_nulls(value), indent=indent, ensure_ascii=False)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return value


def section(variant: Variant, inputs: Inputs, broken: BrokenRule, count: int) -> dict[str, Any]:
    """One variant's part of the page: its facts and its first `count` samples beside their nearest training images."""
    return {
        "variant": variant,
        "row": result_row(variant),
        "broken": broken.reasons(variant),
        "description": FORMS.get(variant.form, ""),
        "settings": {key: value for key, value in variant.spec.items() if value is not None},
        "tiles": tiles(variant, inputs, count),
        "verdicts": [(name, variant.filter["verdicts"].get(name, 0)) for name in VERDICTS],
        "pairs": file_uri(variant.pairs_picture),
    }


def tiles(variant: Variant, inputs: Inputs, count: int) -> list[dict[str, Any]]:
    """The first samples in order: picture, nearest training image, verdict and numbers."""
    pairs = variant.pairs.select(["sample_index", "train_index", "distance", "ratio", "verdict"]).to_pydict()
    place = {sample: row for row, sample in enumerate(pairs["sample_index"])}
    found = []
    for index in range(min(count, len(variant.samples))):
        row = place[index]
        nearest = pairs["train_index"][row]
        found.append(
            {
                "index": index,
                "image": png_uri(variant.samples.images[index]),
                "nearest": png_uri(inputs.train.images[nearest]),
                "nearest_index": nearest,
                "distance": pairs["distance"][row],
                "ratio": pairs["ratio"][row],
                "verdict": pairs["verdict"][row],
            }
        )
    return found


def duplicate_groups(inputs: Inputs, count: int) -> list[dict[str, Any]]:
    """The `count` largest groups of duplicates, each with its images, the kept one first."""
    columns = inputs.duplicates.select(["group", "split", "row", "kept", "reason", "distance"]).to_pylist()
    groups: dict[int, list[dict[str, Any]]] = {}
    for entry in columns:
        groups.setdefault(entry["group"], []).append(entry)
    largest = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))[:count]
    return [
        {
            "size": len(members),
            "images": [
                {**member, "image": png_uri(_pixels(inputs, member))}
                for member in sorted(members, key=lambda member: not member["kept"])[:12]
            ],
        }
        for _, members in largest
    ]


def _pixels(inputs: Inputs, member: dict[str, Any]) -> np.ndarray:
    return inputs.splits[member["split"]].images[member["row"]]


def theory_part(block: TheoryBlock) -> dict[str, Any]:
    """One block of the theory's claims: its rows, figures (SVG) and pictures."""
    return {
        "block": block,
        "figures": theory_figures(block.name, block.tables),
        "pictures": [(caption, file_uri(path)) for caption, path in block.pictures],
    }
