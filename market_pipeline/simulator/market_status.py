"""The answers to `/v1/marketstatus/now` and `/v1/marketstatus/upcoming`."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import numpy as np

from market_pipeline.simulator.sessions import (
    DAY_MS,
    MINUTE_MS,
    NEW_YORK,
    UTC,
    holidays,
    is_open,
    local_date,
    open_minutes,
)

_EARLY, _LATE = 4 * 60, 20 * 60  # extended hours of a session day, in minutes of the New York day


def now(now_ms: int) -> dict[str, Any]:
    """Return the state of the markets at an instant, `serverTime` in New York's time as the vendor writes it."""
    at = datetime.fromtimestamp(now_ms / 1000, NEW_YORK)
    early, late = _extended(now_ms)
    market = "open" if is_open("stocks", now_ms) else "extended-hours" if early or late else "closed"
    return {
        "market": market,
        "earlyHours": early,
        "afterHours": late,
        "serverTime": at.isoformat(timespec="seconds"),
        "exchanges": dict.fromkeys(("nyse", "nasdaq", "otc"), market),
        "currencies": {"fx": "open" if is_open("forex", now_ms) else "closed", "crypto": "open"},
    }


def upcoming(now_ms: int) -> list[dict[str, Any]]:
    """Return the holidays and early closes of the coming year, one row per exchange."""
    today = local_date("stocks", now_ms)
    rows = []
    for holiday in holidays(today, today + timedelta(days=365)):
        row = {"name": holiday["name"], "date": holiday["date"].isoformat(), "status": holiday["status"]}
        for side in ("open", "close"):
            if side in holiday:
                row[side] = f"{holiday[side].astimezone(UTC):%Y-%m-%dT%H:%M:%S.000Z}"
        rows += [{"exchange": exchange, **row} for exchange in ("NYSE", "NASDAQ")]
    return rows


def _extended(now_ms: int) -> tuple[bool, bool]:
    """Tell whether it is before (from 4:00) or after (until 20:00) the regular hours of a session day."""
    at = datetime.fromtimestamp(now_ms / 1000, NEW_YORK)
    minute = at.hour * 60 + at.minute
    # Sessions never cross midnight in UTC, so the UTC day of New York's noon is the session's.
    noon = at.replace(hour=12, minute=0, second=0, microsecond=0)
    day = int(noon.timestamp() * 1000) // DAY_MS
    first, end = (int(edge[0]) for edge in open_minutes("stocks", np.array([day])))
    if first == end:
        return False, False
    utc_minute = now_ms // MINUTE_MS - day * 1_440
    return minute >= _EARLY and utc_minute < first, utc_minute >= end and minute < _LATE
