"""Sets of images brought to one common size: decoded once, with what had to be changed or left out."""

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np

from stages.errors import InputError
from stages.files.artifacts import sha256_file, sha256_json
from stages.files.images import ImageTable, read_images
from stages.files.shard import Shard
from stages.images.decode import CHANGES, is_grey
from stages.images.decoded import changed_words, write_decoded
from stages.images.sources.base import Source
from stages.images.sources.image_names import skipped_words
from stages.images.sources.open import open_source

PROBED = 1_000  # images of a set, evenly spaced, whose sizes decide the common size


@dataclasses.dataclass(frozen=True)
class Shape:
    """The common size: resolution × resolution × channels; the native size of each set's images, in words; and how
    images that are not square are fitted (stages.images.decode.FITS)."""

    resolution: int
    channels: int
    native: dict[str, str]
    fit: str = "crop"


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """One set of images at the common size.

    Attributes:
        role: train, samples or holdout.
        source: where they come from.
        path: its image table.
        table: uint8 pixels, ids, labels.
        rows: int64 (N,), the row of each image in its source; unreadable images are left out.
        where: N strings that name each image to a person.
        classes: names of the labels, or None.
        rejected: [where, reason] of every unreadable image.
        changed: how many were changed, by stages.images.decode.CHANGES.
        skipped: names of files that are not images.
        notes: what else of the source was not used.
        digest: sha256 of all ids and labels.
    """

    role: str
    source: str
    path: Path
    table: ImageTable
    rows: np.ndarray
    where: list[str]
    classes: list[str] | None
    rejected: list[list[str]]
    changed: dict[str, int]
    skipped: tuple[str, ...]
    notes: tuple[str, ...]
    digest: str

    def __len__(self) -> int:
        return len(self.table)


def common_shape(sources: dict[str, Source], resolution: int | None, fit: str = "crop") -> Shape:
    """Return the smallest of the sets' most common shorter sides, in colour if any probed image has colour.

    PROBED evenly spaced images of every set are looked at. Later every image is brought to this size, and those that
    had another size are counted. resolution: what the caller asks for instead, or None.
    """
    sides, colours, native = {}, [], {}
    for role, source in sources.items():
        rows = np.unique(np.linspace(0, len(source) - 1, min(PROBED, len(source))).round().astype(np.int64))
        items = list(source.read(rows))
        images = [item.image for item in items if item.image is not None]
        if not images:
            first = f"{items[0].where}: {items[0].error}"
            raise InputError(f"--{role} {source.spec}: none of its first images can be read ({first})")
        sizes = Counter(image.size for image in images)
        sides[role] = min(Counter(min(image.size) for image in images).most_common(), key=lambda c: (-c[1], c[0]))[0]
        colours += [not is_grey(image) for image in images]
        native[role] = _words(sizes, [is_grey(image) for image in images])
    return Shape(resolution or min(sides.values()), 3 if any(colours) else 1, native, fit)


def _words(sizes: Counter, grey: list[bool]) -> str:
    (width, height), _ = sizes.most_common(1)[0]
    others = "" if len(sizes) == 1 else " and other sizes"
    colour = "grey" if all(grey) else "grey and colour" if any(grey) else "colour"
    return f"{width} × {height}{others}, {colour}"


def decoding(role: str, source: Source, shape: Shape) -> Shard:
    """Return the work of decoding a whole source at the common size."""
    rows = range(len(source))
    files = {path: sha256_file(path) for path in source.files(rows) if Path(path).is_file()}
    settings = {"role": role, "source": source.spec, "files": sha256_json(files), "count": len(source)}
    settings |= {"resolution": shape.resolution, "channels": shape.channels, "fit": shape.fit}
    return Shard("audit", "images", f"reading {role}", settings)


def decode(shard: Shard) -> Path:
    """Write the image table of a set (`write_decoded`). InputError where none of its images can be read."""
    settings, source = shard.settings, open_source(shard.settings["source"])
    rows = np.arange(len(source))
    write_decoded(shard.path, source, rows, settings["resolution"], settings["channels"], fit=settings["fit"])
    table = read_images(shard.path)
    if len(table) == 0:
        _, where, reason = table.metadata["rejected"][0]
        words = f"none of its {len(source)} images can be read ({where}: {reason})"
        raise InputError(f"--{settings['role']} {source.spec}: {words}")
    return shard.path


def image_set(role: str, source: Source, path: Path) -> ImageSet:
    """Return the set that `decode` wrote to `path`."""
    table = read_images(path)
    found = table.metadata
    rows = np.setdiff1d(np.arange(len(source)), np.array([row for row, _, _ in found["rejected"]], np.int64))
    where = [source.where(row) for row in rows.tolist()]
    rejected = [[where, reason] for _, where, reason in found["rejected"]]
    digest = sha256_json([table.ids, table.labels.tolist(), list(table.images.shape)])
    changed = {name: found[name] for name in CHANGES}
    rest = changed, source.skipped, source.notes, digest
    return ImageSet(role, source.spec, path, table, rows, where, source.classes, rejected, *rest)


def unnamed(images: ImageSet) -> ImageSet:
    """Return the set without names of files, folders and classes: its images are called by their rows."""
    where = [f"{images.role} {row}" for row in images.rows.tolist()]
    rejected = [[f"{images.role} {row}", "unreadable"] for row, _, _ in images.table.metadata["rejected"]]
    skipped = ("",) * len(images.skipped)
    return dataclasses.replace(
        images, source=images.role, where=where, classes=None, rejected=rejected, skipped=skipped, notes=()
    )


def open_all(specs: dict[str, str]) -> dict[str, Source]:
    """Open every source. InputError names the option whose source cannot be opened."""
    opened = {}
    for role, spec in specs.items():
        try:
            opened[role] = open_source(spec)
        except InputError as error:
            raise InputError(f"--{role}: {error}") from error
    return opened


def differences(sets: dict[str, ImageSet], shape: Shape) -> list[str]:
    """Return a sentence for everything that was done to the images or left out; none where they are unchanged."""
    return [sentence for role, images in sets.items() for sentence in _differences(role, images, shape)]


def _differences(role: str, images: ImageSet, shape: Shape) -> list[str]:
    words = changed_words(shape.resolution, shape.channels, shape.fit, shape.native[role])
    said = [
        f"{images.changed[name]:,} of {len(images):,} {role} images {words[name]}"
        for name in CHANGES
        if images.changed[name]
    ]
    if images.rejected:
        where, reason = images.rejected[0]
        said.append(
            f"{len(images.rejected):,} {role} images could not be read and are left out, e.g. {where}: {reason}"
        )
    if images.skipped:
        said.append(f"{role}: {skipped_words(images.skipped)}")
    return said + [f"{role}: {note}" for note in images.notes]
