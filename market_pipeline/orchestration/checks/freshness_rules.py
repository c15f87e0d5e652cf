"""Freshness by symbol in market hours, and closed partitions whose last load was partial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, datetime, timedelta

import polars as pl

from market_pipeline.market.instruments import Instrument
from market_pipeline.market.sessions import calendar
from market_pipeline.market.timeframes import MINUTE
from market_pipeline.orchestration.checks.verdict import Verdict

NIGHTLY_GRACE = timedelta(hours=2)
"""So long after midnight UTC the nightly run has had its time: the day before is then due."""
ALLOWED = 60
"""Open-market minutes by which a symbol may lag behind what is due; an instrument with thin markets may lag more."""


def due_until(now: datetime) -> datetime:
    """Return the midnight (UTC) up to which bars are due: loaded by the nightly run of that midnight."""
    passed = now - NIGHTLY_GRACE
    return passed.replace(hour=0, minute=0, second=0, microsecond=0)


def judge_freshness(
    followed: Sequence[Instrument], others: Sequence[str], last_bars: Mapping[str, datetime], now: datetime
) -> Verdict:
    """Judge each followed symbol by the open-market minutes between its last bar and what is due.

    `last_bars`: symbol key -> ts of its last minute (UTC); `others`: symbols that nobody follows, listed and never
    stale. Closed markets age nothing.
    """
    due = due_until(now)
    rows = []
    for instrument in followed:
        last = last_bars.get(instrument.key)
        allowed = max(ALLOWED, 4 * instrument.thin_run)
        age = overdue = None
        if last is not None:
            market = calendar(instrument.calendar)
            age = len(market.expected_minutes(last + MINUTE, max(now, last + MINUTE)))
            overdue = len(market.expected_minutes(last + MINUTE, max(due, last + MINUTE)))
        state = "no bar" if overdue is None else "stale" if overdue > allowed else "fresh"
        rows.append(_row(instrument.symbol, last, age, overdue, allowed, state))
    rows += [_row(symbol, last_bars.get(symbol), None, None, None, "not followed") for symbol in others]
    table = pl.DataFrame(rows, schema=_FRESHNESS_SCHEMA, orient="row").sort(
        pl.col("state").replace_strict({"no bar": 0, "stale": 1, "fresh": 2, "not followed": 3}), "symbol"
    )
    stale = table.filter(pl.col("state").is_in(["no bar", "stale"]))["symbol"].to_list()
    numbers: dict[str, int | float | str] = {
        "symbols followed": len(followed),
        "symbols stale": len(stale),
        "due until": f"{due:%Y-%m-%d %H:%M} UTC",
    }
    if stale:
        shown = ", ".join(stale[:5]) + (f" and {len(stale) - 5} more" if len(stale) > 5 else "")
        return Verdict("error", f"bars are overdue for {shown}", numbers, table, "symbols")
    sentence = "every symbol that is followed has the bars that are due"
    if not followed:
        sentence = "no symbol was loaded lately, so that none is followed"
    return Verdict("pass", sentence, numbers, table, "symbols")


def judge_partial(partial: Sequence[tuple[date, str]], now: datetime) -> Verdict:
    """Judge the partitions whose last materialization says partial: those whose day is over and due are red.

    `partial`: (UTC day, instrument partition).
    """
    due = due_until(now).date()
    bad = sorted((day, partition) for day, partition in partial if day < due)
    table = pl.DataFrame(
        [(f"{day}|{partition}", str(day), partition) for day, partition in bad],
        schema={"partition": pl.String, "date": pl.String, "symbol": pl.String},
        orient="row",
    )
    if bad:
        sentence = (
            f"{len(bad)} days are over, but were last loaded while they ran, such as {bad[0][0]} of {bad[0][1]}: "
            "materialize them again"
        )
        return Verdict("error", sentence, {"partial partitions": len(bad)}, table)
    return Verdict("pass", "every recent day that is over was loaded after its end", {"partial partitions": 0})


_FRESHNESS_SCHEMA = pl.Schema(
    {
        "symbol": pl.String(),
        "last bar (UTC)": pl.Datetime("ms", "UTC"),
        "age in open minutes": pl.Int64(),
        "overdue open minutes": pl.Int64(),
        "allowed": pl.Int64(),
        "state": pl.String(),
    }
)


def _row(
    symbol: str, last: datetime | None, age: int | None, overdue: int | None, allowed: int | None, state: str
) -> tuple[str, datetime | None, int | None, int | None, int | None, str]:
    return symbol, last, age, overdue, allowed, state
