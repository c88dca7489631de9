"""Copies at equal quality: synthetic trainings whose answer is known, by formula, in the results and on the page."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from page_text import text_of
from report_project import IMAGES, REPORT, write_project, write_runs

from stages.errors import InputError
from stages.memorization.first_reached import BEFORE, NEVER, Stop, first_reached
from stages.memorization.onset import onset
from stages.protocol import run_plain
from stages.reporting.answer import earlier_words, late_words
from stages.reporting.frontier import at_equal_distance, slope
from stages.reporting.runs import FLAGGED, Columns, final, joined, mean_at_the_end, rates
from stages.reporting.terminal import print_results
from stages.reporting.words import cell, number

STEPS = np.array([100, 200, 400, 800, 1600])
FD = np.array([200.0, 150.0, 110.0, 80.0, 70.0])
COPIED = np.array([0.02, 0.10, 0.25, 0.45, 0.60])


def runs(fd: np.ndarray, ratio: np.ndarray, distance: np.ndarray | None = None, blend: float = 0.02, seed: int = 1):
    """A seed's steps for write_runs. The seeds differ a little, so that intervals have a length."""
    near = ratio if distance is None else distance
    shift = 0.005 * (seed - 2)
    rows = zip(STEPS, fd, np.clip(ratio + shift, 0, 1), np.clip(near + shift, 0, 1))
    return [
        {"step": int(step), "fd": float(f + seed), "ratio": r, "distance": d, "blend": blend} for step, f, r, d in rows
    ]


SMOOTHED: dict[str, Callable[[int], list[dict]]] = {
    # the plain network has 110 at step 400 with 25 % copied; 95 half-way to step 800 with 35 %
    "better": lambda seed: runs(FD + 40, 0.2 * COPIED, seed=seed),  # ends at 110 with 12 %
    "equal": lambda seed: runs(FD + 25, 35 / 60 * COPIED, seed=seed),  # ends at 95 with 35 %
    "worse": lambda seed: runs(FD + 40, COPIED, seed=seed),  # ends at 110 with 60 %
    "beyond": lambda seed: runs(FD - 30, COPIED, seed=seed),  # ends at 40, which the plain network never reaches
    "behind": lambda seed: runs(FD + 200, COPIED, seed=seed),  # ends at 270, above the plain network's first step
    "blended": lambda seed: runs(FD + 40, 0.2 * COPIED, 0.2 * COPIED, blend=0.6, seed=seed),
    "split": lambda seed: runs(FD + 40, 0.2 * COPIED, COPIED, seed=seed),  # r1/r2 falls, distance rises
}
PLAIN = {"score": "network", "form": "unconditioning"}
SMOOTH = {"score": "network", "form": "temperature", "neighbors": {"space": "pixel", "k": 8}}
VARIANTS = {"plain": PLAIN, **{name: {**SMOOTH, "temperature": 10.0 + i} for i, name in enumerate(SMOOTHED)}}


def write(root: Path, seeds: tuple[int, ...] = (1, 2, 3), names: tuple[str, ...] = tuple(SMOOTHED), last: int = 5):
    """A project of the plain network and some smoothed ones. last: how many measured steps the plain network has."""
    variants = {name: VARIANTS[name] for name in ("plain", *names)}
    write_project(
        root, IMAGES, variants=variants, copied=dict.fromkeys(variants, 0.3), report={**REPORT, "contrasts": []}
    )
    for name in names:
        write_runs(root / "data", name, {seed: SMOOTHED[name](seed) for seed in seeds})
    write_runs(root / "data", "plain", {seed: runs(FD, COPIED, seed=seed)[-last:] for seed in seeds})


def results() -> dict:
    return json.loads(Path("data/report/results.json").read_text())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The results and the page's text of all synthetic trainings, three seeds each."""
    root = tmp_path_factory.mktemp("frontier")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        write(root)
        run_plain("report")
        return results(), Path("data/report/report.html").read_text(encoding="utf-8"), root


