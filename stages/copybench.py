"""Measure detectors of copies on known copies, at equal false positives: a seeded, versioned benchmark from any images.

    python -m stages.copybench [--source SRC] --out DIR [...]

Writes benchmark.json, the images and ids of every set, results.json and the table results.md.
"""

import argparse
import sys
import time
from typing import Any

from pydantic import Field

from stages.errors import InputError
from stages.images.sources.open import open_source
from stages.memorization.options import Out, checked, make_writable
from stages.protocol import Section

DETECTORS = ("cosine:efficientnet-lite0",)
"""Beside the scores of pixels, which are always measured."""


class Options(Section):
    """The options; the descriptions are the text of --help."""

    out: Out = Field(description="the folder that the benchmark and the results are written to")
    source: str = Field("mnist5k", description="the images: folder:PATH, zip:PATH, parquet:PATH, npz:PATH, …")
    train: int = Field(2000, ge=100, description="training images, of which copies are planted")
    holdout: int = Field(2000, ge=2, description="held-out images: a half sets the thresholds, a half measures them")
    copies: int = Field(40, ge=1, description="copies of every kind and strength")
    resolution: int | None = Field(None, ge=8, description="side in pixels; default: the images' own")
    seed: int = Field(0, ge=0, description="the seed of every random draw")
    detector: list[str] = Field(
        list(DETECTORS), description="a further detector: cosine:ENCODER, or torchscript:PATH?sha256=HEX&size=PIXELS"
    )


def run(options: Options) -> dict[str, Any]:
    """Make the benchmark, measure all detectors, write the files, print the table; return what results.json holds."""
    from stages.memorization.copybench import markdown, measure, plant_benchmark, write_benchmark
    from stages.memorization.detectors import cosine_score, encoder, pixel_scores

    make_writable("out", options.out, options.out)
    source = open_source(options.source)
    sizes = options.train, options.holdout, options.copies
    bench = plant_benchmark(source, *sizes, options.seed, options.resolution)
    embeds = {name: encoder(name, bench.train.shape[1]) for name in options.detector}  # a wrong name stops here
    started = time.perf_counter()
    results = {name: measure(bench, found) for name, found in pixel_scores(bench.train, bench.queries).items()}
    print(f"pixels: {time.perf_counter() - started:.0f} s", file=sys.stderr)
    for name, embed in embeds.items():
        started = time.perf_counter()
        results[name] = measure(bench, cosine_score(bench.train, bench.queries, embed))
        print(f"{name}: {time.perf_counter() - started:.0f} s", file=sys.stderr)
    write_benchmark(options.out, bench, results)
    print(markdown(results), end="")
    return results


def run_with(**values: Any) -> dict[str, Any]:
    """`run` with options that are not checked yet. Raises InputError that names a wrong one."""
    return run(checked(Options, values))


def main() -> None:
    """The command line of `python -m stages.copybench`; `scoresmooth copybench` is the same."""
    parser = argparse.ArgumentParser(prog="python -m stages.copybench", description=__doc__.splitlines()[0])
    for name, field in Options.model_fields.items():
        more: dict[str, Any] = {"action": "append"} if name == "detector" else {"required": field.is_required()}
        parser.add_argument(f"--{name}", default=argparse.SUPPRESS, help=field.description, **more)
    try:
        run_with(**vars(parser.parse_args()))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
