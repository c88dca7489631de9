"""Random faults, round after round, on small projects: after each, the same command ends with the undisturbed outs.

    PYTHONPATH=.:tests/support:tests/faults python -m chaos --rounds 200 --seed 0 --jobs 1 --log chaos.jsonl

A round makes some results missing, starts the command, disturbs it once at a random moment or damages what lies on
disk, and starts the command again. The second one must end with exit code 0 and outs equal byte for byte to those of a
run without dispatch or faults. Nothing may hang, and no process may be left over. Each line of the log is a round; it
counts rounds, faults by kind, hangs, orphans, failures and different outs so far. Seed and number determine a round's
project and fault. With several jobs, each plays its rounds on projects of its own. SIGTERM and Ctrl-C end it: no
process, disk or folder is left.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from arenas import LIMIT, LONGEST, Arena, Server, Shards, Training, servers
from clocks import set_clock
from full_disks import fill
from watching import orphans, workers

GONE = 60.0
"""Seconds within which the processes of a killed command must have ended."""


@dataclasses.dataclass
class Tally:
    """What happened in all rounds."""

    rounds: int = 0
    faults: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    hangs: list[str] = dataclasses.field(default_factory=list)
    orphans: list[str] = dataclasses.field(default_factory=list)
    failed: list[str] = dataclasses.field(default_factory=list)
    different: list[str] = dataclasses.field(default_factory=list)

    def summary(self) -> dict[str, object]:
        """The counts, for a line of the log; what was not as it should be, in words."""
        return {**vars(self), "faults": dict(sorted(self.faults.items()))}

    @property
    def good(self) -> bool:
        """Whether nothing hung, was left over, failed or came out different."""
        return not (self.hangs or self.orphans or self.failed or self.different)


def signal_some(arena: Arena, rng: random.Random, number: int) -> int | None:
    """Send a signal to one of the command's processes; return which."""
    living = orphans(arena.project)
    if not living:
        return None
    chosen = rng.choice(living)
    with contextlib.suppress(ProcessLookupError):
        os.kill(chosen, number)
    return chosen


def stop_for_a_moment(pids: list[int], rng: random.Random) -> None:
    for number, pause in ((signal.SIGSTOP, rng.uniform(0.1, 1.5)), (signal.SIGCONT, 0)):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        time.sleep(pause)


def disturb(kind: str, arena: Arena, process: subprocess.Popen[str], rng: random.Random) -> Callable[[], None]:
    """Disturb a running command; return what undoes it once the command has ended."""
    undo: Callable[[], None] = lambda: None  # noqa: E731
    match kind:
        case "kill":
            signal_some(arena, rng, signal.SIGKILL)
        case "terminate" | "interrupt":
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM if kind == "terminate" else signal.SIGINT)
        case "stop":
            living = orphans(arena.project)
            stop_for_a_moment([rng.choice(living)] if living else [], rng)
        case "fill":
            filler = fill(arena.cache / "shards")
            undo = lambda: filler.unlink(missing_ok=True)  # noqa: E731
        case "clock":
            set_clock(arena.project, rng.choice((-1, 1)) * rng.randrange(10 * 365 * 86400))
            then = time.time() + rng.uniform(-1e8, 1e8)
            for path in arena.damageable():
                with contextlib.suppress(FileNotFoundError):
                    os.utime(path, (then, then))
        case "stop-server":
            stop_for_a_moment(servers(arena), rng)
        case "kill-server":
            for pid in servers(arena):
                os.kill(pid, signal.SIGKILL)
            if rng.random() < 0.7:  # otherwise the command gives up by itself, which takes two minutes
                time.sleep(rng.uniform(0, 2))
                process.kill()
        case "remove-server":
            shutil.rmtree(arena.cache / "prefect", ignore_errors=True)
            process.kill()
        case "record":
            path = arena.cache / "prefect" / rng.choice(("server.json", "login"))
            if path.exists():
                damage(rng.choice(("cut", "remove")), path, rng)
    return undo


def damage(kind: str, path: Path, rng: random.Random) -> None:
    """Flip a bit of a file, cut it or remove it."""
    content = bytearray(path.read_bytes())
    match kind:
        case "flip" if content:
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            path.write_bytes(content)
        case "cut":
            path.write_bytes(content[: rng.randrange(len(content) + 1)])
        case "remove":
            path.unlink()


def wait(arena: Arena, process: subprocess.Popen[str]) -> tuple[str, bool]:
    """What a command printed, and whether it ended; it is killed once it hangs, not when it gets little processor."""
    end, before, now = time.monotonic() + LONGEST, None, processor_seconds(arena)
    while now != before and time.monotonic() < end:
        before = now
        with contextlib.suppress(subprocess.TimeoutExpired):
            return subprocess.Popen.communicate(process, timeout=LIMIT)[0], True  # not what a crowd makes of it
        now = processor_seconds(arena)
    process.kill()
    return process.communicate()[0], False


def processor_seconds(arena: Arena) -> dict[int, int]:
    """Whole seconds of processor time that each of the command's processes has used."""
    found = {}
    for pid in orphans(arena.project):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            found[pid] = (int(fields[11]) + int(fields[12])) // os.sysconf("SC_CLK_TCK")
    return found


