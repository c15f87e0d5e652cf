"""What of an answer is a bar, and which of those are complete."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import polars as pl

from market_pipeline.history.answer import page_to_bars
from market_pipeline.market.bars import BAR_SCHEMA
from market_pipeline.vendors.base import MINUTE_SCHEMA, MinutePage, RangeRequest

T0 = datetime(2024, 3, 4, 10, tzinfo=UTC)
SETTLE = timedelta(minutes=5)


def page(fetched_at: datetime, minutes: int) -> MinutePage:
    ts = [T0 + timedelta(minutes=n) for n in range(minutes)]
    values = {name: [1.0] * minutes for name in ("open", "high", "low", "close", "volume")}
    frame = pl.DataFrame({"ts": ts, **values, "vwap": [None] * minutes, "trades": [1] * minutes}, schema=MINUTE_SCHEMA)
    request = RangeRequest(T0, T0 + timedelta(minutes=minutes))
    return MinutePage(frame, request, "r", fetched_at, fetched_at, 1, True, 1)


def test_the_running_minute_is_no_bar_and_unsettled_minutes_are_incomplete() -> None:
    fetched = T0 + timedelta(minutes=10, seconds=30)
    bars = page_to_bars(page(fetched, 11), "EURUSD", newest_revision=0, settle=SETTLE)
    assert dict(bars.schema) == BAR_SCHEMA
    assert bars["ts"].max() == T0 + timedelta(minutes=9), "10:10 was still running at 10:10:30"
    assert bars.filter("complete")["ts"].max() == T0 + timedelta(minutes=4), "10:05 ended 4 min 30 s before"


def test_a_window_that_ended_exactly_settle_before_the_request_is_complete() -> None:
    bars = page_to_bars(page(T0 + timedelta(minutes=6), 6), "EURUSD", newest_revision=0, settle=SETTLE)
    assert bars.filter("complete")["ts"].to_list() == [T0]
    assert bars.height == 6, "a window that ended with the request is closed"


def test_the_revision_is_the_time_of_fetch_or_one_past_the_newest_stored() -> None:
    fetched = T0 + timedelta(minutes=6)
    at = int(fetched.timestamp() * 1000)
    bars = page_to_bars(page(fetched, 1), "EURUSD", newest_revision=at - 5, settle=SETTLE)
    assert bars["revision"].to_list() == [at]
    bars = page_to_bars(page(fetched, 1), "EURUSD", newest_revision=at + 5, settle=SETTLE)
    assert bars["revision"].to_list() == [at + 6], "a clock that went back must not make a correction lose"
