"""Stage verify: the theory's claims, measured. One row per claim, in data/verify/verify.json.

Beside it blocks.json (what was computed with which images), one TSV per table, and pictures.

The claims come in blocks (stages/theory/README.md says how to add one); each is one shard, or several. Their numbers
stand in stages/theory/blocks.yaml, because DVC parses params.yaml once per stage. `mode` chooses between values written
`{quick: A, full: B}` there: quick runs within the default pipeline, full has the size of the papers.

Images come from what the pipeline ingested (data/deduplicate/train.arrow), or from any source named by `dataset`. DVC
watches the former only: after changing a named source's files, `dvc repro -f verify` reads them again. Shards are
cached under the digests of the files, so that what did not change is not computed twice.
"""

import base64
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, ValidationError, model_validator

from stages.beyond.adaptive_targets import AdaptiveTemperatures
from stages.beyond.copied_images import CopiedImages
from stages.beyond.copying_onset import CopyingOnset
from stages.beyond.halves import TwoHalves
from stages.beyond.league import League
from stages.beyond.loader_batches import LoaderBatches
from stages.beyond.question import Question
from stages.errors import InputError
from stages.files.artifacts import atomic_path, read_json, write_json, write_tsv
from stages.files.images import read_images
from stages.files.paths import DATA, images_of
from stages.files.png import png_bytes
from stages.images.sources.open import open_source
from stages.images.subset import read_subset, subset_rows
from stages.protocol import Parts, Section, Shard, StageParams, explain, load_tree, main
from stages.theory.bias_variance import BiasVariance
from stages.theory.claims import Block, ImageBlock, Picture, Table
from stages.theory.collapse import Collapse
from stages.theory.denoising import Denoising
from stages.theory.domination import ImageDomination, SigmaDomination
from stages.theory.expansion import Expansion
from stages.theory.generated_density import GeneratedDensity
from stages.theory.jacobian import Jacobian
from stages.theory.line_claims import Line
from stages.theory.mismatch import Mismatch, MismatchTrajectory
from stages.theory.relu_claims import ReluNetworks
from stages.theory.score_noise import ScoreNoise
from stages.theory.shell import ShellMass, ShellTouch
from stages.theory.smoothed_samples import SmoothedCircle, SmoothedSamples

OUT = DATA / "verify"
TRAIN = images_of("train")
MODES = ("quick", "full")


class Blocks(Section):
    """What is computed: one field per block, in the report's order."""

    shell_mass: ShellMass
    shell_touch: ShellTouch
    sigma_domination: SigmaDomination
    image_domination: ImageDomination
    denoising: Denoising
    jacobian: Jacobian
    expansion: Expansion
    collapse: Collapse
    mismatch: Mismatch
    mismatch_trajectory: MismatchTrajectory
    line: Line
    relu_networks: ReluNetworks
    bias_variance: BiasVariance
    score_noise: ScoreNoise
    generated_density: GeneratedDensity
    smoothed_circle: SmoothedCircle
    smoothed_images: SmoothedSamples
    adaptive_targets: AdaptiveTemperatures
    copying_onset: CopyingOnset
    two_halves: TwoHalves
    loader_batches: LoaderBatches
    league: League
    copied_images: CopiedImages

    @model_validator(mode="after")
    def _several_seeds(self) -> Self:
        for name, block in self:
            if isinstance(block, Question) and len(block.seeds) < 2:
                raise ValueError(f"{name}.seeds: an interval needs at least two seeds: add one")
        return self

    @classmethod
    def kinds(cls) -> dict[str, type[Block]]:
        """Return the blocks by name."""
        return {name: info.annotation for name, info in cls.model_fields.items()}


