"""What a publication changes in what is stored: each outcome, and the revision that the written row carries."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_pipeline.market.bars import BAR_SCHEMA
from market_pipeline.market.restatement import compare, unproven

T0 = datetime(2024, 3, 4, 10, tzinfo=UTC)


def bar(minute: int, close: float = 1.1, *, revision: int = 100, deleted: int = 0, complete: bool = True) -> dict:
    return {
        "symbol": "EURUSD",
        "timeframe": "1m",
        "ts": T0 + timedelta(minutes=minute),
        "source": "vendor_historical",
        "origin": "",
        "open": close,
        "high": close,
        "low": close,
        "close": close,
        "volume": 1.0,
        "vwap": None,
        "trades": 1,
        "complete": complete,
        "revision": revision,
        "is_deleted": deleted,
    }


def frame(*bars: dict) -> pl.DataFrame:
    return pl.DataFrame(list(bars), schema=BAR_SCHEMA)


@pytest.mark.parametrize(
    ("published", "stored", "outcome", "revision"),
    [
        (bar(0), None, "new", 100),
        (bar(0), bar(0, revision=90), "unchanged", None),
        (bar(0, 1.2), bar(0, revision=90), "restated", 100),
        (bar(0, 1.2), bar(0, revision=100), "restated", 101),
        (bar(0, 1.2), bar(0, revision=110), "superseded", None),
        (bar(0), bar(0, complete=False, revision=90), "restated", 100),
        (bar(0, deleted=1), bar(0, revision=90), "withdrawn", 100),
        (bar(0, deleted=1), bar(0, deleted=1, revision=90), "unchanged", None),
        (bar(0, deleted=1), None, "unchanged", None),
        (bar(0, deleted=1), bar(0, revision=120), "superseded", None),
        (bar(0), bar(0, deleted=1, revision=90), "new", 100),
        (bar(0), bar(0, deleted=1, revision=120), "superseded", None),
    ],
)
def test_each_outcome(published: dict, stored: dict | None, outcome: str, revision: int | None) -> None:
    changes = compare(frame(published), frame(*([stored] if stored else [])))
    counts = {name: getattr(changes, name) for name in ("new", "restated", "withdrawn", "unchanged", "superseded")}
    assert counts == {name: int(name == outcome) for name in counts}
    assert changes.write["revision"].to_list() == ([] if revision is None else [revision])


rows = st.lists(
    st.tuples(st.integers(0, 5), st.sampled_from([1.1, 1.2]), st.integers(1, 4), st.sampled_from([0, 0, 1])),
    max_size=6,
    unique_by=lambda r: r[0],
).map(lambda items: frame(*(bar(m, c, revision=r, deleted=d) for m, c, r, d in items)))


@given(rows, rows)
def test_after_writing_the_changes_every_row_is_proven(published: pl.DataFrame, stored: pl.DataFrame) -> None:
    """The store keeps the highest revision of each minute: then nothing is left to publish again."""
    changes = compare(published, stored)
    assert changes.new + changes.restated + changes.withdrawn == changes.write.height
    after = pl.concat([stored, changes.write]).sort("revision").unique("ts", keep="last", maintain_order=True)
    assert unproven(published, after).height == 0
    assert compare(published, after).write.height == 0
