"""The test of the live road: real quotes, a clock that proves nothing too early, and an independent fold."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import duckdb
import numpy as np
import polars as pl

from market_pipeline.live.service import Fact
from market_pipeline.live.thread import LiveThread
from market_pipeline.market.timeframes import from_ms
from market_pipeline.simulator.server import SimulatorProcess
from market_pipeline_tests.market.real import OHLC

MINUTE = timedelta(minutes=1)
# So many quotes are on their way at most: below what the collector's queue takes.
STEP_QUOTES = 20_000
WAIT_S = 200.0


@dataclass(frozen=True)
class Replayed:
    """Name a file of quotes (ts, bid, ask), the ticker under which they are sent, and the side of which bars are made.

    key: a file of two-sided minutes of the same source.
    """

    symbol: str
    basis: str
    file: Path
    key: Path

    @property
    def name(self) -> str:
        """The key of the symbol."""
        return self.symbol.replace("/", "")

    @property
    def ticker(self) -> str:
        """The vendor's form."""
        return f"C:{self.name}"

    @property
    def quotes(self) -> pl.DataFrame:
        """The quotes, as they were recorded."""
        return pl.read_parquet(self.file).select("ts", "bid", "ask")

    @property
    def yaml(self) -> str:
        """The instrument, as a line of the instruments' file."""
        return (
            f'  - {{symbol: {self.symbol}, asset_class: forex, vendor_ticker: "{self.ticker}", calendar: forex, '
            f"history_start: 2014-01-01, price_basis: {self.basis}}}\n"
        )

    def answer_key(self) -> pl.DataFrame:
        """Return the published minutes of this side, without the first and the last, which the file may cut."""
        quotes = pl.scan_parquet(self.file).select(first=pl.col("ts").min(), last=pl.col("ts").max()).collect()
        first, last = quotes.row(0)
        key = pl.read_parquet(self.key).select("ts", *(pl.col(f"{self.basis}_{name}").alias(name) for name in OHLC))
        return key.filter(pl.col("ts") > first, pl.col("ts") + MINUTE <= last.replace(second=0, microsecond=0))

    def fold(self, length: str) -> pl.DataFrame:
        """Fold the quotes with DuckDB: ts, OHLC of the basis, volume and trades (both the number of quotes)."""
        price = {"mid": "(bid + ask) / 2"}.get(self.basis, self.basis)
        # Quotes of one millisecond are in the order of the file, which is that of their arrival.
        source = self.quotes.with_columns(pl.col("ts").dt.replace_time_zone(None)).with_row_index("n")  # noqa: F841
        folded = duckdb.sql(
            f"SELECT time_bucket(INTERVAL '{length}', ts) AS ts, arg_min({price}, n) AS open, max({price}) AS high, "
            f"min({price}) AS low, arg_max({price}, n) AS close, CAST(count(*) AS DOUBLE) AS volume, "
            "count(*) AS trades FROM source GROUP BY 1 ORDER BY 1"
        ).pl()
        return folded.with_columns(pl.col("ts").dt.replace_time_zone("UTC").cast(pl.Datetime("ms", "UTC")))


@dataclass
class StepClock:
    """The vendor's time as far as everything before it has been received: what a collector may take for proven."""

    now: datetime

    def __call__(self) -> datetime:
        return self.now


@dataclass
class Replay:
    """Send recordings through a vendor whose clock moves as fast as the collector takes what comes.

    It goes in steps. The services' clock stands while a step is under way and follows once the collector has published
    every quote of it: were it the vendor's own, a quote that waits in a socket would be proven not to exist.
    """

    vendor: SimulatorProcess
    recordings: Sequence[Replayed]
    start: datetime = field(init=False)
    end: datetime = field(init=False)
    total: int = field(init=False)
    clock: StepClock = field(init=False)
    _ts: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self._ts = np.sort(np.concatenate([each.quotes["ts"].dt.epoch("ms").to_numpy() for each in self.recordings]))
        self.total = len(self._ts)
        self.start = from_ms(int(self._ts[0])).replace(second=0, microsecond=0) - MINUTE
        self.end = from_ms(int(self._ts[-1])).replace(second=0, microsecond=0) + 2 * MINUTE
        self.clock = StepClock(self.start)

    def prepare(self) -> None:
        """Give the vendor the recordings, nothing else around them, and a clock that stands before the first quote."""
        for each in self.recordings:
            first, last, count = self.vendor.replay(each.ticker, each.file)
            assert count == each.quotes.height
            for hole in ((self.start - MINUTE, first), (last, self.end + MINUTE)):
                if hole[0] < hole[1]:
                    self.vendor.remove(each.ticker, *hole)
        self.vendor.set_now(self.start)

    def run(self, live: LiveThread, after_step: Callable[[int], None] | None = None) -> None:
        """Replay everything; return when the collector has published the last quote and time has gone on past it.

        after_step: told after each step how many quotes the collector has published, or spooled.
        """
        for until, count in self._steps():
            self.vendor.advance(until, subscriptions=len(self.recordings))
            self.vendor.wait_advanced(WAIT_S)
            wait_for(lambda count=count: fact(live, "collector", "ticks") == count, live, f"{count} ticks published")
            self.clock.now = until
            if after_step is not None:
                after_step(count)

    def _steps(self) -> list[tuple[datetime, int]]:
        """Return the end of each step, whole minutes, and how many quotes have been sent by then."""
        ends = {-(-int(ms) // 60_000) * 60_000 for ms in self._ts[STEP_QUOTES::STEP_QUOTES]}
        times = [*(each for each in map(from_ms, sorted(ends)) if each < self.end), self.end]
        sent = np.searchsorted(self._ts, [round(each.timestamp() * 1000) for each in times], side="right")
        return list(zip(times, sent.tolist(), strict=True))


def fact(live: LiveThread, service: str, name: str) -> Fact:
    """Return what a service says of itself."""
    return next((each.facts.get(name, -1) for each in live.health() if each.name == service), -1)


def wait_for(holds: Callable[[], bool], live: LiveThread, what: str, pause: float = 0.02) -> None:
    """Wait until something holds; fail with what the services say, and with what ended them."""
    deadline = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline, f"it did not come to be: {what}: {live.health()}"
        assert not live.wait(pause), f"the services ended: {live.health()}"