class Params(StageParams):
    """What to verify, on which images."""

    SECTION: ClassVar[str] = "verify"

    mode: Literal["quick", "full"] = Field(description="which value is read where a block gives {quick:, full:}")
    seed: int = Field(ge=0, lt=2**32, description="seed of all random draws")
    dataset: str | None = Field(min_length=1, description="a source of images; null: what the pipeline ingested")
    cifar10: bool = Field(description="the images are CIFAR-10: full mode compares with the published numbers")
    resolution: int | None = Field(ge=1, le=4096, description="side to resize `dataset` to; null: as it is")
    blocks: Blocks = Field(description="what the YAML file named here holds")

    @classmethod
    def from_tree(cls, tree: dict[str, Any], variant: str | None = None) -> Self:
        """See StageParams.from_tree. Check the blocks of both modes and return those of `mode`."""
        section = tree.get(cls.SECTION)
        if not isinstance(section, dict) or "blocks" not in section:
            return super().from_tree(tree, variant)
        both = _read_blocks(section["blocks"])
        mode = section.get("mode") if section.get("mode") in MODES else MODES[0]  # the field `mode` reports a wrong one
        blocks = both[mode] if section.get("cifar10") else _unpublished(both[mode])
        return super().from_tree({**tree, cls.SECTION: {**section, "blocks": blocks}}, variant)


def _unpublished(blocks: Blocks) -> Blocks:
    """Return the blocks without the comparisons with numbers that were published for CIFAR-10."""
    own = {name: getattr(blocks, name) for name in Blocks.kinds()}
    plain = {
        name: block.model_copy(update={"cifar10": False}) for name, block in own.items() if hasattr(block, "cifar10")
    }
    return blocks.model_copy(update=plain)


def _read_blocks(given: Any) -> dict[str, Blocks]:
    """Return the blocks of each mode, from the file that params.yaml names. Raises InputError with file and key."""
    file, place, values = "params.yaml", "verify.blocks", given  # they may also be written out in params.yaml
    if isinstance(given, str):
        file, place, values = given, "", load_tree(given)
    found = {}
    for mode, chosen in {mode: _at(values, mode, file, place) for mode in MODES}.items():
        try:
            found[mode] = Blocks.model_validate(chosen)
        except ValidationError as error:
            raise InputError(explain(error, place, {}, chosen, file)) from error
    return found


def _at(value: Any, mode: str, file: str, place: str) -> Any:
    """Return `value`, at `place` in `file`, with every {quick: A, full: B} in it replaced by the value of `mode`."""
    if not isinstance(value, dict):
        return value
    if set(value) == set(MODES):
        return value[mode]
    if len(value) == 1 and set(value) < set(MODES):
        absent = next(iter(set(MODES) - set(value)))
        raise InputError(f"{file}: missing key {place}.{absent}: give it beside {next(iter(value))}")
    return {key: _at(item, mode, file, f"{place}.{key}".lstrip(".")) for key, item in value.items()}


def plan(params: Params) -> list[Shard]:
    """Return one shard per piece of a block."""
    return [shard for name in Blocks.kinds() for shard in _block_shards(params, name)]


def _block_shards(params: Params, name: str) -> list[Shard]:
    block, shards = getattr(params.blocks, name), []
    images, files = _images(params, block) if isinstance(block, ImageBlock) else (None, ())
    pieces = block.pieces()
    for number, piece in enumerate(pieces, 1):
        title = name.replace("_", " ") + (f" {number}/{len(pieces)}" if len(pieces) > 1 else "")
        settings = {"params": piece.model_dump(mode="json"), "seed": params.seed, "images": images}
        shards.append(Shard("verify", name, title, settings, files, suffix=".json"))
    return shards


