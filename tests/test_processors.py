"""benchmarks.processors: two reports' numbers beside the spread over seeds, and trainings paired by their seeds."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ttest_rel

from benchmarks.processors import MEASURES, compared, paired
from stages.errors import InputError

COLUMNS = ("variant", "seed", "step", "count", *MEASURES.values())


def report(folder: Path, rate: float, copied: dict[int, int] | None) -> Path:
    """A report with one closed form and one network; copied: of 100 samples, by seed, at the end; None: no runs."""
    values = dict.fromkeys(MEASURES, rate)
    folder.mkdir()
    content = {"variants": {"closed": values, "net": values}}
    (folder / "metrics.json").write_text(json.dumps(content))
    if copied is not None:
        (folder / "plots").mkdir()
        with (folder / "plots" / "runs.tsv").open("w", newline="") as file:
            table = csv.writer(file, delimiter="\t")
            table.writerow(COLUMNS)
            for seed, number in copied.items():  # the end of the training first: the step decides, not the order
                table.writerows(
                    [["net", seed, 800.0, 100, number, 10, 0.5, 90 + number], ["net", seed, 100.0, 100, *[0] * 4]]
                )
    return folder


def test_numbers_stand_beside_their_spread_over_seeds(tmp_path):
    there, here = report(tmp_path / "a", 0.5, None), report(tmp_path / "b", 0.75, {42.0: 60, 43.0: 70, 44.0: 90})
    rows = {(variant, key): values for variant, key, *values in compared(there, here)}
    assert rows["closed", "copies_rate"] == [0.5, 0.75, None]
    assert rows["net", "copies_rate"] == [0.5, 0.75, pytest.approx(np.std([0.6, 0.7, 0.9], ddof=1))]
    assert rows["net", "fd_test"][2] == pytest.approx(np.std([60, 70, 90], ddof=1))
    assert list(paired(there, here)) == []


def test_trainings_are_paired_by_their_seeds(tmp_path):
    there = report(tmp_path / "a", 0.5, {42: 60, 43: 71, 44: 84})
    here = report(tmp_path / "b", 0.5, {44: 80, 42: 62, 43: 70, 45: 99})
    found = {(variant, key): text for variant, key, text in paired(there, here)}
    expected = ttest_rel([0.62, 0.7, 0.8], [0.6, 0.71, 0.84]).confidence_interval(0.95)
    assert found["net", "copies_rate"] == f"-0.01 [{expected.low:+.4g}, {expected.high:+.4g}]"


def test_reports_of_different_variants_do_not_compare(tmp_path):
    there, here = report(tmp_path / "a", 0.5, None), report(tmp_path / "b", 0.5, None)
    (here / "metrics.json").write_text(json.dumps({"variants": {"closed": {}}}))
    with pytest.raises(InputError, match=r"different variants \(net\): compare equal runs"):
        list(compared(there, here))
