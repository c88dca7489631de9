"""Parameters of the filter stage for tests, and the feature table and index that it reads."""

import numpy as np

from stages.features.encoders import load_encoder
from stages.features.weights import EncoderParams
from stages.files.features import FeatureTable, write_features
from stages.files.images import image_table
from stages.files.neighbors import NeighborTable, write_neighbors

PIXELS = {"name": "pixels", "weights": None, "sha256": None, "resize": None}
TREE = {
    "embed": {"encoder": PIXELS, "device": "cpu"},
    "filter": {
        "neighbors": 12,
        "percentile": 10.0,
        "percentile_of": "holdout",
        "margin": 1.0,
        "ratios": {"copy_below": 1 / 3, "near_copy_below": 0.7},
        "carlini": {"alpha": 0.5, "n": 8},
        "quality": {"quantile": 0.01, "share": 0.25},
        "headline": "nn_ratio_near_copy",
        "grid": {"rows": 3, "columns": 2},
        "candidates": 1000,
        "verdicts": {},
        "repeated_within": 0.02,
        "shards": 1,
    },
}


def write_index(train: np.ndarray) -> None:
    encoder, ids = load_encoder(EncoderParams(**PIXELS), "cpu"), image_table(train).ids
    features = encoder(train)
    write_features("data/embed/train.arrow", FeatureTable(features, ids, encoder.metadata))
    distances = np.linalg.norm(features[:, None].astype(np.float64) - features[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    order = np.argsort(distances, axis=1)[:, :5]
    own = distances.min(axis=1).astype(np.float32)
    table = NeighborTable(order.astype(np.int32), np.take_along_axis(distances, order, 1).astype(np.float32), ids, own)
    write_neighbors("data/index/feature_neighbors.arrow", table)
