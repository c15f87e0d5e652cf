"""The report of corrections: which days it covers, its numbers, and what the UI can show of it."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any

import dagster as dg
import polars as pl
import pytest

from market_pipeline.market.bars import TS
from market_pipeline.orchestration.assets.restatements import KINDS, ReportConfig, report_metadata

TODAY = date(2026, 11, 5)
NOW = datetime(2026, 11, 5, 1, tzinfo=UTC)
SCHEMA = {
    "date": pl.Date,
    "symbol": pl.String,
    "timeframe": pl.String,
    "source": pl.String,
    **dict.fromkeys(KINDS, pl.UInt32),
    **dict.fromkeys(("largest_close", "largest_high", "largest_low"), pl.Float64),
    "largest_ts": TS,
    "largest_batch": pl.UInt64,
    "last_known_at": TS,
}


def corrections(*rows: tuple[date, str, int, float | None]) -> pl.DataFrame:
    return pl.DataFrame(
        [
            (day, symbol, "1m", "vendor_historical", n, 0, 0, 0, 1, close, close, close, NOW, 2**63 + 1, NOW)
            for day, symbol, n, close in rows
        ],
        schema=SCHEMA,
        orient="row",
    )


def records(metadata: dict[str, Any], name: str) -> list[dict[str, Any]]:
    return [dict(record.data) for record in metadata[name].records]


def test_the_range_ends_today_or_where_it_was_asked_for() -> None:
    assert ReportConfig(days=2).range(TODAY) == (date(2026, 11, 4), date(2026, 11, 6))
    assert ReportConfig(days=1, last_day="2026-10-01").range(TODAY) == (date(2026, 10, 1), date(2026, 10, 2))
    with pytest.raises(dg.Failure, match="no date"):
        ReportConfig(last_day="yesterday").range(TODAY)


def test_numbers_are_those_of_the_last_day_that_is_over() -> None:
    yesterday = TODAY - timedelta(days=1)
    frame = corrections((TODAY, "EURUSD", 9, 0.5), (yesterday, "EURUSD", 3, 0.01), (yesterday, "SPY", 4, None))
    metadata = report_metadata(frame, TODAY - timedelta(days=6), TODAY + timedelta(days=1), TODAY)
    assert (metadata["day"], metadata["restated"], metadata["completed"]) == ("2026-11-04", 7, 2)
    assert metadata["range"] == "2026-10-30 to 2026-11-05"
    assert "picture" in metadata
    by_day = records(metadata, "by day")
    assert [(row["date"], row["restated"], row["symbols"]) for row in by_day] == [
        ("2026-11-05", 9, 1),
        ("2026-11-04", 7, 2),
    ]
    detail = records(metadata, "corrections")
    assert [(row["symbol"], row["largest close (%)"]) for row in detail] == [
        ("EURUSD", 50.0),
        ("EURUSD", 1.0),
        ("SPY", None),
    ]
    assert detail[0]["largest_batch"] == str(2**63 + 1)


def test_a_night_without_corrections_says_zero() -> None:
    metadata = report_metadata(corrections(), TODAY - timedelta(days=1), TODAY + timedelta(days=1), TODAY)
    assert [metadata[kind] for kind in KINDS] == [0] * 5
    assert "corrections" not in metadata