def left_over(arena: Arena) -> list[int]:
    """The processes that are left when they must have ended; they are killed."""
    end = time.monotonic() + GONE
    while (living := orphans(arena.project)) and time.monotonic() < end:
        time.sleep(0.05)
    for pid in living:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return living


def kill_all(folder: Path) -> None:
    """Kill every process that works below a folder."""
    for pid in workers(folder):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def differing(found: dict[str, bytes], expected: dict[str, bytes]) -> list[str]:
    """The outs that are missing, of other content, or too many."""
    return sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))


def play(arena: Arena, number: int, rng: random.Random, usual: float, tally: Tally) -> tuple[str, float]:
    """Play round `number`; return its fault and how long its undisturbed run took. Threads add to one tally."""
    kind = rng.choice(arena.FAULTS)
    label = f"round {number} {type(arena).__name__} {kind}"
    arena.spoil(rng)
    during, _, at_rest = kind.rpartition("+") if "+" in kind else (kind, "", "")
    at_rest = kind if kind in ("flip", "cut", "remove") else at_rest
    if during not in ("flip", "cut", "remove"):
        process = arena.start()
        time.sleep(rng.uniform(0, usual))
        undo = disturb(during, arena, process, rng)
        _, ended = wait(arena, process)
        if not ended:
            tally.hangs.append(label)
        if left := left_over(arena):
            tally.orphans.append(f"{label}: {len(left)}")
        undo()
    if at_rest:
        files = arena.damageable()
        for path in rng.sample(files, min(len(files), rng.randint(1, 3))):
            damage(at_rest, path, rng)
    started = time.monotonic()
    process = arena.start()
    output, ended = wait(arena, process)
    seconds = time.monotonic() - started
    (arena.folder / "clock").unlink(missing_ok=True)
    if not ended:
        tally.hangs.append(f"{label}, afterwards")
    elif process.returncode:
        tally.failed.append(f"{label}: exit code {process.returncode}: {output[-1200:]}")
    elif names := differing(arena.outs(), arena.expected):
        tally.different.append(f"{label}: {', '.join(names)}")
    if left := left_over(arena):
        tally.orphans.append(f"{label}, afterwards: {len(left)}")
    return f"{type(arena).__name__} {kind}", seconds


def _ended(players: Sequence[concurrent.futures.Future[None]], seconds: float) -> bool:
    """Wait some seconds for all players; return whether all have ended. Raises what one of them raised."""
    done, playing = concurrent.futures.wait(players, seconds, concurrent.futures.FIRST_EXCEPTION)
    for each in done:
        each.result()
    return not playing


def chaos(folder: Path, rounds: int, seed: int, seconds: float, tell: Callable[[str], None], jobs: int = 1) -> Tally:
    """Play `rounds` rounds, or as many as `seconds` allow, and return what happened.

    An exception, such as an interruption of the calling thread, ends the players' commands and closes their arenas.
    """
    tally, end = Tally(), time.monotonic() + seconds
    numbers, guard, stopped = iter(range(rounds)), threading.Lock(), threading.Event()
    folder.mkdir(exist_ok=True)

    def player(own: Path) -> None:
        own.mkdir()
        usual: dict[Arena, float] = {}
        with contextlib.ExitStack() as stack:
            while time.monotonic() < end and not stopped.is_set():
                with guard:
                    number = next(numbers, None)
                if number is None:
                    break
                rng = random.Random(f"{seed} {number}")
                (kind,) = rng.choices((Shards, Training, Server), (10, 2, 1))
                arena = next((each for each in usual if type(each) is kind), None)
                if arena is None:
                    usual[arena := kind(own / kind.__name__)] = 3.0
                    stack.callback(arena.close)
                fault, took = play(arena, number, rng, usual[arena], tally)
                if stopped.is_set():  # its commands were killed
                    break
                usual[arena] = max(0.5, 0.5 * usual[arena] + 0.5 * took)
                with guard:
                    tally.rounds += 1
                    tally.faults[fault] += 1
                    tell(json.dumps({"round": number, "usual": round(usual[arena], 2), **tally.summary()}))

    with concurrent.futures.ThreadPoolExecutor(jobs) as threads:
        players = [threads.submit(player, folder / str(job)) for job in range(jobs)]
        try:
            while not _ended(players, 0.2):  # a thread that waits for longer can miss a signal
                pass
        except BaseException:
            stopped.set()
            while concurrent.futures.wait(players, 0.1).not_done:
                kill_all(folder)
            kill_all(folder)
            raise
    tell(json.dumps(tally.summary()))
    return tally


def _interrupt(number: int, _: object) -> None:
    """End the driver in order, once: a second signal must not disturb that."""
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, signal.SIG_IGN)
    sys.exit(128 + number)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="rounds that are played at the same time")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no round after these")
    parser.add_argument("--log", type=Path, default=Path("chaos.jsonl"))
    arguments = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _interrupt)
    with tempfile.TemporaryDirectory() as folder, arguments.log.open("w", buffering=1) as log:
        rounds, seed, seconds = arguments.rounds, arguments.seed, arguments.seconds
        tally = chaos(Path(folder), rounds, seed, seconds, lambda line: log.write(line + "\n"), arguments.jobs)
    print(json.dumps(tally.summary(), indent=1))
    sys.exit(not tally.good)


if __name__ == "__main__":
    main()
