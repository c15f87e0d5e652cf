"""What the tests of live repair share: a clock they turn, live bars of the simulator's ticks, a running service."""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl

from market_pipeline.bus.envelope import encode_batches
from market_pipeline.bus.losses import LossBucket, LossInterval
from market_pipeline.bus.publisher import Publisher
from market_pipeline.bus.session import open_bus
from market_pipeline.bus.streams import LIVE
from market_pipeline.bus.subjects import market_subject
from market_pipeline.instruments_file import load_instruments
from market_pipeline.live.bridge import BridgeWorker
from market_pipeline.live.repair import RepairService
from market_pipeline.market.bars import BAR_SCHEMA, LIVE_AGGREGATED
from market_pipeline.settings import LiveSettings
from market_pipeline.simulator.truth import ticks
from market_pipeline.stores import open_stores
from market_pipeline_tests.integration.world import World

MINUTE = timedelta(minutes=1)
# A pair that the simulator never lacks a minute of; bids, as the simulator's own bars are made of.
KEY, TICKER = "USDCHF", "C:USDCHF"
INSTRUMENTS = """
instruments:
  - {symbol: USD/CHF, asset_class: forex, vendor_ticker: "C:USDCHF", calendar: forex, history_start: 2014-01-01,
     price_basis: bid}
"""
Span = tuple[datetime, datetime]


@dataclass
class Live:
    """A world whose clock the test turns."""

    world: World
    now: datetime
    symbol: str = KEY

    def clock(self) -> datetime:
        return self.now

    def turn(self, now: datetime) -> None:
        """Let it be another time, for us and for the vendor."""
        # Ours is never ahead of the vendor's, not for a moment.
        self.world.vendor.set_now(now)
        self.now = now

    def stream(self, start: datetime, end: datetime, *, without: Sequence[Span] = ()) -> None:
        """Publish and store the live minutes of the ticks in [start, end), as an aggregator would.

        A minute that does not lie whole in the stream is not complete. `without`: time in which no tick was heard.
        """
        heard = ticks(TICKER, start, end)
        for first, last in without:
            heard = heard.filter((pl.col("ts") < first) | (pl.col("ts") >= last))
        bars = (
            heard.group_by(pl.col("ts").dt.truncate("1m").alias("minute"), maintain_order=True)
            .agg(
                open=pl.col("bid").first(),
                high=pl.col("bid").max(),
                low=pl.col("bid").min(),
                close=pl.col("bid").last(),
                volume=pl.len().cast(pl.Float64),
                trades=pl.len(),
            )
            .rename({"minute": "ts"})
        )
        deaf = [(start - timedelta(days=1), start), (end, end + timedelta(days=1)), *without]
        touched = pl.any_horizontal((pl.col("ts") < last) & (pl.col("ts") + MINUTE > first) for first, last in deaf)
        frame = bars.with_columns(
            symbol=pl.lit(KEY),
            timeframe=pl.lit("1m"),
            source=pl.lit(LIVE_AGGREGATED),
            origin=pl.lit(""),
            vwap=pl.lit(None, pl.Float64),
            complete=~touched,
            revision=pl.lit(int(self.now.timestamp() * 1000), pl.UInt64),
            is_deleted=pl.lit(0, pl.UInt8),
        ).select(pl.col(name).cast(dtype) for name, dtype in BAR_SCHEMA.items())
        asyncio.run(self._through_the_bridge(frame))

    async def _through_the_bridge(self, frame: pl.DataFrame) -> None:
        batches = encode_batches(frame, correlation_id="live", run_id="live")
        with open_stores(self.world.settings) as stores:
            async with open_bus(self.world.settings.nats, "test") as bus:
                await bus.ensure_streams()
                for batch in batches:
                    await Publisher(bus.nc, bus.js).publish(batch, market_subject(KEY, "1m"))
                async with bus.consumer(LIVE) as consumer:
                    stop = asyncio.Event()
                    bridge = asyncio.create_task(BridgeWorker(consumer, stores.bars, stores.ingest, bus).run(stop))
                    ids = [batch.headers.batch_id for batch in batches]
                    async with asyncio.timeout(20):
                        while True:
                            if len(await asyncio.to_thread(stores.ingest.outcomes, ids)) == len(ids):
                                break
                            await asyncio.sleep(0.05)
                    stop.set()
                    await bridge

    def lose(self, *losses: LossInterval) -> None:
        """Record losses as the collector does."""

        async def run() -> None:
            async with open_bus(self.world.settings.nats, "test") as bus:
                for loss in losses:
                    await LossBucket(bus).record(loss)

        asyncio.run(run())

    def losses(self) -> list[LossInterval]:
        """Return the losses that nobody has repaired."""

        async def run() -> list[LossInterval]:
            async with open_bus(self.world.settings.nats, "test") as bus:
                return await LossBucket(bus).all()

        return asyncio.run(run())

    def gaps(self, states: Sequence[str] = ("open", "confirmed")) -> list[tuple[Any, ...]]:
        """Return (start, end, cause, state, attempts) of the ledger's gaps, in order."""
        return self.world.query(
            "SELECT start_ts, end_ts, cause, state, attempts FROM gaps FINAL WHERE symbol = {s:String} "
            "AND state IN {states:Array(String)} ORDER BY start_ts",
            s=KEY,
            states=list(states),
        ).rows()

    def asked(self) -> int:
        """Return how often the vendor was asked for bars since the last `clear_requests`."""
        return sum("/v2/aggs" in request.path for request in self.world.vendor.requests())

    def service(self) -> RepairService:
        """Return a repair service of this world that does not run yet."""
        instruments = list(load_instruments(self.world.settings))
        return RepairService(
            self.world.settings, instruments, run_id=f"repair-{secrets.token_hex(3)}", clock=self.clock
        )

    @contextmanager
    def repairing(self) -> Iterator[Repairing]:
        """Run a repair service until the context ends; what ends it before is raised."""
        one = Repairing(self.service())
        one.thread.start()
        try:
            yield one
        finally:
            one.end()


