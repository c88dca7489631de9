"""A stage's outs as artifacts of its run in the Prefect UI: tables of numbers, pictures, a link to the report."""

import base64
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact

from stages.files.artifacts import read_json

TABLE_BYTES = 256 * 1024
PICTURE_BYTES = 512 * 1024
"""Artifacts are stored in the server's database: a larger picture is scaled down, a larger JSON file is left out."""


def publish_params(title: str, params: dict[str, Any]) -> None:
    """Show a stage's parameters as a table."""
    create_table_artifact(key=_key(f"{title} params"), table=table(params), description="params.yaml")


def publish_outs(title: str, folder: Path) -> None:
    """Show the JSON, PNG and HTML files that lie directly in a stage's folder of outs. title: "sample closed-x"."""
    files = sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
    for path in files:
        key = _key(f"{title} {path.stem}")
        if path.suffix == ".json" and path.stat().st_size <= TABLE_BYTES:
            create_table_artifact(key=key, table=table(read_json(path)), description=f"{path}")
        elif path.suffix == ".png":
            # an image artifact would print the picture's address below it, which holds all of its bytes here
            create_markdown_artifact(key=key, markdown=f"![{path}]({data_uri(path)})", description=f"{path}")
        elif path.suffix == ".html":
            create_link_artifact(key=key, link=path.absolute().as_uri(), link_text=f"{path.absolute()}")


def _key(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def table(value: Any) -> list[dict[str, Any]]:
    """Turn JSON into the rows of a table: a list of objects as it is, all else into names and values."""
    if isinstance(value, dict) and len(value) == 1:
        (only,) = value.values()
        if isinstance(only, list) and only and all(isinstance(row, dict) for row in only):
            return [{name: _cell(cell) for name, cell in row.items()} for row in only]
    return [{"name": name, "value": _cell(cell)} for name, cell in _flatten(value, "")]


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


def data_uri(path: Path) -> str:
    """A PNG file as a data URI of about `PICTURE_BYTES` at most; a larger picture is halved until it fits."""
    content = path.read_bytes()
    while len(content) > PICTURE_BYTES:
        from PIL import Image

        with Image.open(io.BytesIO(content)) as picture:
            smaller = picture.convert("RGB").resize((max(1, picture.width // 2), max(1, picture.height // 2)))
        buffer = io.BytesIO()
        smaller.save(buffer, "PNG", optimize=True)
        content = buffer.getvalue()
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"
