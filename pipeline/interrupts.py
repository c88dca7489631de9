"""Imported before all else by the command line: Ctrl-C while the rest is imported prints one word and no traceback."""

import sys
from types import TracebackType


def _print(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _print
