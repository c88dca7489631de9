"""The parameters of the diffusion core, typed and checked. Nothing here imports torch, so that plans are quick."""

import re
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from stages.errors import InputError
from stages.protocol import Section

Decay = Annotated[float, Field(ge=0, lt=1)]
Precision = Literal["optimal", "scheduled"]
Power = Literal["d-2", "d"]
DECIMAL = r"[0-9]+(?:\.[0-9]*)?|\.[0-9]+"
HOTTEST = 1e30  # temperature; the weights are equal to the last bit long before


class NoiseChoice(Section):
    """The noise levels of the VE-SDE x_t = x_0 + sigma_t z (METHODS §0), as params.yaml gives them."""

    sigma_min: float = Field(gt=0, description="smallest level, in units of pixels in [0,1]")
    sigma_max: Annotated[float, Field(gt=0)] | Literal["auto"] = Field(
        description="largest level; auto: the least that reaches the largest distance between training images and "
        "leaves no image a lead of more than 1 nat at the start"
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.sigma_max != "auto" and self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min {self.sigma_min} must be below sigma_max {self.sigma_max}")
        return self


class NoiseParams(NoiseChoice):
    """The noise levels, with `auto` resolved from the training images (stages.diffusion.spread)."""

    sigma_max: float = Field(gt=0, description="largest level")


class NetworkParams(Section):
    """The shape of an NCSN++ network."""

    channels: int = Field(gt=0, multiple_of=4, description="channels at full resolution (nf); multiple of 4")
    multipliers: list[PositiveInt] = Field(min_length=1, description="channel multiplier per resolution")
    blocks: int = Field(gt=0, description="residual blocks per resolution")
    attention: list[PositiveInt] = Field(description="resolutions with self-attention")
    patch: Literal[1, 2, 4] = Field(description="pixels are folded patch x patch into channels first; 1 as published")
    dropout: float = Field(ge=0, lt=1, description="dropout inside the residual blocks")
    embedding: Literal["positional", "fourier"] = Field(description="how sigma is embedded, if it is")
    fir: bool = Field(description="FIR [1,3,3,1] resampling; else nearest up and average down")
    progressive_input: bool = Field(description="residual progressive input: the image enters at every resolution")
    amplitude: Literal["raw", "normalised"] = Field(
        description="input: 2x-1 as it is, or divided by sqrt(mean square + 1/4), a function of x alone"
    )
    skip_above: float | None = Field(
        gt=0,
        description="from this noise level on the input, which is nearly z there, is taken off the output; null: never",
    )

    def check_resolution(self, resolution: int) -> None:
        """Raise InputError where images of side `resolution` do not fit this network."""
        factor = 2 ** (len(self.multipliers) - 1) * self.patch
        if resolution % factor:
            raise InputError(
                f"resolution {resolution} is not a multiple of {factor}, which train.network.multipliers "
                f"{self.multipliers} and patch {self.patch} need: shorten them or choose another resolution"
            )
        sides = [resolution // self.patch // 2**halvings for halvings in range(len(self.multipliers))]
        absent = [side for side in self.attention if side not in sides]
        if absent:
            raise InputError(
                f"train.network.attention: for images of side {resolution} there are no maps of side {absent[0]}, only "
                f"{', '.join(map(str, sides))}: name some of these, or none ([])"
            )


class OptimizationParams(Section):
    """How a network is trained (METHODS §4)."""

    steps: int = Field(gt=0, description="optimizer steps")
    batch: int = Field(gt=0, description="images per step")
    microbatch: int | None = Field(gt=0, description="images per pass, gradients accumulate; null: all at once")
    learning_rate: float = Field(gt=0)
    betas: tuple[Decay, Decay] = Field(description="AdamW's betas")
    weight_decay: float = Field(ge=0)
    warmup: int = Field(ge=0, description="steps of linear warm-up")
    decay: Literal["constant", "cosine"] = Field(description="learning rate after the warm-up")
    clip: float = Field(gt=0, description="largest norm of the gradient")
    ema: float = Field(ge=0, lt=1, description="decay of the weights' average; ramps up as (1+n)/(10+n)")
    levels: int = Field(gt=1, description="discrete noise levels, drawn uniformly")
    flip: bool = Field(description="random horizontal flips")
    precision: Literal["float32", "bfloat16", "auto"] = Field(
        description="type of the network's products; auto: bfloat16 where the device has instructions for it"
    )
    compile: bool = Field(description="use torch.compile, worth it on a GPU")
    checkpoint_every: int = Field(gt=0, description="steps between checkpoints")
    keep: int = Field(gt=0, description="number of checkpoints kept while training")
    log_every: int = Field(gt=0, description="steps averaged into one row of the loss curve")
    max_seconds: float | None = Field(gt=0, description="stop after this time with a usable model; not reproducible")


class SamplerParams(Section):
    """The sampler and its number of levels."""

    name: Literal[
        "reverse-sde", "reverse-ode", "euler", "heun", "actual-noise", "gradient-ascent", "cfdm", "consistency"
    ]
    levels: int = Field(gt=0, description="noise levels, or steps; more than one, except for consistency")
    snr: float | None = Field(default=None, gt=0, description="reverse-*: Langevin corrector's r (0.16); null = none")
    step: float | None = Field(default=None, gt=0, le=1, description="actual-noise and gradient-ascent: alpha")
    exact_below: float | None = Field(
        default=None, gt=0, description="actual-noise: from this level on the distance to the training set is the level"
    )
    stop_below: float | None = Field(default=None, gt=0, description="gradient-ascent: stop at this actual noise level")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        needs = {"actual-noise": {"step", "exact_below"}, "gradient-ascent": {"step", "stop_below"}}.get(
            self.name, set()
        )
        allowed = needs | ({"snr"} if self.name.startswith("reverse") else set())
        if self.levels == 1 and self.name != "consistency":
            raise ValueError(f"sampler {self.name} needs at least 2 levels: raise levels")
        for key in ("snr", "step", "exact_below", "stop_below"):
            if getattr(self, key) is None and key in needs:
                raise ValueError(f"sampler {self.name} needs the key {key}")
            if getattr(self, key) is not None and key not in allowed:
                raise ValueError(f"sampler {self.name} has no key {key}: remove it")
        return self

    @property
    def evaluations(self) -> int:
        """Score evaluations of one sample (NFE); for gradient-ascent the most there can be."""
        if self.name == "heun":
            return 2 * self.levels - 1
        return self.levels * (2 if self.snr is not None else 1)


class Neighbors(Section):
    """Over which training images a smoothed score's sums run (METHODS §1.6).

    A network's target sums over the neighbours of the clean source image. A closed form has no source image and sums
    over the neighbours of x itself, in pixels.
    """

    space: Literal["pixel", "feature"] = Field(description="the space in which the neighbours are near")
    k: int = Field(gt=0, description="number of centres, the source image included")
    radius: float | None = Field(
        default=None, ge=1, description="of the k, keep those within radius x the distance to the second nearest"
    )

    def check_count(self, count: int) -> None:
        """Raise InputError where there are more neighbours than training images (`count`)."""
        if self.k > count:
            raise InputError(
                f"neighbors.k is {self.k} but the training set has {count} images: lower k or ingest.train more"
            )


class Kernel(Section):
    """Gaussian smoothing of a closed-form score, or of the training images themselves (METHODS §1.7-1.8)."""

    h: float = Field(gt=0, description="standard deviation of the shifts, in units of pixels in [0,1]")
    draws: int | None = Field(
        default=None, gt=0, description="Monte Carlo draws, the same along a trajectory; none in form kernel-density"
    )


class Distillation(Section):
    """How a consistency function is distilled from its teacher (METHODS §8b)."""

    steps: int = Field(gt=0, description="optimizer steps after the teacher's training")
    step: float = Field(gt=0, lt=1, description="alpha of the teacher's steps at the actual noise level")


class Teacher(Section):
    """What the noise-blind network learned that a consistency function is distilled from: keys of a variant."""

    form: Literal["unconditioning", "temperature"]
    temperature: float | str | None = None
    smooth_below: float | None = Field(default=None, gt=0)
    precision: Precision = "optimal"
    power: Power = "d-2"
    neighbors: Neighbors | None = None


OWN_KEYS = {"mask_threshold": "pca-locality", "penalty": "tikhonov"}
"""Key of ScoreSpec: the only form that has it, and needs it."""


class ScoreSpec(Section):
    """What one score of the comparison is: the content of score.json, and all that its training depends on.

    score: a trained network, or the empirical score in closed form.
    form: which score it is, or which one the network learns (METHODS §1, §4).
    """

    score: Literal["network", "closed-form"]
    form: Literal[
        "conditioning",
        "unconditioning",
        "temperature",
        "kernel-smoothed",
        "kernel-density",
        "cfdm",
        "mixture",
        "wiener",
        "local",
        "pca-locality",
        "tikhonov",
        "loader-batches",
        "consistency",
    ]
    noise_conditioning: bool | None = Field(default=None, description="networks: null means form == conditioning")
    conditioning: Literal["class"] | None = Field(
        default=None, description="networks: class tells the network the class of each image; null: nothing does"
    )
    temperature: float | str | None = Field(
        default=None,
        description="T: a number, 'C/sigma' for max(C/sigma, 1), 'sqrt_d', 'd' (METHODS §1.5), 'nonexpansive', "
        "'perplexity(P)' (METHODS §8b)",
    )
    smooth_below: float | None = Field(
        default=None, gt=0, description="only levels below this are smoothed; null: all with T > 1"
    )
    precision: Precision = Field(default="optimal", description="divide by sigma*^2 or by the scheduled sigma^2")
    power: Power = Field(
        default="d-2",
        description="c in sigma*^2 = r^2/c: d-2 for the loss weight sigma^2, d for weight 1 (METHODS §1.3)",
    )
    neighbors: Neighbors | None = None
    kernel: Kernel | None = None
    patch: int | None = Field(
        default=None, gt=0, description="form local: side of the patches, an odd number of pixels"
    )
    loader_batch: int | None = Field(
        default=None, gt=0, description="forms loader-batches, pca-locality: images that share a softmax; null: all"
    )
    mask_threshold: float | None = Field(
        default=None, gt=0, le=1, description="form pca-locality: share of the largest entry that a pixel must have"
    )
    penalty: float | None = Field(default=None, gt=0, description="form tikhonov: level below which the score is short")
    teacher: Teacher | None = Field(default=None, description="form consistency: what its teacher learned")
    distillation: Distillation | None = Field(default=None, description="form consistency: how it is distilled")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.temperature is not None) != (self.form == "temperature"):
            raise ValueError(f"form {self.form!r} and temperature {self.temperature!r} do not go together")
        if self.smooth_below is not None and self.temperature is None:
            raise ValueError("smooth_below goes with form temperature: remove it")
        if self.temperature is not None:
            check_temperature(self.temperature)
            self._check_adaptive()
        self._check_shells()
        if (self.kernel is not None) != (self.form in ("kernel-smoothed", "kernel-density", "cfdm")):
            raise ValueError(f"form {self.form!r} and kernel {self.kernel!r} do not go together")
        if self.kernel is not None and (self.kernel.draws is None) != (self.form == "kernel-density"):
            raise ValueError("kernel.draws goes with forms kernel-smoothed and cfdm, which need it, and with no other")
        if (self.patch is not None) != (self.form == "local") or (self.patch is not None and self.patch % 2 == 0):
            raise ValueError("patch, an odd number, goes with form local, and with that alone")
        for key, form in OWN_KEYS.items():
            if (getattr(self, key) is not None) != (self.form == form):
                raise ValueError(f"{key} goes with form {form}, and with that alone")
        if self.form != "pca-locality" and (self.loader_batch is not None) != (self.form == "loader-batches"):
            raise ValueError("loader_batch goes with form loader-batches, which needs it, and with pca-locality alone")
        for key in ("teacher", "distillation"):
            if (getattr(self, key) is not None) != (self.form == "consistency"):
                raise ValueError(f"{key} goes with form consistency, and with that alone")
        if self.score == "network":
            self._check_network()
        else:
            self._check_closed_form()
        return self

    def _check_adaptive(self) -> None:
        """A temperature that depends on the point looks at the K nearest images, and needs enough of them."""
        number = perplexity(self.temperature) if isinstance(self.temperature, str) else None
        if number is None and self.temperature != "nonexpansive":
            return
        if self.neighbors is None:
            raise ValueError(f"temperature {self.temperature!r} needs neighbors: add them")
        if self.neighbors.radius is not None:
            raise ValueError(f"temperature {self.temperature!r} and neighbors.radius do not go together: remove one")
        if number is not None and number >= self.neighbors.k:
            raise ValueError(f"temperature {self.temperature!r} needs neighbors.k above {number:g}: raise it")

    def _check_shells(self) -> None:
        """A network's plain target -z has no shells, and neither have the closed forms at a given level."""
        shells = self.form == "temperature" or (self.score == "closed-form" and self.form == "unconditioning")
        if self.precision == "scheduled" and not shells:
            raise ValueError(f"a {self.score} of form {self.form} has no precision scheduled: remove it")
        if self.power == "d" and not (shells or self.form == "mixture"):
            raise ValueError(f"a {self.score} of form {self.form} has no power d: remove it")

    def _check_network(self) -> None:
        if self.form == "consistency":
            if self.noise_conditioning:
                raise ValueError("form consistency is blind to the noise level: remove noise_conditioning")
            if self.conditioning is not None:
                raise ValueError("form consistency has no class: remove conditioning")
            _ = self.trained  # the teacher's keys must fit together
        elif self.form not in ("conditioning", "unconditioning", "temperature"):
            raise ValueError(f"a network cannot be trained as {self.form!r}: use score: closed-form")
        if (self.neighbors is not None) != (self.form == "temperature"):
            raise ValueError("neighbors are needed for a network's form temperature, and for that alone")
        if self.form == "conditioning" and self.noise_conditioning is False:
            raise ValueError("form conditioning without noise_conditioning is form unconditioning")
        if self.form == "unconditioning" and self.noise_conditioning:
            raise ValueError("form unconditioning with noise_conditioning is form conditioning")

    def _check_closed_form(self) -> None:
        if self.noise_conditioning is not None:
            raise ValueError("noise_conditioning belongs to networks: a closed form's follows from its form")
        if self.form == "consistency":
            raise ValueError("form consistency is distilled from a network: use score: network")
        if self.conditioning is not None:
            raise ValueError("conditioning: class belongs to networks: a closed form has no class: remove it")
        if self.neighbors is not None and (self.form != "temperature" or self.neighbors.space != "pixel"):
            raise ValueError("a closed form has neighbors only with form temperature, and only in pixel space")

    @property
    def trained(self) -> "ScoreSpec":
        """What the network learns from the images: of a consistency function what its teacher learned."""
        if self.teacher is None:
            return self
        return ScoreSpec(score="network", **self.teacher.model_dump())

    @property
    def conditioned(self) -> bool:
        """Whether sigma reaches the score."""
        return self.form == "conditioning" if self.noise_conditioning is None else self.noise_conditioning


class Variant(ScoreSpec):
    """One diffusion model of the comparison: a score, and the sampler that draws from it."""

    sampler: SamplerParams
    count: int | None = Field(default=None, gt=0, description="samples of this variant; null: sample.count")
    curve: bool = Field(
        default=True,
        description="sample a network along its training (train.snapshots), too, or at its end alone",
    )

    @model_validator(mode="after")
    def _sampler_fits(self) -> Self:
        if (self.form == "cfdm") != (self.sampler.name == "cfdm"):
            raise ValueError(f"form {self.form!r} cannot use sampler {self.sampler.name!r}: cfdm goes with cfdm alone")
        if self.form == "consistency" and self.sampler.name != "consistency":
            raise ValueError(f"form consistency is no score, which sampler {self.sampler.name} needs: use consistency")
        return self


class AlignmentParams(Section):
    """How closely a trained score is compared with the empirical one."""

    levels: int = Field(ge=2, description="noise levels, log-uniform between sigma_min and sigma_max")
    images: int = Field(ge=1, description="noised training images per level")
    expansion_pairs: int = Field(
        ge=1, description="pairs of training images per level, for the expansion factor; at least `pairs`"
    )
    pairs: int = Field(ge=1, description="of these, the pairs that the temperature and the eigenvalue are read from")
    paths: int = Field(ge=1, description="pairs of noised images that are interpolated")
    points: int = Field(ge=3, description="mixtures per pair, the two ends included")
    level: float = Field(gt=0, description="noise level of the interpolated images")
    steps: int = Field(ge=1, description="steps of the deterministic sampler that runs from there")

    @model_validator(mode="after")
    def _pairs_among_them(self) -> Self:
        if self.pairs > self.expansion_pairs:
            raise ValueError(f"pairs {self.pairs} are more than expansion_pairs {self.expansion_pairs}: lower pairs")
        return self


def check_temperature(rule: float | str) -> None:
    """Raise ValueError unless `rule` is a number from 1 to HOTTEST, "C/sigma" with C > 0, "sqrt_d", "d" (METHODS §1.5),
    "nonexpansive" or "perplexity(P)" with P > 1 (METHODS §8b)."""
    if isinstance(rule, str):
        if not over_sigma(rule) and rule not in ("sqrt_d", "d", "nonexpansive") and (perplexity(rule) or 0) <= 1:
            raise ValueError(
                f"temperature {rule!r} is neither a number, 'C/sigma' with C > 0, 'sqrt_d', 'd', 'nonexpansive' nor "
                "'perplexity(P)' with P > 1"
            )
    elif not 1 <= rule <= HOTTEST:
        raise ValueError(f"temperature {rule!r} must be from 1 to {HOTTEST:g}")


def over_sigma(rule: str) -> float | None:
    """C of a rule "C/sigma", or None."""
    match = re.fullmatch(rf"\s*({DECIMAL})\s*/\s*sigma\s*", rule)
    return float(match[1]) if match else None


def perplexity(rule: str) -> float | None:
    """P of a rule "perplexity(P)", or None."""
    match = re.fullmatch(rf"\s*perplexity\(\s*({DECIMAL})\s*\)\s*", rule)
    return float(match[1]) if match else None
