"""Timing side by side: every candidate takes its turn in every round, so the machine's other work hits all alike."""

import statistics
import time
from collections.abc import Callable


def in_turns(
    candidates: dict[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.process_time
) -> dict[str, float]:
    """Median seconds of one call of each candidate, after one round that does not count.

    clock: processor seconds over all threads, which other work on the machine does not change; for work on a GPU
    time.perf_counter.
    """
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(rounds + 1):
        for name, run in candidates.items():
            start = clock()
            run()
            if turn:
                times[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in times.items()}
