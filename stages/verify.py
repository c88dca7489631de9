"""Stage verify: the theory's claims, measured. One row per claim, in data/verify/verify.json.

Beside it blocks.json (what was computed with which images), one TSV per table, and pictures.

The claims come in blocks (stages/theory/claims.py says how to add one); each is one shard, or several. Their numbers
stand in a file of their own, stages/theory/blocks.yaml: DVC parses params.yaml once per stage. Values written
`{quick: A, full: B}` there are read by `mode`: quick runs within the default pipeline, full is the size of the papers.

Images come from what the pipeline ingested (data/deduplicate/train.arrow), or from any source named by `dataset`. DVC
watches the former only: after changing a named source's files, `dvc repro -f verify` reads them again (shards are
cached under the digests of the files, so what did not change is not computed twice). Since train.arrow stays a
dependency, ingesting other images runs the stage again in either case; its shards then come from the cache.
"""

import base64
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, ValidationError

from stages.errors import InputError
from stages.files.artifacts import atomic_path, read_json, write_json, write_tsv
from stages.files.images import read_images
from stages.files.paths import DATA, images_of
from stages.files.png import png_bytes
from stages.images.sources.open import open_source
from stages.images.subset import read_subset, subset_rows
from stages.protocol import Parts, Section, Shard, StageParams, explain, load_tree, main
from stages.theory.bias_variance_claims import BiasVariance
from stages.theory.claims import Block, Findings, ImageBlock, Picture, Table
from stages.theory.collapse import Collapse
from stages.theory.domination import ImageDomination, SigmaDomination
from stages.theory.expansion import Expansion
from stages.theory.jacobian import Jacobian
from stages.theory.line_claims import Line
from stages.theory.mismatch import Mismatch, MismatchTrajectory
from stages.theory.relu_claims import ReluNetworks
from stages.theory.shell import ShellMass, ShellTouch
from stages.theory.smoothed_samples import SmoothedCircle, SmoothedSamples

OUT = DATA / "verify"
TRAIN = images_of("train")
MODES = ("quick", "full")


class Blocks(Section):
    """What is computed: one field per block, in the order of the report."""

    shell_mass: ShellMass
    shell_touch: ShellTouch
    sigma_domination: SigmaDomination
    image_domination: ImageDomination
    jacobian: Jacobian
    expansion: Expansion
    collapse: Collapse
    mismatch: Mismatch
    mismatch_trajectory: MismatchTrajectory
    line: Line
    relu_networks: ReluNetworks
    bias_variance: BiasVariance
    smoothed_circle: SmoothedCircle
    smoothed_images: SmoothedSamples

    @classmethod
    def kinds(cls) -> dict[str, type[Block]]:
        """The blocks by name."""
        return {name: info.annotation for name, info in cls.model_fields.items()}


class Params(StageParams):
    """What to verify, on which images."""

    SECTION: ClassVar[str] = "verify"

    mode: Literal["quick", "full"] = Field(description="which value is read where a block gives {quick:, full:}")
    seed: int = Field(ge=0, lt=2**32, description="seed of all random draws")
    dataset: str | None = Field(min_length=1, description="a source of images; null: what the pipeline ingested")
    resolution: int | None = Field(ge=1, le=4096, description="side to resize `dataset` to; null: as it is")
    blocks: Blocks = Field(description="what the YAML file named here holds")

    @classmethod
    def from_tree(cls, tree: dict[str, Any], variant: str | None = None) -> Self:
        """See StageParams.from_tree. The blocks' values of both modes are checked, those of `mode` returned."""
        section = tree.get(cls.SECTION)
        if not isinstance(section, dict) or "blocks" not in section:
            return super().from_tree(tree, variant)
        both = _read_blocks(section["blocks"])
        mode = section.get("mode") if section.get("mode") in MODES else MODES[0]  # a wrong one is its field's error
        return super().from_tree({**tree, cls.SECTION: {**section, "blocks": both[mode]}}, variant)


def _read_blocks(given: Any) -> dict[str, Blocks]:
    """The blocks of each mode, from the file that params.yaml names. Raises InputError: file and key."""
    file, place, values = "params.yaml", "verify.blocks", given  # python -m stages.verify takes them written out, too
    if isinstance(given, str):
        file, place, values = given, "", load_tree(given)
    both = {mode: _at(values, mode, file, place) for mode in MODES}
    found = {}
    for mode, chosen in both.items():
        try:
            found[mode] = Blocks.model_validate(chosen)
        except ValidationError as error:
            raise InputError(explain(error, place, {}, chosen, file)) from error
    return found


def _at(value: Any, mode: str, file: str, place: str) -> Any:
    """`value`, at `place` in `file`, with every {quick: A, full: B} in it replaced by the one of `mode`."""
    if not isinstance(value, dict):
        return value
    if set(value) == set(MODES):
        return value[mode]
    if len(value) == 1 and set(value) < set(MODES):
        absent = next(iter(set(MODES) - set(value)))
        raise InputError(f"{file}: missing key {place}.{absent}: give it beside {next(iter(value))}")
    return {key: _at(item, mode, file, f"{place}.{key}".lstrip(".")) for key, item in value.items()}


