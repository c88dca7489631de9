"""Stage embed: every image as a feature vector of one encoder.

Outs in data/embed: train.arrow, test.arrow, holdout.arrow, feature tables in the rows of data/deduplicate.
"""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from stages.errors import InputError
from stages.features.encoders import EncoderParams, embed_rows, load_encoder, pinned
from stages.files.features import concatenate, write_features
from stages.files.images import read_images
from stages.files.paths import SPLITS, features_of, images_of
from stages.protocol import Parts, Shard, StageParams, main, spans


class Params(StageParams):
    """The encoder that all feature distances and the Fréchet distance are measured with."""

    SECTION: ClassVar[str] = "embed"

    encoder: EncoderParams = Field(description="which network, on which weights")
    device: Literal["auto", "cpu", "cuda"] = Field(description="auto: a GPU when there is one")
    shards: int = Field(gt=0, description="pieces of work per split; changes no result")


def plan(params: Params) -> list[Shard]:
    """Spans of rows of each split. The weights are found, and where need be downloaded, before any work starts."""
    settings = {"encoder": pinned(params.encoder).model_dump(), "device": params.device}
    shards = []
    for split in SPLITS:
        source = images_of(split)
        cuts = spans(_count(source), params.shards)
        for number, (start, stop) in enumerate(cuts, 1):
            name = f"{split} {number}/{len(cuts)}"
            shards.append(Shard("embed", split, name, {**settings, "start": start, "stop": stop}, (str(source),)))
    return shards


def _count(source: Path) -> int:
    count = len(read_images(source))
    if count == 0:
        raise InputError(f"{source} holds no images: raise ingest.{source.stem}")
    return count


def work(shard: Shard) -> Path:
    """The features of rows start..stop of the shard's image table."""
    settings = shard.settings
    encoder = load_encoder(EncoderParams(**settings["encoder"]), settings["device"])
    span, title = slice(settings["start"], settings["stop"]), f"{shard.stage} {shard.name}"
    return write_features(shard.path, embed_rows(encoder, read_images(shard.inputs[0]), span, title))


def gather(params: Params, parts: Parts) -> None:
    """One feature table per split."""
    for split in SPLITS:
        write_features(features_of(split), concatenate(parts[split], str(images_of(split))))


if __name__ == "__main__":
    main("embed")
