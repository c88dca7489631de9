"""Small image files of every kind, and what a source shows of them."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from stages.images.sources.open import open_source


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(value: int, size: int = 6) -> bytes:
    return encoded(Image.new("RGB", (size, size), (value, value, value)))


def values(spec: str, rows: list[int] | None = None) -> list[int | str]:
    """What each image shows: its first pixel's red, or its error."""
    source = open_source(spec)
    items = source if rows is None else source.read(rows)
    return [item.error or item.image.convert("RGB").getpixel((0, 0))[0] for item in items]


def pictures(spec: str, rows: list[int] | None = None) -> np.ndarray:
    source = open_source(spec)
    return np.stack([np.asarray(item.image) for item in (source if rows is None else source.read(rows))])


def write_tree(root: Path, tree: dict[str, int]) -> Path:
    for name, value in tree.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(value))
    return root


def write_zip(path: Path, tree: dict[str, int]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, value in tree.items():
            archive.writestr(name, png(value))
    return path


def tree_spec(kind: str, folder: Path, tree: dict[str, int]) -> str:
    if kind == "zip":
        return f"zip:{write_zip(folder / 'images.zip', tree)}"
    return f"folder:{write_tree(folder / 'images', tree)}"


STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write_shard(path: Path, start: int, count: int, kind: pa.DataType = STRUCT, **options: object) -> Path:
    data = [png(value) for value in range(start, start + count)]
    cells = [{"bytes": cell, "path": "x.png"} for cell in data] if pa.types.is_struct(kind) else data
    columns = {"image": pa.array(cells, kind), "label": pa.array([v % 3 for v in range(start, start + count)])}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, **options)
    return path
