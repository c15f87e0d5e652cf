"""Coarser bars in live time: from ticks through the bridge to derived bars in the store, and again after a revision."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_pipeline.bus.streams import HISTORY, LIVE
from market_pipeline.bus.throttle import HISTORY_SERVICE, Throttle
from market_pipeline.live.aggregator import LiveDeriver
from market_pipeline.live.aggregator import deriver as deriver_module
from market_pipeline.live.aggregator.touched import Touched, intervals
from market_pipeline.live.aggregator.unstored import Unstored
from market_pipeline.live.bridge import BridgeWorker
from market_pipeline.local.clickhouse import process
from market_pipeline.local.clickhouse.process import ServerProcess
from market_pipeline.market.aggregation import fold
from market_pipeline.market.timeframes import DERIVED, timeframe
from market_pipeline.settings import Settings
from market_pipeline.stores import Stores, open_stores
from market_pipeline.stores.seconds import AllBarStore
from market_pipeline.tasks import end_tasks
from market_pipeline_tests.live.aggregating import EUR, MINUTE, T0, Bench, at, eventually, open_bench
from market_pipeline_tests.servers import NatsProcess, new_database
from market_pipeline_tests.stores.frames import bar


@pytest.fixture(scope="module")
def clickhouse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with process.start(tmp_path_factory.mktemp("clickhouse")) as server:
        yield server


@dataclass
class Live:
    """Aggregator, bridge and deriver at work."""

    bench: Bench
    stores: Stores
    deriver: LiveDeriver

    def bars(self, code: str) -> pl.DataFrame:
        return self.stores.bars.winners("EURUSD", code, at(T0) - timedelta(days=7), at(T0) + timedelta(days=1))

    async def until(self, code: str, ready: Callable[[pl.DataFrame], bool]) -> pl.DataFrame:
        deadline = time.monotonic() + 20
        while not ready(frame := await asyncio.to_thread(self.bars, code)):
            assert time.monotonic() < deadline, (code, frame, self.deriver.health())
            await asyncio.sleep(0.1)
        return frame


@asynccontextmanager
async def bridged(bench: Bench, stores: Stores) -> AsyncIterator[None]:
    stop = asyncio.Event()
    async with bench.bus.consumer(LIVE) as consumer:
        task = asyncio.create_task(
            BridgeWorker(consumer, AllBarStore(stores.client), stores.ingest, bench.bus).run(stop)
        )
        try:
            yield
        finally:
            stop.set()
            await asyncio.wait_for(task, 20)


@asynccontextmanager
async def running(bench: Bench, settings: Settings, deriver: LiveDeriver) -> AsyncIterator[Live]:
    stop = asyncio.Event()
    with open_stores(settings) as stores:
        async with bench.running(EUR, on_published=deriver.published):
            task = asyncio.create_task(deriver.run(stop))
            try:
                yield Live(bench, stores, deriver)
            finally:
                stop.set()
                await asyncio.wait_for(task, 20)


def settings_of(home: Path, nats: NatsProcess, clickhouse: ServerProcess) -> Settings:
    return Settings(
        home=home,
        nats=nats.settings,
        clickhouse=new_database(clickhouse),
    )


@pytest.fixture
async def unbridged(tmp_path: Path, clickhouse: ServerProcess) -> AsyncIterator[Live]:
    with NatsProcess() as nats:
        settings = settings_of(tmp_path, nats, clickhouse)
        deriver = LiveDeriver(settings, [EUR], run_id="live-1", look_back=timedelta(minutes=1))
        async with open_bench(nats) as bench, running(bench, settings, deriver) as started:
            yield started


@pytest.fixture
async def live(unbridged: Live) -> AsyncIterator[Live]:
    async with bridged(unbridged.bench, unbridged.stores):
        yield unbridged


async def test_minutes_from_ticks_become_every_coarser_bar_and_a_late_tick_derives_again(live: Live) -> None:
    rows = [
        (T0 + second * 1000, 1.08 + (second % 97) / 1e4, 1.0801 + (second % 97) / 1e4) for second in range(0, 960, 7)
    ]
    for begin in range(0, len(rows), 30):
        batch = rows[begin : begin + 30]
        await live.bench.send(batch, alive=batch[-1][0])
    await live.bench.send(alive=T0 + 16 * MINUTE)
    minutes = await live.until("1m", lambda frame: frame.height == 16)
    assert minutes["complete"].all()
    await live.until("5m", lambda frame: frame["complete"].to_list() == [True, True, True, False])
    await live.until("1d", lambda frame: frame.height == 1)
    columns = ["open", "high", "low", "close", "volume", "trades"]
    for code in DERIVED:
        made = await live.until(code, lambda frame: frame["trades"].sum() == len(rows))
        assert made.select("ts", *columns).rows() == fold(minutes, code).select("ts", *columns).rows()
        assert set(made["source"]) == {"derived"}
        assert set(made["origin"]) == {"live_aggregated"}
    fifteen = live.bars("15m").select("complete", "trades").rows()
    assert fifteen == [(True, 129), (False, 9)]

    await live.bench.send([(T0 + 14 * MINUTE + 500, 2.0, 2.0)], alive=T0 + 16 * MINUTE)
    await live.until("1m", lambda frame: frame["high"].max() == 2.0)
    made = await live.until("5m", lambda frame: frame["high"].to_list()[2] == 2.0)
    assert made["trades"].sum() == len(rows) + 1
    await live.until("1d", lambda frame: frame["high"].to_list() == [2.0])
    assert live.bars("15m").select("high", "complete").rows()[0] == (2.0, True)
    assert live.deriver.health().problems == ()
    assert live.bars("1s").is_empty(), "the seconds have a table of their own"
    assert live.deriver.health().written > 0


async def test_minutes_that_the_bridge_brings_after_an_outage_are_derived_anew(
    unbridged: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = unbridged
    monkeypatch.setattr(live.deriver._unstored, "_late_s", 0.5)
    for minute in range(5):
        await live.bench.send([(T0 + minute * MINUTE, 1.0 + minute, 1.0 + minute)], alive=T0 + (minute + 1) * MINUTE)
    made = await live.bench.until(lambda frame: frame.height == 5)
    vendor = made.with_columns(source=pl.lit("vendor_historical"), high=pl.lit(9.0), batch_id=pl.lit(1, pl.UInt64))
    await asyncio.to_thread(live.stores.bars.insert_frame, vendor)
    await eventually(lambda: live.deriver._unstored.ids() != [] and live.deriver.health().due == 0)
    await asyncio.sleep(1.5)  # it has looked: the windows were made of what repair had filled in
    async with bridged(live.bench, live.stores):
        five = await live.until("5m", lambda frame: frame["origin"].to_list() == ["live_aggregated"])
        assert five.select("open", "high", "close", "complete").rows() == [(1.0, 5.0, 5.0, True)]
        assert (await live.until("1d", lambda frame: frame["high"].to_list() == [5.0]))["trades"].to_list() == [5]
        await eventually(lambda: live.deriver.health().unstored == 0)


async def test_coarser_live_bars_go_to_live_and_hear_no_throttle(live: Live) -> None:
    async def throttle() -> None:
        while True:
            await live.bench.bus.send_throttle(HISTORY_SERVICE, Throttle(batches_per_s=0.01, expiry_s=60))
            await asyncio.sleep(0.05)

    throttling = asyncio.create_task(throttle())
    try:
        await live.bench.send([(T0 + 500, 1.0, 1.0)], alive=T0 + MINUTE)
        for code in DERIVED:
            await live.until(code, lambda frame: frame.height == 1)
    finally:
        await end_tasks((throttling,))
    lines = live.stores.client.frame("SELECT DISTINCT stream, subject FROM ingest_batches WHERE source = 'derived'")
    assert sorted(lines.rows()) == sorted(("LIVE", f"market.EURUSD.{code}") for code in DERIVED)
    assert (await live.bench.bus.js.stream_info(HISTORY)).state.last_seq == 0
    assert live.stores.ingest.live_latency(at(0))["flushes"] == 1, "of a minute and its second"


async def test_a_deriver_that_no_bridge_serves_stops_at_once(unbridged: Live) -> None:
    await asyncio.to_thread(unbridged.stores.bars.insert_frame, bar(at(T0)))
    deriver = LiveDeriver(unbridged.deriver._settings, [EUR], run_id="live-2", look_back=datetime.now(UTC) - at(T0))
    stop = asyncio.Event()
    task = asyncio.create_task(deriver.run(stop))
    await unbridged.bench.until(lambda frame: frame.height == 1, code="5m")
    stop.set()
    await asyncio.wait_for(task, 30)


# ------------------------------------------------------------------------------------------------- bookkeeping

NOON = datetime(2024, 3, 4, 12, tzinfo=UTC)


async def test_windows_that_cannot_be_derived_for_long_are_a_problem(
    tmp_path: Path, clickhouse: ServerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deriver_module, "STUCK_AFTER_S", 1.0)
    monkeypatch.setattr(deriver_module, "AGAIN_S", 0.1)
    with NatsProcess() as nats:
        settings = settings_of(tmp_path, nats, clickhouse)
        deriver = LiveDeriver(settings, [EUR], run_id="live-1", look_back=timedelta(hours=1))
        stop = asyncio.Event()
        nats.kill()
        task = asyncio.create_task(deriver.run(stop))
        try:
            await eventually(lambda: not deriver.health().healthy and deriver.health().due > 0)
            await eventually(lambda: "windows wait, the oldest for" in " ".join(deriver.health().problems))
            assert deriver.health().problems[0].startswith(f"{deriver.health().due} windows wait")
            nats.start()
            await eventually(lambda: deriver.health().healthy and deriver.health().due == 0, 30.0)
        finally:
            stop.set()
            await asyncio.wait_for(task, 20)


def test_a_window_is_due_when_it_is_over_and_its_last_minute_had_the_time_to_come() -> None:
    touched = Touched(timedelta(seconds=3))
    touched.minutes("A", [NOON + timedelta(minutes=3)])
    assert touched.take("A", NOON + timedelta(minutes=5, seconds=2)) == []
    later = NOON + timedelta(minutes=5, seconds=3)
    assert touched.waiting(later) == (1, 0.0)
    assert touched.take("A", later) == [("5m", int(NOON.timestamp() * 1000))]
    assert touched.take("A", later) == []
    assert [code for code, _ in touched.take("A", NOON + timedelta(minutes=31))] == ["15m", "30m"]
    assert sorted(code for code, _ in touched.take("A", NOON + timedelta(days=8))) == sorted(["1h", "4h", "1d", "1w"])
    assert touched.take("B", later) == []


def test_what_could_not_be_derived_waits() -> None:
    touched = Touched(timedelta(0))
    touched.minutes("A", [NOON])
    windows = touched.take("A", NOON + timedelta(hours=1))
    touched.put_back("A", windows)
    assert sorted(touched.take("A", NOON + timedelta(hours=1))) == sorted(windows)


@given(st.integers(0, 20_000), st.integers(1, 3000))
def test_every_window_that_shares_a_moment_is_touched(start: int, length: int) -> None:
    touched = Touched(timedelta(0))
    begin, end = NOON + timedelta(seconds=start), NOON + timedelta(seconds=start + length)
    touched.range("A", begin, end)
    windows = touched.take("A", NOON + timedelta(days=30))
    assert {code for code, _ in windows} == set(DERIVED)
    for code in DERIVED:
        spans = intervals(window for window in windows if window[0] == code)
        assert spans[0][0] <= begin < spans[0][1]
        assert spans[-1][0] < end <= spans[-1][1]
        assert len(spans) == (spans[-1][1] - spans[0][0]) / timeframe(code).length


def span(minute: int, symbol: str = "A") -> tuple[str, datetime, datetime]:
    return symbol, NOON + timedelta(minutes=minute), NOON + timedelta(minutes=minute + 1)


def test_a_flush_that_comes_late_is_derived_without_it_and_again_once_it_is_settled() -> None:
    unstored = Unstored(late_s=600, forget_s=7200, most=100)
    unstored.add(1, 1, span(0), 0.0)
    unstored.add(1, 2, span(0, "B"), 0.0)
    unstored.add(2, 1, span(1), 60.0)
    assert unstored.take({1: 2}, 599.0) == []
    assert unstored.take({1: 2}, 601.0) == [span(0), span(0, "B")]
    assert unstored.take({1: 2}, 605.0) == [], "said once"
    assert unstored.ids() == [1, 2]
    assert unstored.take({1: 3, 2: 1}, 606.0) == [span(0), span(0, "B"), span(1)]
    assert (len(unstored), unstored.ids()) == (0, [])


def test_what_waits_is_bounded_and_still_derived_when_the_rest_is_settled() -> None:
    unstored = Unstored(late_s=600, forget_s=7200, most=3)
    for number in range(5):
        unstored.add(number, 1, span(number), float(number))
    assert unstored.ids() == [2, 3, 4]
    assert unstored.take({}, 700.0) == [span(2), span(3), span(4)]
    assert unstored.take({2: 1}, 701.0) == [span(2)]
    assert unstored.take({3: 1, 4: 1}, 702.0) == [span(3), span(4), ("A", span(0)[1], span(1)[2])]
    unstored.add(9, 1, span(9), 0.0)
    assert unstored.take({}, 700.0) == [span(9)]
    assert unstored.take({}, 7201.0) == [span(9)], "it never came"
    assert len(unstored) == 0


def test_of_many_late_flushes_the_oldest_are_asked_about() -> None:
    unstored = Unstored(late_s=600, forget_s=7200, most=10_000)
    for number in range(1500):
        unstored.add(number, 1, span(number), 0.0)
    unstored.take({}, 601.0)
    unstored.add(2000, 1, span(2000), 601.0)
    assert unstored.ids() == [*range(1000), 2000]
