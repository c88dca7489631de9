"""candidates.parquet: the pairs that a person judges by eye (METHODS §6, manual verification), with their pictures.

One row per sample that some rule suspects, the most suspicious first:
    sample_index, train_index   int64    rows of the samples and of the training images
    sample_id, train_id         string   sha256 of the pixels; a person's verdict is kept under these two
    distance, ratio             float64  ℓ to the nearest training image, r₁/r₂
    verdict, reason             string   what the rules say (stages.memorization.verdicts)
    sample_png, train_png       binary   the two pictures
    next_pngs                   list     the training images that follow in distance, at most four
Whoever writes the table may add columns; readers leave them alone.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages.errors import InputError
from stages.files.arrow import write_parquet
from stages.files.png import png_bytes

NAME = "candidates.parquet"
NEXT = 4
SHOWN_MIRRORED = " (the sample is shown mirrored)"
SCALARS = pa.schema(
    [
        ("sample_index", pa.int64()),
        ("sample_id", pa.string()),
        ("train_index", pa.int64()),
        ("train_id", pa.string()),
        ("distance", pa.float64()),
        ("ratio", pa.float64()),
        ("verdict", pa.string()),
        ("reason", pa.string()),
    ]
)
PICTURES = pa.schema([("sample_png", pa.binary()), ("train_png", pa.binary()), ("next_pngs", pa.list_(pa.binary()))])


def choose(rho: np.ndarray, confirmed: np.ndarray, suspected: np.ndarray, limit: int) -> np.ndarray:
    """Return which samples a person is asked about: int64 rows, lowest ρ first, ties to the lower row.

    Args:
        rho: float64 (N,), l1 over the mean of the k nearest; any score that is low where copies are.
        confirmed: bool (N,), passed both stages of the filter. These come before the others when `limit` cuts.
        suspected: bool (N,), flagged by any rule.
        limit: the most rows.
    """
    rows = np.flatnonzero(confirmed | suspected)
    urgent = rows[np.lexsort((rows, rho[rows], ~confirmed[rows]))][:limit]
    return urgent[np.lexsort((urgent, rho[urgent]))]


def offer(
    path: Path | str,
    pairs: pa.Table,
    score: str,
    confirmed: np.ndarray,
    following: np.ndarray,
    samples: np.ndarray,
    train: np.ndarray,
    limit: int,
    metadata: dict[str, Any],
    mirrored: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Write candidates.parquet: at most `limit` of the suspected pairs, those with a low score first.

    Args:
        pairs: one row per sample, with the columns of SCALARS, candidate and `score`.
        confirmed: bool (N,) by row of `pairs`, see `choose`.
        following: int64 (S, m) by sample, see `write_candidates`.
        mirrored: bool (S,) by sample, see `write_candidates`.

    Returns:
        bool (N,) each, by row of `pairs`: the suspected pairs (a candidate, or another verdict than novel), and those
        of them that were written. The file's metadata has the number of the suspected ones.
    """
    suspected = pairs["candidate"].to_numpy() | (np.array(pairs["verdict"].to_pylist()) != "novel")
    rows = choose(pairs[score].to_numpy(), confirmed, suspected, limit)
    chosen = pairs.take(pa.array(rows))
    metadata = {**metadata, "suspected": int(suspected.sum())}
    index = chosen["sample_index"].to_numpy()
    turned = None if mirrored is None else mirrored[index]
    write_candidates(path, chosen, following[index], samples, train, metadata, turned)
    return suspected, np.isin(np.arange(pairs.num_rows), rows)


def write_candidates(
    path: Path | str,
    pairs: pa.Table,
    following: np.ndarray,
    samples: np.ndarray,
    train: np.ndarray,
    metadata: dict[str, Any] | None = None,
    mirrored: np.ndarray | None = None,
) -> Path:
    """Write candidates.parquet atomically; the rows keep the order of `pairs`.

    Args:
        path: the file.
        pairs: one row per pair, with the columns of SCALARS and any further ones.
        following: int64 (N, m): for each pair the training rows after the nearest, by distance; the first four are
            taken, −1 means none.
        samples: uint8 (S, H, W, C), indexed by sample_index.
        train: uint8 (M, H, W, C), indexed by train_index and `following`.
        metadata: JSON values for the file's schema.
        mirrored: bool (N,), samples that match when they are mirrored, and are drawn so; None for none.
    """
    turned = np.zeros(pairs.num_rows, bool) if mirrored is None else mirrored
    if len(following) != pairs.num_rows:
        raise ValueError(f"{len(following)} rows of following training images for {pairs.num_rows} pairs")
    missing = [name for name in SCALARS.names if name not in pairs.column_names]
    if missing:
        raise ValueError(f"pairs lack the column {missing[0]}")
    drawn: dict[int, bytes] = {}  # a training image may be near to many samples

    def training_png(row: int) -> bytes:
        if row not in drawn:
            drawn[row] = png_bytes(train[row])
        return drawn[row]

    rows = pairs.select(["sample_index", "train_index"]).to_pydict()
    pictures: Mapping[str, list[Any]] = {
        "sample_png": [
            png_bytes(samples[row][:, :: -1 if flip else 1]) for row, flip in zip(rows["sample_index"], turned)
        ],
        "train_png": [training_png(row) for row in rows["train_index"]],
        "next_pngs": [[training_png(int(row)) for row in found[:NEXT] if row >= 0] for found in following],
    }
    reasons = [f"{reason}{SHOWN_MIRRORED * bool(flip)}" for reason, flip in zip(pairs["reason"].to_pylist(), turned)]
    table = pairs.replace_schema_metadata(None)
    table = table.set_column(table.column_names.index("reason"), "reason", pa.array(reasons, pa.string()))
    for field in SCALARS:
        table = table.set_column(table.column_names.index(field.name), field, table[field.name].cast(field.type))
    for field in PICTURES:
        table = table.append_column(field, pa.array(pictures[field.name], field.type))
    return write_parquet(path, table, metadata or {})


def read_candidates(path: Path | str) -> pa.Table:
    """Read candidates.parquet; a missing, damaged or foreign file raises InputError."""
    try:
        table = pq.read_table(path)
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing: run the filter stage or the audit that writes it") from error
    except pa.ArrowInvalid as error:
        raise InputError(f"{path} is not a Parquet table ({error}): run the command that wrote it again") from error
    for field in (*SCALARS, *PICTURES):
        if field.name not in table.column_names:
            raise InputError(f"{path} has no column {field.name}: it is not a table of candidates")
        found = table.schema.field(field.name).type
        if not found.equals(field.type):
            raise InputError(f"{path}: column {field.name} holds {found}, not {field.type}: write it again")
    empty = [field.name for field in (*SCALARS, *PICTURES) if table[field.name].null_count]
    if empty:
        raise InputError(f"{path}: column {empty[0]} has empty cells: run the command that wrote it again")
    return table
