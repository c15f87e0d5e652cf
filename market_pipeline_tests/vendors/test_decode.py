"""Decoding is exact, and one malformed row costs one row."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market_pipeline.vendors.base import MINUTE_SCHEMA
from market_pipeline.vendors.polygon import decode
from market_pipeline.vendors.polygon.answers import Subject
from market_pipeline.vendors.polygon.decode import Decoded, decode_rows, read_aggregates
from market_pipeline_tests.vendors.scripted import bar, ms

SUBJECT = Subject("test")
FINITE = st.floats(allow_nan=False, allow_infinity=False)


def decoded(body: bytes, ticker: str = "C:EURUSD") -> Decoded:
    return decode_rows(SUBJECT, read_aggregates(SUBJECT, body, ticker))


def body_of(rows: str) -> bytes:
    return b'{"ticker":"C:EURUSD","status":"OK","results":[' + rows.encode() + b"]}"


def compact(row: dict[str, Any]) -> str:
    return json.dumps(row, separators=(",", ":"))


@settings(deadline=None)
@given(
    st.lists(
        st.fixed_dictionaries(
            {"o": FINITE, "h": FINITE, "l": FINITE, "c": FINITE, "v": FINITE},
            optional={"vw": st.none() | FINITE, "n": st.integers(0, 2**32 - 1)},
        ),
        max_size=20,
    ),
    st.booleans(),
)
def test_both_roads_give_every_value_exactly(rows: list[dict[str, Any]], spaces: bool) -> None:
    wire = [{**row, "t": ms(minute)} for minute, row in enumerate(rows)]
    got = decoded(body_of((", " if spaces else ",").join(compact(row) for row in wire)))
    assert dict(got.frame.schema) == MINUTE_SCHEMA
    expected = [
        (row["t"], row["o"], row["h"], row["l"], row["c"], row["v"], row.get("vw"), row.get("n", 0)) for row in wire
    ]
    assert got.frame.with_columns(pl.col("ts").cast(pl.Int64)).rows() == expected
    assert not got.bad_rows


def test_compact_rows_take_the_fast_road_and_others_the_slow_one(monkeypatch: pytest.MonkeyPatch) -> None:
    slow: list[int] = []
    one_by_one = decode._read_row_by_row
    monkeypatch.setattr(decode, "_read_row_by_row", lambda *a: slow.append(1) or one_by_one(*a))
    fast = decoded(body_of(",".join(compact(bar(m)) for m in range(5))))
    assert not slow
    assert decoded(body_of(", \n".join(json.dumps(bar(m), indent=1) for m in range(5)))).frame.equals(fast.frame)
    assert slow


BAD = [
    ({"o": None}, "float"),
    ({"o": "1.1"}, "float"),
    ({"c": True}, "float"),
    ({"h": {"x": 1}}, "float"),
    ({"t": None}, "int"),
    ({"t": "2024-01-01"}, "int"),
    ({"t": ms(1) + 0.5}, "int"),
    ({"t": 10**30}, "no time"),
    ({"v": None}, "float"),
    ({"vw": "none"}, "float"),
    ({"n": -1}, "no count"),
    ({"n": 2.5}, "no count"),
    ({"n": 2**32}, "no count"),
]


@pytest.mark.parametrize(("damage", "reason"), BAD, ids=[str(damage) for damage, _ in BAD])
def test_a_malformed_row_is_set_apart_alone(damage: dict[str, Any], reason: str) -> None:
    rows = [bar(0), bar(1, **damage), bar(2)]
    got = decoded(body_of(",".join(compact(row) for row in rows)))
    assert got.frame["ts"].cast(pl.Int64).to_list() == [ms(0), ms(2)]
    (bad,) = got.bad_rows
    assert json.loads(bad.row) == rows[1]
    assert reason in bad.reason


@pytest.mark.parametrize(
    "row",
    [
        '{"t":1,"o":1e999,"h":1,"l":1,"c":1,"v":1}',
        '{"t":1,"o":1,"h":1,"l":1,"c":1,"v":-1e999}',
        '{"t":1,"o":1,"h":1,"l":1,"c":1,"v":1,"vw":1e999}',
        '{"t":1,"h":1,"l":1,"c":1,"v":1}',
        "null",
        "7",
        '"text},{text"',
        "[1,2]",
        "{}",
    ],
)
def test_rows_that_are_hardly_rows(row: str) -> None:
    got = decoded(body_of(f"{compact(bar(0))},{row},{compact(bar(2))}"))
    assert got.frame.height == 2
    assert [bad.row for bad in got.bad_rows] == [row]


def test_unknown_members_are_ignored_even_when_they_hold_rows() -> None:
    rows = ",".join(compact({**bar(m), "otc": True, "x": [{"a": 1}, {"b": "},{"}]}) for m in range(3))
    got = decoded(body_of(rows))
    assert (got.frame.height, got.bad_rows) == (3, [])


def test_a_time_beyond_any_calendar_is_decoded_as_it_is() -> None:
    assert decoded(body_of(compact(bar(0, t=2**62)))).frame["ts"].cast(pl.Int64).to_list() == [2**62]


SAMPLES = Path(__file__).parents[3] / "shared" / "data" / "vendor_rest_samples"


@pytest.mark.skipif(not SAMPLES.exists(), reason="the vendor's recorded answers are not in ../shared/data")
def test_recorded_answers() -> None:
    recorded = json.loads((SAMPLES / "recorded_AAPL_1day.json").read_text())["response"]
    frame = decoded(json.dumps(recorded).encode(), "AAPL").frame
    assert frame.height == recorded["resultsCount"]
    first = (datetime(2023, 1, 3, 5, tzinfo=UTC), 130.28, 130.9, 124.17, 125.07, 112117471.0, 125.725, 1021065)
    assert frame.row(0) == first
    for file in SAMPLES.glob("v2/aggs/ticker/AAPL/**/*.json"):
        assert decoded(file.read_bytes(), "AAPL").frame.height == json.loads(file.read_text())["resultsCount"]
