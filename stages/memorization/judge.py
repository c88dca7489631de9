"""Judging a searched set by ρ*: the match that is shown, the feature questions, verdicts and every metric's flags."""

import dataclasses

import numpy as np

from stages.memorization.feature_stage import Questions
from stages.memorization.matching import Matches
from stages.memorization.metrics import (
    GROUPED,
    FeatureDistances,
    Flags,
    Rules,
    Searched,
    blended,
    definitions,
    grouped_flags,
    published_flags,
)
from stages.memorization.nuisances import KINDS, VIEWS
from stages.memorization.ratios import PUBLISHED
from stages.memorization.thresholds import Thresholds
from stages.memorization.verdicts import Evidence, decide, rho_star_rules
from stages.memorization.vocabulary import COPIED
from stages.search.pixel_distance import pixel_distance

METRICS = (
    "calibrated",
    "copy_or_near_copy",
    *(name for metric in PUBLISHED for name in (metric, f"{metric}_grouped") if name in (*PUBLISHED, *GROUPED)),
)


@dataclasses.dataclass(frozen=True)
class Shown:
    """The match that is shown of N images: the nearest training image, or the match under another transform where that
    one makes a candidate.

    Attributes:
        transform: int64 (N,), place in scores.TRANSFORMS.
        row: int64 (N,), the reference row.
        distance: float64 (N,), the pixel distance under the transform; under a change (scores.TRANSFORMS from the fifth
            on) that of reduced images, up to colours.
        mirrored: bool (N,), whether the mirror image matches.
        words: N strings, the transform for a person.
    """

    transform: np.ndarray
    row: np.ndarray
    distance: np.ndarray
    mirrored: np.ndarray
    words: list[str]


def shown_matches(m: Matches, transform: np.ndarray) -> Shown:
    """Return the matches under the transforms, int64 (N,)."""
    plain, mirrored = (pixel_distance(s[:, 0], m.dimension) for s in (m.squared, m.mirrored_squared))
    at = np.arange(len(m))
    first = m.changed_row[..., 0], np.sqrt(m.changed_residual[..., 0]) / 255, m.changed_mirrored[..., 0]
    rows, distances, sides = (values.T for values in first)
    row = np.stack([m.index[:, 0], m.mirrored_index[:, 0], m.shift_row, m.crop_row, *rows])[transform, at]
    distance = np.stack([plain, mirrored, m.shift_distance, m.crop_distance, *distances])[transform, at]
    turned = np.stack([transform < 0, transform == 1, m.shift_mirrored, m.crop_mirrored, *sides])[transform, at]
    return Shown(transform, row, distance, turned, _transform_words(m, transform))


def _transform_words(m: Matches, transform: np.ndarray) -> list[str]:
    """none, mirrored, shifted by (dy, dx), enlarged from about side × side at (y, x), a change; all also mirrored."""
    words = []
    columns = transform, m.shift.tolist(), m.shift_mirrored, m.crop_window.tolist(), m.crop_mirrored
    for at, (kind, (dy, dx), turned, (y, x, side), crop_turned) in enumerate(zip(*columns)):
        shifted = f"{'mirrored and ' if turned else ''}shifted by ({dy}, {dx})"
        cropped = f"{'mirrored and ' if crop_turned else ''}enlarged from about {side} × {side} at ({y}, {x})"
        words.append(("none", "mirrored", shifted, cropped)[kind] if kind < 4 else _change_words(m, at, kind - 4))
    return words


def _change_words(m: Matches, at: int, kind: int) -> str:
    view = VIEWS[KINDS[kind]][m.changed_view[at, kind, 0]]
    return f"{'mirrored and ' if m.changed_mirrored[at, kind, 0] else ''}{view.words}"


@dataclasses.dataclass(frozen=True)
class Suspects:
    """A searched set under thresholds, before its features are known.

    Attributes:
        searched: the set.
        thresholds: of ρ*.
        shown: the match of every image.
        doubtful: bool (N,), ρ* below the candidate threshold but not below the copy threshold.
    """

    searched: Searched
    thresholds: Thresholds
    shown: Shown
    doubtful: np.ndarray

    @classmethod
    def of(cls, searched: Searched, thresholds: Thresholds) -> "Suspects":
        """Under these thresholds."""
        found = searched.scores
        near = found.best < thresholds.candidate
        shown = shown_matches(searched.matches, np.where(near, found.transform, 0))
        return cls(searched, thresholds, shown, near & ~(found.best < thresholds.copy))

    @property
    def _asked(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows whose nearest image, and rows whose shown match, is compared by features; ascending."""
        candidate = self.searched.candidate
        return np.flatnonzero(candidate), np.flatnonzero(candidate | self.doubtful)

    @property
    def questions(self) -> Questions:
        """The pairs whose features are needed: every candidate and its nearest image, then every candidate or doubtful
        image and its shown match. Copies beyond doubt are embedded only where they are candidates."""
        one, two = self._asked
        nearest = Questions(one, np.zeros(len(one), bool), self.searched.matches.index[one, 0])
        return Questions.join(nearest, Questions(two, self.shown.mirrored[two], self.shown.row[two]))

    def judged(self, answers: np.ndarray, rules: Rules) -> "Judged":
        """Return the verdicts. answers: `feature_stage.answer` to `questions`."""
        one, two = self._asked
        nearest, match = np.full((2, 2, len(self.searched)), np.nan)
        nearest[:, one], match[:, two] = answers[:2, : len(one)], answers[::2, len(one) :]
        features = FeatureDistances(*match)
        flags = published_flags(self.searched, FeatureDistances(*nearest), rules)
        flags |= grouped_flags(self.searched, self.thresholds, rules)
        evidence = Evidence(
            flags["byte_identical"],
            self.searched.scores.ratio,
            flags["carlini_sample"],
            self.searched.candidate,
            features.confirmed(rules.margin),
        )
        verdict, reason = decide(
            rho_star_rules(evidence, self.searched.scores, self.thresholds, blended(self.searched, self.thresholds))
        )
        flags["copy_or_near_copy"] = np.isin(verdict, COPIED)
        return Judged(self.searched, self.shown, features, verdict, reason, {name: flags[name] for name in METRICS})


@dataclasses.dataclass(frozen=True)
class Judged:
    """A set with its verdicts.

    Attributes:
        searched, shown: the set, and the match of every image.
        features: of each image and its shown match; the spacing is taken outside the match's duplicate group.
        verdict, reason: N strings each.
        flags: METRICS → bool (N,).
    """

    searched: Searched
    shown: Shown
    features: FeatureDistances
    verdict: list[str]
    reason: list[str]
    flags: Flags

    def __len__(self) -> int:
        return len(self.searched)

    @property
    def copied(self) -> np.ndarray:
        """bool (N,): verdict copy or near_copy."""
        return self.flags["copy_or_near_copy"]


def metric_definitions(
    rules: Rules, thresholds: Thresholds, encoder: str, compared: int
) -> dict[str, tuple[str, float]]:
    """Return (definition in words, threshold) of METRICS. compared: how many training images have features."""
    words = definitions(rules, encoder, thresholds)
    text, margin = words["two_stage"]
    words["two_stage"] = (
        f"{text}; the feature spacing is taken over {compared:,} training images and the nearest",
        margin,
    )
    words["copy_or_near_copy"] = (
        "verdict copy, or rho* below a second threshold (of the control, the whole percentile) and the features agree",
        thresholds.candidate,
    )
    return {name: words[name] for name in METRICS}
