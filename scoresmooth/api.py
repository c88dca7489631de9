"""`audit` and what it returns: a thin layer over stages.audit."""

import dataclasses
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from scoresmooth.images import Images, Layout, as_source, write_groups
from stages.audit import answer, perform, prepare_folder
from stages.memorization.audit_settings import audit_params


@dataclasses.dataclass(frozen=True, repr=False)
class Audit:
    """A finished audit.

    Attributes:
        result: everything that audit.json holds.
        pairs: an Arrow table with a row for every sample: its best match, distances, verdict, flags. `to_pandas()`
            needs pandas.
        kept: int64, the positions of the samples that are not copies, ascending: `samples[audit.kept]`. Samples that
            could not be read are left out.
        folder: where the files of the audit lie; without `out` it vanishes with this object.
    """

    result: dict[str, Any]
    pairs: pa.Table
    kept: np.ndarray
    folder: Path
    _scratch: "tempfile.TemporaryDirectory[str] | None" = dataclasses.field(default=None, compare=False)

    @property
    def copies(self) -> int:
        """How many samples are copies."""
        return int(self._calibrated["flagged"])

    @property
    def rate(self) -> float:
        """The share of samples that are copies."""
        return float(self._calibrated["rate"])

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of `rate`."""
        return float(self._calibrated["ci_low"]), float(self._calibrated["ci_high"])

    @property
    def excess(self) -> tuple[float, float, float]:
        """`rate` minus the rate of unseen real images under the same rule, and its 95 % interval (value, low, high)."""
        found = self._calibrated
        return float(found["excess"]), float(found["excess_low"]), float(found["excess_high"])

    @property
    def notes(self) -> list[str]:
        """What was changed, left out or subsampled, a sentence each."""
        return list(self.result["notes"])

    @property
    def _calibrated(self) -> dict[str, Any]:
        found: dict[str, Any] = self.result["metrics"]["calibrated"]
        return found

    def report(self, path: Path | str) -> Path:
        """Write the page with the suspected pairs, one HTML file that opens without a network, to `path`."""
        return Path(shutil.copyfile(self.folder / "report.html", path))

    def to_json(self) -> str:
        """Return all numbers as JSON with sorted keys: the content of audit.json."""
        return json.dumps(self.result, indent=2, sort_keys=True, allow_nan=False) + "\n"

    def __repr__(self) -> str:
        low, high = self.interval
        return f"<Audit: {self.copies:,} of {self._calibrated['count']:,} samples are copies [{low:.2%}, {high:.2%}]>"

    def __str__(self) -> str:
        return answer(self.result, self.folder)


class SelfTestFailed(RuntimeError):
    """The self-test misses known copies on these images, so that the audit has no answer.

    Attributes:
        audit: the audit all the same; its rates mean nothing.
    """

    def __init__(self, audit: Audit):
        super().__init__(audit.result["failure"])
        self.audit = audit


def audit(
    train: Images,
    samples: Images,
    holdout: Images | None = None,
    *,
    layout: Layout | Mapping[str, Layout] | None = None,
    out: Path | str | None = None,
    encoder: str = "efficientnet-lite0",
    weights: str | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    memory_budget: str = "4GiB",
    fail_above: float | None = None,
    percentile: float = 1.0,
    margin: float = 1.0,
    resolution: int | None = None,
    fit: Literal["crop", "squash", "pad"] = "crop",
    near: float | None = None,
    features: int = 2000,
    seed: int = 0,
    groups: Path | str | Sequence[Any] | None = None,
    group_by: str | None = None,
    no_images: bool = False,
    work: Path | str | None = None,
    progress: bool = False,
) -> Audit:
    """Count the samples that copy a training image, as `scoresmooth audit` does.

    >>> import numpy as np, scoresmooth
    >>> images = np.random.default_rng(0).integers(0, 256, (340, 4, 4, 1), np.uint8)
    >>> images = images.repeat(4, axis=1).repeat(4, axis=2)  # 16 x 16, grey
    >>> train, samples, unseen = images[:200], images[200:240], images[240:]
    >>> samples[:5] = train[:5]
    >>> found = scoresmooth.audit(train, samples, unseen, layout="NHWC", encoder="pixels")
    >>> found
    <Audit: 5 of 40 samples are copies [5.46%, 26.11%]>
    >>> found.kept[:3]
    array([5, 6, 7])
    >>> found.pairs["train_index"][:3].to_pylist()
    [0, 1, 2]

    Args:
        train, samples, holdout: the training images, the generated ones, and better also real ones that the model was
            not trained on. Each is a uint8 array of NumPy or PyTorch, a sequence of pictures (PIL, or arrays), a
            `datasets.Dataset`, a data set of PyTorch whose items are pictures or (picture, label), a path, or a
            source of the command line ("parquet:PATH").
        layout: "NHWC" or "NCHW", the axes of arrays with channels; or by set: {"train": "NHWC", "samples": "NCHW"}.
        out: the folder that the files are written to; None: a temporary one, which vanishes with the result. An
            interrupted audit of one `out` continues where it stopped.
        groups: the group (prompt, class, patient) of every sample, in order; or the CSV file of the option.
        work: the folder of partial results. With one `work` for the checkpoints of a training, the training images are
            searched for their own neighbours, and the unseen images against them, only once.
        progress: show a progress bar.

    All other arguments are the options of `scoresmooth audit`, which --help explains.

    Raises:
        InputError: an argument or an image set is wrong.
        SelfTestFailed: the audit misses known copies on these images.
    """
    options = dict(locals())
    for name in ("layout", "progress"):
        del options[name]
    scratch = tempfile.TemporaryDirectory(prefix="scoresmooth-") if out is None else None
    options["out"] = folder = Path(scratch.name if scratch else str(out))
    options["work"] = shared = None if work is None else Path(work)
    inputs = prepare_folder(folder, shared) / "inputs"
    for role in ("train", "samples", "holdout"):
        axes = layout.get(role) if isinstance(layout, Mapping) else layout
        if options[role] is not None:
            options[role] = as_source(role, options[role], axes, inputs)
    if groups is not None and not isinstance(groups, str | Path):
        options["groups"] = write_groups(groups, group_by or "group", inputs / "groups.csv")
    done = perform(audit_params(**options), quiet=not progress)
    found = Audit(done.result, done.pairs, done.kept, folder, scratch)
    if done.result["failure"]:
        raise SelfTestFailed(found)
    return found
