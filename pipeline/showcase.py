"""A stage's outs as artifacts of its run in the Prefect UI: tables of numbers, pictures, a link to the report."""

import base64
import io
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact

from pipeline import server
from stages.files.artifacts import read_json

SAMPLES = "samples.arrow"
"""stages.files.paths.samples_of: the image table of which a run shows the first ones."""

LEGIBLE = 400
"""Pixels of a picture's longer side, up to which it is enlarged."""

TABLE_BYTES = 256 * 1024
PICTURE_BYTES = 512 * 1024
"""Artifacts are stored in the server's database: a larger picture is scaled down, a larger JSON file is left out."""


def publish_params(title: str, params: dict[str, Any]) -> None:
    """Show a stage's parameters as a table."""
    create_table_artifact(key=_key(f"{title} params"), table=tables(params)[""], description="params.yaml")


def publish_outs(title: str, folder: Path) -> None:
    """Show the JSON, PNG and HTML files that lie directly in a stage's folder of outs. title: "sample closed-x"."""
    files = sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
    for path in files:
        key = _key(f"{title} {path.stem}")
        if path.suffix == ".json" and path.stat().st_size <= TABLE_BYTES:
            for name, rows in tables(read_json(path)).items():
                create_table_artifact(key=_key(f"{title} {path.stem} {name}"), table=rows, description=f"{path} {name}")
        elif path.suffix == ".png":
            _show(key, path, path.read_bytes())
        elif path.name == SAMPLES:
            _show(key, path, contact_sheet(path))
        elif path.suffix == ".html":
            create_link_artifact(key=key, link=_address(path), link_text=f"{path.absolute()}")


def _show(key: str, path: Path, picture: bytes) -> None:
    # an image artifact would print the picture's address below it, which holds all of its bytes here
    create_markdown_artifact(key=key, markdown=f"![{path}]({data_uri(picture)})", description=f"{path}")


def _address(path: Path) -> str:
    """Where a browser finds a page: the project's own server has the report (pipeline.guarded_prefect)."""
    own = os.environ.get(server.OWN)
    if own and path.absolute() == server.REPORT_FILE:
        return f"{own.removesuffix('/api')}/scoresmooth/report.html"
    return path.absolute().as_uri()


def contact_sheet(path: Path, most: int = 32, columns: int = 8) -> bytes:
    """The first images of a table, row by row, as a PNG file's bytes."""
    import numpy as np  # with arrow: most stages need neither here

    from stages.files.images import read_images
    from stages.files.png import png_bytes

    images = read_images(path).images[:most]
    count, height, width, channels = images.shape
    rows = -(-count // columns)
    cells = np.full((rows * columns, height + 1, width + 1, channels), 255, np.uint8)
    cells[:count, :height, :width] = images
    grid = cells.reshape(rows, columns, height + 1, width + 1, channels).swapaxes(1, 2)
    return png_bytes(grid.reshape(rows * (height + 1), columns * (width + 1), channels))


def _key(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def tables(value: Any) -> dict[str, list[dict[str, Any]]]:
    """Turn JSON into the rows of tables: each list of objects is one under its key, all else names and values ("")."""
    entries = value if isinstance(value, dict) else {}
    lists = {name: rows for name, rows in entries.items() if _is_table(rows)}
    rest = {name: item for name, item in entries.items() if name not in lists} if lists else value
    found = {name: [{key: _cell(cell) for key, cell in row.items()} for row in rows] for name, rows in lists.items()}
    if lists and not rest:
        return found if len(found) > 1 else {"": next(iter(found.values()))}
    return {"": [{"name": name, "value": _cell(cell)} for name, cell in _flatten(rest, "")], **found}


def _is_table(rows: Any) -> bool:
    return isinstance(rows, list) and bool(rows) and all(isinstance(row, dict) for row in rows)


def _flatten(value: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _flatten(item, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def _cell(value: Any) -> str | int | bool | None:
    if isinstance(value, float):
        return f"{value:.6g}"  # as text: the UI would show all the digits of a float
    return value if isinstance(value, str | int | bool | None) else str(value)


def data_uri(content: bytes) -> str:
    """A PNG file as a data URI of about `PICTURE_BYTES` at most; a larger picture is halved until it fits.

    One that is too small to see is enlarged, pixel by pixel.
    """
    width, height = struct.unpack(">II", content[16:24])
    if (factor := LEGIBLE // max(width, height, 1)) > 1:
        content = _scaled(content, factor)
    while len(content) > PICTURE_BYTES:
        content = _scaled(content, 0.5)
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def _scaled(content: bytes, factor: float) -> bytes:
    from PIL import Image

    with Image.open(io.BytesIO(content)) as picture:
        size = [max(1, int(side * factor)) for side in picture.size]
        scaled = picture.convert("RGB").resize(size, Image.Resampling.NEAREST if factor > 1 else None)
    buffer = io.BytesIO()
    scaled.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
