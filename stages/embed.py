"""Stage embed: every image as a feature vector of one encoder.

Outs in data/embed: train.arrow, test.arrow, holdout.arrow, feature tables in the rows of data/deduplicate.
"""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from stages.errors import InputError
from stages.features.encoders import EncoderParams, load_encoder, pinned
from stages.features.table import FeatureTable, concatenate, write_features
from stages.images.store import ImageTable, read_images
from stages.protocol import DATA, Shard, StageParams, main, spans

SPLITS = ("train", "test", "holdout")
PROGRESS_ROWS = 256


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
            shards.append(Shard("embed", name, {**settings, "start": start, "stop": stop}, (str(source),)))
    return shards


def images_of(split: str) -> Path:
    """The images that a split's features are of."""
    return DATA / "deduplicate" / f"{split}.arrow"


def features_of(split: str) -> Path:
    """The feature table of a split."""
    return DATA / "embed" / f"{split}.arrow"


def _count(source: Path) -> int:
    count = len(read_images(source))
    if count == 0:
        raise InputError(f"{source} holds no images: raise ingest.{source.stem}")
    return count


def work(shard: Shard) -> Path:
    """The features of rows start..stop of the shard's image table."""
    settings = shard.settings
    return embed_rows(shard, read_images(shard.inputs[0]), EncoderParams(**settings["encoder"]), settings["device"])


def embed_rows(shard: Shard, table: ImageTable, params: EncoderParams, device: str) -> Path:
    """Write the features of rows settings["start"]..settings["stop"] of `table` to the shard's path."""
    import numpy as np
    from tqdm import tqdm

    encoder = load_encoder(params, device)
    start, stop = shard.settings["start"], shard.settings["stop"]
    features = []
    with tqdm(total=stop - start, desc=f"{shard.stage} {shard.name}", unit="img", mininterval=2) as bar:
        for first in range(start, stop, PROGRESS_ROWS):
            features.append(encoder(table.images[first : min(first + PROGRESS_ROWS, stop)]))
            bar.update(len(features[-1]))
    return write_features(shard.path, FeatureTable(np.concatenate(features), table.ids[start:stop], encoder.metadata))


def gather(params: Params, parts: list[Path]) -> None:
    """One feature table per split."""
    parts = list(parts)
    for split in SPLITS:
        count = len(spans(_count(images_of(split)), params.shards))
        mine, parts = parts[:count], parts[count:]
        write_features(features_of(split), concatenate(mine, str(images_of(split))))


if __name__ == "__main__":
    main("embed")
