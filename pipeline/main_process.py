"""How the command line's process begins and ends. `pipeline.cli` imports this before all else.

Ctrl-C while the rest is imported prints one word and no traceback. At the end Python's clean-up, which frees the
objects of a thousand modules one by one (0.4 s after a flow), is left to the kernel.
"""

import atexit
import gc
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

_codes: list[int] = []


def end_with(code: int | str | None) -> None:
    """Exit as sys.exit does, with what others registered to happen at exit, but without Python's clean-up."""
    _codes.append(code if isinstance(code, int) else 0 if code is None else 1)
    sys.exit(code)


@contextmanager
def lasting_imports() -> Iterator[None]:
    """Import without garbage collection: what large packages make stays, and to look through it takes 0.2 s."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _end() -> None:
    if _codes:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(_codes[0])


def _print(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


atexit.register(_end)  # the first that is registered is called last
sys.excepthook = _print
