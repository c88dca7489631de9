"""The group (prompt, class, patient) of each image of a source: a column of its table, or a CSV file beside it."""

import csv
from collections import Counter
from pathlib import Path

import numpy as np

from stages.errors import InputError, one_line
from stages.images.sources.base import Source, printable

NAMES = ("file", "row")  # columns of a CSV file that name the image


def group_values(source: Source, table: Path | None, column: str | None) -> list[str] | None:
    """Return the group of each of the source's N images, or None where none is asked for.

    table: a CSV file whose column `file` (the end of an image's path) or `row` (its row in the source, from 0) names
    the image. column: its other column, which need not be named where there is one; without a table the column of the
    source. InputError where an image has no group or two.
    """
    if table is None:
        return None if column is None else source.column(column)
    rows, header = _read(table)
    by = next((name for name in NAMES if name in header), None)
    others = [name for name in header if name not in NAMES]
    if by is None or not others:
        raise InputError(f"--groups {table}: its columns are {', '.join(header)}: it needs file or row, and a group")
    if column is None and len(others) > 1:
        raise InputError(f"--groups {table} has the columns {', '.join(others)}: name one with --group-by")
    column = column or others[0]
    if column not in others:
        raise InputError(f"--group-by {column}: {table} has no such column, only {', '.join(others)}")
    places = _places(source, table, by, [row[by] for row in rows])
    groups: list[str | None] = [None] * len(source)
    for place, row in zip(places, rows):
        if groups[place] is not None:
            raise InputError(f"--groups {table} names {source.where(place)} twice: name each sample once")
        groups[place] = row[column] or ""
    if None in groups:
        first = source.where(groups.index(None))
        raise InputError(f"--groups {table} lacks {groups.count(None):,} of {len(source):,} samples, e.g. {first}")
    return [group for group in groups if group is not None]


def _read(table: Path) -> tuple[list[dict[str, str]], list[str]]:
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"--groups {table} is not a readable CSV file in UTF-8: {one_line(error)}") from error
    if not rows:
        raise InputError(f"--groups {table} holds no rows: give a header and a row for every sample")
    return rows, [name for name in reader.fieldnames or () if name]


def _places(source: Source, table: Path, by: str, names: list[str]) -> list[int]:
    """The row of each named image in the source."""
    if by == "row":
        return [_row(table, name, len(source)) for name in names]
    known: dict[str, list[int]] = {}
    wheres = [source.where(row) for row in range(len(source))]
    for row, where in enumerate(wheres):
        known.setdefault(where.rsplit("/", 1)[-1], []).append(row)
    return [_one(table, name, wheres, known.get(printable(name).rsplit("/", 1)[-1], [])) for name in names]


def _row(table: Path, name: str, count: int) -> int:
    if not name.isdecimal() or int(name) >= count:
        raise InputError(f"--groups {table}: row {name!r} is not within 0..{count - 1}")
    return int(name)


def _one(table: Path, name: str, wheres: list[str], rows: list[int]) -> int:
    """The only one of these rows whose name ends with the whole parts of `name`."""
    found = [row for row in rows if f"/{wheres[row]}".endswith(f"/{printable(name).lstrip('/')}")]
    if len(found) != 1:
        said = "no sample has this name" if not found else f"{len(found)} samples end so: write more of the path"
        raise InputError(f"--groups {table}: file {name!r}: {said}")
    return found[0]


def numbered(groups: list[str]) -> list[str]:
    """Return the groups under the names "group 1", "group 2", …, the largest first: they say nothing of the images."""
    order = sorted(Counter(groups).items(), key=lambda item: (-item[1], item[0]))
    number = {name: f"group {place}" for place, (name, _) in enumerate(order, 1)}
    return [number[name] for name in groups]


def place_of(groups: list[str]) -> tuple[list[str], np.ndarray]:
    """Return the different groups, sorted, and the place of each image's among them, int64 (N,)."""
    names, places = np.unique(np.array(groups, object), return_inverse=True)
    return names.tolist(), places
