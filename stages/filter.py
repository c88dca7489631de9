"""Stage filter@variant: which samples copy a training image, how sure that is, and the same for held-out images.

Outs in data/filter/VARIANT:
    pairs.parquet   one row per sample with its nearest and next training image, sorted by verdict, then ratio
    pairs.png       pairs of that list, evenly spaced, as pictures
    candidates.parquet   the pairs that `scoresmooth review data/filter/VARIANT` shows to a person, with their pictures
    filter.json     every metric with its rate, its interval and its control; verdicts; distances
    curve.tsv       where train kept snapshots: the share of each one's samples with r1/r2 < 0.7, with its interval
"""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from stages.errors import InputError
from stages.features.weights import EncoderParams, pinned
from stages.files.artifacts import read_metadata, write_json, write_parquet, write_tsv
from stages.files.images import ImageTable, read_images
from stages.files.paths import DATA, VERDICTS, curve_of, features_of, images_of, neighbors_of, samples_of
from stages.memorization.ratios import candidate_count
from stages.memorization.verdict_log import read_decisions
from stages.protocol import Parts, Section, Shard, StageParams, main, spans

if TYPE_CHECKING:
    import numpy as np

    from stages.memorization.metrics import Measured, Rules
    from stages.memorization.verified import Offered


class Ratios(Section):
    """Thresholds of r1/r2 for the verdicts; the metrics nn_ratio_1_3 and nn_ratio_0_7 have theirs in the name."""

    copy_below: float = Field(gt=0, lt=1, description="verdict copy")
    near_copy_below: float = Field(gt=0, lt=1, description="verdict near_copy, unless the features deny it")

    @model_validator(mode="after")
    def _ordered(self) -> "Ratios":
        if self.copy_below > self.near_copy_below:
            raise ValueError("copy_below must not exceed near_copy_below")
        return self


class Carlini(Section):
    """Carlini et al. 2023: a copy is nearer than alpha times the mean of the n nearest."""

    alpha: float = Field(gt=0, lt=1, description="share of the mean distance")
    n: int = Field(ge=2, description="how many nearest training images the mean is taken over")


class Grid(Section):
    """The picture of pairs."""

    rows: int = Field(ge=1, le=200, description="pairs below each other")
    columns: int = Field(ge=1, le=8, description="pairs beside each other")


class Params(StageParams):
    """The two-stage filter, the other copy metrics, and the verdicts."""

    SECTION: ClassVar[str] = "filter"
    SHARED: ClassVar[dict[str, str]] = {"encoder": "embed.encoder", "device": "embed.device"}
    PER_VARIANT: ClassVar[bool] = True

    variant: str
    encoder: EncoderParams
    device: Literal["auto", "cpu", "cuda"]
    neighbors: int = Field(
        ge=2, description="k: nearest training images of every sample, exact; rho is l1 over their mean"
    )
    percentile: float = Field(gt=0, le=100, description="q: the lowest q percent of rho go on to the feature stage")
    margin: float = Field(
        gt=0, description="feature distance allowed, in units of the training image's own to the next"
    )
    ratios: Ratios
    carlini: Carlini
    headline: Literal[
        "byte_identical", "nn_ratio_1_3", "nn_ratio_0_7", "carlini_sample", "carlini_train", "two_stage", "authenticity"
    ] = Field(description="the metric that the report leads with")
    grid: Grid
    candidates: int = Field(ge=0, description="most pairs in candidates.parquet, for a person to judge")
    verdicts: dict[str, str] = Field(description="variant -> file of people's verdicts, in data/verdicts")
    repeated_within: float = Field(
        ge=0, lt=1, description="a training image repeats if another one lies within this pixel distance l"
    )
    shards: int = Field(gt=0, description="pieces of the search; changes no result")

    @field_validator("verdicts")
    @classmethod
    def _watched(cls, verdicts: dict[str, str]) -> dict[str, str]:
        for path in verdicts.values():
            if VERDICTS not in Path(path).parents or ".." in Path(path).parts:
                raise ValueError(f"{path} does not lie in {VERDICTS}, where DVC sees it change: move it there")
        return verdicts

    @field_validator("carlini")
    @classmethod
    def _listed(cls, carlini: Carlini, info: ValidationInfo) -> Carlini:
        if carlini.n > info.data.get("neighbors", carlini.n):
            raise ValueError(f"n {carlini.n} exceeds filter.neighbors {info.data['neighbors']}: lower it")
        return carlini

    @property
    def rules(self) -> "Rules":
        """The metrics' parameters."""
        from stages.memorization.metrics import Rules

        return Rules(self.percentile, self.margin, self.carlini.alpha, self.carlini.n)


