"""What a load, a derivation and a repair say of themselves: counts, coverage, gaps, latency."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any

import polars as pl

from market_pipeline.errors import MarketPipelineError, VendorError
from market_pipeline.market.reconciliation import DIFFERENCE_SCHEMA, Counts

DAY_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "date": pl.Date,
    "rows": pl.UInt32,
    "expected": pl.UInt32,
    "missing": pl.UInt32,
    "partial": pl.Boolean,
}
"""One row a UTC day: winning minutes stored, minutes the calendar expects, those missing, and whether the day was
still running (or not yet settled) when it was loaded."""


@dataclass
class SeriesCounts:
    """What became of the rows that were published: each is counted in one of these."""

    rows: int = 0
    new: int = 0
    restated: int = 0
    unchanged: int = 0
    withdrawn: int = 0
    superseded: int = 0
    rejected: int = 0
    batches: int = 0
    republished: int = 0

    def add(self, other: SeriesCounts) -> None:
        """Add the counts of `other` to these."""
        for name in self.__dataclass_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    @property
    def written(self) -> int:
        """Rows that changed the store."""
        return self.new + self.restated + self.withdrawn


@dataclass(frozen=True)
class FailedRequest:
    """A request [start, end) that the vendor did not answer, or whose answer did not reach the store."""

    start: datetime
    end: datetime
    error: MarketPipelineError


@dataclass
class SymbolLoad:
    """One symbol's part of a load of minutes."""

    symbol: str
    counts: SeriesCounts = field(default_factory=SeriesCounts)
    requests: int = 0
    skipped_requests: int = 0
    empty_answers: int = 0
    failed: list[FailedRequest] = field(default_factory=list)
    days: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=DAY_SCHEMA))
    gaps: pl.DataFrame = field(default_factory=pl.DataFrame)
    first_day: date | None = None
    last_day: date | None = None

    def add(self, other: SymbolLoad) -> None:
        """Add what another load of the same symbol came to; its days and gaps are not added."""
        self.counts.add(other.counts)
        self.requests += other.requests
        self.skipped_requests += other.skipped_requests
        self.empty_answers += other.empty_answers
        self.failed += other.failed

    def account(self, days: pl.DataFrame, gaps: pl.DataFrame) -> None:
        """Take the days (DAY_SCHEMA) and the standing gaps of all that was asked for."""
        self.days, self.gaps = days, gaps
        held = days.filter(pl.col("rows") > 0)["date"]
        self.first_day, self.last_day = (held[0], held[-1]) if len(held) else (None, None)

    @property
    def unsettled(self) -> list[tuple[datetime, datetime]]:
        """Ranges that the vendor answered for and that are not proven to be stored: their bars may still land."""
        return [(one.start, one.end) for one in self.failed if not isinstance(one.error, VendorError)]

    @property
    def expected(self) -> int:
        """Minutes that the calendar expects in the days loaded, up to the settled present."""
        return int(self.days["expected"].sum())

    @property
    def missing(self) -> int:
        """Expected minutes that the store lacks."""
        return int(self.days["missing"].sum())

    @property
    def coverage(self) -> float:
        """Share of the expected minutes that are stored; 1.0 where none is expected."""
        return 1.0 if self.expected == 0 else 1.0 - self.missing / self.expected


@dataclass
class LoadReport:
    """A load of minutes over several symbols."""

    symbols: dict[str, SymbolLoad] = field(default_factory=dict)
    retries: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    seconds_throttled: float = 0.0
    """What its publications have waited for the hub's sake, together."""
    latency_ms: dict[str, float] = field(default_factory=dict)

    @property
    def counts(self) -> SeriesCounts:
        """Return the sum over the symbols."""
        total = SeriesCounts()
        for symbol in self.symbols.values():
            total.add(symbol.counts)
        return total

    @property
    def rows_per_second(self) -> float:
        """Published rows a second, verification included."""
        return self.counts.rows / self.seconds if self.seconds else 0.0


