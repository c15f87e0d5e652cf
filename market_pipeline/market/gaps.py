"""Gaps: minutes that the calendar expects and the store lacks, as runs with a cause."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from market_pipeline.market.bars import TS
from market_pipeline.market.sessions import MINUTE_MS, Calendar
from market_pipeline.market.timeframes import to_ms

Cause = Literal["vendor_missing", "not_loaded", "lost", "pending_settle"]
VENDOR_MISSING: Cause = "vendor_missing"  # the vendor, asked a second time, has no bar
NOT_LOADED: Cause = "not_loaded"  # nobody has asked the vendor, or its answer is not confirmed
LOST: Cause = "lost"  # a known disconnect or overflow
PENDING_SETTLE: Cause = "pending_settle"  # so recent that the vendor's bar may still change or come
CAUSES: tuple[Cause, ...] = (NOT_LOADED, LOST, VENDOR_MISSING, PENDING_SETTLE)

RUN_SCHEMA = pl.Schema({"start": TS, "end": TS, "minutes": pl.UInt32()})
GAP_SCHEMA = pl.Schema({**RUN_SCHEMA, "cause": pl.String()})

Intervals = Iterable[tuple[datetime, datetime]]  # half-open, UTC


def missing_minutes(present_ts: pl.Series, calendar: Calendar, start: datetime, end: datetime) -> pl.Series:
    """Return the expected minutes in [start, end) that are not among `present_ts`.

    `present_ts`: Datetime UTC in any order; what lies outside the range or the calendar changes nothing.
    Returns a sorted Datetime("ms", "UTC") series named ts.
    """
    expected = calendar.expected_ms(start, end)
    if len(expected) == 0:
        return pl.Series("ts", [], dtype=TS)
    first = int(expected[0])
    lacks = np.zeros((int(expected[-1]) - first) // MINUTE_MS + 1, dtype=bool)
    lacks[(expected - first) // MINUTE_MS] = True
    there = (present_ts.drop_nulls().dt.epoch("ms").to_numpy() - first) // MINUTE_MS
    lacks[there[(there >= 0) & (there < len(lacks))]] = False
    return _ts(first + np.flatnonzero(lacks) * MINUTE_MS)


def lacking_minutes(
    present: pl.DataFrame, calendar: Calendar, start: datetime, end: datetime
) -> tuple[pl.Series, pl.Series]:
    """Return the expected minutes in [start, end) that have no bar, and those whose bar is not complete.

    `present`: ts (Datetime UTC), complete (Boolean): the winning bars, in any order. Both answers are as
    `missing_minutes` gives them, and share no minute.
    """
    missing = missing_minutes(present["ts"], calendar, start, end)
    without = missing_minutes(present.filter(pl.col("complete"))["ts"], calendar, start, end)
    return missing, without.filter(~without.is_in(missing.implode()))


def runs(missing: pl.Series) -> pl.DataFrame:
    """Join missing minutes that follow each other into runs.

    `missing` is sorted and without repeats. A run never joins two sessions: between them lies at least one minute in
    which nothing is expected. Returns start, end (exclusive) and minutes (UInt32), in order.
    """
    minutes = missing.dt.epoch("ms").to_numpy()
    return _runs(minutes, np.zeros(len(minutes), dtype=np.int8)).drop("cause")


def classify(
    missing: pl.Series,
    *,
    now: datetime,
    settle: timedelta,
    confirmed: Intervals = (),
    lost: Intervals = (),
    pending: Intervals = (),
) -> pl.DataFrame:
    """Join missing minutes into runs of one cause each.

    The first that holds for a minute is its cause: pending_settle (its window ended less than `settle` before `now`:
    whatever the vendor said, it may still change), vendor_missing (in `confirmed`: a second request had no bar either),
    lost (in `lost`: known disconnects and overflows), pending_settle again (in `pending`: there is a bar, which is not
    complete), not_loaded. Intervals are half-open and may overlap.

    Returns start, end (exclusive), minutes (UInt32) and cause, in order of time.
    """
    minutes = missing.dt.epoch("ms").to_numpy()
    causes = np.full(len(minutes), CAUSES.index(NOT_LOADED), dtype=np.int8)
    causes[_inside(minutes, pending)] = CAUSES.index(PENDING_SETTLE)
    causes[_inside(minutes, lost)] = CAUSES.index(LOST)
    causes[_inside(minutes, confirmed)] = CAUSES.index(VENDOR_MISSING)
    causes[minutes + MINUTE_MS > to_ms(now - settle)] = CAUSES.index(PENDING_SETTLE)
    return _runs(minutes, causes)


def _runs(minutes: NDArray[np.int64], causes: NDArray[np.int8]) -> pl.DataFrame:
    if len(minutes) == 0:
        return pl.DataFrame(schema=GAP_SCHEMA)
    first = np.flatnonzero((np.diff(minutes, prepend=-1) != MINUTE_MS) | (np.diff(causes, prepend=causes[0]) != 0))
    last = np.append(first[1:], len(minutes)) - 1
    names = pl.Series(list(CAUSES), dtype=pl.String)
    return pl.DataFrame(
        {
            "start": _ts(minutes[first]),
            "end": _ts(minutes[last] + MINUTE_MS),
            "minutes": pl.Series(last - first + 1, dtype=pl.UInt32),
            "cause": names.gather(causes[first].astype(np.uint32)),
        }
    )


def _inside(minutes: NDArray[np.int64], intervals: Intervals) -> NDArray[np.bool_]:
    """Mark the minutes that open inside one of the intervals."""
    inside = np.zeros(len(minutes), dtype=bool)
    for start, end in intervals:
        begin, stop = np.searchsorted(minutes, [to_ms(start), to_ms(end)])
        inside[begin:stop] = True
    return inside


def _ts(ms: NDArray[np.int64]) -> pl.Series:
    return pl.Series("ts", ms).cast(TS)
