"""The gap ledger: every missing minute with its cause, its state and how often the vendor was asked for it.

It is what makes repair converge instead of asking for the same nothing for ever.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

import polars as pl

from market_pipeline.market.bars import TS
from market_pipeline.market.gaps import NOT_LOADED, runs
from market_pipeline.stores.clickhouse import Client
from market_pipeline.stores.gap_merge import (
    CONFIRMED,
    GIVEN_UP,
    MINUTE,
    OPEN,
    STANDING,
    STATES,
    Changes,
    Failure,
    Gap,
    Look,
    fail,
    reconcile,
)
from market_pipeline.stores.sql_files import load_sql
from market_pipeline.stores.vendor_requests import Interval, merged

_FIRST, _LAST = datetime(1970, 1, 1, tzinfo=UTC), datetime(2299, 1, 1, tzinfo=UTC)
_SCHEMA = pl.Schema(
    {
        "symbol": pl.String(),
        "start_ts": TS,
        "end_ts": TS,
        "minutes": pl.UInt32(),
        "cause": pl.String(),
        "state": pl.String(),
        "attempts": pl.UInt16(),
        "failures": pl.UInt16(),
        "first_seen": TS,
        "last_attempt": TS,
        "note": pl.String(),
        "version": pl.UInt64(),
    }
)


class GapLedger:
    """Write and read the ledger; blocking and thread-safe, raises StoreError's kinds.

    A table of gaps has the columns symbol, start_ts, end_ts (exclusive), minutes (UInt32), cause, state, attempts
    (UInt16), failures (UInt16), first_seen, last_attempt (null before the first), note, version; times UTC; sorted by
    symbol and start.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    def table(
        self,
        symbols: Sequence[str] | None = None,
        start: datetime | None = None,
        end: datetime | None = None,
        *,
        states: Sequence[str] = STANDING,
    ) -> pl.DataFrame:
        """Return the gaps of the symbols (None: all) that overlap [start, end), in the given states, as a table.

        Gaps are whole: they may reach beyond the range. States: open, confirmed, given_up; repaired ones are history.
        """
        unknown = set(states) - set(STATES)
        if unknown:
            raise ValueError(f"no such states of a gap: {', '.join(sorted(unknown))}")
        return self._client.frame(
            load_sql("gaps"),
            {
                "states": list(states),
                "all_symbols": int(symbols is None),
                "symbols": list(symbols or []),
                "start": start or _FIRST,
                "end": end or _LAST,
            },
        ).select(pl.col(name).cast(dtype) for name, dtype in _SCHEMA.items())

    def open(self, symbols: Sequence[str] | None = None) -> pl.DataFrame:
        """Return the gaps that repair should ask for, as a table."""
        return self.table(symbols, states=(OPEN,))

    def sync(
        self,
        symbol: str,
        start: datetime,
        end: datetime,
        missing: pl.Series | pl.DataFrame,
        *,
        asked_at: datetime | None = None,
        attempts_to_confirm: int = 2,
        cause: str = NOT_LOADED,
        note: str = "",
        now: datetime | None = None,
    ) -> list[Gap]:
        """Make the ledger agree with the minutes of [start, end) that are missing now; return the gaps written.

        `missing`: sorted Datetime UTC, as `market.gaps.missing_minutes` returns them, or runs with a cause each, as
        `market.gaps.classify` does; minutes whose bar is not complete count as missing. Each keeps its attempts,
        state and first_seen; minutes that came go into gaps in state repaired. With `asked_at`, the vendor has just
        answered for all of the range: each missing minute has one more attempt behind it, and is confirmed after
        `attempts_to_confirm`. See `gap_merge.reconcile` for the rules. Two processes that sync overlapping ranges of
        a symbol at once can leave gaps that overlap; the next sync puts them right.
        """
        if start >= end:
            return []
        look = Look(start, end, now or datetime.now(UTC), asked_at, attempts_to_confirm, cause, note)
        old = self._gaps(self.table([symbol], start, end))
        if isinstance(missing, pl.DataFrame):
            spans, causes = missing.select("start", "end").rows(), missing["cause"].to_list()
            return self._write(reconcile(symbol, old, spans, look, causes))
        return self._write(reconcile(symbol, old, runs(missing).select("start", "end").rows(), look))

    def fail(self, symbol: str, start: datetime, end: datetime, error: str, *, most: int, now: datetime) -> list[Gap]:
        """Count a question for [start, end) that failed; return the gaps that are given up by it, with `most` failures.

        See `gap_merge.fail` for the rules.
        """
        changes = fail(self._gaps(self.table([symbol], start, end)), Failure(start, end, now, error, most))
        return [gap for gap in self._write(changes) if gap.state == GIVEN_UP and start <= gap.start < end]

    def confirmed(self, symbol: str, start: datetime, end: datetime) -> list[Interval]:
        """Return the intervals of [start, end) that the vendor is confirmed to have nothing for, merged, in order."""
        table = self.table([symbol], start, end, states=(CONFIRMED,))
        return merged((max(a, start), min(b, end)) for a, b in table.select("start_ts", "end_ts").iter_rows())

    def confirmed_minutes(self, symbol: str, start: datetime, end: datetime) -> pl.Series:
        """Return the confirmed minutes of [start, end): Datetime("ms", "UTC") named ts, sorted."""
        ranges = [
            pl.datetime_range(first, last, MINUTE, closed="left", time_unit="ms", time_zone="UTC", eager=True)
            for first, last in self.confirmed(symbol, start, end)
        ]
        return pl.concat([pl.Series("ts", [], TS), *(each.alias("ts") for each in ranges)])

    @staticmethod
    def _gaps(table: pl.DataFrame) -> list[Gap]:
        names = {"start_ts": "start", "end_ts": "end"}
        return [Gap(**row) for row in table.drop("minutes").rename(names).iter_rows(named=True)]

    def _write(self, changes: Changes) -> list[Gap]:
        version = max([time.time_ns(), *(gap.version + 1 for gap in [*changes.write, *changes.withdraw])])
        frame = pl.concat([_rows(changes.write, version, 0), _rows(changes.withdraw, version, 1)])
        if frame.height:
            self._client.insert_frame("gaps", frame)
        return changes.write


def _rows(gaps: Iterable[Gap], version: int, is_deleted: int) -> pl.DataFrame:
    rows = [
        (
            g.symbol,
            g.start,
            g.end,
            g.minutes,
            g.cause,
            g.state,
            g.attempts,
            g.failures,
            g.first_seen,
            g.last_attempt,
            g.note,
            version,
        )
        for g in gaps
    ]
    return pl.DataFrame(rows, schema=_SCHEMA, orient="row").with_columns(
        pl.lit(is_deleted, pl.UInt8).alias("is_deleted")
    )