@dataclass
class Repairing:
    """A repair service in a thread of its own."""

    service: RepairService
    thread: threading.Thread = field(init=False)
    error: BaseException | None = None
    _stop: Callable[[], object] | None = None

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        async def run() -> None:
            stop, loop = asyncio.Event(), asyncio.get_running_loop()
            self._stop = lambda: loop.call_soon_threadsafe(stop.set)
            await self.service.run(stop)

        try:
            asyncio.run(run())
        except BaseException as error:
            self.error = error

    def end(self) -> None:
        until(lambda: self._stop is not None)
        if self.thread.is_alive() and self._stop is not None:
            self._stop()
        self.thread.join(30)
        assert not self.thread.is_alive()
        if self.error is not None:
            raise self.error

    def fact(self, name: str) -> Any:
        return self.service.health().facts[name]

    def looks(self, more: int) -> None:
        """Wait until so many more looks, begun from now on, have ended."""
        wanted = self.fact("looks") + more + 1  # one may be under way
        self.until(lambda: self.fact("looks") >= wanted)

    def until(self, ready: Callable[[], bool]) -> None:
        until(lambda: self.error is not None or ready(), lambda: self.service.health())
        if self.error is not None:
            raise self.error


def until(ready: Callable[[], bool], said: Callable[[], object] = lambda: "", seconds: float = 60.0) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, f"it did not come to be: {said()}"
        time.sleep(0.03)


def live_world(world: World, folder: Path, now: datetime, **changed: Any) -> Live:
    """Give a world one instrument, short pauses, and a clock that stands at `now`."""
    file = folder / "instruments.yaml"
    file.write_text(INSTRUMENTS)
    update = {"instruments_file": file, "live": LiveSettings(repair_every_s=0.1), **changed}
    world.settings = world.settings.model_copy(update=update)
    live = Live(world, now)
    live.turn(now)
    return live
