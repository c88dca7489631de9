"""What others hold, or what is lost, is waited for aloud and with a limit."""

import pytest

from pipeline import waiting
from stages.errors import InputError


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves."""
    now = [1000.0]
    monkeypatch.setattr(waiting.time, "monotonic", lambda: now[0])
    return now


def patience(limit: float, said: list[str]) -> waiting.Patience:
    return waiting.Patience(
        "a free GPU (1 of 2)", waiting.Limit("execution.gpu_timeout", limit), "raise it", said.append
    )


def test_it_says_first_that_it_waits_then_every_ten_minutes_and_ends_after_the_limit(clock):
    said = []
    waits = patience(3600, said)
    for _ in range(3601):
        waits.check()
        clock[0] += 1
    first = "waiting for a free GPU (1 of 2), for at most 60 min (execution.gpu_timeout): raise it"
    assert said == [first, *(f"still waiting for a free GPU (1 of 2), for {n} min" for n in (10, 20, 30, 40, 50, 60))]
    with pytest.raises(InputError, match=r"^execution.gpu_timeout: no free GPU \(1 of 2\) within 60 min: raise it$"):
        waits.check()


def test_the_limit_counts_one_wait_and_not_all_of_them(clock):
    said = []
    waits = patience(10, said)
    for _ in range(4):
        waits.check()
        clock[0] += 9
        waits.check()
        waits.reset()
        clock[0] += 100
    assert len(said) == 4  # each begins anew


@pytest.mark.parametrize(
    ("seconds", "expected"), [(0.2, "0.2 s"), (90, "90 s"), (600, "10 min"), (7200, "2 h"), (86400, "24 h")]
)
def test_a_duration_is_read_in_its_unit(seconds, expected):
    assert waiting.spoken(seconds) == expected
