"""Build the images of preset two-class, a stand-in for the paper's Cat-Caracal set, from two classes of any source.

    python -m benchmarks.two_classes SOURCE CLASS CLASS [--counts 1000 200] [--held-out 850] [--out two-classes]

SOURCE: as ingest.source takes it ("torchvision:CIFAR10"); CLASS: a class's name, or its number where the source has no
names. Writes OUT/CLASS/*.png for training, and OUT-more/CLASS/*.png for the test and the held-out images: --held-out
images of the first class, and in proportion of the second. Images are drawn in a seeded order, each once, and kept at
their own size.
"""

import argparse
from pathlib import Path

import numpy as np

from benchmarks.places import out_path
from stages.errors import InputError
from stages.images.sources.base import Source
from stages.images.sources.open import open_source

SEED = 42


def rows_of(source: Source, name: str) -> np.ndarray:
    """The rows of a class in seeded order, int64."""
    names = source.classes or [str(label) for label in np.unique(source.labels)]
    if name not in names:
        raise InputError(f"{source.spec} has no class {name!r}: it has {', '.join(names[:20])}")
    label = names.index(name) if source.classes else int(name)
    rows = np.flatnonzero(source.labels == label)
    return rows[np.argsort(np.random.PCG64(SEED).random_raw(len(rows)), kind="stable")]


def write_class(source: Source, name: str, rows: np.ndarray, places: dict[Path, int]) -> None:
    """Write the first readable images of `rows`: as many to each place, a folder, as it says."""
    folders = [place / name.replace("/", "-") for place, count in places.items() for _ in range(count)]
    readable = (item for row in rows for item in source.read([row]) if item.image is not None)
    for folder, item in zip(folders, readable):
        folder.mkdir(parents=True, exist_ok=True)
        item.image.save(folder / f"{item.row:07}.png")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source")
    parser.add_argument("classes", nargs=2)
    parser.add_argument("--counts", nargs=2, type=int, default=[1000, 200])
    parser.add_argument("--held-out", type=int, default=850)
    parser.add_argument("--out", type=out_path, default=Path("two-classes"))
    options = parser.parse_args(arguments)
    more = options.out.with_name(f"{options.out.name}-more")
    if taken := [place for place in (options.out, more) if place.exists()]:
        raise SystemExit(f"error: {taken[0]} exists: remove it, or name another place with --out")
    try:
        source = open_source(options.source)
        rows = {name: rows_of(source, name) for name in options.classes}
        places = [{options.out: n, more: -(-options.held_out * n // options.counts[0])} for n in options.counts]
        for (name, own), wanted in zip(rows.items(), places):
            if len(own) < sum(wanted.values()):
                raise InputError(
                    f"{source.spec} has {len(own)} images of class {name}, {sum(wanted.values())} are needed: "
                    "lower --counts or --held-out"
                )
        for (name, own), wanted in zip(rows.items(), places):
            write_class(source, name, own, wanted)
    except InputError as error:
        raise SystemExit(f"error: {error}") from None
    print(f"ingest.source: folder:{options.out}\ningest.holdout_source: folder:{more}")


if __name__ == "__main__":
    main()
