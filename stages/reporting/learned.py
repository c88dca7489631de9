"""Trained scores beside the empirical one: the tables of all variants, and their interpolations as one picture."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from stages.reporting.inputs import Variant
from stages.reporting.panels import Tables

NAME = "learned_score"
TITLE = "Trained scores: along the empirical score, apart from it, and between two images"
CAPTION = (
    "What the trained networks make of the mixtures of two noised training images (the ends of each strip), run down "
    "without new noise. A score that copies jumps from one training image to another; a smoothed one moves through "
    "images in between."
)
TILE, GAP, LABEL, SHOWN = 44, 2, 190, 3
PAPER, INK, MUTED = "#ffffff", "#1c2430", "#667080"


def learned_tables(variants: Sequence[Variant]) -> Tables:
    """Rows by level, rows by path and readings of the temperature of every trained network."""
    tables: Tables = {"learned_levels": [], "learned_paths": [], "learned_temperatures": []}
    for variant in variants:
        if variant.learned is not None:
            spec, given = variant.spec, variant.spec.get("noise_conditioning")
            conditioned = variant.form == "conditioning" if given is None else given
            about = {"variant": variant.name, "form": variant.form, "conditioned": conditioned}
            about["smooth_below"] = spec.get("smooth_below")
            for kind in ("levels", "paths", "temperatures"):
                tables[f"learned_{kind}"] += [{**about, **row} for row in variant.learned.measured[kind]]
    return tables


def draw_interpolations(variants: Sequence[Variant]) -> np.ndarray:
    """The first paths of all networks side by side, uint8 (H, W, 3): per pair of images one row per network, linear
    mixtures left and spherical ones right."""
    from PIL import Image, ImageDraw, ImageFont

    found = {variant.name: variant.learned.grid for variant in variants if variant.learned is not None}
    kinds, paths, points = next(iter(found.values())).shape[:3]
    paths = min(paths, SHOWN)
    block, line = points * (TILE + GAP), TILE + GAP
    size = (LABEL + kinds * block + 24, 26 + paths * (len(found) * line + 14))
    canvas = Image.new("RGB", size, PAPER)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(13)
    for kind, head in enumerate(("linear mixtures", "spherical mixtures")[:kinds]):
        draw.text((LABEL + kind * (block + 24), 4), head, MUTED, font)
    for path in range(paths):
        top = 26 + path * (len(found) * line + 14)
        for row, (name, grid) in enumerate(found.items()):
            draw.text((0, top + row * line + TILE // 2), name, INK, font, anchor="lm")
            for kind, strip in enumerate(grid[:, path]):
                _paste(canvas, strip, LABEL + kind * (block + 24), top + row * line)
    return np.asarray(canvas)


def _paste(canvas: Any, strip: Sequence[np.ndarray], left: int, top: int) -> None:
    from PIL import Image

    for number, image in enumerate(strip):
        picture = Image.fromarray(np.broadcast_to(image, (*image.shape[:2], 3)).copy())
        resample = Image.Resampling.NEAREST if max(picture.size) <= TILE else Image.Resampling.LANCZOS
        canvas.paste(picture.resize((TILE, TILE), resample), (left + number * (TILE + GAP), top))