def plan(params: Params) -> list[Shard]:
    """Spans of the samples, then the held-out images: the same search for both. Then the snapshots' samples."""
    train, samples, holdout = (read_images(path) for path in (images_of("train"), *_sources(params.variant).values()))
    _check(params, train, samples, holdout)
    if params.variant in params.verdicts:
        read_decisions(params.verdicts[params.variant])  # a damaged file is found before any work
    common = {"encoder": pinned(params.encoder).model_dump(), "device": params.device}
    common |= {"neighbors": params.neighbors, "own_neighbors": params.carlini.n}
    shards = []
    for task, table, pieces in (("samples", samples, params.shards), ("holdout", holdout, 1)):
        # which images are candidates is known only when all are searched: each piece takes the features of as
        # many of its own lowest as there will be candidates, which is a superset
        settings = {**common, "features": candidate_count(len(table), params.percentile)}
        shards += _spans(params, task, _sources(params.variant)[task], pieces, settings)
    curve = curve_of(params.variant)
    return shards + (_spans(params, "curve", curve, params.shards, {}) if curve.exists() else [])


def _spans(params: Params, task: str, source: Path, pieces: int, settings: dict[str, Any]) -> list[Shard]:
    """The images of `source` in `pieces`. The held-out ones have no variant's name: all variants share their result."""
    cuts, inputs = spans(len(read_images(source)), pieces), (str(source), str(images_of("train")))
    titles = {"samples": params.variant, "holdout": "holdout", "curve": f"{params.variant} curve"}
    return [
        Shard(
            "filter", task, f"{titles[task]} {n}/{len(cuts)}", {**settings, "start": a, "stop": b}, inputs, ".parquet"
        )
        for n, (a, b) in enumerate(cuts, 1)
    ]


def _sources(variant: str) -> dict[str, Path]:
    return {"samples": samples_of(variant), "holdout": images_of("holdout")}


def _check(params: Params, train: ImageTable, samples: ImageTable, holdout: ImageTable) -> None:
    """Raise InputError where the metrics cannot be computed: too few images, or images of different shapes."""
    if params.neighbors > len(train):
        raise InputError(
            f"filter.neighbors: {params.neighbors} nearest training images were asked for, {images_of('train')} has "
            f"{len(train)}: lower it or raise ingest.train"
        )
    if params.carlini.n > len(train) - 1:
        raise InputError(
            f"filter.carlini.n: {params.carlini.n} nearest were asked for, "
            f"{len(train)} training images leave {len(train) - 1} to each: lower it"
        )
    for table, path, key in (
        (samples, samples_of(params.variant), "sample.count"),
        (holdout, images_of("holdout"), "ingest.holdout"),
    ):
        if len(table) == 0:
            raise InputError(f"{path} holds no images: raise {key}")
        if table.images.shape[1:] != train.images.shape[1:]:
            shapes = f"{table.images.shape[1:]}, {images_of('train')} of shape {train.images.shape[1:]}"
            raise InputError(f"{path} holds images of shape {shapes}: rerun the stages from ingest on")


def work(shard: Shard) -> Path:
    """Search images start..stop: k nearest, their nearest one's own neighbours, features of the lowest ρ.

    Of a snapshot's samples only r₁/r₂.
    """
    import numpy as np
    import pyarrow as pa

    from stages.features.encoders import load_encoder
    from stages.memorization.ratios import lowest, nn_ratio, rho
    from stages.search.nearest import nearest

    settings = shard.settings
    table, train = read_images(shard.inputs[0]), read_images(shard.inputs[1])
    span = slice(settings["start"], settings["stop"])
    if shard.task == "curve":
        ratio = nn_ratio(nearest(table.flat[span], train.flat, 2)[1])
        return write_parquet(shard.path, pa.table({"ratio": ratio}))
    index, squared = nearest(table.flat[span], train.flat, settings["neighbors"])
    found, back = np.unique(index[:, 0], return_inverse=True)
    _, own_squared = nearest(train.flat[found], train.flat, settings["own_neighbors"], exclude=found)
    rows = lowest(rho(squared), min(settings["features"], len(index)))
    encoder = load_encoder(EncoderParams(**settings["encoder"]), settings["device"])
    features: list[Any] = [None] * len(index)
    for row, feature in zip(rows, encoder(table.images[span][rows])):
        features[row] = feature
    columns = {
        "index": _lists(index),
        "squared": _lists(squared),
        "own_squared": _lists(own_squared[back]),
        "feature": pa.array(features, pa.list_(pa.float32())),
    }
    return write_parquet(shard.path, pa.table(columns), encoder.metadata)


