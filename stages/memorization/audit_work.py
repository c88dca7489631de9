"""The work of an audit: one function per task, each of which turns a shard into a file.

images      decode a set at the common size → image table (stages.images.common_size)
neighbors   the nearest other images of a span of a set
groups      duplicate groups of the training images, and two halves of them
planted     known copies of training images → image table, the kind as label
matches     images against the reference
features    encoder features of images of several tables
"""

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np

from stages.engine.products import single_threaded_products, spread
from stages.features.encoders import Encoder, load_encoder
from stages.features.weights import EncoderParams
from stages.files.arrays import read_arrays, write_arrays
from stages.files.images import image_table, read_images, write_images
from stages.files.shard import Shard
from stages.images.common_size import decode
from stages.memorization.groups import find_duplicates, halves
from stages.memorization.matching import Reference, join, match, mirrored, whole_reference, with_groups
from stages.memorization.neighbors import own_neighbors
from stages.memorization.self_test import plant_all

encoder_of = functools.lru_cache(maxsize=1)(load_encoder)
"""`load_encoder`, once per process: (parameters, device) → encoder."""


def work(shard: Shard, budget: int) -> Path:
    """Carry out one shard. budget: bytes of working memory; it changes no result."""
    return WORK[shard.task.split()[0]](shard, budget)


@functools.lru_cache(maxsize=2)
def load_reference(train: str, groups: str, *own: str, half: bool, budget: int) -> Reference:
    """The training images as a reference, from the files of the tasks images, groups and neighbors.

    half: only the second of the two halves.
    """
    found, known = read_arrays(groups), join([read_arrays(part) for part in own])
    whole = whole_reference(read_images(train).images, found["group"], (known["index"], known["squared"]), budget)
    return whole.part(found["right"]) if half else whole


def _neighbors(shard: Shard, budget: int) -> Path:
    flat, start = read_images(shard.inputs[0]).flat, shard.settings["start"]
    return write_arrays(shard.path, own_neighbors(flat, start, start + shard.settings["count"], budget))


def _groups(shard: Shard, _: int) -> Path:
    train, *parts = shard.inputs
    table, own = read_images(train), join([read_arrays(part) for part in parts])
    found = find_duplicates(table.ids, own, table.dimension, shard.settings["near"])
    left, right = halves(found.group, shard.settings["seed"])
    counts = np.array([found.groups, found.images])
    arrays = {"group": found.group, "counts": counts, "near": np.array(found.near), "left": left, "right": right}
    return write_arrays(shard.path, arrays)


def _planted(shard: Shard, budget: int) -> Path:
    reference = load_reference(*shard.inputs, half=shard.settings["half"], budget=budget)
    images, kinds = plant_all(reference, shard.settings["copies"], shard.settings["seed"])
    return write_images(shard.path, image_table(images, kinds))


def _matches(shard: Shard, budget: int) -> Path:
    queries, *files = shard.inputs
    reference = load_reference(*files, half=shard.settings["half"], budget=budget)
    images = read_images(queries).images[np.array(shard.settings["rows"])]
    return write_arrays(shard.path, with_groups(match(images, reference), images, reference))


def _features(shard: Shard, _: int) -> Path:
    """settings["images"]: [place of the table in inputs, row, mirrored?] of every image."""
    tables = [read_images(path).images for path in shard.inputs]
    images = [tables[place][row] for place, row, _ in shard.settings["images"]]
    turned = np.array([turned for _, _, turned in shard.settings["images"]])
    pixels = np.stack(images)
    pixels[turned] = mirrored(pixels[turned])
    return write_arrays(shard.path, {"feature": embedded(_encoder(shard), pixels)})


def embedded(encoder: Encoder, images: np.ndarray) -> np.ndarray:
    """Return the features float32 (N, D) of uint8 images (N, H, W, C); every thread takes some of the batches.

    A batch takes one thread: on two it is slower than two of them side by side, and its last bits are others.
    """
    found = [np.empty(0, np.float32)] * -(-len(images) // encoder.batch)

    def some(a: int, b: int) -> None:
        for n in range(a, b):
            found[n] = encoder(images[n * encoder.batch : (n + 1) * encoder.batch])

    with single_threaded_products():
        spread(some, len(found))
    return np.concatenate(found)


def _encoder(shard: Shard) -> Encoder:
    return encoder_of(EncoderParams(**shard.settings["encoder"]), shard.settings["device"])


WORK: dict[str, Callable[[Shard, int], Path]] = {
    "images": lambda shard, _: decode(shard),
    "neighbors": _neighbors,
    "groups": _groups,
    "planted": _planted,
    "matches": _matches,
    "features": _features,
}
