"""A process that works on shards and never outlives its parent: python -m pipeline.child SOCKET PARENT MODULE...

The child imports the stage's modules, torch among them, while its parent imports Prefect and asks its server. Then the
parent sends shards over the socket: for each a line with the path of SHARD.json, together with the file descriptor of
the shard's lock. The child answers with a line: `done`, `refused` (wrong input), `memory` (not enough of it) or
`failed` (any other error, whose traceback the child prints). SHARD.error then holds the message that the parent raises.
If the child ends without an answer, the parent reads its exit code. The child ends when the parent closes the socket.
"""

import contextlib
import ctypes
import faulthandler
import importlib
import os
import signal
import socket
import sys
import traceback
from pathlib import Path

from pipeline import oom
from pipeline.main_process import lasting_imports
from pipeline.processes import cause
from stages.errors import InputError
from stages.protocol import Shard

PR_SET_PDEATHSIG = 1
DONE, REFUSED, EXHAUSTED, FAILED = b"done\n", b"refused\n", b"memory\n", b"failed\n"
LONGEST = 4096
"""Bytes of the longest path that Linux allows."""


def die_with(parent: int) -> None:
    """Have the kernel send SIGTERM to this process when its parent dies; exit now if the parent is already dead."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        sys.exit(1)


def work(description: Path) -> bytes:
    """Work on one shard; return the answer."""
    shard = Shard.from_json(description.read_text(encoding="utf-8"))
    try:
        importlib.import_module(f"stages.{shard.stage}").work(shard)
    except InputError as error:
        description.with_suffix(".error").write_text(str(error), encoding="utf-8")
        return REFUSED
    except Exception as error:
        if oom.ran_out(error):
            description.with_suffix(".error").write_text(oom.said(error), encoding="utf-8")
            return EXHAUSTED
        traceback.print_exc()
        description.with_suffix(".error").write_text(cause(error), encoding="utf-8")
        return FAILED
    return DONE


def main() -> None:
    """Import, then work on shards until the parent closes the socket."""
    # Ctrl-C, the terminal's end, Slurm's warning: they reach all processes, and the parent sends SIGTERM
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    channel, parent = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])
    die_with(parent)
    faulthandler.enable()  # a crash in compiled code prints where it happened
    with lasting_imports(), contextlib.suppress(Exception):  # `work` imports again, and reports what fails
        for module in sys.argv[3:]:
            importlib.import_module(module)
    while True:
        path, locks, _, _ = socket.recv_fds(channel, LONGEST, 1)
        if not path:
            break
        try:
            answer = work(Path(path.decode().rstrip("\n")))
        finally:
            for lock in locks:
                os.close(lock)
        channel.sendall(answer)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # skips torch's clean-up, which takes long and changes nothing


if __name__ == "__main__":
    main()