def plan(params: Params) -> list[Shard]:
    """One shard per piece of a block."""
    return [shard for name in Blocks.kinds() for shard in _block_shards(params, name)]


def _block_shards(params: Params, name: str) -> list[Shard]:
    block = getattr(params.blocks, name)
    images, files = _images(params, block) if isinstance(block, ImageBlock) else (None, ())
    pieces = block.pieces()
    title = name.replace("_", " ")
    return [
        Shard(
            "verify",
            name,
            title if len(pieces) == 1 else f"{title} {number}/{len(pieces)}",
            {"params": piece.model_dump(mode="json"), "seed": params.seed, "images": images},
            files,
            suffix=".json",
        )
        for number, piece in enumerate(pieces, 1)
    ]


def _images(params: Params, block: ImageBlock) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Which images a block reads, as JSON, and the files that hold them."""
    spec = block.source(params.dataset)
    if params.dataset is None and params.resolution is not None:
        raise InputError("params.yaml: verify.resolution resizes verify.dataset only: set it to null")
    if spec is None:
        return {"source": None, "resolution": None}, (str(TRAIN),)
    source = open_source(spec)
    rows = subset_rows(len(source), block.images, params.seed)
    resolution = params.resolution if spec == params.dataset else None
    return {"source": spec, "resolution": resolution}, source.files(rows)


def load(settings: dict[str, Any], count: int, seed: int) -> np.ndarray:
    """uint8 (M, H, W, C): `count` images in a seeded choice, as `_images` described them; all where there are fewer."""
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
    """The claims, tables and pictures of one piece, as JSON."""
    settings = shard.settings
    block = Blocks.kinds()[shard.task](**settings["params"])
    images = load(settings["images"], block.images, settings["seed"]) if isinstance(block, ImageBlock) else None
    findings = block.findings(settings["seed"], images)
    return write_json(shard.path, _as_json(findings))


def _as_json(findings: Findings) -> dict[str, Any]:
    return {
        "claims": [claim.row() for claim in findings.claims],
        "tables": findings.tables,
        "pictures": {
            name: {"caption": picture.caption, "png": base64.b64encode(_png(picture)).decode("ascii")}
            for name, picture in findings.pictures.items()
        },
    }


def _png(picture: Picture, gap: int = 1) -> bytes:
    """The images in their grid, `gap` white pixels apart."""
    rows, columns, height, width, channels = picture.pixels.shape
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, channels), 255, np.uint8)
    for row in range(rows):
        for column in range(columns):
            top, left = row * (height + gap), column * (width + gap)
            sheet[top : top + height, left : left + width] = picture.pixels[row, column]
    return png_bytes(sheet)


def gather(params: Params, parts: Parts) -> None:
    """verify.json with all claims, blocks.json, one TSV per table for `dvc plots`, and the pictures."""
    claims, described = [], []
    for name, kind in Blocks.kinds().items():
        scope = {"mode": params.mode, "dataset": _dataset(params, getattr(params.blocks, name))}
        own = [read_json(part) for part in parts[name]]
        tables = _joined([content["tables"] for content in own])
        rows = [row for content in own for row in content["claims"]]
        rows += [claim.row() for claim in getattr(params.blocks, name).conclude(tables)]
        claims += [{"topic": name, **row} for row in rows]
        pictures = {key: value for content in own for key, value in content["pictures"].items()}
        _write(tables, pictures)
        captions = [{"name": key, "caption": value["caption"]} for key, value in pictures.items()]
        title = kind.TITLE if scope["dataset"] == _dataset(params, None) else f"{kind.TITLE} ({scope['dataset']})"
        described.append({"name": name, "title": title, **scope, "tables": list(tables), "pictures": captions})
    write_json(OUT / "verify.json", {"claims": claims})
    write_json(OUT / "blocks.json", {"blocks": described})


def _dataset(params: Params, block: Block | None) -> str:
    """What a block's images are, in words; without a block, or without images, those of most blocks."""
    spec = block.source(params.dataset) if isinstance(block, ImageBlock) else params.dataset
    return spec or "the pipeline's training images"


def _joined(parts: list[dict[str, Table]]) -> dict[str, Table]:
    tables: dict[str, Table] = {}
    for part in parts:
        for name, rows in part.items():
            tables.setdefault(name, []).extend(rows)
    return tables


def _write(tables: dict[str, Table], pictures: dict[str, dict[str, str]]) -> None:
    for name, rows in tables.items():
        write_tsv(OUT / f"{name}.tsv", rows)
    for name, picture in pictures.items():
        with atomic_path(OUT / f"{name}.png") as temporary:
            temporary.write_bytes(base64.b64decode(picture["png"]))


if __name__ == "__main__":
    main("verify")
