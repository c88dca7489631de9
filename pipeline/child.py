"""One shard in a process of its own, which never outlives its parent: python -m pipeline.child SHARD.json PARENT.

It does what `python -m stages.NAME --shard` does; besides, wrong input goes to SHARD.error for the parent to raise.
"""

import ctypes
import importlib
import os
import signal
import sys
from pathlib import Path

from stages.errors import InputError
from stages.protocol import Shard

PR_SET_PDEATHSIG = 1


def die_with(parent: int) -> None:
    """Have the kernel send SIGTERM to this process when its parent dies; leave now if it is dead already."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        sys.exit(1)


def main() -> None:
    """Work on the shard; exit code 2 after an InputError."""
    description, parent = Path(sys.argv[1]), int(sys.argv[2])
    die_with(parent)
    shard = Shard.from_json(description.read_text(encoding="utf-8"))
    try:
        importlib.import_module(f"stages.{shard.stage}").work(shard)
    except InputError as error:
        description.with_suffix(".error").write_text(str(error), encoding="utf-8")
        sys.exit(2)


if __name__ == "__main__":
    main()
