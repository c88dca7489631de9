"""Stage embed: every image as a feature vector of one encoder.

Outs in data/embed: train.arrow, test.arrow, holdout.arrow, feature tables with the rows of data/deduplicate.
"""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from stages.errors import InputError
from stages.features.embedding import embed_span, embedding_settings
from stages.features.weights import EncoderParams
from stages.files.features import concatenate, write_features
from stages.files.images import read_images
from stages.files.paths import SPLITS, features_of, images_of
from stages.protocol import Parts, Shard, StageParams, main, span_shards, spans


class Params(StageParams):
    """The encoder whose features all feature distances and the Fréchet distance compare."""

    SECTION: ClassVar[str] = "embed"

    encoder: EncoderParams = Field(description="the network and its weights")
    device: Literal["auto", "cpu", "cuda"] = Field(description="auto: a GPU if one is visible")
    shards: int = Field(gt=0, description="pieces of work per split; changes no result")


def plan(params: Params) -> list[Shard]:
    """Spans of rows of each split."""
    settings, shards = embedding_settings(params.encoder, params.device), []
    for split in SPLITS:
        source = images_of(split)
        count = len(read_images(source))
        if count == 0:
            raise InputError(f"{source} holds no images: raise ingest.{split}")
        shards += span_shards("embed", split, split, spans(count, params.shards), settings, [source])
    return shards


def work(shard: Shard) -> Path:
    """The features of one span of a split."""
    return embed_span(shard)


def gather(params: Params, parts: Parts) -> None:
    """One feature table per split."""
    for split in SPLITS:
        write_features(features_of(split), concatenate(parts[split], str(images_of(split))))


if __name__ == "__main__":
    main("embed")
