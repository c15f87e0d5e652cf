"""Observations of external datasets: what is malformed, and what a publication changes in what is stored."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_pipeline.errors import InputError
from market_pipeline.market.external import (
    OBSERVATION_SCHEMA,
    check_observations,
    compare_observations,
    split_valid_observations,
)

DAY0 = datetime(2020, 1, 1, tzinfo=UTC)
Row = tuple[str, int, float, int, int]


def frame(rows: list[Row]) -> pl.DataFrame:
    return pl.DataFrame(
        [(series, DAY0 + timedelta(days=day), value, revision, gone) for series, day, value, revision, gone in rows],
        schema=OBSERVATION_SCHEMA,
        orient="row",
    )


publications = st.lists(
    st.dictionaries(
        st.tuples(st.sampled_from("AB"), st.integers(0, 3)),
        st.tuples(st.sampled_from([1.0, 2.0]), st.integers(1, 4), st.integers(0, 1)),
        max_size=5,
    ),
    max_size=5,
)


@given(publications)
def test_what_is_stored_follows_a_simple_model(sent: list[dict[tuple[str, int], tuple[float, int, int]]]) -> None:
    """The last word with the highest revision stands; one that says nothing new is never written."""
    model: dict[tuple[str, int], tuple[float, int, int]] = {}
    stored = frame([])
    for publication in sent:
        rows = [(*key, *values) for key, values in publication.items()]
        changes = compare_observations(frame(rows), stored)
        written = {(row[0], (row[1] - DAY0).days): row[2:] for row in changes.write.rows()}
        for key, (value, revision, gone) in publication.items():
            old = model.get(key)
            known_gone = old is None or old[2] == 1
            same = known_gone if gone else (old is not None and not old[2] and old[0] == value)
            if same or (old is not None and revision < old[1]):
                assert key not in written
                continue
            later = revision + 1 if old is not None and old[1] == revision else revision
            assert written.pop(key) == (value, later, gone)
            model[key] = (value, later, gone)
        assert not written
        assert changes.new + changes.restated + changes.withdrawn == changes.write.height
        assert changes.write.height + changes.unchanged + changes.superseded == len(rows)
        stored = frame([(*key, *values) for key, values in model.items()])


def test_malformed_rows_are_split_off_with_their_reason() -> None:
    good, bad = split_valid_observations(
        frame([("A", 0, 1.0, 1, 0), ("A", 0, 2.0, 1, 0), ("", 1, 1.0, 1, 0), ("A", 2, float("nan"), 1, 0)])
    )
    assert good.rows() == frame([("A", 0, 1.0, 1, 0)]).rows()
    assert [text.partition(":")[0] for text in bad["reason"]] == ["series", "value", "ts"]


def test_other_columns_are_refused() -> None:
    with pytest.raises(InputError, match="value: is String"):
        check_observations(frame([]).with_columns(pl.col("value").cast(pl.String)))
    with pytest.raises(InputError, match="revision: the column is missing"):
        check_observations(frame([]).drop("revision"))
