"""A process that works on shards and never outlives its parent: python -m pipeline.child SOCKET PARENT MODULE...

The child imports the stage's modules, torch among them, while its parent imports Prefect and asks its server. Then the
parent sends shards over the socket: for each a line with the path of SHARD.json, together with the file descriptor of
the shard's lock. The child answers with a line: `done`, `refused` (wrong input; SHARD.error holds the message, which
the parent raises) or `memory` (not enough of it; SHARD.error holds the error). If the child ends without an answer, the
parent reads its exit code. The child ends when the parent closes the socket.
"""

import ctypes
import importlib
import os
import signal
import socket
import sys
from pathlib import Path

from pipeline import oom
from stages.errors import InputError
from stages.protocol import Shard

PR_SET_PDEATHSIG = 1
DONE, REFUSED, EXHAUSTED = b"done\n", b"refused\n", b"memory\n"
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
    except (MemoryError, RuntimeError) as error:
        if not oom.ran_out(error):
            raise
        description.with_suffix(".error").write_text(oom.said(error), encoding="utf-8")
        return EXHAUSTED
    return DONE


def main() -> None:
    """Import, then work on shards until the parent closes the socket."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the parent decides, with SIGTERM
    channel, parent = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])
    die_with(parent)
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