def _images(params: Params, block: ImageBlock) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return which images a block reads, as JSON, and the files that hold them."""
    spec = block.source(params.dataset)
    if params.dataset is None and params.resolution is not None:
        raise InputError("params.yaml: verify.resolution resizes verify.dataset only: set it to null")
    if spec is None:
        return {"source": None, "resolution": None}, (str(TRAIN),)
    source = open_source(spec)
    rows = subset_rows(len(source), block.images, params.seed)
    resolution = block.side(params.resolution if spec == params.dataset else None)
    return {"source": spec, "resolution": resolution}, source.files(rows)


def load(settings: dict[str, Any], count: int, seed: int) -> np.ndarray:
    """Return `count` images as `_images` chose them, uint8 (M, H, W, C), or all where there are fewer.

    Raises InputError for fewer than two.
    """
    if settings["source"] is None:
        table = read_images(TRAIN)
        images = table.images[subset_rows(len(table), count, seed)]
    else:
        source = open_source(settings["source"])
        images = read_subset(source, subset_rows(len(source), count, seed), settings["resolution"])
    if len(images) < 2:
        raise InputError(f"{settings['source'] or TRAIN} has {len(images)} images: verify needs at least 2")
    return images


def work(shard: Shard) -> Path:
    """Write the claims, tables and pictures of one piece, as JSON."""
    settings = shard.settings
    block = Blocks.kinds()[shard.task](**settings["params"])
    images = load(settings["images"], block.images, settings["seed"]) if isinstance(block, ImageBlock) else None
    found = block.findings(settings["seed"], images)
    pictures = {
        name: {"caption": picture.caption, "png": base64.b64encode(_png(picture)).decode("ascii")}
        for name, picture in found.pictures.items()
    }
    rows = [claim.row() for claim in found.claims]
    return write_json(shard.path, {"claims": rows, "tables": found.tables, "pictures": pictures})


def _png(picture: Picture, gap: int = 1) -> bytes:
    """Return the images in their grid, `gap` white pixels apart, as PNG."""
    rows, columns, height, width, channels = picture.pixels.shape
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, channels), 255, np.uint8)
    for row in range(rows):
        for column in range(columns):
            top, left = row * (height + gap), column * (width + gap)
            sheet[top : top + height, left : left + width] = picture.pixels[row, column]
    return png_bytes(sheet)


def gather(params: Params, parts: Parts) -> None:
    """Write verify.json with all claims, blocks.json, one TSV per table for `dvc plots`, and the pictures."""
    claims, described = [], []
    for name, kind in Blocks.kinds().items():
        block, own = getattr(params.blocks, name), [read_json(part) for part in parts[name]]
        tables: dict[str, Table] = {}
        for content in own:
            for table, rows in content["tables"].items():
                tables.setdefault(table, []).extend(rows)
        pictures = {key: value for content in own for key, value in content["pictures"].items()}
        _write(tables, pictures)
        rows = [row for content in own for row in content["claims"]] + [c.row() for c in block.conclude(tables)]
        claims += [{"topic": name, **row} for row in rows]
        images, usual = _dataset(params, block), _dataset(params, None)
        captions = [{"name": key, "caption": value["caption"]} for key, value in pictures.items()]
        title = kind.TITLE if images == usual else f"{kind.TITLE} ({images})"
        about = {"name": name, "title": title, "mode": params.mode, "dataset": images, "question": kind.QUESTION}
        described.append({**about, "tables": list(tables), "pictures": captions})
    write_json(OUT / "verify.json", {"claims": claims})
    write_json(OUT / "blocks.json", {"blocks": described})


def _dataset(params: Params, block: Block | None) -> str:
    """Name a block's images; without a block, or without images, those of most blocks."""
    spec = block.source(params.dataset) if isinstance(block, ImageBlock) else params.dataset
    return spec or "the pipeline's training images"


def _write(tables: dict[str, Table], pictures: dict[str, dict[str, str]]) -> None:
    for name, rows in tables.items():
        write_tsv(OUT / f"{name}.tsv", rows)
    for name, picture in pictures.items():
        with atomic_path(OUT / f"{name}.png") as temporary:
            temporary.write_bytes(base64.b64decode(picture["png"]))


if __name__ == "__main__":
    main("verify")
