"""A full backfill with live running: the hub slows the backfill down, and live bars land as if it were not there."""

from __future__ import annotations

import asyncio
import time

import polars as pl

from market_pipeline.bus.envelope import encode_batches
from market_pipeline.bus.session import open_bus
from market_pipeline.bus.streams import LIVE
from market_pipeline.bus.subjects import market_subject
from market_pipeline.hub.throttle import ThrottleService
from market_pipeline.live.bridge import BridgeWorker
from market_pipeline.settings import ThrottleSettings
from market_pipeline.stores import open_stores
from market_pipeline_tests.bus.bars import bars
from market_pipeline_tests.integration.world import World, assert_bars_equal, day_range, truth

DAYS = day_range("2023-01-02", "2023-02-28")
SYMBOLS = {"EURUSD": "C:EURUSD", "GBPUSD": "C:GBPUSD", "BTCUSD": "X:BTCUSD"}
LIVE_EVERY_S = 0.1


async def test_a_backfill_is_slowed_down_and_live_keeps_its_share(world: World) -> None:
    # what is 30 s in earnest is a moment here: any batch of the backfill waits for longer than that
    throttle = ThrottleSettings(lag_s=0.02, release_s=0.01, batches_per_s=4.0, expiry_s=2.0, every_s=0.05)
    settings = world.settings.model_copy(update={"throttle": throttle})
    stop = asyncio.Event()
    hub = ThrottleService(settings)
    with open_stores(settings) as stores:
        async with open_bus(settings.nats, "test") as bus:
            await bus.ensure_streams()
            async with bus.consumer(LIVE) as consumer:
                bridge = BridgeWorker(consumer, stores.bars, stores.ingest, bus, gather_s=0.02)
                tasks = [asyncio.create_task(hub.run(stop)), asyncio.create_task(bridge.run(stop))]
                backfill = asyncio.create_task(asyncio.to_thread(world.load, dict.fromkeys(SYMBOLS, DAYS)))
                publisher, minutes, sent = bus.publisher(), bars(3000, symbol="LIVE"), 0
                started = time.monotonic()
                while not backfill.done() or sent < 20:
                    [batch] = encode_batches(minutes[sent : sent + 1], correlation_id="live")
                    await publisher.publish(batch, market_subject("LIVE", "1m"))
                    sent += 1
                    await asyncio.sleep(max(0.0, started + sent * LIVE_EVERY_S - time.monotonic()))
                report = await backfill
                async with asyncio.timeout(20):
                    while (await bus.js.stream_info(LIVE)).state.messages:  # noqa: ASYNC110 — nothing announces it
                        await asyncio.sleep(0.05)
                stop.set()
                await asyncio.gather(*tasks)
    assert report.seconds_throttled > 0
    assert hub.health().facts["limits"] != 0
    for key, ticker in SYMBOLS.items():
        assert_bars_equal(world.bars(key, "1m"), truth(ticker, DAYS), key)
    assert world.bars("LIVE", "1m").height == sent
    delays = world.query(
        "SELECT date_diff('millisecond', published_at, inserted_at) AS ms FROM ingest_batches WHERE symbol = 'LIVE'"
    ).select(pl.col("ms").median().alias("median"), pl.col("ms").max().alias("max"))
    median, worst = delays.row(0)
    print(f"{report.counts.batches} batches, {report.seconds:.1f} s, of which throttled {report.seconds_throttled:.1f}")
    print(f"{sent} live bars landed after {median:.0f} ms in the median, {worst:.0f} ms at worst")
    assert median < 5_000, "live bars do not stand behind the backfill"