@pytest.mark.parametrize(
    ("name", "outcome", "ratio"),
    [
        ("better", "fewer", 0.12 - 0.25),
        ("equal", "none", 0.0),
        ("worse", "more", 0.60 - 0.25),
        ("beyond", None, None),
        ("behind", None, None),
        ("blended", "blending", 0.12 - 0.25),
        ("split", "contradiction", 0.12 - 0.25),
    ],
)
def test_the_outcome_at_equal_distance_is_the_known_one(whole, name, outcome, ratio):
    row = next(row for row in whole[0]["frontier"] if row["of"] == name)
    assert (row["against"], row["seeds"], row["outcome"]) == ("plain", [1, 2, 3], outcome)
    if ratio is not None:
        assert row["points"]["ratio"] == pytest.approx([ratio] * 3, abs=0.011)  # shares are whole samples of 200


def test_the_answer_is_one_sentence_of_what_is_known(whole):
    said = whole[0]["answer"]
    assert said.startswith("Trained to the end, beside the plain network stopped earlier at the same Fréchet distance,")
    assert re.search(r"gives fewer copied samples with better \(by r₁/r₂ −\d\d\.\d points \[−[\d.]+, −[\d.]+\]", said)
    assert re.search(r"; more copied samples with worse \(by r₁/r₂ \+3\d\.\d points", said)
    assert re.search(r"; more blends, which r₁/r₂ does not count as copies, with blended \(.*blends \+", said)
    assert "contradict each other with split" in said
    assert "; no change that both measures show clearly with equal (" in said
    assert "; 3 training seeds; at equal distance nothing is said of beyond: " in said
    assert said.count(". ") == 0
    assert said.endswith(".")
    assert said in text_of(whole[1])


def test_the_page_calls_neither_blends_nor_a_contradiction_fewer_copies(whole):
    sentences = re.split(r"(?<=[.;:]) ", text_of(whole[1]))
    about = [said for said in sentences if re.search(r"\b(blended|split|equal|beyond|behind)\b", said)]
    assert len(about) > 8
    assert not [said for said in about if "fewer copied" in said]


def test_outside_the_plain_networks_range_nothing_is_extrapolated(whole):
    rows = {row["of"]: row for row in whole[0]["frontier"]}
    never, before = rows["beyond"]["at_equal_distance"], rows["behind"]["at_equal_distance"]
    assert never == (
        "Nothing is compared: the plain network never comes down to its distance in 3 of 3 training seeds."
    )
    assert "is below its distance at the first measured step in 3 of 3 training seeds" in before
    for said in (never, before):
        assert said in text_of(whole[1])
    assert rows["beyond"]["points"] is None


def test_the_last_safe_step_of_every_network_is_named(whole):
    """200 samples a step; 2 % of them are copies at step 100, 10 % at 200 and 25 % at 400, or a fifth of that."""
    rows = {row["variant"]: row for row in whole[0]["onsets"]}
    assert set(rows) == set(VARIANTS)
    for name, shares in (("plain", COPIED), ("better", 0.2 * COPIED)):
        metrics = json.loads(Path(whole[2], "data/filter", name, "filter.json").read_text())["metrics"]
        measured = metrics["nn_ratio_near_copy"]
        control = measured["holdout_flagged"], measured["holdout_count"]
        for seed in (1, 2, 3):
            copies = np.round(200 * np.clip(shares + 0.005 * (seed - 2), 0, 1)).astype(int)
            safe = onset(STEPS.tolist(), copies, [200] * len(STEPS), *control).last_safe
            assert rows[name]["last_safe"][str(seed)] == safe
        assert rows[name]["words"] in text_of(whole[1])
    assert rows["plain"]["last_safe"]["2"] < rows["better"]["last_safe"]["2"]


