"""The loss curve, averaged over steps and by thirds of the levels, and the check that a training has not diverged."""

import csv
import dataclasses
import io
import math

import torch
from torch import Tensor

from stages.diffusion.distributed import ALONE, World
from stages.diffusion.training import Losses
from stages.errors import InputError

COLUMNS = ["step", "loss", "loss_low_sigma", "loss_middle_sigma", "loss_high_sigma"]
ADVICE = "lower train.optimization.learning_rate, or use precision float32"


class DivergedError(InputError):
    """The loss or the gradient became NaN or infinite; the message names the step, and what to change."""


@dataclasses.dataclass(frozen=True)
class Progress:
    """One row of the loss curve: mean loss per pixel over the last steps, and by thirds of the levels."""

    step: int
    loss: float
    low: float
    middle: float
    high: float


class LossCurve:
    """The losses since the curve's last row. sigmas: the levels (L,); world: the processes whose losses it joins."""

    def __init__(self, sigmas: Tensor, world: World = ALONE) -> None:
        self.sigmas, self.world, self.window = sigmas, world, []

    def add(self, losses: Losses) -> None:
        """Add this process's losses of one step."""
        self.window.append(losses)

    def row(self, step: int) -> Progress:
        """Return the row after `step` steps and begin the next one. Raises DivergedError as `gather` does."""
        found, self.window = self.gather(), []
        losses, third = found["losses"], found["levels"] * 3 // len(self.sigmas)  # level 0 is sigma_max
        parts = [float(losses[third == n].mean()) if (third == n).any() else math.nan for n in (2, 1, 0)]
        return Progress(step, float(losses.mean()), *parts)

    def gather(self) -> dict[str, Tensor]:
        """Return all processes' losses, float32 (n,), their levels and steps, int64 (n,), process after process.

        It is empty where there are none. Raises DivergedError, in every process, for the first loss that is not finite,
        and for such a gradient: no loss would show the last one.
        """
        if not self.window:
            return {}
        steps = torch.cat([torch.full_like(part.levels, part.step) for part in self.window])
        own = (torch.cat([getattr(part, name) for part in self.window]) for name in ("losses", "levels"))
        mine = torch.stack([*(values.double() for values in own), steps.double()], dim=1)
        losses, levels, steps = self.world.all_gather(mine).unbind(1)
        bad = torch.where(torch.isfinite(losses), torch.inf, steps)
        first = int(bad.argmin())
        self._check_gradients(float(bad[first]))
        if bad[first] < torch.inf:
            sigma = float(self.sigmas[int(levels[first])])
            where = f"step {int(steps[first])}, sigma {sigma:.4g}"
            raise DivergedError(f"the loss is {float(losses[first])} at {where}: {ADVICE}")
        return {"losses": losses.float(), "levels": levels.long(), "steps": steps.long()}

    def _check_gradients(self, before: float) -> None:
        known = [part for part in self.window if part.norm is not None]
        norms = torch.stack([part.norm for part in known]).tolist() if known else []
        for part, norm in zip(known, norms):
            if not math.isfinite(norm) and part.step < before:
                raise DivergedError(f"the gradient is {norm} at step {part.step}: {ADVICE}")

    def restore(self, gathered: dict[str, Tensor]) -> None:
        """Continue from what `gather` returned in an interrupted run: this process takes its own part."""
        if not gathered:
            return
        losses, levels, steps = (
            gathered[name].to(self.sigmas.device).chunk(self.world.size)[self.world.rank]
            for name in ("losses", "levels", "steps")
        )
        self.window = [Losses(int(step), losses[steps == step], levels[steps == step]) for step in steps.unique()]


def format_curve(rows: list[Progress]) -> str:
    """Return the rows as tab-separated text with a header."""
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([row.step, *(f"{value:.6g}" for value in dataclasses.astuple(row)[1:])] for row in rows)
    return text.getvalue()
