"""Planned requests cover the range, once, and none can be cut by the vendor's limit."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market_pipeline.errors import BadRange
from market_pipeline.vendors.polygon import MAX_MINUTES, plan_requests

TIMES = st.datetimes(datetime(2000, 1, 1), datetime(2030, 1, 1), timezones=st.just(UTC))


@settings(deadline=None)
@given(TIMES, st.timedeltas(timedelta(0), timedelta(days=900)), st.sampled_from([100, 1440, 5000, MAX_MINUTES]))
def test_requests_cover_the_range_once(start: datetime, length: timedelta, limit: int) -> None:
    end = start + min(length, timedelta(minutes=limit * 300))
    requests = plan_requests(start, end, limit)
    edges = [edge for request in requests for edge in (request.start, request.end)]
    if start == end:
        assert not requests
        return
    assert edges[0] == start
    assert edges[-1] == end
    assert edges[1:-1:2] == edges[2::2]
    assert all(timedelta(0) < r.end - r.start <= timedelta(minutes=limit) for r in requests)
    if limit >= 1440:
        assert all(r.start.hour == r.start.minute == r.start.second == r.start.microsecond == 0 for r in requests[1:])


def test_a_year_takes_eleven_requests_of_34_days() -> None:
    requests = plan_requests(datetime(2024, 1, 1, tzinfo=UTC), datetime(2025, 1, 1, tzinfo=UTC))
    assert len(requests) == 11
    assert {r.end - r.start for r in requests[:-1]} == {timedelta(days=34)}


def test_days_are_those_of_utc() -> None:
    zone = timezone(timedelta(hours=-5))
    requests = plan_requests(datetime(2024, 1, 1, 20, tzinfo=zone), datetime(2024, 3, 1, 20, tzinfo=zone))
    assert requests[0].start == datetime(2024, 1, 2, 1, tzinfo=UTC)
    assert requests[0].end == datetime(2024, 2, 5, tzinfo=UTC)


@pytest.mark.parametrize(
    ("start", "end"),
    [
        (datetime(2024, 1, 1), datetime(2024, 1, 2, tzinfo=UTC)),
        (datetime(2024, 1, 1, tzinfo=UTC), datetime(2024, 1, 2)),
        (datetime(2024, 1, 2, tzinfo=UTC), datetime(2024, 1, 1, tzinfo=UTC)),
    ],
)
def test_impossible_ranges_are_refused(start: datetime, end: datetime) -> None:
    with pytest.raises(BadRange):
        plan_requests(start, end)
