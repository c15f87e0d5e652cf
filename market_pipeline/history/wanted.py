"""What a run was asked for: symbols and half-open ranges of UTC days."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime, timedelta

from market_pipeline.errors import BadRange
from market_pipeline.market.instruments import Instrument, Instruments
from market_pipeline.market.timeframes import midnight
from market_pipeline.stores.vendor_requests import Interval, merged

Wanted = Mapping[str, Sequence[tuple[date, date]]]
"""Symbol (any form) -> half-open ranges of UTC days."""


def resolve(wanted: Wanted, instruments: Instruments, now: datetime) -> dict[str, tuple[Instrument, list[Interval]]]:
    """Resolve symbols and days to instruments and intervals that can be served, merged and in order.

    Days before an instrument's history start are left out; the running day ends at `now`.

    Raises:
        UnknownSymbol: a symbol is not among the instruments.
        BadRange: a range ends before it starts, or a day lies in the future.
    """
    out: dict[str, tuple[Instrument, list[Interval]]] = {}
    for symbol, ranges in wanted.items():
        instrument = instruments.get(symbol)
        first = midnight(instrument.history_start)
        intervals: list[Interval] = []
        for begin, end in ranges:
            if end <= begin:
                raise BadRange(
                    f"{instrument.symbol}: the range {begin} to {end} is empty: its end must lie after its start"
                )
            if midnight(end - timedelta(days=1)) > now:
                raise BadRange(
                    f"{instrument.symbol}: {end - timedelta(days=1)} lies in the future (now is {now:%Y-%m-%d} UTC)"
                )
            start, stop = max(midnight(begin), first), min(midnight(end), now)
            if start < stop:
                intervals.append((start, stop))
        out[instrument.key] = (instrument, merged(intervals))
    return out


def subtract(intervals: Iterable[Interval], done: Iterable[Interval]) -> list[Interval]:
    """Return what of the intervals is not covered by `done`."""
    out: list[Interval] = []
    cuts = merged(done)
    at = 0
    for start, end in merged(intervals):
        while at < len(cuts) and cuts[at][1] <= start:
            at += 1
        here = at
        while here < len(cuts) and cuts[here][0] < end:
            if start < cuts[here][0]:
                out.append((start, cuts[here][0]))
            start = max(start, cuts[here][1])
            here += 1
        if start < end:
            out.append((start, end))
    return out


def minutes_of(intervals: Iterable[Interval]) -> int:
    """Return how many minutes the intervals span."""
    return int(sum((end - start).total_seconds() for start, end in intervals) // 60)
