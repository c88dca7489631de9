"""One judged set: matches, scores, features where they are needed, verdicts, and every metric's flags."""

import dataclasses

import numpy as np

from stages.auditing.embedding import Embedder
from stages.auditing.matching import Matches, Reference
from stages.auditing.scores import Scores, Thresholds, calibrate, scores, verdicts
from stages.auditing.second_stage import KnownFeatures, Questions, ask
from stages.memorization.metrics import Measured, Rules, definitions
from stages.memorization.ratios import candidate_count, lowest, rho

COPIED = ("copy", "near_copy")
METRICS = (
    "calibrated",
    "copy_or_near_copy",
    "two_stage",
    "byte_identical",
    "nn_ratio_1_3",
    "nn_ratio_1_3_grouped",
    "nn_ratio_0_7",
    "nn_ratio_0_7_grouped",
    "carlini_sample",
    "carlini_train",
    "authenticity",
    "authenticity_grouped",
)


@dataclasses.dataclass(frozen=True)
class Searched:
    """A set of images that was matched against a reference: what judging starts from.

    Attributes:
        images: uint8 (N, H, W, C).
        ids: N strings.
        matches, scores: of every image.
    """

    images: np.ndarray
    ids: list[str]
    matches: Matches
    scores: Scores

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def of(cls, images: np.ndarray, ids: list[str], matches: Matches) -> "Searched":
        """With the scores that follow from the matches."""
        return cls(images, ids, matches, scores(matches))

    @classmethod
    def join(cls, a: "Searched", b: "Searched") -> "Searched":
        """One after the other."""
        images = np.concatenate([a.images, b.images])
        return cls.of(images, a.ids + b.ids, Matches.join([a.matches, b.matches]))


@dataclasses.dataclass(frozen=True)
class Judged:
    """A set with its verdicts.

    Attributes:
        searched: the set.
        match_row, match_distance, transform: the match that is shown: int64 (N,), float64 (N,), strings. It is the
            nearest training image, or the mirrored or shifted match where that makes a candidate.
        candidate: bool (N,), among the lowest percentile of ρ.
        feature_distance, feature_spacing: float64 (N,), of the shown match, outside its duplicate group; NaN where no
            features were needed.
        verdict, reason: N strings each.
        flags: metric → bool (N,).
    """

    searched: Searched
    match_row: np.ndarray
    match_distance: np.ndarray
    transform: list[str]
    candidate: np.ndarray
    feature_distance: np.ndarray
    feature_spacing: np.ndarray
    verdict: list[str]
    reason: list[str]
    flags: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.searched)

    @property
    def copied(self) -> np.ndarray:
        """bool (N,): verdict copy or near_copy."""
        return self.flags["copy_or_near_copy"]