def test_table_and_opening_show_the_means_over_the_seeds(whole):
    row = next(row for row in whole[0]["rows"] if row["variant"] == "worse")
    assert (row["seeds"], row["seeds_count"]) == (3, 200)
    assert row["fd_test_mean"] == pytest.approx(FD[-1] + 40 + 2)
    mean, low, high = (row[f"calibrated_distance_mean{end}"] for end in ("", "_low", "_high"))
    assert mean == pytest.approx(0.6)
    assert low < mean < high
    text = text_of(whole[1])
    assert f"60.0 % [{100 * low:.1f}, {100 * high:.1f}]" in text
    assert "3 seeds × 200 samples" in text
    assert "networks drew their samples in bfloat16" in text


def test_the_figure_opens_the_report_with_every_seed(whole):
    page = whole[1]
    assert page.index('id="frontier"') < page.index('id="copies"')
    svg = re.search(r'<div class="figure">(<svg.*?</svg>)', page, re.S)[1]
    assert page.index(svg) < page.index('id="copies"')
    assert all(f">{name}<" in svg for name in VARIANTS)
    rows = (whole[2] / "data/report/plots/runs.tsv").read_text().splitlines()
    assert len(rows) == 1 + 3 * 5 * len(VARIANTS)


def test_a_change_without_several_seeds_is_no_result(project):
    write(project, seeds=(1,), names=("better",))
    run_plain("report")
    said = results()["answer"]
    assert said == (
        "What smoothing does to copies is not known from this run: one training seed stands behind each network "
        "(train.seeds)."
    )
    (row,) = results()["frontier"]
    assert "(one seed, no interval)" in row["at_equal_distance"]
    assert "without an interval no direction is claimed" in row["at_equal_distance"]


def test_without_snapshots_nothing_is_compared_at_equal_distance(project):
    write(project, names=("better",), last=1)
    run_plain("report")
    assert "is below its distance at the first measured step" in results()["answer"]
    assert results()["frontier"][0]["late"].startswith("Not known: fewer than two measured steps")


def test_a_network_of_another_sampler_is_no_baseline(project):
    write(project, names=("better",))
    path = project / "data/sample/better/sample.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sampler": {"name": "reverse-sde", "levels": 60}}))
    run_plain("report")
    assert results()["frontier"] == []
    assert "no smoothed variant has a plain one that equals it in everything else" in results()["answer"]
    assert "no partner, so not comparable" in Path("data/report/report.html").read_text()


def test_runs_that_differ_between_filter_and_fid_are_refused(project):
    write(project, names=("better",))
    path = project / "data/fid/better/runs.tsv"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")
    with pytest.raises(InputError, match=r"better/runs\.tsv list different runs: run dvc repro"):
        run_plain("report")
    path.write_text("seed\tstep\n1\t2\n")
    with pytest.raises(InputError, match=r"runs\.tsv has no rows with the columns seed, step, count, fd"):
        run_plain("report")


def columns(fd: list[float], ratio: list[float], half: float = 2.0, seed: int = 1) -> Columns:
    """One seed's runs of 1,000 samples; all measures flag the same share."""
    fd, share, n = np.array(fd), 1000 * np.array(ratio), len(fd)
    flagged = dict.fromkeys(FLAGGED, share)
    about = {"seed": np.full(n, float(seed)), "step": 100 * 2.0 ** np.arange(n), "count": np.full(n, 1000.0)}
    return {**about, **flagged, "fd": fd, "fd_low": fd - half, "fd_high": fd + half}


def together(*parts: Columns) -> Columns:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@pytest.mark.parametrize(
    ("curve", "target", "expected"),
    [
        ([200, 100, 50], 100, Stop(1, 1.0)),
        ([200, 100, 50], 75, Stop(2, 0.5)),
        ([200, 100, 50], 200, Stop(0, 1.0)),
        ([200, 100, 50], 201, BEFORE),
        ([200, 100, 50], 49, NEVER),
        ([200, 100, 150, 60], 120, Stop(1, 0.8)),  # not monotone: the first time, not the second one at 150 → 60
        ([200, 120, 150, 60], 100, Stop(3, 50 / 90)),
        ([90, 200, 60], 100, BEFORE),  # better at the first step, worse later
        ([80], 80, Stop(0, 1.0)),
    ],
)
def test_the_first_stop_that_reaches_a_distance(curve, target, expected):
    found = first_reached(np.array(curve, float), target)
    if isinstance(expected, str):
        assert found == expected
    else:
        assert (found.i, found.weight) == (expected.i, pytest.approx(expected.weight))
        assert found.value(np.array(curve, float)) == pytest.approx(target)


