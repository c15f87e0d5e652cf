"""Split a range of time into requests that the vendor answers whole."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from market_pipeline.errors import BadRange
from market_pipeline.vendors.base import RangeRequest

# `limit` counts base aggregates, minutes here, and is at most this: https://polygon.io/docs/rest/forex/aggregates
MAX_MINUTES = 50_000
DAY_MINUTES = 24 * 60


def plan_requests(start: datetime, end: datetime, limit: int = MAX_MINUTES) -> list[RangeRequest]:
    """Cover [start, end), UTC, with consecutive ranges of at most `limit` minutes of wall time.

    A range holds no more minutes than wall time, so an answer is never cut by the vendor's limit, whatever the
    calendar. Inner edges lie on UTC midnights when `limit` has room for a day.

    Raises:
        BadRange: a time without a zone, or `end` before `start`.
    """
    if start.tzinfo is None or end.tzinfo is None:
        raise BadRange(f"times need a zone: {start} to {end}")
    if end < start:
        raise BadRange(f"the range ends before it starts: {start} to {end}")
    start, end = start.astimezone(UTC), end.astimezone(UTC)
    longest = timedelta(minutes=limit)
    requests: list[RangeRequest] = []
    at = start
    while at < end:
        edge = at + longest
        if edge >= end:
            edge = end
        elif limit >= DAY_MINUTES:
            edge = edge.replace(hour=0, minute=0, second=0, microsecond=0)
        requests.append(RangeRequest(at, edge))
        at = edge
    return requests
