"""The progress of a shard at work: a training writes its loss curve, row by row, into its scratch folder."""

from stages.protocol import Shard

CURVE = "loss.tsv"
"""stages.diffusion.train_network.LOSS; its first column is the step."""


def is_measured(shard: Shard) -> bool:
    """Whether the shard's work counts steps, as trainings do."""
    return "optimization" in shard.settings


def share_done(shard: Shard) -> float:
    """The share of a measured shard's steps that its curve shows; 0 before the first row, or on another machine."""
    try:
        last = (shard.scratch / CURVE).read_text(encoding="utf-8").rstrip().rpartition("\n")[2]
    except FileNotFoundError:
        return 0.0
    step = last.partition("\t")[0]
    return int(step) / int(shard.settings["optimization"]["steps"]) if step.isdigit() else 0.0