def test_shares_and_steps_are_interpolated_where_the_distance_is_reached():
    plain = together(*(columns([200, 100, 50], [0.1, 0.2, 0.4], seed=s) for s in (1, 2)))
    smoothed = together(*(columns([300, 75], [0.0, 0.35], seed=s) for s in (1, 2)))
    found = at_equal_distance("a", "b", {"a": smoothed, "b": plain})
    assert found.stopped == (300, 300)  # half-way from step 200 to 400
    assert found.change.ratio.points == pytest.approx([0.05, 0.05])  # 0.35 − (0.2 + 0.4) / 2


def test_the_interval_holds_the_error_of_the_distance_times_the_curves_slope():
    """Seeds that agree exactly: the interval is that of sampling alone, the larger the coarser FD is known."""
    widths = []
    for half in (0.0, 2.0, 20.0):
        plain = together(*(columns([200, 100, 50], [0.1, 0.2, 0.4], half, s) for s in (1, 2)))
        smoothed = together(*(columns([300, 75], [0.0, 0.35], half, s) for s in (1, 2)))
        ratio = at_equal_distance("a", "b", {"a": smoothed, "b": plain}).change.ratio
        widths.append((ratio.high - ratio.low) / 2)
    rate = lambda k: (k + 1) / 1002  # noqa: E731
    sampling = [rate(k) * (1 - rate(k)) / 1002 for k in (350, 200, 400)]
    variance = sampling[0] + (sampling[1] + sampling[2]) / 2
    for width, half in zip(widths, (0.0, 2.0, 20.0)):
        fd = 2 * (half / 1.959964) ** 2 * (0.2 / 50) ** 2
        assert width == pytest.approx(1.959964 * np.sqrt(2 * (variance + fd)) / 2, rel=1e-6)


def test_the_slope_late_in_the_training_is_per_doubling():
    steps = columns([5, 4, 3, 2], [0.1, 0.2, 0.3, 0.4])
    value, variance = slope(steps, "blend")
    assert value == pytest.approx(0.1)
    noise = np.random.default_rng(0).binomial(1000, rates(steps, "blend"), (20000, 4)) / 1000
    fits = np.polyfit(np.log2(steps["step"]), noise.T, 1)[0]
    assert variance == pytest.approx(fits.var(), rel=0.05)


def late(own: list[float], plain: list[float], seeds: int = 3) -> str:
    """What is said of two trainings whose shares are these at the last two steps, in every seed."""
    both = [together(*(columns([9, 8, 7], [0.1, *x], seed=s) for s in range(seeds))) for x in (own, plain)]
    return late_words(at_equal_distance("a", "b", dict(zip("ab", both))))


@pytest.mark.parametrize(
    ("own", "plain", "said"),
    [
        (
            [0.3, 0.3],
            [0.3, 0.5],
            "Its copied share no longer clearly rises; it grows more slowly than that of the plain network.",
        ),
        ([0.3, 0.4], [0.3, 0.6], "Its copied share still rises; it grows more slowly than that of the plain network."),
        ([0.3, 0.6], [0.3, 0.4], "Its copied share still rises; it grows faster than that of the plain network."),
        (
            [0.3, 0.5],
            [0.3, 0.5],
            "Its copied share still rises; it grows neither clearly faster nor clearly slower",
        ),
    ],
)
def test_whether_copies_stay_bounded_is_worded_by_the_slopes(own, plain, said):
    assert late(own, plain).startswith(said)
    assert late(own, plain, seeds=1).startswith("Without an interval nothing is said.")


