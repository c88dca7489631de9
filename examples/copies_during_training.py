"""Watch the copies while a diffusion model trains: a callback for any loop, and how a loop of diffusers calls it.

    python examples/copies_during_training.py       # a stand-in for a training: the later, the more copies

After every N steps give the callback some samples. The training images are searched for their own neighbours, and the
unseen images against them, in the first call only: later calls search the samples alone.
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

import scoresmooth


class CopyMonitor:
    """Audits samples at checkpoints of one training.

    Args:
        train, holdout: the training images and unseen real ones: arrays, paths or sources, as of `scoresmooth.audit`.
        folder: where every audit is written, in step-N.
        limit: stop where the interval of the rate of copies lies above it; None: never.
        options: of `scoresmooth.audit`.
    """

    def __init__(self, train, holdout, folder: Path | str, limit: float | None = None, **options):
        self.sets, self.folder, self.limit = {"train": train, "holdout": holdout}, Path(folder), limit
        self.options = {"work": self.folder / "work", **options}
        self.curve: list[tuple[int, float, float, float]] = []
        """(step, rate of copies, and the ends of its 95 % interval)"""

    def __call__(self, step: int, samples) -> bool:
        """Audit the samples of a step; whether training should stop: its interval lies above the limit as a whole."""
        found = scoresmooth.audit(samples=samples, **self.sets, **self.options, out=self.folder / f"step-{step}")
        self.curve.append((step, found.rate, *found.interval))
        print(f"step {step}: {found!r}")
        return self.limit is not None and found.interval[0] > self.limit


def train_with_diffusers(pipeline, train_step: Callable[[int], None], steps: int, monitor: CopyMonitor) -> int:
    """A training loop that samples a pipeline of diffusers (DDPMPipeline, StableDiffusionPipeline with a prompt, …).

    pipeline(batch_size=…).images are PIL pictures, which the audit takes as they are. Returns the last step.
    """
    for step in range(1, steps + 1):
        train_step(step)
        if step % 1000 == 0:
            pictures = [image for _ in range(8) for image in pipeline(batch_size=32).images]
            if monitor(step, pictures):
                return step
    return steps


def main(folder: str) -> list[tuple[int, float, float, float]]:
    """A training that copies more and more of 200 images: monitored, and stopped above 20 %."""
    images = np.random.default_rng(0).integers(0, 256, (600, 4, 4), np.uint8).repeat(4, axis=1).repeat(4, axis=2)
    train, unseen, novel = images[:200], images[200:400], images[400:]
    monitor = CopyMonitor(train, unseen, folder, limit=0.2, encoder="pixels")
    for step, copies in ((1000, 0), (2000, 10), (3000, 60), (4000, 90)):
        if monitor(step, np.concatenate([train[:copies], novel[copies:100]])):
            print(f"stopped after step {step}")
            break
    return monitor.curve


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(sys.argv[1] if len(sys.argv) > 1 else scratch)