@dataclasses.dataclass(frozen=True)
class Judge:
    """The rules and what they need: thresholds from the control, the reference, features of a part of it."""

    rules: Rules
    thresholds: Thresholds
    reference: Reference
    reference_ids: list[str]
    known: KnownFeatures
    embedder: Embedder
    budget: int

    def __call__(self, searched: Searched) -> Judged:
        """Judge every image of a set."""
        m, found = searched.matches, searched.scores
        candidate = np.zeros(len(searched), bool)
        candidate[lowest(rho(m.squared), candidate_count(len(searched), self.rules.percentile))] = True
        near = found.best < self.thresholds.candidate
        transform = np.where(near, found.transform, 0)
        row, distance, mirror = shown_match(m, transform)
        first, second = self._ask(searched, candidate, near, row, mirror)
        asked = ~np.isnan(second[0])
        confirmed = asked & (second[0] <= self.rules.margin * second[2])
        verdict, reason = verdicts(m, found, self.thresholds, candidate, confirmed)
        flags = self._flags(m, found, first[:2])
        flags["copy_or_near_copy"] = np.array([name in COPIED for name in verdict])
        flags = {name: flags[name] for name in METRICS}
        return Judged(
            searched, row, distance, transform_words(m, transform), candidate, second[0], second[2],
            verdict, reason, flags,
        )  # fmt: skip

    def _ask(
        self, searched: Searched, candidate: np.ndarray, near: np.ndarray, row: np.ndarray, mirror: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Feature distances, float64 (3, N) twice: of the candidates to their nearest image, and of all that need
        them to the match that is shown. Copies beyond doubt are embedded only where they are candidates."""
        doubtful = near & ~(searched.scores.best < self.thresholds.copy)
        one, two = np.flatnonzero(candidate), np.flatnonzero(candidate | doubtful)
        plain = Questions(one, np.zeros(len(one), bool), searched.matches.index[one, 0])
        questions = Questions.join(plain, Questions(two, mirror[two], row[two]))
        answers = ask(
            questions, searched.images, searched.ids, self.reference, self.reference_ids, self.known,
            self.embedder, self.budget,
        )  # fmt: skip
        values = np.stack([answers.distance, answers.spacing, answers.spacing_grouped])
        first, second = np.full((2, 3, len(searched)), np.nan)
        first[:, one], second[:, two] = values[:, : len(one)], values[:, len(one) :]
        return first, second

    def _flags(self, m: Matches, found: Scores, feature: np.ndarray) -> dict[str, np.ndarray]:
        measured = Measured(m.index, m.squared, m.own_squared, *feature, m.dimension)
        flags = measured.flags(self.rules)
        flags["nn_ratio_1_3_grouped"] = found.ratio_grouped < 1 / 3  # NaN is below nothing
        flags["nn_ratio_0_7_grouped"] = found.ratio_grouped < 0.7
        flags["authenticity_grouped"] = (m.squared[:, 0] <= m.own_outside) | (m.squared[:, 0] == 0)
        flags["calibrated"] = copies(found, self.thresholds)
        return flags


def copies(found: Scores, thresholds: Thresholds) -> np.ndarray:
    """bool (N,): the calibrated rule, verdict copy: ρ* = 0 or below the copy threshold."""
    return (found.best < thresholds.copy) | (found.best == 0)


def cross_fitted(found: Scores, percentile: float) -> np.ndarray:
    """bool (N,): which of the control images themselves pass for copies, each half under the other half's threshold.

    Under a threshold that was taken from the same images their share would be what it was set to, whatever is true.
    """
    half = np.arange(len(found.best)) % 2
    flags = np.zeros(len(half), bool)
    for side in (0, 1):
        other = half != side if len(half) > 1 else half == side  # one image has no other half
        flags[half == side] = copies(found, calibrate(found.best[other], percentile))[half == side]
    return flags


def shown_match(m: Matches, transform: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(reference row, distance, mirrored?) of each image under its transform (place in TRANSFORMS)."""
    plain, mirrored = (np.sqrt(s[:, 0] / m.dimension) / 255 for s in (m.squared, m.mirrored_squared))
    at = np.arange(len(m))
    row = np.stack([m.index[:, 0], m.mirrored_index[:, 0], m.shift_row, m.crop_row])[transform, at]
    distance = np.stack([plain, mirrored, m.shift_distance, m.crop_distance])[transform, at]
    turned = np.stack([transform == 0, transform == 1, m.shift_mirrored, m.crop_mirrored])[transform, at]
    return row, distance, turned & (transform > 0)


def transform_words(m: Matches, transform: np.ndarray) -> list[str]:
    """none, mirrored, shifted by (dy, dx), enlarged from side × side at (y, x); the last two also mirrored."""
    words = []
    columns = transform, m.shift.tolist(), m.shift_mirrored, m.crop_window.tolist(), m.crop_mirrored
    for kind, (dy, dx), turned, (y, x, side), crop_turned in zip(*columns):
        shifted = f"{'mirrored and ' if turned else ''}shifted by ({dy}, {dx})"
        cropped = f"{'mirrored and ' if crop_turned else ''}enlarged from {side} × {side} at ({y}, {x})"
        words.append(("none", "mirrored", shifted, cropped)[kind])
    return words


def metric_definitions(
    rules: Rules, thresholds: Thresholds, encoder: str, compared: int
) -> dict[str, tuple[str, float]]:
    """(definition in words, threshold) of every metric. compared: training images with features."""
    words = definitions(rules, encoder)
    text, threshold = words["two_stage"]
    words["two_stage"] = (
        f"{text}; the feature spacing is taken over {compared:,} training images and the nearest",
        threshold,
    )
    for name, value in (("nn_ratio_1_3", 1 / 3), ("nn_ratio_0_7", 0.7)):
        words[f"{name}_grouped"] = (
            f"l1 over the distance to the next training image outside the nearest one's duplicate group < {value:.3g}",
            value,
        )
    words["authenticity_grouped"] = (
        "not authentic: l1 <= the nearest training image's distance to the next one outside its duplicate group",
        1.0,
    )
    words["calibrated"] = (
        "verdict copy: rho* below the threshold that the control sets, or equal to a training image; rho* is the "
        "distance over the mean of the 10 nearest outside the duplicate group, least over the image, its mirror image, "
        "shifts of up to 2 pixels and crops; control images are judged under the threshold of the half they are not in",
        thresholds.copy,
    )
    words["copy_or_near_copy"] = (
        "verdict copy, or rho* below a second threshold (of the control, the whole percentile) and the features agree",
        thresholds.candidate,
    )
    return {name: words[name] for name in METRICS}
