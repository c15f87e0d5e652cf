"""When a market is open: forex Sunday 17:00 to Friday 17:00 New York, crypto always, stocks as the XNYS calendar says.

Every market here is open in at most one run of minutes per UTC day, so a session is two numbers per day.
"""

from __future__ import annotations

from datetime import date, datetime, timedelta
from functools import lru_cache
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl

from market_pipeline.simulator.hashing import Int64Array
from market_pipeline.simulator.tickers import Market

NEW_YORK = ZoneInfo("America/New_York")
UTC = ZoneInfo("UTC")

MINUTE_MS = 60_000
DAY_MINUTES = 1_440
DAY_MS = DAY_MINUTES * MINUTE_MS
_STOCKS_FIRST, _STOCKS_LAST = date(1970, 1, 2), date(2040, 12, 31)


def open_minutes(market: Market, days: Int64Array) -> tuple[Int64Array, Int64Array]:
    """Return, per UTC day (days since 1970-01-01), the open minutes of the day as [first, end); equal when closed.

    Stock sessions are known from 1970 to 2040, with the holidays and early closes of exchange_calendars; outside of
    these years the exchange counts as closed.
    """
    if market == "crypto":
        return np.zeros_like(days), np.full_like(days, DAY_MINUTES)
    if market == "forex":
        return _forex(days)
    return _stocks(days)


def expected_minutes(market: Market, start_ms: int, end_ms: int) -> Int64Array:
    """Return the opens (epoch ms) of every minute of the sessions in [start, end), thin or not."""
    days = np.arange(start_ms // DAY_MS, -(-end_ms // DAY_MS), dtype=np.int64)
    first, end = open_minutes(market, days)
    lengths = np.maximum(end - first, 0)
    offsets = np.arange(lengths.sum(), dtype=np.int64) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    ts = (np.repeat(days * DAY_MINUTES + first, lengths) + offsets) * MINUTE_MS
    return ts[(ts >= start_ms) & (ts < end_ms)]


def is_open(market: Market, at_ms: int) -> bool:
    """Tell whether the market is in session at the instant."""
    minute = at_ms // MINUTE_MS * MINUTE_MS
    return bool(len(expected_minutes(market, minute, minute + MINUTE_MS)))


def local_to_utc_ms(local_ms: Int64Array) -> Int64Array:
    """Convert New York wall-clock instants (ms since 1970-01-01 00:00 New York) to epoch milliseconds.

    Of an hour that occurs twice the earlier is taken; an hour that a change of the clock leaves out raises
    polars.exceptions.ComputeError (midnight and 17:00, all that is asked here, always exist).
    """
    naive = pl.Series(local_ms).cast(pl.Datetime("ms"))
    return naive.dt.replace_time_zone("America/New_York", ambiguous="earliest").dt.epoch("ms").to_numpy()


def utc_to_local_ms(utc_ms: Int64Array) -> Int64Array:
    """Convert epoch milliseconds to New York wall-clock milliseconds."""
    aware = pl.Series(utc_ms).cast(pl.Datetime("ms", "UTC"))
    return aware.dt.convert_time_zone("America/New_York").dt.replace_time_zone(None).dt.epoch("ms").to_numpy()


def holidays(start: date, end: date) -> list[dict[str, Any]]:
    """Return the exchange's closed weekdays and early closes in [start, end], oldest first.

    Each is `{"name", "date", "status": "closed" | "early-close"}`, an early close also with `open` and `close` (UTC).
    """
    import pandas as pd

    calendar = _calendar()
    weekdays = pd.bdate_range(start, end)
    names = calendar.regular_holidays.holidays(pd.Timestamp(start), pd.Timestamp(end), return_name=True)
    found: list[dict[str, Any]] = []
    early = set(calendar.early_closes)
    for day in weekdays:
        if not calendar.is_session(day):
            found.append({"name": str(names.get(day, "Special Closing")), "date": day.date(), "status": "closed"})
        elif day in early:
            opened, closed = calendar.session_open_close(day)
            eve = names.get(day - timedelta(days=1)) or names.get(day + timedelta(days=1))
            found.append(
                {
                    "name": str(eve) if eve else "Early Close",
                    "date": day.date(),
                    "status": "early-close",
                    "open": opened.to_pydatetime(),
                    "close": closed.to_pydatetime(),
                }
            )
    return found


def local_date(market: Market, at_ms: int) -> date:
    """Return the calendar day of the instant in the market's zone: New York for stocks, else UTC."""
    return datetime.fromtimestamp(at_ms / 1000, zone_of(market)).date()


def zone_of(market: Market) -> ZoneInfo:
    """Return the zone in which the vendor counts the market's days."""
    return NEW_YORK if market == "stocks" else UTC


def _forex(days: Int64Array) -> tuple[Int64Array, Int64Array]:
    weekday = (days + 3) % 7  # Monday is 0; 1970-01-01 was a Thursday
    first, end = np.zeros_like(days), np.full_like(days, DAY_MINUTES)
    end[weekday == 5] = 0
    for turning, side in ((4, end), (6, first)):
        at = weekday == turning
        if at.any():
            five_pm = local_to_utc_ms(days[at] * DAY_MS + 17 * 60 * MINUTE_MS)
            side[at] = five_pm // MINUTE_MS - days[at] * DAY_MINUTES
    return first, end


def _stocks(days: Int64Array) -> tuple[Int64Array, Int64Array]:
    sessions, opens, closes = _session_table()
    at = np.searchsorted(sessions, days).clip(max=len(sessions) - 1)
    known = sessions[at] == days
    return np.where(known, opens[at], 0), np.where(known, closes[at], 0)


@lru_cache(maxsize=1)
def _session_table() -> tuple[Int64Array, Int64Array, Int64Array]:
    calendar = _calendar()
    days = calendar.sessions.to_numpy().astype("datetime64[D]").astype(np.int64)
    minute_ns = MINUTE_MS * 1_000_000
    opens = calendar.opens_nanos // minute_ns - days * DAY_MINUTES
    closes = calendar.closes_nanos // minute_ns - days * DAY_MINUTES
    return days, opens, closes


@lru_cache(maxsize=1)
def _calendar() -> Any:
    # Imported when first needed: it brings pandas along, two seconds that a forex test need not wait.
    import exchange_calendars

    return exchange_calendars.get_calendar("XNYS", start=str(_STOCKS_FIRST), end=str(_STOCKS_LAST))