def _lists(values: "np.ndarray") -> Any:
    import pyarrow as pa

    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


def gather(params: Params, parts: Parts) -> None:
    """Verdicts, the table of pairs, their picture, and every metric beside its control."""
    from stages.memorization.metrics import distance_summary, metrics_table, ratio_summary
    from stages.memorization.verdicts import VERDICTS

    train = read_images(images_of("train"))
    samples, holdout = (_measured(parts[task], train, params.rules) for task in ("samples", "holdout"))
    pairs = _pairs(params, samples, read_images(samples_of(params.variant)), train)
    out = DATA / "filter" / params.variant
    write_parquet(out / "pairs.parquet", pairs, {"variant": params.variant})
    _draw(out / "pairs.png", params, pairs, read_images(samples_of(params.variant)), train)
    offered = _offer(out, params, samples, pairs, train)
    verdicts = Counter(pairs["verdict"].to_pylist())
    copied = zip(pairs["train_index"].to_pylist(), pairs["verdict"].to_pylist())
    summary = {
        "variant": params.variant,
        "count": len(samples),
        "headline": params.headline,
        "metrics": metrics_table(samples, holdout, params.rules, params.encoder.name),
        "distance": distance_summary(samples, holdout),
        "ratio": ratio_summary(samples, holdout),
        "verdicts": {name: verdicts[name] for name in VERDICTS},
        # distinct training images that a copy or near_copy is of
        "unique_training_images": len({row for row, verdict in copied if verdict in ("copy", "near_copy")}),
        "verified": _verified(params, samples, pairs, offered),
    }
    write_json(out / "filter.json", summary)
    (out / "curve.tsv").unlink(missing_ok=True)  # of an earlier run that had snapshots
    if "curve" in parts:
        write_tsv(out / "curve.tsv", _curve(parts["curve"], read_images(curve_of(params.variant)).metadata["steps"]))


def _curve(parts: list[Path], steps: list[int]) -> list[dict[str, float]]:
    """Each snapshot's share of samples that nn_ratio_0_7 flags, with its 95 % Wilson interval."""
    import numpy as np
    import pyarrow.parquet as pq

    from stages.memorization.statistics import wilson

    ratio = np.concatenate([pq.read_table(part)["ratio"].to_numpy() for part in parts]).reshape(len(steps), -1)
    rows = []
    for step, flagged in zip(steps, (ratio < 0.7).sum(axis=1).tolist()):
        count = ratio.shape[1]
        low, high = wilson(flagged, count)
        rows.append(
            {"step": step, "count": count, "flagged": flagged, "share": flagged / count, "low": low, "high": high}
        )
    return rows


