"""What a range holds against what its calendar expects, and the gap ledger brought into agreement with it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import polars as pl

from market_pipeline.history.reports import DAY_SCHEMA
from market_pipeline.history.runtime import Runtime
from market_pipeline.history.wanted import Interval
from market_pipeline.market.gaps import missing_minutes
from market_pipeline.market.instruments import Instrument
from market_pipeline.market.sessions import calendar


def account_days(
    rt: Runtime, instrument: Instrument, answered: Sequence[Interval], unanswered: Sequence[Interval] = ()
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Count each UTC day's minutes and write what is missing to the gap ledger.

    Minutes younger than settle and lateness are not yet expected. For the `answered` intervals the vendor has just
    given an answer, so that each missing minute has one more attempt behind it; for the others it has not.

    Returns:
        days (DAY_SCHEMA) and the standing gaps of the intervals, as GapLedger.table gives them.
    """
    now = rt.clock()
    due = now - rt.settings.history.settle - rt.settings.history.lateness
    rules = calendar(instrument.calendar)
    days: list[pl.DataFrame] = []
    for (start, end), asked in [*((one, True) for one in answered), *((one, False) for one in unanswered)]:
        present = rt.bars.winners(instrument.key, "1m", start, end, ["ts"])["ts"]
        until = max(start, min(end, due))
        expected = rules.expected_minutes(start, until)
        missing = missing_minutes(present, rules, start, until)
        days.append(_by_day(start, end, present, expected, missing))
        rt.gaps.sync(
            instrument.key,
            start,
            until,
            missing,
            asked_at=now if asked else None,
            attempts_to_confirm=rt.settings.history.gap_attempts,
            now=now,
        )
    frame = pl.concat(days) if days else pl.DataFrame(schema=DAY_SCHEMA)
    settled = now - rt.settings.history.settle
    frame = (
        frame.group_by("date", maintain_order=True)
        .agg(pl.col("rows", "expected", "missing").sum())
        .with_columns(
            partial=pl.col("date").cast(pl.Datetime("ms")).dt.replace_time_zone("UTC") + timedelta(days=1) > settled
        )
        .select(pl.col(name).cast(dtype) for name, dtype in DAY_SCHEMA.items())
        .sort("date")
    )
    return frame, gaps_within(rt.gaps.table([instrument.key]), [*answered, *unanswered])


def gaps_within(gaps: pl.DataFrame, intervals: Sequence[Interval]) -> pl.DataFrame:
    """Return the gaps (a table of GapLedger) that begin inside one of the intervals."""
    inside = pl.any_horizontal(
        pl.lit(False), *((pl.col("start_ts") >= start) & (pl.col("start_ts") < end) for start, end in intervals)
    )
    return gaps.filter(inside)


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
