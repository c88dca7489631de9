"""The picture of pairs: sample | nearest | next training image, with the verdict and the numbers."""

import dataclasses
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from stages.files.artifacts import atomic_path

TILE, GAP, MARGIN, CAPTION = 96, 6, 20, 40
PAPER, INK, MUTED, RULE = "#ffffff", "#1c2430", "#667080", "#e3e6ea"
COLOURS = {
    "copy": "#c0362c",
    "near_copy": "#e08a1e",
    "blend": "#2f8f8a",
    "same_content": "#8056b3",
    "unsure": "#8a8f98",
    "novel": "#2a8a5f",
}
HEADS = ("sample", "nearest", "next")


@dataclasses.dataclass(frozen=True)
class Pair:
    """One sample with its two nearest training images, uint8 (H, W, C), and what was found."""

    images: tuple[np.ndarray, np.ndarray, np.ndarray]
    verdict: str
    ratio: float
    distance: float


def spread_rows(count: int, wanted: int) -> np.ndarray:
    """Return `wanted` evenly spaced rows of a list, the first and the last among them, or all of a shorter list."""
    return np.unique(np.linspace(0, max(0, count - 1), min(count, wanted)).round().astype(np.int64))


def draw_pairs(path: Path, pairs: list[Pair], columns: int, title: str, subtitle: str) -> Path:
    """Write the grid as PNG, atomically; filled column by column, so that it reads downwards in the list's order."""
    fonts = {size: ImageFont.load_default(size) for size in (13, 14, 20)}
    columns = max(1, min(columns, len(pairs)))
    rows = -(-len(pairs) // columns)
    block, line, top = 3 * TILE + 2 * GAP + 14, TILE + CAPTION, MARGIN + 86
    size = (2 * MARGIN + columns * block + (columns - 1) * 28, top + rows * line + MARGIN - 10)
    canvas = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(canvas)
    draw.text((MARGIN, MARGIN - 4), title, INK, fonts[20])
    draw.text((MARGIN, MARGIN + 24), subtitle, MUTED, fonts[13])
    for number, pair in enumerate(pairs):
        column, row = divmod(number, rows)
        x, y = MARGIN + column * (block + 28), top + row * line
        if row == 0:
            _heads(draw, x + 14, y - 22, fonts[13])
        _pair(canvas, draw, pair, x, y, fonts[14])
    with atomic_path(path) as temporary:
        canvas.save(temporary, format="PNG", optimize=False)
    return Path(path)


def _heads(draw: ImageDraw.ImageDraw, x: int, y: int, font: ImageFont.FreeTypeFont) -> None:
    for number, head in enumerate(HEADS):
        draw.text((x + number * (TILE + GAP) + TILE // 2, y), head, MUTED, font, anchor="ma")


def _pair(
    canvas: Image.Image, draw: ImageDraw.ImageDraw, pair: Pair, x: int, y: int, font: ImageFont.FreeTypeFont
) -> None:
    colour = COLOURS[pair.verdict]
    draw.rectangle((x, y, x + 5, y + TILE - 1), fill=colour)
    for number, image in enumerate(pair.images):
        left = x + 14 + number * (TILE + GAP)
        draw.rectangle((left - 1, y - 1, left + TILE, y + TILE), outline=RULE)
        canvas.paste(_tile(image), (left, y))
    draw.text((x + 14, y + TILE + 6), pair.verdict.replace("_", " "), colour, font)
    numbers = f"r1/r2 = {pair.ratio:.3f}    distance {pair.distance:.3f}"
    draw.text((x + 14 + 3 * TILE + 2 * GAP, y + TILE + 6), numbers, INK, font, anchor="ra")


def _tile(image: np.ndarray) -> Image.Image:
    """An image as a square tile: enlarged without smoothing, or reduced; the pixels stay visible as they are."""
    picture = Image.fromarray(np.broadcast_to(image, (*image.shape[:2], 3)).copy())
    scale = TILE / max(picture.size)
    size = tuple(max(1, round(side * scale)) for side in picture.size)
    resized = picture.resize(size, Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS)
    tile = Image.new("RGB", (TILE, TILE), PAPER)
    tile.paste(resized, ((TILE - size[0]) // 2, (TILE - size[1]) // 2))
    return tile
