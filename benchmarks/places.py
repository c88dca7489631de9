"""Where a benchmark writes its results."""

from pathlib import Path

from stages.memorization.options import named_place


def out_path(text: str) -> Path:
    """The value of --out, for argparse. Where it names no place, the benchmark ends with a line that says so."""
    try:
        return named_place(text)
    except ValueError as error:
        raise SystemExit(f"error: --out: {error} (got {text!r})") from None
