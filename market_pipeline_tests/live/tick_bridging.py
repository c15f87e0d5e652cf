"""What the tick bridge's tests share: batches into a real TICKS, a bridge, and a real PostgreSQL behind it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta

import polars as pl
from nats.js.errors import NotFoundError

from market_pipeline.bus.envelope import now_ms
from market_pipeline.bus.session import BusSession
from market_pipeline.bus.streams import TICKS
from market_pipeline.bus.subjects import market_subject
from market_pipeline.bus.tick_envelope import EncodedTicks, TickHeaders, new_batch_id
from market_pipeline.live.tick_bridge import TickBridgeService
from market_pipeline.settings import NatsSettings, PostgresSettings, Settings
from market_pipeline.stores.ticks import TickReader
from market_pipeline_tests.bus.tick_batches import encode_tick_batch

ALWAYS = (datetime(1990, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC))


def settings_of(nats: NatsSettings, postgres: PostgresSettings) -> Settings:
    """Return settings that reach both servers; ticks of any age are kept."""
    plain = Settings(nats=nats, postgres=postgres)
    return plain.model_copy(update={"live": plain.live.model_copy(update={"ticks_kept_days": None})})


def encoded(
    frame: pl.DataFrame,
    *,
    symbol: str = "",
    epoch: int = 1,
    alive_at: datetime | None = None,
    batch_id: int = 0,
    number: int = 0,
) -> EncodedTicks:
    """Return a batch as the collector publishes it; without rows a heartbeat of `symbol` at `alive_at`."""
    alive_at = alive_at or frame["ts"].max()  # type: ignore[assignment]
    assert isinstance(alive_at, datetime)
    headers = TickHeaders(
        batch_id=batch_id or new_batch_id(),
        correlation_id="test",
        symbol=symbol or frame["symbol"][0],
        collector_id="test",
        epoch=epoch,
        rows=0,
        session_id="s",
        session_started=alive_at - timedelta(hours=1),
        alive_at=alive_at,
        number=number,
        stages={"received": now_ms()},
    )
    return encode_tick_batch(frame, headers)


async def publish(bus: BusSession, batches: Iterable[EncodedTicks]) -> int:
    """Publish batches in order, wait until the stream holds them, and return its last sequence."""
    given = list(batches)
    for batch in given[:-1]:
        await bus.nc.publish(
            market_subject(batch.headers.symbol, "tick"), batch.payload, headers=batch.headers.to_nats()
        )
    # of one connection the server takes messages in order: the last acknowledgement stands for all
    last = given[-1]
    ack = await bus.js.publish(
        market_subject(last.headers.symbol, "tick"), last.payload, timeout=60, headers=last.headers.to_nats()
    )
    return ack.seq


@asynccontextmanager
async def bridging(settings: Settings, **options: float) -> AsyncIterator[TickBridgeService]:
    """Run a bridge until the block ends."""
    service = TickBridgeService(settings, **({"lease_ttl_s": 1.0, "gather_s": 0.02} | options))
    stop = asyncio.Event()
    task = asyncio.create_task(service.run(stop))
    try:
        yield service
    finally:
        stop.set()
        await asyncio.wait_for(task, 60)


async def until(what: Callable[[], bool], timeout_s: float = 60.0) -> None:
    """Wait for a condition."""
    end = time.monotonic() + timeout_s
    while not what():
        if time.monotonic() > end:
            raise AssertionError("it does not happen")
        await asyncio.sleep(0.02)


async def drained(bus: BusSession) -> None:
    """Wait until the bridge has acknowledged everything that TICKS holds."""
    end = time.monotonic() + 60
    while True:
        with suppress(NotFoundError):  # the bridge has not begun yet
            info = await bus.js.consumer_info(TICKS, "ticks")
            if not info.num_pending and not info.num_ack_pending:
                return
        assert time.monotonic() < end
        await asyncio.sleep(0.05)


def stored(reader: TickReader, symbol: str) -> pl.DataFrame:
    """Return all ticks of a symbol."""
    return reader.ticks(symbol, *ALWAYS)


def lost(reader: TickReader, symbol: str) -> list[tuple[datetime, datetime, str]]:
    """Return the losses of a symbol."""
    return reader.losses(symbol, *ALWAYS).select("start", "end", "cause").rows()
