"""Copies per group of samples: the counts, the tests, where the groups come from, and the page."""

import itertools

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from saved import save
from scipy.stats import fisher_exact

from stages.errors import InputError
from stages.files.png import png_bytes
from stages.images.sources.image_groups import group_values
from stages.images.sources.open import open_source
from stages.memorization.group_rates import class_rates, holm, more_than_the_others
from stages.memorization.statistics import rate_interval


def test_holm_is_the_closed_test_of_bonferroni():
    """Holm's adjusted p of a hypothesis is the largest Bonferroni p of all intersections that contain it."""
    generator = np.random.default_rng(0)
    for _ in range(50):
        p = generator.uniform(0, 0.4, 5)
        sets = [list(s) for size in range(1, 6) for s in itertools.combinations(range(5), size)]
        closed = [max(min(1, len(s) * p[s].min()) for s in sets if one in s) for one in range(5)]
        assert holm(p) == pytest.approx(closed)


def test_no_group_stands_out_more_often_than_stated_where_all_are_alike():
    generator = np.random.default_rng(1)
    wrong = 0
    for _ in range(1000):
        count = generator.integers(5, 60, 20)
        wrong += holm(more_than_the_others(generator.binomial(count, 0.1), count)).min() < 0.05
    assert wrong / 1000 < 0.064  # 0.05 and two standard errors; Fisher's test is on the safe side


def test_the_test_of_a_group_is_fishers():
    flagged, count = np.array([6, 2, 0, 0]), np.array([14, 10, 8, 8])
    others, rest = 8 - flagged, 32 - (count - flagged)
    tables = [[[k, n - k], [o, r]] for k, n, o, r in zip(flagged, count, others, rest)]
    expected = [fisher_exact(table, "greater").pvalue for table in tables]
    assert more_than_the_others(flagged, count) == pytest.approx(expected)


@pytest.fixture
def grouped(digits):
    """Sets, and samples of three prompts: of "cat" 8 of 10 are copies, of "dog" 1 of 20; both copy image 0."""
    samples = np.concatenate([digits[:8], digits[300:302], digits[:1], digits[302:331]])
    prompts = ["cat"] * 10 + ["dog"] * 20 + ["owl"] * 10
    return (digits[:200], samples, digits[400:560]), prompts


def test_copies_are_counted_per_group(grouped, audit, tmp_path):
    sets, prompts = grouped
    table = tmp_path / "groups.csv"
    table.write_text("row,prompt\n" + "".join(f"{row},{prompt}\n" for row, prompt in enumerate(prompts)))
    _, result, pairs = audit(*sets, groups=table)
    found = {entry["group"]: entry for entry in result["groups"]["groups"]}
    flags = dict(zip(pairs["sample_index"].to_pylist(), pairs["flag_calibrated"].to_pylist()))
    for name, entry in found.items():
        rows = [row for row, prompt in enumerate(prompts) if prompt == name]
        assert (entry["count"], entry["flagged"]) == (len(rows), sum(flags[row] for row in rows))
        assert (entry["ci_low"], entry["ci_high"]) == rate_interval(entry["flagged"], entry["count"])
    assert found["cat"]["flagged"] == 8
    assert found["cat"]["p_holm"] < 0.001
    assert result["groups"]["above"] == 1
    assert [entry["groups"] for entry in result["groups"]["across"] if entry["train_index"] == 0] == [
        {"cat": 1, "dog": 1}
    ]
    assert [prompts[row] for row in pairs["sample_index"].to_pylist()] == pairs["group"].to_pylist()
    page = (tmp_path / "out" / "report.html").read_text()
    assert "1 of 3 groups copy more than the other samples do" in page


