"""The stream's faults, each struck over a real connection."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosedError

from market_pipeline.simulator import truth
from market_pipeline.simulator.server import SimulatorThread
from market_pipeline_tests.simulator.stream_client import StreamClient

MINUTE = timedelta(minutes=1)


@pytest.fixture
def start(simulator: SimulatorThread, utc: Callable[..., datetime]) -> datetime:
    at = utc(2014, 5, 5, 8)
    simulator.set_now(at)
    return at


def bids(start: datetime, minutes: int) -> list[tuple[int, float]]:
    frame = truth.ticks("C:EURUSD", start + timedelta(milliseconds=1), start + minutes * MINUTE)
    return list(zip(frame["ts"].dt.epoch("ms").to_list(), frame["bid"].to_list(), strict=True))


def got(events: list[dict[str, Any]]) -> list[tuple[int, float]]:
    return [(event["t"], event["b"]) for event in events]


async def streamed(simulator: SimulatorThread, start: datetime, minutes: int) -> list[tuple[int, float]]:
    async with StreamClient(simulator) as client:
        await client.enter("C.EUR/USD")
        simulator.advance(start + minutes * MINUTE)
        return got(await client.advanced())


@pytest.mark.parametrize("kind", ["auth_failed", "auth_timeout", "max_connections"])
async def test_a_right_key_is_refused_once(simulator: SimulatorThread, kind: str) -> None:
    simulator.stream_fault(kind, market="forex")
    async with StreamClient(simulator, "crypto") as client:
        await client.enter()
    async with StreamClient(simulator) as client:
        assert await client.status() == "connected"
        await client.say("auth", simulator.api_key)
        assert await client.status() == kind
        await client.until_closed()
    async with StreamClient(simulator) as client:
        await client.enter("C.EUR/USD")
    assert [fault["used"] for fault in simulator.stream_faults()] == [1]


async def test_a_missing_acknowledgement(simulator: SimulatorThread, start: datetime) -> None:
    simulator.stream_fault("drop_topic_ack", ticker="C:EURUSD")
    simulator.stream_fault("drop_topic_ack", ticker="C:GBPUSD", mute=True)
    async with StreamClient(simulator) as client:
        assert await client.enter("C.EUR/USD,C.GBP/USD,C.USD/CHF", acknowledged=1) == ["C.USD/CHF"]
        simulator.advance(start + MINUTE)
        assert {event["p"] for event in await client.advanced()} == {"EUR/USD", "USD/CHF"}


@pytest.mark.parametrize("kind", ["close_clean", "close_unclean"])
async def test_the_connection_ends_after_some_events_again_and_again(
    simulator: SimulatorThread, start: datetime, kind: str
) -> None:
    simulator.stream_fault(kind, after_events=20, times=2, code=1001)
    expected = bids(start, 5)
    for _ in range(2):
        async with StreamClient(simulator) as client:
            await client.enter("C.EUR/USD")
            simulator.advance(start + 5 * MINUTE)
            events, closed = await client.until_closed()
            if kind == "close_clean":
                assert closed.rcvd is not None
                assert closed.rcvd.code == 1001
                assert got(events) == expected[:20]
            else:
                assert isinstance(closed, ConnectionClosedError)
                assert closed.rcvd is None
            simulator.set_now(start)
    assert simulator.stream_stats()["sent"]["C.EUR/USD"] == 40
    assert simulator.stream_stats()["lost"] > 0
    assert await streamed(simulator, start, 1) == bids(start, 1)


async def test_a_close_on_demand_needs_no_event(simulator: SimulatorThread, start: datetime) -> None:
    async with StreamClient(simulator) as client:
        await client.enter("C.EUR/USD")
        simulator.stream_fault("close_clean")
        events, closed = await client.until_closed()
        assert (events, closed.rcvd and closed.rcvd.code) == ([], 1000)


@pytest.mark.parametrize("pongs", [True, False])
async def test_silence(simulator: SimulatorThread, start: datetime, pongs: bool) -> None:
    simulator.stream_settings(ping_interval=0.05)
    fault = simulator.stream_fault("silence", after_events=10, pongs=pongs)
    async with StreamClient(simulator) as client:
        await client.enter("C.EUR/USD")
        simulator.advance(start + 5 * MINUTE)
        assert len(await client.advanced()) == 10
        answered = await client.ws.ping()
        done, _ = await asyncio.wait([asyncio.ensure_future(answered)], timeout=0.3)
        assert bool(done) == pongs
        assert simulator.stream_stats()["open"] == 1
        simulator.clear_stream_faults(fault)
        simulator.advance(start + 6 * MINUTE)
        assert len(await client.advanced()) > 0
        await asyncio.wait_for(await client.ws.ping(), 5)


async def test_silence_for_a_time(simulator: SimulatorThread) -> None:
    simulator.load(["C:EURUSD"], 100)
    async with StreamClient(simulator) as client:
        await client.enter("C.EUR/USD")
        events = await client.frame()
        simulator.stream_fault("silence", seconds=0.3)
        async with asyncio.timeout(5):
            while max((b["t"] - a["t"] for a, b in itertools.pairwise(events)), default=0) < 250:
                events += await client.frame()


async def test_a_slow_frame_arrives_whole_and_pings_wait_for_its_end(
    simulator: SimulatorThread, start: datetime
) -> None:
    simulator.stream_settings(ping_interval=0.02)
    simulator.stream_fault("slow_frames", seconds=0.3, after_events=5)
    began = time.monotonic()
    assert await streamed(simulator, start, 3) == bids(start, 3)
    assert time.monotonic() - began > 0.3


async def test_half_a_frame(simulator: SimulatorThread, start: datetime) -> None:
    simulator.stream_fault("half_frame", after_events=7)
    async with StreamClient(simulator) as client:
        await client.enter("C.EUR/USD")
        simulator.advance(start + 5 * MINUTE)
        events, closed = await client.until_closed()
        assert got(events) == bids(start, 5)[:7]
        assert closed.rcvd is None
    assert simulator.stream_stats()["sent"] == {"C.EUR/USD": 7}


async def test_duplicates(simulator: SimulatorThread, start: datetime) -> None:
    simulator.stream_fault("duplicates", share=0.3, seed=5)
    events = await streamed(simulator, start, 5)
    (fault,) = simulator.stream_faults()
    expected = bids(start, 5)
    assert 0 < fault["used"] < len(expected)
    assert len(events) == len(expected) + fault["used"]
    assert sorted(set(events)) == sorted(set(expected))


async def test_out_of_order(simulator: SimulatorThread, start: datetime) -> None:
    simulator.stream_fault("out_of_order", share=0.2, positions=2)
    events, expected = await streamed(simulator, start, 5), bids(start, 5)
    assert events != expected
    simulator.clear_stream_faults()
    stamps = [ts for ts, _ in events]
    assert stamps != sorted(stamps)
    # What nothing overtook within a second of the end is still to come.
    assert set(events) <= set(expected)
    assert len(expected) - len(events) <= 2


async def test_late_events_come_when_the_clock_has_passed(simulator: SimulatorThread, start: datetime) -> None:
    simulator.stream_fault("late", times=3, seconds=90)
    events, expected = await streamed(simulator, start, 5), bids(start, 5)
    assert sorted(events) == sorted(expected)
    for late in expected[:3]:
        at = events.index(late)
        assert 0 <= max(ts for ts, _ in events[:at]) - late[0] <= 90_000
        assert events[at + 1][0] >= late[0] + 90_000 or events[at + 1] in expected[:3]


async def test_crossed_quotes(simulator: SimulatorThread, start: datetime) -> None:
    simulator.stream_fault("crossed", share=0.5, ticker="C:EURUSD")
    async with StreamClient(simulator) as client:
        await client.enter("C.EUR/USD,C.GBP/USD")
        simulator.advance(start + 5 * MINUTE)
        events = await client.advanced()
    across = [event for event in events if event["b"] > event["a"]]
    assert {event["p"] for event in across} == {"EUR/USD"}
    assert len(across) == simulator.stream_faults()[0]["used"] > 5


async def test_a_burst(simulator: SimulatorThread) -> None:
    simulator.load(["C:EURUSD"], 500)
    simulator.stream_fault("burst", count=200, times=1)
    async with StreamClient(simulator) as client:
        await client.enter("C.EUR/USD")
        first = await client.frame()
        assert len(first) >= 200
        assert 390 <= first[199]["t"] - first[0]["t"] <= 400
        following = await client.frame()
        assert len(following) < 100
        assert following[0]["t"] - first[-1]["t"] <= 2


@pytest.mark.parametrize(
    "options", [{"kind": "earthquake"}, {"kind": "late", "sharing": 1}, {"kind": "late", "ticker": "("}]
)
async def test_a_senseless_fault_is_refused(simulator: SimulatorThread, options: dict[str, Any]) -> None:
    with pytest.raises(RuntimeError):
        simulator.stream_fault(**options)
    with pytest.raises(RuntimeError):
        simulator.stream_settings(interval=0)
    assert simulator.stream_faults() == []