def _measured(parts: list[Path], train: ImageTable, rules: "Rules") -> "Measured":
    """The parts' searches joined, with the feature distances of their candidates."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from stages.memorization.metrics import Measured

    tables = [pq.read_table(part) for part in parts]
    joined = pa.concat_tables([table.replace_schema_metadata(None) for table in tables])
    index, squared, own = (_matrix(joined[name]) for name in ("index", "squared", "own_squared"))
    nothing = np.full(len(index), np.nan)
    bare = Measured(index, squared, own, nothing, nothing, train.dimension)
    rows = np.flatnonzero(bare.candidates(rules))
    features = np.array(joined["feature"].take(pa.array(rows)).to_pylist(), np.float64)
    distance, spacing = nothing.copy(), nothing.copy()
    known, own_spacing = _train_features([read_metadata(table.schema) for table in tables], train)
    nearest_rows = index[rows, 0]
    distance[rows] = np.linalg.norm(features - known[nearest_rows].astype(np.float64), axis=1)
    spacing[rows] = own_spacing[nearest_rows]
    return Measured(index, squared, own, distance, spacing, train.dimension)


def _matrix(column: Any) -> "np.ndarray":
    values = column.combine_chunks()
    return values.flatten().to_numpy().reshape(len(values), values.type.list_size)


def _train_features(made: list[dict[str, Any]], train: ImageTable) -> tuple["np.ndarray", "np.ndarray"]:
    """The training images' features (M, D) and each one's distance to the nearest other, made as `made` says."""
    from stages.files.features import read_features
    from stages.files.neighbors import read_neighbors

    features, neighbors = read_features(features_of("train")), read_neighbors(neighbors_of("feature"))
    for table, path, stage in (
        (features, features_of("train"), "embed"),
        (neighbors, neighbors_of("feature"), "index"),
    ):
        if table.ids != train.ids:
            raise InputError(f"{path} does not hold {images_of('train')}, row by row: rerun stage {stage}")
    if neighbors.nn_distance is None:
        raise InputError(f"{neighbors_of('feature')} has no column nn_distance: rerun stage index")
    for metadata in made:
        differing = sorted(key for key in metadata if metadata[key] != features.metadata.get(key))
        if differing:
            key = differing[0]
            raise InputError(
                f"{features_of('train')} was made with {key} {features.metadata.get(key)!r}, the samples' "
                f"features with {metadata[key]!r}: rerun stages embed and filter on the same kind of device"
            )
    return features.features, neighbors.nn_distance


def _pairs(params: Params, measured: "Measured", samples: ImageTable, train: ImageTable) -> Any:
    """The table of pairs, sorted by verdict, then ratio, then sample."""
    import numpy as np
    import pyarrow as pa

    from stages.memorization.ratios import nn_ratio, pixel_distance, rho
    from stages.memorization.verdicts import Evidence, order, verdicts

    flags, candidate, ratio = (
        measured.flags(params.rules),
        measured.candidates(params.rules),
        nn_ratio(measured.squared),
    )
    evidence = Evidence(flags["byte_identical"], ratio, flags["carlini_sample"], candidate, flags["two_stage"])
    verdict, reason = verdicts(evidence, params.ratios.copy_below, params.ratios.near_copy_below)
    nearest_rows, next_rows = measured.index[:, 0], measured.index[:, 1]
    table = pa.table(
        {
            "sample_index": np.arange(len(measured)),
            "sample_id": samples.ids,
            "train_index": nearest_rows,
            "train_id": [train.ids[row] for row in nearest_rows],
            "next_index": next_rows,
            "next_id": [train.ids[row] for row in next_rows],
            "distance": measured.distance,
            "ratio": ratio,
            "rho": rho(measured.squared),
            "train_spacing": pixel_distance(measured.own_squared[:, 0], measured.dimension),
            "candidate": candidate,
            "feature_distance": pa.array(measured.feature_distance, mask=~candidate),
            "feature_threshold": pa.array(params.margin * measured.feature_spacing, mask=~candidate),
            "verdict": verdict,
            "reason": reason,
        }
    )
    return table.take(pa.array(order(verdict, ratio)))


def _offer(out: Path, params: Params, measured: "Measured", pairs: Any, train: ImageTable) -> "Offered":
    """Write candidates.parquet: of the pairs that any rule suspects, as many as params.yaml allows."""
    import numpy as np

    from stages.memorization.candidates import NAME, choose, write_candidates
    from stages.memorization.verified import Offered

    confirmed = measured.flags(params.rules)["two_stage"][pairs["sample_index"].to_numpy()]
    suspected = confirmed | pairs["candidate"].to_numpy() | (np.array(pairs["verdict"].to_pylist()) != "novel")
    rows = choose(pairs["rho"].to_numpy(), confirmed, suspected, params.candidates)
    chosen = pairs.take(rows)
    following = measured.index[chosen["sample_index"].to_numpy(), 1:]
    metadata = {"variant": params.variant, "samples": len(measured), "suspected": int(suspected.sum())}
    images = read_images(samples_of(params.variant)).images
    write_candidates(out / NAME, chosen, following, images, train.images, metadata)
    return Offered(suspected, np.isin(np.arange(pairs.num_rows), rows))


def _verified(params: Params, measured: "Measured", pairs: Any, offered: "Offered") -> dict[str, Any] | None:
    """What people decided about the pairs; None where params.yaml names no verdicts for this variant."""
    from stages.memorization.verified import verified_summary
    from stages.search.pixel_distance import squared_radius

    if params.variant not in params.verdicts:
        return None
    radius = squared_radius(params.repeated_within, measured.dimension)
    repeated = measured.own_squared[pairs["sample_index"].to_numpy(), 0] <= radius
    summary = verified_summary(params.verdicts[params.variant], pairs, offered, repeated)
    return {**summary, "repeated_within": params.repeated_within}


def _draw(path: Path, params: Params, pairs: Any, samples: ImageTable, train: ImageTable) -> None:
    from stages.memorization.pictures import Pair, draw_pairs, spread_rows

    rows = spread_rows(len(pairs), params.grid.rows * params.grid.columns)
    shown = [
        Pair(
            (samples.images[row["sample_index"]], train.images[row["train_index"]], train.images[row["next_index"]]),
            row["verdict"],
            row["ratio"],
            row["distance"],
        )
        for row in pairs.take(rows).to_pylist()
    ]
    words = f"{len(shown)} of {len(pairs)} pairs, evenly spaced in the order of verdict, then r1/r2 (column by column)"
    draw_pairs(path, shown, params.grid.columns, params.variant, words)


if __name__ == "__main__":
    main("filter")