@dataclass
class DeriveReport:
    """A derivation: counts by timeframe, and by symbol and timeframe, with a row a day."""

    timeframes: dict[str, SeriesCounts] = field(default_factory=dict)
    by_symbol: dict[tuple[str, str], SeriesCounts] = field(default_factory=dict)
    days: dict[tuple[str, str], pl.DataFrame] = field(default_factory=dict)
    """(symbol, timeframe) -> frame[date, rows, complete]: bars stored a UTC day (a week's at its Sunday)."""
    minutes_read: int = 0
    seconds: float = 0.0


@dataclass
class RepairReport:
    """A repair of gaps: what was open, asked for, found, and what stays."""

    found_gaps: int = 0
    found_minutes: int = 0
    asked_requests: int = 0
    repaired_minutes: int = 0
    confirmed_minutes: int = 0
    still_open_minutes: int = 0
    given_up_minutes: int = 0
    table: pl.DataFrame = field(default_factory=pl.DataFrame)
    """One row a gap: symbol, start, end, minutes, cause, state, attempts."""
    load: LoadReport = field(default_factory=LoadReport)
    derived: DeriveReport = field(default_factory=DeriveReport)
    seconds: float = 0.0


@dataclass
class ReconcileReport:
    """Live minutes held against the vendor's: counts by symbol key, the largest differences, and who wins."""

    counts: dict[str, Counts] = field(default_factory=dict)
    differing: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=DIFFERENCE_SCHEMA))
    """One row a value that differs beyond tolerance (DIFFERENCE_SCHEMA), the largest first; bounded."""
    values: int = 0
    """Values that differ beyond tolerance, those left out of the table included."""
    winner: str = ""
    """The source that wins where both have a complete minute."""
    load: LoadReport = field(default_factory=LoadReport)
    derived: DeriveReport = field(default_factory=DeriveReport)
    seconds: float = 0.0

    @property
    def total(self) -> Counts:
        """Return the counts of all symbols together."""
        total = Counts()
        for counts in self.counts.values():
            total.add(counts)
        return total


MONITOR_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "symbol": pl.String,
    "start": pl.Datetime("ms", "UTC"),
    "end": pl.Datetime("ms", "UTC"),
    "expected": pl.Int64,
    "missing": pl.Int64,
    "gaps": pl.Int64,
    "open": pl.Int64,
    "confirmed": pl.Int64,
    "given_up": pl.Int64,
    "unwatched": pl.Int64,
}
"""One row a symbol: the time looked at; minutes expected, and of these absent; its standing gaps in the ledger, with
their minutes that repair will ask for, that the vendor is confirmed to lack and that were given up (minutes with an
incomplete bar are among all of these); minutes between stretches that were loaded apart, which nobody has asked for."""


@dataclass
class MonitorReport:
    """A look at all of history: what is missing, by symbol."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def table(self) -> pl.DataFrame:
        """Return the rows as MONITOR_SCHEMA, by symbol."""
        return pl.DataFrame(self.rows, schema=MONITOR_SCHEMA, orient="row").sort("symbol")


@dataclass
class SymbolAggregate:
    """One symbol's part of an aggregation of ticks; `complete`: of its minutes, those proven to lack no tick."""

    symbol: str
    ticks: int = 0
    minutes: int = 0
    complete: int = 0
    counts: SeriesCounts = field(default_factory=SeriesCounts)


@dataclass
class AggregateReport:
    """An aggregation of stored ticks over several symbols."""

    symbols: dict[str, SymbolAggregate] = field(default_factory=dict)
    derived: DeriveReport = field(default_factory=DeriveReport)
    seconds: float = 0.0

    @property
    def table(self) -> pl.DataFrame:
        """Return a row a symbol: symbol, ticks, minutes, complete, and what became of the minutes."""
        rows = [
            (s.symbol, s.ticks, s.minutes, s.complete, s.counts.new, s.counts.restated, s.counts.unchanged)
            for s in self.symbols.values()
        ]
        names = ("ticks", "minutes", "complete", "new", "restated", "unchanged")
        return pl.DataFrame(rows, schema={"symbol": pl.String, **dict.fromkeys(names, pl.Int64)}, orient="row")
