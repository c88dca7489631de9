"""Shards that embed the images of a table in spans of rows. Importing this does not import torch."""

from pathlib import Path
from typing import Any

from stages.features.weights import EncoderParams, pinned
from stages.files.features import write_features
from stages.files.images import read_images
from stages.protocol import Shard


def embedding_settings(encoder: EncoderParams, device: str) -> dict[str, Any]:
    """What determines the features, as a shard's settings; the weights are found or downloaded here."""
    return {"encoder": pinned(encoder).model_dump(), "device": device}


def embed_span(shard: Shard) -> Path:
    """Write the features of rows start..stop of the shard's first input, an image table."""
    from stages.features.encoders import embed_rows, load_encoder

    settings = shard.settings
    encoder = load_encoder(EncoderParams(**settings["encoder"]), settings["device"])
    rows, title = slice(settings["start"], settings["stop"]), f"{shard.stage} {shard.name}"
    return write_features(shard.path, embed_rows(encoder, read_images(shard.inputs[0]), rows, title))
