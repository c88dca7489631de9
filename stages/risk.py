"""Rank training images by how likely a model that is trained on them copies each of them.

    python -m stages.risk --train SRC [--resolution PIXELS] [--share SHARE] [--noise LEVEL] [--out risk.csv]

The table has a row for every image, the riskiest first: row, name, probability, the size of its duplicate group, and
what stages/memorization/risk.py says of the image. docs/results.md says how good the order is: better than chance and
than counting duplicates, and far from certain.
"""

import argparse
import csv
import io
import sys
from pathlib import Path
from typing import Any

from pydantic import Field

from stages.errors import InputError
from stages.files.artifacts import write_text
from stages.images.sources.open import open_source
from stages.memorization.options import Out, checked, make_writable
from stages.protocol import Section

SHOWN = 10


class Options(Section):
    """The options; the descriptions are the text of --help."""

    train: str = Field(description="the training images: folder:PATH, zip:PATH, parquet:PATH, npz:PATH, …")
    out: Out = Field(Path("risk.csv"), description="the table that is written")
    resolution: int | None = Field(None, ge=8, description="side in pixels; default: the images' own")
    share: float = Field(0.1, gt=0, lt=1, description="share of the training images that the model copies")
    noise: float | None = Field(
        None,
        gt=0,
        description="the sampler's first noise level for pixels in [0, 1]; default: 5/16 of the side",
    )


def run(options: Options) -> list[dict[str, object]]:
    """Write the table and print its first rows; return all of them."""
    import numpy as np

    from stages.images.subset import read_subset
    from stages.memorization.risk import FEATURES, WEIGHTS, described, probabilities

    if options.out.is_dir():
        raise InputError(f"--out {options.out} is a folder: name a file for the table")
    make_writable("out", options.out, options.out.parent)
    source = open_source(options.train)
    found = described(read_subset(source, np.arange(len(source)), options.resolution), options.noise)
    chance = probabilities(np.stack([found[name] for name in FEATURES], axis=1), WEIGHTS, options.share)
    rows = [
        {"row": int(i), "name": source.where(int(i)), "probability": round(float(chance[i]), 4)}
        | {"images_in_group": round(float(np.exp(found["duplicates"][i])))}
        | {name: round(float(values[i]), 4) for name, values in found.items()}
        for i in np.argsort(-chance, kind="stable")
    ]
    text = io.StringIO()
    table = csv.DictWriter(text, rows[0])
    table.writeheader()
    table.writerows(rows)
    write_text(options.out, text.getvalue())
    print(f"{len(rows):,} images, the riskiest first: {options.out}")
    for row in rows[:SHOWN]:
        group = row["images_in_group"]
        print(f"{row['probability']:6.1%}  {row['name']}{f' ({group} alike)' if group != 1 else ''}")
    return rows


def run_with(**values: Any) -> list[dict[str, object]]:
    """`run` with options that are not checked yet. Raises InputError that names a wrong one."""
    return run(checked(Options, values))


def main() -> None:
    """The command line of `python -m stages.risk`; `scoresmooth risk` is the same."""
    parser = argparse.ArgumentParser(prog="python -m stages.risk", description=__doc__.splitlines()[0])
    for name, field in Options.model_fields.items():
        parser.add_argument(
            f"--{name}", default=argparse.SUPPRESS, help=field.description, required=field.is_required()
        )
    try:
        run_with(**vars(parser.parse_args()))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
