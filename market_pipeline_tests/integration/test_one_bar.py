"""One bar through the whole road: seen on its subject, stored once, traced in the ledger; and the shared rate."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import polars as pl

from market_pipeline.bus.envelope import encode_batches
from market_pipeline.bus.session import open_bus
from market_pipeline.bus.streams import HISTORY
from market_pipeline.bus.subjects import history_subject
from market_pipeline.history.runtime import open_runtime
from market_pipeline.market.bars import BAR_SCHEMA
from market_pipeline.simulator.plans import Plan
from market_pipeline.stores.clickhouse import connect
from market_pipeline.stores.ledgers import IngestLedger
from market_pipeline_tests.integration.world import World, day_range, utc

TS = utc("2024-03-04T10:00:00")


def one_bar(**changes: object) -> pl.DataFrame:
    bar = {
        "symbol": "EURUSD",
        "timeframe": "1m",
        "ts": TS,
        "source": "vendor_historical",
        "origin": "",
        "open": 1.1,
        "high": 1.3,
        "low": 1.0,
        "close": 1.2,
        "volume": 7.0,
        "vwap": 1.15,
        "trades": 7,
        "complete": True,
        "revision": 5,
        "is_deleted": 0,
    }
    return pl.DataFrame([{**bar, **changes}], schema=BAR_SCHEMA)


async def test_a_bar_is_seen_on_its_subject_stored_once_and_traced(world: World) -> None:
    seen: list[str] = []

    async def heard(message: object) -> None:
        seen.append(message.subject)  # type: ignore[attr-defined]

    async with open_runtime(world.settings, run_id="one", root_run_id="one") as rt:
        await rt.bus.nc.subscribe("history.*.*", cb=heard)
        [batch] = encode_batches(one_bar(), correlation_id="c-1", run_id="one")
        rows = [await (await rt.tracker.publish(batch))]
        # the same batch again, as a redelivery or an adopted spool would send it
        publisher = rt.bus.publisher()
        await publisher.publish(batch, history_subject("EURUSD", "1m"))
        async with asyncio.timeout(10):
            # the bridge's own connection says nothing of a redelivery: the ledger is what a person can ask
            while len(IngestLedger(connect(world.settings.clickhouse)).trace(batch.headers.batch_id)) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    assert seen == ["history.EURUSD.1m"] * 2
    assert (rows[0].outcome, rows[0].new_rows) == ("stored", 1)
    assert world.query("SELECT count() AS n FROM bars").item() == 1, "stored once"
    stored = world.bars("EURUSD", "1m")
    assert stored.select("open", "high", "low", "close", "volume", "vwap", "trades").row(0) == (
        1.1,
        1.3,
        1.0,
        1.2,
        7.0,
        1.15,
        7,
    )
    trace = IngestLedger(connect(world.settings.clickhouse)).trace_bar("EURUSD", "1m", TS)
    assert [(t.correlation_id, t.run_id, t.subject, t.new_rows, t.unchanged_rows) for t in trace] == [
        ("c-1", "one", "history.EURUSD.1m", 1, 0),
        ("c-1", "one", "history.EURUSD.1m", 0, 1),
    ]
    first = trace[0]
    assert first.encoded_at <= first.published_at <= first.bridge_received_at <= first.inserted_at  # type: ignore[operator]


async def test_an_incomplete_bar_never_beats_a_complete_one(world: World) -> None:
    """Whatever its rank and revision: the read view puts complete bars first."""
    async with open_runtime(world.settings, run_id="two", root_run_id="two") as rt:
        for frame in (
            one_bar(),
            one_bar(source="live_aggregated", close=1.25, complete=False, revision=10**15),
        ):
            await (await rt.tracker.publish(encode_batches(frame, correlation_id="c", run_id="two")[0]))
        assert world.bars("EURUSD", "1m").select("source", "close").rows() == [("vendor_historical", 1.2)]
        frame = one_bar(source="live_aggregated", close=1.26, complete=True, revision=10**15 + 1)
        await (await rt.tracker.publish(encode_batches(frame, correlation_id="c", run_id="two")[0]))
    assert world.bars("EURUSD", "1m").select("source", "close").rows() == [("live_aggregated", 1.26)]


async def test_what_cannot_be_read_goes_to_dead_letters_and_the_rest_lands(world: World) -> None:
    from market_pipeline.bus.dead_letters import count_dead_letters

    async with open_bus(world.settings.nats, "test") as bus:
        await bus.ensure_streams()
        [good] = encode_batches(one_bar(), correlation_id="c", run_id="three")
        await bus.js.publish("history.EURUSD.1m", b"not an envelope", stream=HISTORY)
        headers = {**good.headers.to_nats(), "Batch-Id": "77"}
        await bus.js.publish("history.EURUSD.1m", b"not arrow", stream=HISTORY, headers=headers)
    async with open_runtime(world.settings, run_id="three", root_run_id="three") as rt:
        row = await (await rt.tracker.publish(good))
        assert row.outcome == "stored"
        async with asyncio.timeout(20):
            while len(await count_dead_letters(rt.bus.js)) < 2:  # noqa: ASYNC110 — nothing announces a dead letter
                await asyncio.sleep(0.1)
        counts = await count_dead_letters(rt.bus.js)
    assert counts == {(HISTORY, "unreadable_envelope"): 1, (HISTORY, "unreadable_payload"): 1}
    assert world.bars("EURUSD", "1m").height == 1


def test_ten_symbols_in_two_processes_see_no_429_on_a_small_plan(world: World) -> None:
    """The free plan scaled down: 5 requests in any 2 seconds, shared by everything that uses the key."""
    window = 2.0
    world.vendor.set_plan(Plan(requests_per_minute=5, window_s=window))
    settings = world.settings.model_copy(
        update={"vendor": world.settings.vendor.model_copy(update={"requests_per_minute": 5, "rate_window_s": window})}
    )
    small = World(settings, world.nats, world.clickhouse, world.vendor)
    keys = ["EURUSD", "GBPUSD", "USDJPY", "AUDUSD", "USDCHF", "USDCAD", "BTCUSD", "ETHUSD", "SPY", "IBM"]
    halves = [{key: day_range("2024-03-04", "2024-03-04") for key in part} for part in (keys[:5], keys[5:])]
    world.vendor.clear_requests()
    with ThreadPoolExecutor(2) as pool:
        for report in [pool.submit(small.load, half) for half in halves]:
            assert report.result(timeout=120).retries == {}
    statuses = {r.status for r in world.vendor.requests()}
    assert statuses == {200}
    assert len([r for r in world.vendor.requests() if "/v2/aggs" in r.path]) >= 10
