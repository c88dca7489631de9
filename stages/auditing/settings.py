"""What an audit is asked: its options, checked."""

import re
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from stages.errors import InputError
from stages.protocol import Section

BASE_MEMORY = 1 << 30  # Python, torch and the encoder
UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


class AuditParams(Section):
    """Everything that an audit is asked."""

    train: str = Field(description="the training images: folder:PATH, zip:PATH, parquet:PATH, npz:PATH, …")
    samples: str = Field(description="the generated images, any such source")
    holdout: str | None = Field(None, description="real images that the model has not seen")
    out: Path = Field(description="the folder that the results are written to")
    encoder: str = Field("efficientnet-lite0", description="whose features are compared; or any model of timm")
    weights: str | None = Field(None, description="a weights file of the encoder")
    device: str = Field("auto", pattern="^(auto|cpu|cuda)$", description="auto | cpu | cuda")
    memory_budget: str = Field("4GiB", description="of the whole process")
    fail_above: float | None = Field(None, ge=0, le=1, description="exit code 3 if the rate may be higher")
    percentile: float = Field(1.0, gt=0, le=50, description="q: percent of the unseen images that are looked at twice")
    margin: float = Field(1.0, gt=0, description="features agree within margin x the training image's own")
    resolution: int | None = Field(None, ge=4, le=4096, description="audit at this size instead of the smaller one")
    near: float | None = Field(None, ge=0, lt=1, description="pixel distance of near duplicates")
    features: int = Field(2000, ge=10, description="images of each set that are embedded")
    seed: int = Field(0, ge=0, description="of every draw")

    @property
    def budget(self) -> int:
        """Bytes of working memory for a search: what is left of half the budget beside Python and the encoder."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?", self.memory_budget.strip().lower())
        if match is None or match[2] not in UNITS:
            raise InputError(f"--memory-budget {self.memory_budget!r} is no amount of memory: write e.g. 4GiB")
        total = int(float(match[1]) * UNITS[match[2]])
        if total < BASE_MEMORY + (1 << 28):
            raise InputError(f"--memory-budget {self.memory_budget} is too little: give at least 1.25GiB")
        return (total - BASE_MEMORY) // 2


def audit_params(**values: Any) -> AuditParams:
    """Checked parameters; a wrong value raises InputError naming its option."""
    try:
        params = AuditParams(**values)
    except ValidationError as error:
        first = error.errors()[0]
        option = f"--{str(first['loc'][0]).replace('_', '-')}"
        raise InputError(f"{option}: {first['msg']} (got {first['input']!r})") from error
    _ = params.budget
    return params
