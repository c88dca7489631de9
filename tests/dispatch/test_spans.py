"""How a stage's work is cut into shards."""

from hypothesis import given
from hypothesis import strategies as st

from stages.protocol import span_shards, spans


@given(st.integers(0, 500), st.integers(1, 60), st.integers(1, 20))
def test_spans_cover_every_row_once_at_multiples_and_nearly_equal(count: int, pieces: int, multiple: int) -> None:
    cuts = spans(count, pieces, multiple)
    assert [row for start, stop in cuts for row in range(start, stop)] == list(range(count))
    assert len(cuts) == min(pieces, -(-count // multiple))
    assert all(start % multiple == 0 for start, _ in cuts)
    batches = [-(-(stop - start) // multiple) for start, stop in cuts]
    assert max(batches, default=0) - min(batches, default=0) <= 1


def test_shards_of_spans_carry_their_rows_and_names() -> None:
    one, two = span_shards("sample", "samples", "net", spans(9, 2, 4), {"seed": 1}, ["a.arrow"], ".bin")
    assert (one.name, one.settings) == ("net 1/2", {"seed": 1, "start": 0, "stop": 4})
    assert (two.name, two.settings) == ("net 2/2", {"seed": 1, "start": 4, "stop": 9})
    assert (two.stage, two.task, two.inputs, two.suffix) == ("sample", "samples", ("a.arrow",), ".bin")
