"""The onset of copying: power laws and curves whose answer is known, and how often a safe run is called copying."""

import numpy as np
import pytest
from scipy.stats import fisher_exact

from stages.memorization.onset import Onset, crossing, exponent, onset

STEPS = [100, 200, 400, 800]


def test_the_last_safe_step_is_the_one_before_copies_exceed_the_control():
    found = onset(STEPS, [5, 8, 30, 60], [100] * 4, 50, 1000)
    assert found == Onset(200, 400)
    p = [fisher_exact([[k, 100 - k], [50, 950]], "greater").pvalue for k in (8, 30)]
    assert p[1] < 0.025 / 4 < p[0]


def test_many_steps_are_judged_together():
    """12 of 100 against 5 %: clear for a single step, not among four."""
    assert onset([400], [12], [100], 50, 1000) == Onset(None, 400)
    assert onset(STEPS, [5, 5, 12, 5], [100] * 4, 50, 1000) == Onset(800, None)


@pytest.mark.parametrize(
    ("copies", "found"),
    [([50, 60, 70, 80], Onset(None, 100)), ([5, 5, 4, 6], Onset(800, None)), ([5, 40, 5, 50], Onset(100, 200))],
)
def test_a_first_step_that_copies_a_training_that_never_does_and_a_share_that_falls_again(copies, found):
    assert onset(STEPS, copies, [100] * 4, 50, 1000) == found


def test_counts_that_end_in_a_half_are_rounded():
    assert onset([1], [4.5], [100], 50, 1000) == Onset(1, None)


@pytest.mark.parametrize("steps", [[200, 100], [100, 100], [100], []])
def test_steps_that_do_not_ascend_or_lack_samples_are_refused(steps):
    with pytest.raises(ValueError, match="ascending steps"):
        onset(steps, [1, 2], [100, 100], 5, 100)


@pytest.mark.parametrize("measured", [1, 4, 10])
def test_a_network_that_copies_as_little_as_held_out_images_is_rarely_called_copying(measured):
    """Both rates are 5 %: in at most 2.5 % of trainings, whatever the number of steps."""
    generator, wrong, steps = np.random.default_rng(0), 0, range(1, measured + 1)
    for _ in range(2000):
        control, copies = generator.binomial(1000, 0.05), generator.binomial(100, 0.05, measured)
        wrong += onset(steps, copies, [100] * measured, control, 1000).first_copying is not None
    assert wrong / 2000 < 0.035


def test_a_crossing_is_interpolated_in_the_logarithm_of_the_step():
    rates = [0.1 * np.log2(step / 100) for step in STEPS]  # linear in ln(step): 0, 0.1, 0.2, 0.3
    assert crossing(STEPS, rates, 0.15) == pytest.approx(200 * 2**0.5)
    assert crossing(STEPS, rates, 0.3) == pytest.approx(800)


@pytest.mark.parametrize("rates", [[0.0, 0.1, 0.2, 0.3], [0.6, 0.7, 0.8, 0.9]])
def test_a_share_outside_the_measured_ones_is_crossed_nowhere(rates):
    assert crossing(STEPS, rates, 0.5) is None


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_the_exponent_of_a_power_law_is_read(power):
    sizes = [[25, 50, 100], [25, 50, 100], [25, 100]]
    exact = exponent(sizes, [[3 * n**power for n in own] for own in sizes])
    assert exact.mean == pytest.approx(power)
    assert exact.high - exact.low < 1e-9
    assert len(exact.points) == 3


def test_the_exponents_interval_covers():
    """Onsets of three seeds at three sizes, off by 15 % each: about 95 % of the intervals hold the exponent."""
    generator, covered, sizes = np.random.default_rng(1), 0, np.array([25, 50, 100])
    for _ in range(1000):
        steps = [30 * sizes * np.exp(0.15 * generator.standard_normal(3)) for _ in range(3)]
        found = exponent([sizes] * 3, steps)
        covered += found.low <= 1 <= found.high
    assert 0.93 <= covered / 1000 <= 0.97


def test_a_slope_needs_two_sizes():
    with pytest.raises(ValueError, match="two sizes"):
        exponent([[25, 25]], [[100, 200]])