def test_runs_are_joined_by_seed_and_step_and_their_ends_averaged():
    one = together(columns([200, 100], [0.1, 0.2], seed=7), columns([210, 90], [0.1, 0.4], seed=3))
    shuffled = {name: values[[3, 0, 2, 1]] for name, values in one.items()}
    found = joined(shuffled, shuffled, "v")
    assert found["seed"].tolist() == [3, 3, 7, 7]
    assert final(found, [7, 3])["fd"].tolist() == [100, 90]
    mean = mean_at_the_end(found, "nn_ratio_near_copy")
    assert (mean.mean, mean.points) == (pytest.approx(0.3), pytest.approx((0.4, 0.2)))
    assert mean.low == 0.0, "an interval of a share stays within [0, 1]"
    assert mean_at_the_end(found, "fd").mean == 95


def test_a_broken_variant_is_named_as_such_in_the_answer(project):
    write(project, names=("better",))
    path = project / "data/filter/better/filter.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"faults": {"noisy": "all are noisy"}}))
    run_plain("report")
    assert "fewer copied samples with better (its samples look broken) (by" in results()["answer"]


def test_a_smoothed_network_stopped_earlier_is_compared_there_too():
    """Its curve is the plain one's moved by 40: what it has at step s, the plain one passes earlier."""
    measured = {
        name: together(*(columns(list(FD + up), COPIED.tolist(), seed=seed) for seed in range(3)))
        for name, up in (("plain", 0), ("worse", 40), ("beyond", -30))
    }
    found = at_equal_distance("worse", "plain", measured)
    assert list(found.earlier) == measured["plain"]["step"][:4].tolist()
    first, *rest = found.earlier.values()
    assert first is None  # 240 lies above the plain network's first distance
    for change, fd, own in zip(rest, (190, 150, 120), COPIED[1:]):
        plain = np.interp(fd, FD[::-1], COPIED[::-1])
        assert change.ratio.mean == pytest.approx(own - plain, abs=0.002)  # a share of n is (k + 1) / (n + 2)
    assert f"at step {list(found.earlier)[2]} by r₁/r₂ +15" in earlier_words(found)
    assert f"Outside the plain network's distances: step {next(iter(found.earlier))}." in earlier_words(found)
    beyond = list(at_equal_distance("beyond", "plain", measured).earlier.values())
    assert beyond[3] is None  # 50 lies below the plain network's last distance
    assert beyond[0].ratio.mean == pytest.approx(0.02 - np.interp(170, FD[::-1], COPIED[::-1]), abs=0.002)


@pytest.mark.parametrize("seeds", [(1,), (1, 2, 3)])
def test_what_depends_on_the_number_of_samples_is_of_equally_many_in_a_column(tmp_path, monkeypatch, seeds):
    """Runs have 200 samples, closed forms more: beside means over seeds their first 200 are shown."""
    monkeypatch.chdir(tmp_path)
    closed = {"score": "closed-form", "form": "conditioning"}
    variants = {"closed": closed, "plain": PLAIN}
    write_project(
        tmp_path, IMAGES, variants=variants, copied=dict.fromkeys(variants, 0.3), report={**REPORT, "contrasts": []}
    )
    write_runs(tmp_path / "data", "plain", {seed: runs(FD, COPIED, seed=seed) for seed in seeds})
    fid = json.loads((tmp_path / "data/fid/closed/fid.json").read_text())
    run_plain("report")
    closed, plain = json.loads((tmp_path / "data/report/results.json").read_text())["rows"]
    several = len(seeds) > 1
    assert cell(closed, "fd_test")[0] == (fid["first"]["fd"] if several else fid["test"]["distance"])
    assert cell(plain, "fd_test")[0] == (FD[-1] + 2 if several else plain["fd_test"])
    page = text_of((tmp_path / "data/report/report.html").read_text())
    assert ("coverage, Vendi of 200" in page) == several
    floor = fid["first_holdout"]["fd"] if several else fid["floor"]["distance"]
    assert page.count(f"floor {number(floor)}") >= 2
    print_results()
