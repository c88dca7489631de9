"""Stage embed: every image as a feature vector of one encoder.

Outs in data/embed: train.arrow, test.arrow, holdout.arrow, feature tables with the rows of data/deduplicate. Where
index.encoder is set, neighbors.arrow holds that encoder's features of the training images.
"""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from stages.errors import InputError
from stages.features.embedding import embed_span, embedding_settings
from stages.features.weights import EncoderParams
from stages.files.features import concatenate, write_features
from stages.files.images import read_images
from stages.files.paths import NEIGHBOR_FEATURES, SPLITS, features_of, images_of
from stages.protocol import Parts, Shard, StageParams, main, span_shards, spans


class Params(StageParams):
    """The encoder whose features all feature distances and the Fréchet distance compare."""

    SECTION: ClassVar[str] = "embed"
    SHARED: ClassVar[dict[str, str]] = {"neighbor_encoder": "index.encoder"}

    encoder: EncoderParams = Field(description="the network and its weights")
    device: Literal["auto", "cpu", "cuda"] = Field(description="auto: a GPU if one is visible")
    shards: int = Field(gt=0, description="pieces of work per split; changes no result")
    neighbor_encoder: EncoderParams | None = Field(description="encoder of the training neighbours")


def plan(params: Params) -> list[Shard]:
    """Spans of rows of each split."""
    settings, shards = embedding_settings(params.encoder, params.device), []
    for split in SPLITS:
        source = images_of(split)
        count = len(read_images(source))
        if count == 0:
            raise InputError(f"{source} holds no images: raise ingest.{split}")
        shards += span_shards("embed", split, split, spans(count, params.shards), settings, [source])
    if params.neighbor_encoder is not None:
        source, settings = images_of("train"), embedding_settings(params.neighbor_encoder, params.device)
        cuts = spans(len(read_images(source)), params.shards)
        shards += span_shards("embed", "neighbors", "train for index", cuts, settings, [source])
    return shards


def work(shard: Shard) -> Path:
    """The features of one span of a split."""
    return embed_span(shard)


def gather(params: Params, parts: Parts) -> None:
    """One feature table per split, and one of the training images for their neighbours."""
    for split in SPLITS:
        write_features(features_of(split), concatenate(parts[split], str(images_of(split))))
    NEIGHBOR_FEATURES.unlink(missing_ok=True)  # of an earlier run with another index.encoder
    if "neighbors" in parts:
        write_features(NEIGHBOR_FEATURES, concatenate(parts["neighbors"], str(images_of("train"))))


if __name__ == "__main__":
    main("embed")
