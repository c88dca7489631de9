"""Verified pairs: what people decided, counted (METHODS §6, third stage; §9 "verified pairs")."""

from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from stages.files.artifacts import sha256_file
from stages.memorization.statistics import cohen_kappa, rate_with_interval
from stages.memorization.verdict_log import CHOICES, Decisions, Pair, agreement, read_decisions

OUTCOMES = (*CHOICES, "disputed", "undecided")
STALE_SHOWN = 20


def outcomes(pairs: Sequence[Pair], decisions: Decisions) -> list[str]:
    """Return one of OUTCOMES per pair: the common verdict, disputed where verdicts differ, undecided without any."""
    given = [decisions.of(name) for name in decisions.reviewers]
    found = []
    for pair in pairs:
        said = {own[pair].verdict for own in given if pair in own}
        found.append("undecided" if not said else str(said.pop()) if len(said) == 1 else "disputed")
    return found


def verified_summary(
    path: Path | str, pairs: pa.Table, suspected: np.ndarray, offered: np.ndarray, repeated: np.ndarray
) -> dict[str, Any]:
    """Return what the verdicts in `path` say about the pairs of a run: the section `verified` of filter.json.

    A verdict applies to the pair with its sample_id and train_id, never to another one: where there is none, it is
    stale, counted and named. Samples with equal pixels share their verdict, and each counts.

    Args:
        path: verdicts.jsonl or verdicts.parquet.
        pairs: one row per sample, with sample_id, train_id and train_index.
        suspected: bool (N,), pairs that any rule flags; offered: bool (N,), those that candidates.parquet holds.
        repeated: bool (N,), pairs whose training image occurs again in the training set.
    """
    decisions, torn = read_decisions(path)
    keys: list[Pair] = list(zip(pairs["sample_id"].to_pylist(), pairs["train_id"].to_pylist()))
    found = np.array(outcomes(keys, decisions), dtype=object)
    copies = found == "copy"
    decided = {pair for name in decisions.reviewers for pair in decisions.of(name)}
    stale = sorted(decided - set(keys))
    train = pairs["train_index"].to_numpy()
    return {
        "file": str(path),
        "sha256": sha256_file(path),
        "torn_bytes": torn,
        "reviewers": {name: len(decisions.of(name)) for name in decisions.reviewers},
        "agreement": _agreements(decisions),
        "suspected": int(suspected.sum()),
        "offered": int(offered.sum()),
        "open": int((suspected & (found == "undecided")).sum()),
        "outcomes": {name: int((found == name).sum()) for name in OUTCOMES},
        **_counts(copies, train),
        "without_repeated": {
            **_counts(copies & ~repeated, train),
            "repeated_images": len(set(train[copies & repeated])),
        },
        "stale": len(stale),
        "stale_pairs": [list(pair) for pair in stale[:STALE_SHOWN]],
    }


def _counts(copies: np.ndarray, train: np.ndarray) -> dict[str, Any]:
    """Verified pairs, their share of all samples with its interval, and the distinct training images among them."""
    images = len(set(train[copies]))
    return {**rate_with_interval(int(copies.sum()), len(copies)), "unique_training_images": images}


def _agreements(decisions: Decisions) -> list[dict[str, Any]]:
    """Cohen's κ of every two reviewers, over the pairs that both decided."""
    found = []
    for one, other in combinations(decisions.reviewers, 2):
        counts = agreement(decisions.of(one), decisions.of(other))
        found.append({"reviewers": [one, other], **agreement_numbers(counts)})
    return found


def agreement_numbers(counts: Counter[tuple[str, str]]) -> dict[str, Any]:
    """Pairs judged by both, how many alike, and κ (null where it is undefined)."""
    alike = sum(count for (one, other), count in counts.items() if one == other)
    return {"pairs": sum(counts.values()), "alike": alike, "kappa": cohen_kappa(counts)}
