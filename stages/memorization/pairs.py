"""The columns of pairs.parquet that the filter stage and the audit share: what was found of every sample."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from stages.memorization.matching import Matches
from stages.memorization.metrics import Searched
from stages.memorization.nuisances import KINDS, VIEWS
from stages.memorization.ratios import rho
from stages.memorization.scores import TRANSFORMS
from stages.memorization.verdicts import order
from stages.search.pixel_distance import pixel_distance


def nullable(values: np.ndarray, known: np.ndarray | None = None) -> pa.Array:
    """A float64 column, null where `known` is false; by default where a value is NaN."""
    return pa.array(values, pa.float64(), mask=np.isnan(values) if known is None else ~known)


def training_image(prefix: str, rows: np.ndarray, ids: Sequence[str]) -> dict[str, Any]:
    """The columns PREFIX_index and PREFIX_id of training images."""
    return {f"{prefix}_index": rows, f"{prefix}_id": [ids[row] for row in rows]}


def score_columns(searched: Searched, transform: list[str]) -> dict[str, Any]:
    """Scores of every sample. transform: of the match that reaches ρ*, in words."""
    found = searched.scores
    return {
        "transform": transform,
        "ratio_grouped": nullable(found.ratio_grouped),
        "rho_star": nullable(found.best),
        **{f"rho_{name}": nullable(found.rho[:, place]) for place, name in enumerate(TRANSFORMS)},
    }


def match_columns(searched: Searched, ids: Sequence[str]) -> dict[str, Any]:
    """The match of every sample under each transform. ids: of the training images."""
    m = searched.matches
    return {
        **training_image("mirrored", m.mirrored_index[:, 0], ids),
        "mirrored_distance": pixel_distance(m.mirrored_squared[:, 0], m.dimension),
        **training_image("shifted", m.shift_row, ids),
        "shifted_distance": m.shift_distance,
        "shift_y": m.shift[:, 0],
        "shift_x": m.shift[:, 1],
        "shift_mirrored": m.shift_mirrored,
        **training_image("cropped", m.crop_row, ids),
        "cropped_distance": nullable(m.crop_distance),
        **{f"crop_{name}": m.crop_window[:, place] for place, name in enumerate(("y", "x", "side"))},
        "crop_mirrored": m.crop_mirrored,
        **{name: values for place, kind in enumerate(KINDS) for name, values in _change_columns(m, place, kind, ids)},
        "tile_max_distance": m.tile,
        "hull_distance": m.hull,
        "effective_number": m.effective,
        "mixture_distance": m.mixture,
        "mixture_effective_number": m.mixture_effective,
    }


def _change_columns(m: Matches, place: int, kind: str, ids: Sequence[str]) -> list[tuple[str, Any]]:
    """The match under one kind of change."""
    row, mirrored = m.changed_row[:, place, 0], m.changed_mirrored[:, place, 0]
    distance = nullable(np.sqrt(m.changed_residual[:, place, 0]) / 255)
    words = [VIEWS[kind][view].words for view in m.changed_view[:, place, 0]]
    columns = training_image(kind, row, ids) | {f"{kind}_distance": distance, f"{kind}_change": words}
    return list((columns | {f"{kind}_mirrored": mirrored}).items())


def basic_columns(searched: Searched, sample_ids: Sequence[str]) -> dict[str, Any]:
    """Which sample each row is, its r₁/r₂ and ρ, and whether it is a candidate of the first stage."""
    return {
        "sample_index": np.arange(len(searched)),
        "sample_id": sample_ids,
        "ratio": searched.scores.ratio,
        "rho": rho(searched.matches.squared),
        "candidate": searched.candidate,
    }


def sorted_pairs(columns: dict[str, Any], score: np.ndarray) -> pa.Table:
    """One row per sample, sorted by the column verdict, then score, then sample."""
    return pa.table(columns).take(pa.array(order(columns["verdict"], score)))
