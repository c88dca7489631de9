"""What benchmarks.league prints: the forms' samples and cost, their agreement with the networks, and the batches."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from stages.memorization.seeds import SeedMean, over_seeds, paired_difference

Rows = list[dict[str, Any]]


def of(found: Rows, form: str) -> Rows:
    """The rows of a form, by seed."""
    return sorted((row for row in found if row["form"] == form), key=lambda row: row["seed"])


def ends(mean: SeedMean, digits: int, within: tuple[float, float] = (-np.inf, np.inf)) -> str:
    """A mean with its t-interval."""
    if mean.low is None:
        return f"{mean.mean:.{digits}f}"
    low, high = np.clip([mean.low, mean.high], *within)
    return f"{mean.mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def samples_table(found: Rows) -> list[str]:
    """A line per form: copies, blends and distance of its samples; milliseconds and error of an evaluation."""
    lines = [f"{'form':14} {'copies %':20} {'blends %':20} {'FD-pixels':18} {'ms':>7}  error"]
    for form in dict.fromkeys(row["form"] for row in found):
        own = of(found, form)
        shares = (ends(over_seeds([100 * row[key] for row in own]), 1, (0, 100)) for key in ("copies", "blends"))
        cells = [f"{form:14}", *(f"{cell:20}" for cell in shares)]
        cells.append(f"{ends(over_seeds([row['fd'] for row in own]), 2, (0, np.inf)):18}")
        if "milliseconds" in own[0]:
            cells.append(f"{np.median([row['milliseconds'] for row in own]):7.1f}")
        if "error" in own[0]:
            cells.append(f" {max(row['error'] for row in own):.0e}")
        lines.append(" ".join(cells))
    return lines


def agreement_table(found: Rows, levels: Sequence[float], key: str) -> list[str]:
    """A line per form: the mean over seeds by level, +- half of its t-interval; then the best form's lead by level."""
    forms = [form for form in dict.fromkeys(row["form"] for row in found) if key in of(found, form)[0]]
    values = {form: np.array([row[key] for row in of(found, form)]) for form in forms}
    lines = [f"{key:14} " + "  ".join(f"{f'sigma {sigma:.2f}':13}" for sigma in levels)]
    for form, own in values.items():
        cells = []
        for column in own.T:
            mean = over_seeds(column.tolist())
            half = "" if mean.low is None else f" ± {mean.high - mean.mean:.2f}"
            cells.append(f"{f'{mean.mean:.2f}{half}':13}")
        lines.append(f"{form:14} " + "  ".join(cells))
    for i, sigma in enumerate(levels):
        best, *next_ones = sorted(values, key=lambda form: -values[form][:, i].mean())[:4]
        leads = (paired_difference(values[best][:, i].tolist(), values[form][:, i].tolist()) for form in next_ones)
        text = "; ".join(f"{ends(lead, 3)} over {form}" for lead, form in zip(leads, next_ones))
        lines.append(f"best {key} at sigma {sigma:.2f}: {best}, {text}")
    return lines


def batches_table(found: Rows, batches: Sequence[int]) -> list[str]:
    """The fall in copies from the empirical score to PCA-locality in batches, and what each part of it does alone."""
    copies = {form: [100 * row["copies"] for row in of(found, form)] for form in {row["form"] for row in found}}
    lines = []
    for key in ("seen", "themselves"):
        if "pca-locality" in copies and key in of(found, "pca-locality")[0]:
            means = np.mean([row[key] for row in of(found, "pca-locality")], axis=0)
            lines.append(f"pca-locality, pixels {key} by level: " + ", ".join(f"{mean:.2f}" for mean in means))
    for size in batches:
        forms = ("empirical", "pca-locality", f"loader-{size}", f"pca-loader-{size}")
        if not all(form in copies for form in forms):
            continue
        whole, masked, batched, both = (copies[form] for form in forms)
        steps = {"the fall": (whole, both), "exact masks alone": (whole, masked), "batches after": (masked, both)}
        steps |= {"batches alone": (whole, batched), "masks after": (batched, both)}
        cells = [f"{name} {ends(paired_difference(*pair), 1)}" for name, pair in steps.items()]
        shares = [(e - m) / (e - b) for e, m, b in zip(whole, masked, both) if e > b]
        cells += [f"share of masks {ends(over_seeds(shares), 2)}"] if shares else []
        lines.append(f"copies, batches of {size}: " + "; ".join(cells))
    return lines
