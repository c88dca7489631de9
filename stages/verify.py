"""Stage verify: the theory's claims, measured. One row per claim, in data/verify/verify.json."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from stages.artifacts import read_json, write_json, write_tsv
from stages.protocol import DATA, Section, Shard, StageParams, main
from stages.theory.claims import Findings
from stages.theory.domination import verify_image_domination, verify_sigma_domination
from stages.theory.expansion import verify_expansion
from stages.theory.mismatch import verify_mismatch
from stages.theory.shell import verify_shell_mass, verify_shell_touch

Dimension = Annotated[int, Field(ge=5, description="number of pixels times channels; below 5 the shell has no inside")]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class ShellMass(Section):
    """The mass of the Gaussian shell (METHODS §3)."""

    dimensions: list[Dimension] = Field(min_length=1)
    draws: int = Field(ge=100, description="Monte Carlo vectors per dimension")
    normals: int = Field(ge=1000, description="most random numbers spent on one dimension; draws are cut to fit")


class ShellTouch(Section):
    """The shell-touch schedule (METHODS §3)."""

    dimensions: list[Dimension] = Field(min_length=1)
    smallest: float = Field(gt=0, description="lowest noise level, in pixel units of [0,1]")
    largest: float = Field(gt=0, description="highest noise level")

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if self.smallest >= self.largest:
            raise ValueError(f"smallest {self.smallest} must be below largest {self.largest}")
        return self


class SigmaDomination(Section):
    """The weight ratio of neighbouring levels (METHODS §3)."""

    dimensions: list[Dimension] = Field(min_length=1)
    alphas: list[Annotated[float, Field(ge=0, le=1)]] = Field(min_length=1, description="where between the two shells")


class ImageDomination(Section):
    """The weight ratio of two training images (METHODS §3)."""

    dimension: Dimension
    temperatures: list[Positive] = Field(min_length=1)


class Expansion(Section):
    """The two-point expansion factor (METHODS §2)."""

    dimension: Dimension
    pairs: int = Field(ge=1, description="mirrored pairs of points per reach")
    reaches: list[Annotated[float, Field(ge=0.5)]] = Field(min_length=1, description="r_1/L: noise level over L/√d")
    temperatures: list[Positive] = Field(min_length=1, description="conditioning and T = ∞ are always added")
    eta: float = Field(gt=0, le=1, description="step size")


class Mismatch(Section):
    """The noise-level mismatch of samplers without noise conditioning (METHODS §3)."""

    dimension: Dimension
    betas: list[Positive] = Field(min_length=1, description="(σ_n² − σ_{n+1}²)/R²")
    draws: int = Field(ge=10)


class Params(StageParams):
    """What to verify. Every topic is one shard."""

    SECTION: ClassVar[str] = "verify"

    seed: int = Field(ge=0, description="seed of all random draws")
    shell_mass: ShellMass
    shell_touch: ShellTouch
    sigma_domination: SigmaDomination
    image_domination: ImageDomination
    expansion: Expansion
    mismatch: Mismatch


TOPICS: dict[str, tuple[Callable[..., Findings], bool]] = {  # topic -> (what computes it, whether it draws)
    "shell_mass": (verify_shell_mass, True),
    "shell_touch": (verify_shell_touch, False),
    "sigma_domination": (verify_sigma_domination, False),
    "image_domination": (verify_image_domination, True),
    "expansion": (verify_expansion, True),
    "mismatch": (verify_mismatch, True),
}
OUT = DATA / "verify"


def plan(params: Params) -> list[Shard]:
    """One shard per topic."""
    shards = []
    for topic, (_, draws) in TOPICS.items():
        settings = {"topic": topic, "arguments": getattr(params, topic).model_dump(mode="json")}
        if draws:
            settings["arguments"]["seed"] = params.seed
        shards.append(Shard("verify", topic.replace("_", " "), settings, suffix=".json"))
    return shards


def work(shard: Shard) -> Path:
    """The claims and tables of one topic, as JSON."""
    compute, _ = TOPICS[shard.settings["topic"]]
    findings = compute(**shard.settings["arguments"])
    claims = [{"topic": shard.settings["topic"], **claim.row()} for claim in findings.claims]
    return write_json(shard.path, {"claims": claims, "tables": findings.tables})


def gather(params: Params, parts: list[Path]) -> None:
    """verify.json with all claims, and one TSV per table for `dvc plots`."""
    found = [read_json(part) for part in parts]
    for content in found:
        for name, rows in content["tables"].items():
            write_tsv(OUT / f"{name}.tsv", rows)
    write_json(OUT / "verify.json", {"claims": [claim for content in found for claim in content["claims"]]})


if __name__ == "__main__":
    main("verify")
