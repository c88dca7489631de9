"""Images of the control that are training images: such a control is not unseen, and its thresholds hide copies.

An image leaks when it equals a training image or its mirror image, or when its ρ* is below COPY_CAP and below APART
times the lowest percent of what the others reach. "The others" are the images above COPY_CAP. So the criterion assumes
that an unseen image of the same kind never comes much nearer to a training image than the nearest percent of unseen
images do. Two frames of one film, or two photographs of one burst, break that assumption: they are listed, too.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from stages.errors import InputError
from stages.memorization.judge import shown_matches
from stages.memorization.metrics import Searched
from stages.memorization.thresholds import COPY_CAP

APART, LOWEST = 2 / 3, 0.01
MOST = 0.5  # share of a control that may leak: with more it is not a control
NAMED = 3  # leaks that a sentence names


@dataclasses.dataclass(frozen=True)
class Leak:
    """One image of the control that is a training image.

    Attributes:
        where: its name.
        train_where: the training image's name.
        equal: whether it equals that image, or its mirror image, byte for byte.
        rho_star: ρ*; NaN where it is unknown.
    """

    where: str
    train_where: str
    equal: bool
    rho_star: float

    @property
    def reason(self) -> str:
        """For rejected.parquet."""
        how = "equals" if self.equal else f"is a re-encoded or changed copy (rho* {self.rho_star:.3g}) of"
        return f"not unseen: it {how} the training image {self.train_where}"


def find_leaks(
    control: Searched,
    where: Callable[[int], str],
    train_where: Callable[[int], str],
    changed: np.ndarray | None = None,
) -> tuple[np.ndarray, list[Leak]]:
    """Return which images of the control are training images, bool (N,), and these.

    where: the name of the control's image at a place; train_where: the name of a reference row; changed: bool (N,),
    the images that may be changed copies; None: all.
    """
    m, found = control.matches, control.scores
    same = (m.squared[:, 0] == 0) | (m.mirrored_squared[:, 0] == 0)
    near = found.best < min(COPY_CAP, _apart(found.best))
    leaked = same | (near if changed is None else near & changed)
    row = shown_matches(m, found.transform).row
    leaks = [
        Leak(where(place), train_where(row[place]), bool(same[place]), float(found.best[place]))
        for place in np.flatnonzero(leaked)
    ]
    return leaked, leaks


def _apart(best: np.ndarray) -> float:
    """APART times the lowest percent of ρ* among the images that are certainly not copies; infinite without any."""
    others = best[best >= COPY_CAP]
    return APART * float(np.quantile(others, LOWEST)) if len(others) else np.inf


def check_leaks(leaks: list[Leak], count: int, source: str) -> None:
    """InputError where more than MOST of `count` images leak. source: the option and its value."""
    if len(leaks) > MOST * count:
        raise InputError(
            f"{source}: {len(leaks):,} of its {count:,} images are training images, e.g. {_named(leaks[:1])}: "
            "give real images that the model was not trained on"
        )


def leak_note(leaks: list[Leak], count: int) -> str:
    """Return the sentence that tells of the leaks among the `count` images of a control."""
    return (
        f"{len(leaks):,} of the {count:,} unseen images are training images, equal, re-encoded or changed, and are "
        f"left out of the control: {_named(leaks)} (all are in rejected.parquet)"
    )


def _named(leaks: list[Leak]) -> str:
    words = ", ".join(f"{leak.where} ({leak.train_where})" for leak in leaks[:NAMED])
    return words + (", …" if len(leaks) > NAMED else "")
