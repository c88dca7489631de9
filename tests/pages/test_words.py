"""Numbers as people read them."""

import pytest

from stages.reporting import words


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1234, "1,234"),
        (0.9973, "0.997"),
        (12.34, "12.3"),
        (2.5e-12, "2.50·10⁻¹²"),
        (None, "–"),
        (9.999, "10.0"),
    ],
)
def test_numbers_as_people_read_them(value, text):
    assert words.number(value) == text


def test_percentages_as_people_read_them():
    shown = [words.percent(rate).replace(words.THIN, " ") for rate in (0, 0.0025, 0.7321, 0.9996, 1)]
    assert shown == ["0 %", "0.25 %", "73.2 %", "100 %", "100 %"]
