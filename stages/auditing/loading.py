"""The images of an audit at one size: decoded once, kept as image tables, with what had to be changed or left out."""

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from stages.auditing.store import Store
from stages.errors import InputError
from stages.files.artifacts import sha256_file, sha256_json
from stages.files.images import ImageTable, image_id, scratch_pixels, write_images
from stages.images.decode import UnreadableImage, to_pixels
from stages.images.sources.base import Source
from stages.images.sources.open import open_source

PROBED = 1_000  # images of a set, evenly spaced, whose sizes say at which resolution it is audited
GREY = ("1", "L", "LA", "La", "I", "F", "I;16", "I;16B", "I;16L", "I;16N")
SECONDS_PER_IMAGE = 2.5e-4


@dataclasses.dataclass(frozen=True)
class Shape:
    """The common size: resolution × resolution × channels, and what each set's images are themselves, in words."""

    resolution: int
    channels: int
    native: dict[str, str]


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """One set of images at the audit's size.

    Attributes:
        role: train, samples or holdout.
        source: where they come from.
        table: uint8 pixels, ids, labels.
        where: N strings that name each image to a person.
        classes: names of the labels, or None.
        rejected: [where, reason] of every unreadable image.
        resized: how many were of another size.
        recoloured: how many were grey and became colour, or the other way round.
        digest: sha256 of all ids and labels.
    """

    role: str
    source: str
    table: ImageTable
    where: list[str]
    classes: list[str] | None
    rejected: list[list[str]]
    resized: int
    recoloured: int
    digest: str

    def __len__(self) -> int:
        return len(self.table)


def common_shape(sources: dict[str, Source], resolution: int | None) -> Shape:
    """The smallest of the sets' most common shorter sides, in colour if any probed image has colour.

    Of every set PROBED evenly spaced images are looked at. Every image is later brought to this size, whatever its
    own; how many had to be is counted. resolution: what the caller asks for instead, or None.
    """
    sides, colours, native = {}, [], {}
    for role, source in sources.items():
        rows = np.unique(np.linspace(0, len(source) - 1, min(PROBED, len(source))).round().astype(np.int64))
        images = [item.image for item in source.read(rows) if item.image is not None]
        if not images:
            raise InputError(f"--{role} {source.spec}: none of its first images can be read: is it a set of images?")
        sizes = Counter(image.size for image in images)
        sides[role] = min(Counter(min(image.size) for image in images).most_common(), key=lambda c: (-c[1], c[0]))[0]
        colours += [image.mode not in GREY for image in images]
        native[role] = _words(sizes, [image.mode in GREY for image in images])
    return Shape(resolution or min(sides.values()), 3 if any(colours) else 1, native)


def _words(sizes: Counter, grey: list[bool]) -> str:
    (width, height), _ = sizes.most_common(1)[0]
    others = "" if len(sizes) == 1 else " and other sizes"
    colour = "grey" if all(grey) else "grey and colour" if any(grey) else "colour"
    return f"{width} × {height}{others}, {colour}"


def load(role: str, source: Source, shape: Shape, store: Store) -> ImageSet:
    """Decode a whole source at the audit's size, or find it in the store. Unreadable images are left out and listed."""
    rows = range(len(source))
    files = {path: sha256_file(path) for path in source.files(rows) if Path(path).is_file()}
    key = [source.spec, sha256_json(files), len(source), shape.resolution, shape.channels]
    cost = SECONDS_PER_IMAGE * len(source)
    table = store.images(role, key, cost, lambda path: _decode(path, role, source, shape))
    found = table.metadata
    rejected = [[where, reason] for _, where, reason in found["rejected"]]
    lost = {row for row, _, _ in found["rejected"]}
    where = [source.where(row) for row in rows if row not in lost]
    digest = sha256_json([table.ids, table.labels.tolist(), list(table.images.shape)])
    counts = found["resized"], found["recoloured"]
    return ImageSet(role, source.spec, table, where, source.classes, rejected, *counts, digest)


def expected_seconds(sources: dict[str, Source]) -> float:
    """Estimated seconds of decoding."""
    return SECONDS_PER_IMAGE * sum(len(source) for source in sources.values())


def _decode(path: Path, role: str, source: Source, shape: Shape) -> None:
    with scratch_pixels(path.parent, (len(source), shape.resolution, shape.resolution, shape.channels)) as pixels:
        ids: list[str] = []
        labels, rejected = [], []
        changed = Counter()
        for item in source:
            try:
                pixels[len(ids)] = _pixels(item.image, item.error, shape)
            except UnreadableImage as error:
                rejected.append([item.row, item.where, str(error)])
                continue
            ids.append(image_id(pixels[len(ids)]))
            labels.append(item.label)
            changed["resized"] += item.image.size != (shape.resolution, shape.resolution)
            changed["recoloured"] += (item.image.mode in GREY) != (shape.channels == 1)
        if not ids:
            where, reason = rejected[0][1:]
            raise InputError(
                f"--{role} {source.spec}: none of its {len(source)} images can be read ({where}: {reason})"
            )
        metadata = {"rejected": rejected, "resized": changed["resized"], "recoloured": changed["recoloured"]}
        write_images(path, ImageTable(pixels[: len(ids)], ids, np.array(labels, np.int64), metadata))


def _pixels(image: Image.Image | None, error: str | None, shape: Shape) -> np.ndarray:
    if image is None:
        raise UnreadableImage(error)
    return to_pixels(image, shape.resolution, shape.channels)


def open_all(specs: dict[str, str]) -> dict[str, Source]:
    """Open every source; what is wrong with one is told with the option that named it."""
    opened = {}
    for role, spec in specs.items():
        try:
            opened[role] = open_source(spec)
        except InputError as error:
            raise InputError(f"--{role}: {error}") from error
    return opened


def differences(sets: dict[str, ImageSet], shape: Shape) -> list[str]:
    """What was done to the images, a sentence each; empty when nothing was."""
    said = []
    for role, images in sets.items():
        if images.resized:
            side = f"{shape.resolution} × {shape.resolution}"
            said.append(
                f"{images.resized:,} of {len(images):,} {role} images ({shape.native[role]}) were resized to {side}"
            )
        if images.recoloured:
            how = "colour" if shape.channels == 3 else "grey"
            said.append(f"{images.recoloured:,} of {len(images):,} {role} images were turned to {how}")
        if images.rejected:
            where, reason = images.rejected[0]
            said.append(
                f"{len(images.rejected):,} {role} images could not be read and are left out, e.g. {where}: {reason}"
            )
    return said
