"""A full backfill with live running: the hub slows the backfill down, and live bars land as if it were not there."""

from __future__ import annotations

import asyncio
import time

import polars as pl
import pytest

from market_pipeline.bus.envelope import encode_batches
from market_pipeline.bus.publisher import Publisher
from market_pipeline.bus.session import open_bus
from market_pipeline.bus.streams import LIVE
from market_pipeline.bus.subjects import market_subject
from market_pipeline.bus.throttle import HISTORY_SERVICE
from market_pipeline.history import LoadReport
from market_pipeline.hub.throttle import Governor, ThrottleService
from market_pipeline.live.bridge import BridgeWorker
from market_pipeline.settings import ThrottleSettings
from market_pipeline.stores import open_stores
from market_pipeline_tests.bus.bars import bars
from market_pipeline_tests.integration.world import World, assert_bars_equal, day_range, truth

DAYS = day_range("2023-01-02", "2023-02-28")
SYMBOLS = {"EURUSD": "C:EURUSD", "GBPUSD": "C:GBPUSD", "BTCUSD": "X:BTCUSD"}
LIVE_EVERY_S = 0.1
QUIET = 20
# What is a second in earnest is a millisecond here: any batch of the backfill waits for longer than 30 of them.
LAG_S, RELEASE_S = 0.030, 0.010
# So much later than without a backfill, in the median (ms): behind an insert of its batches, not behind all of them.
LATER_MS = 1_000


async def send_live(publisher: Publisher, minutes: pl.DataFrame) -> None:
    [batch] = encode_batches(minutes, correlation_id="live")
    await publisher.publish(batch, market_subject("LIVE", "1m"))


async def test_a_backfill_is_slowed_down_and_live_keeps_its_share(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A limit would hold for minutes: what ends it within this test is its release.
    throttle = ThrottleSettings(lag_s=LAG_S, release_s=RELEASE_S, batches_per_s=4.0, expiry_s=300.0, every_s=0.05)
    settings = world.settings.model_copy(update={"throttle": throttle})
    judged: list[tuple[float, bool]] = []
    judge = Governor.judge

    def noted(governor: Governor, lag_s: float) -> bool:
        judged.append((lag_s, judge(governor, lag_s)))
        return judged[-1][1]

    monkeypatch.setattr(Governor, "judge", noted)
    stop = asyncio.Event()
    hub = ThrottleService(settings)
    with open_stores(settings) as stores:
        async with open_bus(settings.nats, "test") as bus:
            await bus.ensure_streams()
            async with bus.consumer(LIVE) as consumer, bus.throttle(HISTORY_SERVICE) as gate:
                bridge = BridgeWorker(consumer, stores.bars, stores.ingest, bus, gather_s=0.02)
                tasks = [asyncio.create_task(bridge.run(stop))]
                publisher, minutes, sent = bus.publisher(), bars(3000, symbol="LIVE"), 0
                backfill: asyncio.Task[LoadReport] | None = None
                started = time.monotonic()
                while backfill is None or not backfill.done() or sent < 2 * QUIET:
                    if sent == QUIET:
                        tasks.append(asyncio.create_task(hub.run(stop)))
                        backfill = asyncio.create_task(asyncio.to_thread(world.load, dict.fromkeys(SYMBOLS, DAYS)))
                    await send_live(publisher, minutes[sent : sent + 1])
                    sent += 1
                    await asyncio.sleep(max(0.0, started + sent * LIVE_EVERY_S - time.monotonic()))
                report = await backfill
                async with asyncio.timeout(20):
                    while (await bus.js.stream_info(LIVE)).state.messages:  # noqa: ASYNC110 — nothing announces it
                        await asyncio.sleep(0.05)
                    while gate.limited or hub.health().facts["limiting"]:  # noqa: ASYNC110 — nothing announces it
                        await asyncio.sleep(0.05)
                stop.set()
                await asyncio.gather(*tasks)
    assert report.seconds_throttled > 0
    facts = hub.health().facts
    assert facts["limits"] == facts["releases"] != 0
    limiting = False
    for lag_s, limits in judged:
        assert limits == (lag_s > LAG_S or (limiting and lag_s > RELEASE_S)), "set at 30, lifted at 10, else as it was"
        limiting = limits

    for key, ticker in SYMBOLS.items():
        assert_bars_equal(world.bars(key, "1m"), truth(ticker, DAYS), key)
    assert world.bars("LIVE", "1m").height == sent
    delays = world.query(
        "SELECT date_diff('millisecond', published_at, inserted_at) AS ms FROM ingest_batches WHERE symbol = 'LIVE' "
        "ORDER BY published_at"
    )["ms"]
    quiet, beside = delays[:QUIET], delays[QUIET:]
    print(f"{report.counts.batches} batches, {report.seconds:.1f} s, of which throttled {report.seconds_throttled:.1f}")
    print(f"{sent} live bars: {quiet.median()} ms in the median without a backfill, at worst {quiet.max()};", end=" ")
    print(f"{beside.median()} ms beside it, at worst {beside.max()}; {facts['releases']} releases")
    assert beside.median() < quiet.median() + LATER_MS, "live bars do not stand behind the backfill"
    assert beside.max() < quiet.max() + 5 * LATER_MS
