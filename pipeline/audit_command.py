"""The commands audit, copybench and risk: options of modules of stages, repeated so that --help needs no pydantic."""

import sys
from pathlib import Path
from typing import Annotated

import typer


def audit(
    train: Annotated[str, typer.Option(help="the training images: folder:PATH, zip:PATH, parquet:PATH, npz:PATH, ...")],
    samples: Annotated[
        list[str],
        typer.Option(
            help="the generated images, from any such source; repeated, or a pattern (folder:step-*): a curve"
        ),
    ],
    out: Annotated[str, typer.Option(help="the folder that the results are written to")],
    holdout: Annotated[
        str | None, typer.Option(help="real images that the model was not trained on (the control)")
    ] = None,
    encoder: Annotated[
        str, typer.Option(help="the encoder of the features, or any model of timm")
    ] = "efficientnet-lite0",
    weights: Annotated[str | None, typer.Option(help="a weights file of the encoder")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    memory_budget: Annotated[str, typer.Option(help="the most memory that the whole process takes")] = "4GiB",
    fail_above: Annotated[
        float | None,
        typer.Option(help="exit with code 3 if the interval of the rate of copies reaches above this rate"),
    ] = None,
    percentile: Annotated[
        float, typer.Option(help="percentage of the control that may fall below the candidate threshold of rho*")
    ] = 1.0,
    margin: Annotated[
        float,
        typer.Option(
            help="allowed feature distance, as a multiple of the match's own nearest-neighbour feature distance"
        ),
    ] = 1.0,
    resolution: Annotated[
        int | None, typer.Option(help="side in pixels at which images are compared; default: the smallest set's own")
    ] = None,
    fit: Annotated[
        str, typer.Option(help="how images that are not square become square: crop, squash or pad")
    ] = "crop",
    near: Annotated[
        float | None, typer.Option(help="pixel distance below which training images count as near duplicates")
    ] = None,
    features: Annotated[
        int, typer.Option(help="how many images of each set are embedded for feature distances")
    ] = 2000,
    seed: Annotated[int, typer.Option(help="the seed of every random draw")] = 0,
    groups: Annotated[
        Path | None,
        typer.Option(
            help="a CSV file of the samples' groups: a column file or row names the sample, another its group"
        ),
    ] = None,
    group_by: Annotated[
        str | None,
        typer.Option(help="the column of the groups: of --groups, or of the table that holds the samples"),
    ] = None,
    no_images: Annotated[
        bool, typer.Option("--no-images", help="write no picture and no name of a file: digests and numbers only")
    ] = False,
    work: Annotated[
        Path | None,
        typer.Option(
            help="the folder of partial results, which audits of one training set can share [default: OUT/.work]"
        ),
    ] = None,
) -> None:
    """Count the samples of any model that copy its training images, with confidence intervals, and show them."""
    options = dict(locals())
    from stages.audit import INTERRUPTED, RESUME, run_all

    try:
        raise typer.Exit(run_all(**options))
    except KeyboardInterrupt:
        print(RESUME, file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None


def copybench(
    out: Annotated[str, typer.Option(help="the folder that the benchmark and the results are written to")],
    source: Annotated[
        str, typer.Option(help="the images: folder:PATH, zip:PATH, parquet:PATH, npz:PATH, ...")
    ] = "mnist5k",
    train: Annotated[int, typer.Option(min=100, help="training images, of which copies are planted")] = 2000,
    holdout: Annotated[
        int, typer.Option(min=2, help="held-out images: a half sets the thresholds, a half measures them")
    ] = 2000,
    copies: Annotated[int, typer.Option(min=1, help="copies of every kind and strength")] = 40,
    resolution: Annotated[int | None, typer.Option(min=8, help="side in pixels; default: the images' own")] = None,
    seed: Annotated[int, typer.Option(min=0, help="the seed of every random draw")] = 0,
    detector: Annotated[
        list[str] | None,
        typer.Option(help="a further detector: cosine:ENCODER, or torchscript:PATH?sha256=HEX&size=PIXELS"),
    ] = None,
) -> None:
    """Measure detectors of copies on known copies, at equal false positives."""
    options = dict(locals())
    from stages.copybench import run_with

    run_with(**{name: value for name, value in options.items() if value is not None})


def risk(
    train: Annotated[str, typer.Option(help="the training images: folder:PATH, zip:PATH, parquet:PATH, npz:PATH, ...")],
    out: Annotated[str, typer.Option(help="the table that is written")] = "risk.csv",
    resolution: Annotated[int | None, typer.Option(min=8, help="side in pixels; default: the images' own")] = None,
    share: Annotated[float, typer.Option(help="share of the training images that the model copies, in (0, 1)")] = 0.1,
) -> None:
    """Rank training images by how likely a model that is trained on them copies each of them."""
    options = dict(locals())
    from stages.risk import run_with

    run_with(**options)
