"""Shards in a process of their own, which never outlives its parent: python -m pipeline.child SOCKET PARENT MODULE...

The parent starts it while there is other work to do (importing Prefect, talking to its server): the child meanwhile
imports the stage's modules, torch among them. Then it works on the shards that it is told over the socket: a line with
the path of SHARD.json, and the file descriptor of the shard's lock with it. The answer is a line: `done`, `refused`
(wrong input: the message is in SHARD.error, for the parent to raise) or `memory` (there was not enough; SHARD.error has
what asked for it). Any other end is that of the process. It ends when the socket is closed.
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
"""Bytes of a path at most, as Linux limits it."""


def die_with(parent: int) -> None:
    """Have the kernel send SIGTERM to this process when its parent dies; leave now if it is dead already."""
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
    os._exit(0)  # nothing is left to do, and torch takes its time to leave


if __name__ == "__main__":
    main()
