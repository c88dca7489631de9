"""The feature table: one float32 vector per image, with ids, in one memory-mapped Arrow file.

Layout (Arrow IPC, one record batch, so that reading is zero-copy):
    id       string                          the image's id
    feature  fixed_size_list<float32>[D]
    schema metadata: encoder, weights_sha256, preprocessing, precision
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from stages.errors import InputError
from stages.files.arrow import column_array, fixed_lists, open_table, read_metadata, write_table


@dataclasses.dataclass(frozen=True)
class FeatureTable:
    """Features with their images' ids, row by row.

    Attributes:
        features: float32 (N, D), a read-only view of the memory-mapped file where it was read.
        ids: N strings.
        metadata: JSON values that say how the features were made (`Encoder.metadata`).
    """

    features: np.ndarray
    ids: list[str]
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: np.ndarray) -> "FeatureTable":
        """The table of these rows, int64 (N,), in this order."""
        return FeatureTable(self.features[rows], [self.ids[row] for row in rows], self.metadata)


def write_features(path: Path | str, table: FeatureTable) -> Path:
    """Write a feature table atomically; NaN and infinity raise InputError naming the image."""
    features = np.ascontiguousarray(table.features, dtype=np.float32)
    if features.ndim != 2 or len(features) != len(table):
        raise ValueError(f"features {features.shape} do not fit {len(table)} ids")
    for start in range(0, len(features), 4096):  # in blocks: the mask of a large table would double its memory
        broken = np.flatnonzero(~np.isfinite(features[start : start + 4096]).all(axis=1))
        if len(broken):
            raise InputError(f"the feature of image {table.ids[start + broken[0]]} is not finite: check the weights")
    columns = {"id": pa.array(table.ids, pa.string()), "feature": fixed_lists(features)}
    return write_table(path, columns, table.metadata)


def read_features(path: Path | str) -> FeatureTable:
    """Memory-map a feature table; a missing, truncated or foreign file raises InputError."""
    arrow = open_table(path, "feature table", ("id", "feature"))
    ids = arrow.column("id").to_pylist()
    return FeatureTable(column_array(arrow, "feature"), ids, read_metadata(arrow.schema))


def concatenate(parts: list[Path], source: str) -> FeatureTable:
    """Join the tables at `parts`; features made in different ways raise InputError.

    source: the embedded images' file ("data/deduplicate/train.arrow"), for the message.
    """
    tables = [read_features(part) for part in parts]
    for table in tables[1:]:
        require_same_encoder(tables[0], table, source)
    features = tables[0].features if len(tables) == 1 else np.concatenate([table.features for table in tables])
    return FeatureTable(features, [name for table in tables for name in table.ids], tables[0].metadata)


def require_same_encoder(a: FeatureTable, b: FeatureTable, source: str) -> None:
    """Raise InputError when two tables' features were made in different ways, so that they are not comparable."""
    differing = sorted(key for key in {*a.metadata, *b.metadata} if a.metadata.get(key) != b.metadata.get(key))
    if differing:
        key = differing[0]
        raise InputError(
            f"{source}: features with {key} {a.metadata.get(key)!r} and {b.metadata.get(key)!r} were mixed: "
            "rerun stage embed, all of it on the same kind of device"
        )
    if a.features.shape[1] != b.features.shape[1]:
        raise InputError(
            f"{source}: features of {a.features.shape[1]} and {b.features.shape[1]} dimensions were mixed: "
            "the images differ in shape; rerun from stage ingest"
        )