def test_a_column_of_the_samples_table_is_the_group(grouped, audit, tmp_path):
    (train, samples, holdout), prompts = grouped
    cells = [{"bytes": png_bytes(image), "path": None} for image in samples]
    pq.write_table(pa.table({"image": cells, "prompt": prompts}), tmp_path / "s.parquet")
    _, result, _ = audit(train, f"parquet:{tmp_path}/s.parquet", holdout, group_by="prompt")
    assert {entry["group"]: entry["count"] for entry in result["groups"]["groups"]} == {"cat": 10, "dog": 20, "owl": 10}
    with pytest.raises(InputError, match="has no column 'promt'"):
        open_source(f"parquet:{tmp_path}/s.parquet").column("promt")


@pytest.fixture
def folder(tmp_path):
    """A folder source of a/0.png, a/1.png, b/0.png."""
    for name in ("a/0", "a/1", "b/0"):
        path = tmp_path / "pictures" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4)).save(path)
    return open_source(f"folder:{tmp_path}/pictures")


def test_files_are_named_by_the_end_of_their_path(folder, tmp_path):
    table = tmp_path / "groups.csv"
    table.write_text("\ufefffile,prompt,seed\nb/0.png,x,1\n1.png,y,2\na/0.png,,3\n", encoding="utf-8")
    assert group_values(folder, table, "prompt") == ["", "y", "x"]
    assert group_values(folder, table, "seed") == ["3", "2", "1"]
    assert group_values(folder, None, "label") == ["a", "a", "b"]
    assert group_values(folder, None, None) is None


@pytest.mark.parametrize(
    ("text", "column", "words"),
    [
        ("file,prompt\n0.png,x\n", None, "file '0.png': 2 samples end so: write more of the path"),
        ("file,prompt\nc.png,x\n", None, "file 'c.png': no sample has this name"),
        ("file,prompt\nb/0.png,x\n", None, "lacks 2 of 3 samples, e.g. .*a/0.png"),
        ("row,prompt\n0,x\n0,y\n1,x\n2,x\n", None, "names .*a/0.png twice"),
        ("row,prompt\n3,x\n", None, "row '3' is not within 0..2"),
        ("name,prompt\n0,x\n", None, "its columns are name, prompt: it needs file or row"),
        ("row,a,b\n0,x,y\n", None, "has the columns a, b: name one with --group-by"),
        ("row,a\n0,x\n", "b", "no such column, only a"),
        ("row,a\n", None, "holds no rows"),
    ],
)
def test_groups_that_do_not_fit_are_refused(folder, tmp_path, text, column, words):
    (tmp_path / "groups.csv").write_text(text)
    with pytest.raises(InputError, match=words):
        group_values(folder, tmp_path / "groups.csv", column)


def test_a_file_that_is_no_csv_is_refused(folder, tmp_path):
    (tmp_path / "groups.csv").write_bytes(b"row,a\n\xff\xfe")
    for path in (tmp_path / "groups.csv", tmp_path / "absent.csv"):
        with pytest.raises(InputError, match="is not a readable CSV file in UTF-8"):
            group_values(folder, path, None)


def test_without_labels_there_is_no_column_label(digits, tmp_path):
    source = open_source(save(tmp_path / "a.npy", digits[:3]))
    with pytest.raises(InputError, match="has no column 'label': name one of its table, or give --groups"):
        source.column("label")


def test_rates_of_classes_have_the_held_out_images_of_the_class_as_control():
    labels, copied = np.array([7, 3, 3, 7, 3, 3]), np.array([True, True, False, True, False, False])
    rows = class_rates(labels, copied, np.array([3, 3, 5]), np.array([True, False, True]))
    assert [(row["group"], row["flagged"], row["count"]) for row in rows] == [("3", 1, 4), ("7", 2, 2)]
    assert (rows[0]["holdout"]["flagged"], rows[0]["holdout"]["count"]) == (1, 2)
    assert rows[1]["holdout"] is None
    assert rows[1]["p"] == pytest.approx(4 / 20)  # 4 of the 20 choices of 3 copies among 6 samples hold both of class 7
