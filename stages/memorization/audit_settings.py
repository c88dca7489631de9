"""The options of an audit, checked."""

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from stages.errors import InputError
from stages.features.weights import ENCODERS, TIMM, EncoderParams
from stages.memorization.options import Out, checked
from stages.protocol import Section

BASE_MEMORY = 1 << 30  # Python, torch and the encoder
UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
ROLES = ("train", "samples", "holdout")
SMALL_IMAGE, SMALL_INPUT = 64, 112  # images up to this side are embedded at the smaller input size


class AuditParams(Section):
    """The options of an audit; the descriptions are the text of --help."""

    train: str = Field(description="the training images: folder:PATH, zip:PATH, parquet:PATH, npz:PATH, …")
    samples: str = Field(
        description="the generated images, from any such source; repeated, or a pattern (folder:step-*): a curve"
    )
    holdout: str | None = Field(None, description="real images that the model was not trained on (the control)")
    out: Out = Field(description="the folder that the results are written to")
    encoder: str = Field("efficientnet-lite0", description="the encoder of the features, or any model of timm")
    weights: str | None = Field(None, description="a weights file of the encoder")
    device: str = Field("auto", pattern="^(auto|cpu|cuda)$", description="auto, cpu or cuda")
    memory_budget: str = Field("4GiB", description="the most memory that the whole process takes")
    fail_above: float | None = Field(
        None, ge=0, le=1, description="exit with code 3 if the interval of the rate of copies reaches above this rate"
    )
    percentile: float = Field(
        1.0, gt=0, le=50, description="percentage of the control that may fall below the candidate threshold of rho*"
    )
    margin: float = Field(
        1.0,
        gt=0,
        description="allowed feature distance, as a multiple of the match's own nearest-neighbour feature distance",
    )
    resolution: int | None = Field(
        None, ge=4, le=4096, description="side in pixels at which images are compared; default: the smallest set's own"
    )
    fit: Literal["crop", "squash", "pad"] = Field(
        "crop", description="how images that are not square become square: crop, squash or pad"
    )
    near: float | None = Field(
        None, ge=0, lt=1, description="pixel distance below which training images count as near duplicates"
    )
    features: int = Field(2000, ge=10, description="how many images of each set are embedded for feature distances")
    seed: int = Field(0, ge=0, description="the seed of every random draw")
    groups: Path | None = Field(
        None, description="a CSV file of the samples' groups: a column file or row names the sample, another its group"
    )
    group_by: str | None = Field(
        None, min_length=1, description="the column of the groups: of --groups, or of the table that holds the samples"
    )
    no_images: bool = Field(False, description="write no picture and no name of a file: digests and numbers only")
    work: Path | None = Field(
        None,
        description="the folder of partial results, which audits of one training set can share [default: OUT/.work]",
    )

    def reproducible(self) -> dict[str, Any]:
        """The options as JSON; with `no_images` without those that name a place, which change no result."""
        named = set() if not self.no_images else {n for n, v in self if isinstance(v, Path)} | {*ROLES, "weights"}
        return self.model_dump(mode="json", exclude=named)

    @property
    def budget(self) -> int:
        """Bytes of working memory for a search: what is left of half the budget beside Python and the encoder."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?", self.memory_budget.strip().lower())
        if match is None or match[2] not in UNITS:
            raise InputError(f"--memory-budget {self.memory_budget!r} is not an amount of memory: write e.g. 4GiB")
        total = int(float(match[1]) * UNITS[match[2]])
        if total < BASE_MEMORY + (1 << 28):
            raise InputError(f"--memory-budget {self.memory_budget} is too little: give at least 1.25GiB")
        return (total - BASE_MEMORY) // 2


def audit_params(**values: Any) -> AuditParams:
    """Checked parameters; a wrong value raises InputError naming its option."""
    params = checked(AuditParams, values)
    _ = params.budget
    return params


def encoder_params(name: str, weights: str | None, resolution: int) -> EncoderParams:
    """The parameters of an encoder by its name, for images of this resolution.

    efficientnet-lite0 and resnet18 read images of up to SMALL_IMAGE pixels a side at SMALL_INPUT: enlarging them
    further costs time and adds nothing. Larger images are read at the encoder's own size. A name that is not one of
    ENCODERS is one of timm's, with or without "timm:". InputError names the option that is wrong.
    """
    name = name if name in ENCODERS or name.startswith(TIMM) else TIMM + name
    resizable = name in ("efficientnet-lite0", "resnet18")
    resize = SMALL_INPUT if resizable and resolution <= SMALL_IMAGE else None
    try:
        return EncoderParams(name=name, weights=weights, sha256=None, resize=resize)
    except ValidationError as error:
        raise InputError(f"--encoder {name}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from error
