"""What a range holds against what its calendar expects, and the gap ledger brought into agreement with it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime, timedelta

import polars as pl

from market_pipeline.history.reports import DAY_SCHEMA
from market_pipeline.history.runtime import Runtime
from market_pipeline.history.wanted import Interval
from market_pipeline.market.gaps import classify, lacking_minutes, runs
from market_pipeline.market.instruments import Instrument
from market_pipeline.market.sessions import calendar
from market_pipeline.market.timeframes import MINUTE, ceil, midnight
from market_pipeline.settings import HistorySettings
from market_pipeline.stores.bars import BarStore


def account_days(
    rt: Runtime, instrument: Instrument, answered: Sequence[Interval], unanswered: Sequence[Interval] = ()
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Count each UTC day's minutes and write what is missing to the gap ledger.

    To the ledger a minute whose winning bar is not complete is missing too: the vendor may have a complete one. It is
    not missing in the days' counts, which say what the store lacks. Minutes younger than settle and lateness are not
    yet expected. For the `answered` intervals the vendor has just
    given an answer, so that each missing minute has one more attempt behind it; for the others it has not.

    Returns:
        days (DAY_SCHEMA) and the standing gaps of the intervals, as GapLedger.table gives them.
    """
    now = rt.clock()
    due = due_until(now, rt.settings.history)
    rules = calendar(instrument.calendar)
    days: list[pl.DataFrame] = []
    for (start, end), asked in [*((one, True) for one in answered), *((one, False) for one in unanswered)]:
        present = rt.bars.winners(instrument.key, "1m", start, end, ["ts", "complete"])
        until = max(start, min(end, due))
        expected = rules.expected_minutes(start, until)
        missing, incomplete = lacking_minutes(present, rules, start, until)
        days.append(_by_day(start, end, present["ts"], expected, missing))
        rt.gaps.sync(
            instrument.key,
            start,
            until,
            classify(
                pl.concat([missing, incomplete]).sort(),
                now=now,
                settle=rt.settings.history.settle,
                pending=runs(incomplete).select("start", "end").rows(),
            ),
            asked_at=now if asked else None,
            attempts_to_confirm=rt.settings.history.gap_attempts,
            now=now,
        )
    frame = _days(days, now - rt.settings.history.settle)
    return frame, gaps_within(rt.gaps.table([instrument.key]), [*answered, *unanswered])


def whole_days(
    bars: BarStore,
    instrument: Instrument,
    ranges: Sequence[tuple[date, date]],
    settings: HistorySettings,
    now: datetime,
) -> pl.DataFrame:
    """Return what whole UTC days hold (DAY_SCHEMA), however little of them a run asked for; `ranges` end exclusive."""
    due = due_until(now, settings)
    rules = calendar(instrument.calendar)
    days: list[pl.DataFrame] = []
    for first, last in ranges:
        start, end = midnight(first), midnight(last)
        present = bars.winners(instrument.key, "1m", start, end, ["ts", "complete"])
        until = max(start, min(end, due))
        missing, _ = lacking_minutes(present, rules, start, until)
        days.append(_by_day(start, end, present["ts"], rules.expected_minutes(start, until), missing))
    return _days(days, now - settings.settle)


def due_until(now: datetime, settings: HistorySettings) -> datetime:
    """Return the minute's bound up to which minutes are expected to be there: none younger than settle and lateness."""
    # A minute is named by its open: with a lateness of less than its length it would be due before it has settled, and
    # an answer that comes too early says nothing of whether the vendor has it.
    return ceil(now - settings.settle - max(settings.lateness, MINUTE), "1m")


def gaps_within(gaps: pl.DataFrame, intervals: Sequence[Interval]) -> pl.DataFrame:
    """Return the gaps (a table of GapLedger) that begin inside one of the intervals."""
    inside = pl.any_horizontal(
        pl.lit(False), *((pl.col("start_ts") >= start) & (pl.col("start_ts") < end) for start, end in intervals)
    )
    return gaps.filter(inside)


def _days(counted: Sequence[pl.DataFrame], settled: datetime) -> pl.DataFrame:
    """Join counts of intervals into one row a day (DAY_SCHEMA); a day is partial unless it was over at `settled`."""
    frame = pl.concat(counted) if counted else pl.DataFrame(schema=DAY_SCHEMA)
    return (
        frame.group_by("date", maintain_order=True)
        .agg(pl.col("rows", "expected", "missing").sum())
        .with_columns(
            partial=pl.col("date").cast(pl.Datetime("ms")).dt.replace_time_zone("UTC") + timedelta(days=1) > settled
        )
        .select(pl.col(name).cast(dtype) for name, dtype in DAY_SCHEMA.items())
        .sort("date")
    )


def _by_day(start: object, end: object, present: pl.Series, expected: pl.Series, missing: pl.Series) -> pl.DataFrame:
    """Return frame[date, rows, expected, missing] with a row for every day of [start, end)."""
    frame = pl.select(
        date=pl.datetime_range(
            pl.lit(start).dt.truncate("1d"), pl.lit(end), interval="1d", closed="left", time_zone="UTC", time_unit="ms"
        ).dt.date()
    )
    for name, minutes in (("rows", present), ("expected", expected), ("missing", missing)):
        counted = pl.DataFrame({"date": minutes.dt.date()}).group_by("date").agg(pl.len().alias(name))
        frame = frame.join(counted, on="date", how="left")
    return frame.with_columns(pl.col("rows", "expected", "missing").fill_null(0))
