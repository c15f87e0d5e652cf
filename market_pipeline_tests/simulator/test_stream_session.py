"""The stream's conversation: greeting, key, subscriptions, one connection a key, pings."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta

import pytest
from websockets.exceptions import InvalidStatus

from market_pipeline.simulator.plans import Plan
from market_pipeline.simulator.server import SimulatorThread
from market_pipeline.simulator.stream.topics import lanes_of
from market_pipeline_tests.simulator.stream_client import StreamClient, until


async def test_every_pair_is_acknowledged_and_unknown_topics_are_not(simulator: SimulatorThread) -> None:
    async with StreamClient(simulator) as client:
        wanted = ["C.EUR/USD", "C.GBP-USD", "C.ZZZ/USD", "C.nonsense", "CA.EUR/USD", "CAS.EUR/USD"]
        acknowledged = await client.enter(",".join([*wanted, "T.AAPL", "LULD.EUR/USD"]), acknowledged=len(wanted))
        assert acknowledged == wanted
        stats = simulator.stream_stats()
        assert stats["acknowledged"] == len(wanted)
        assert stats["subscriptions"]["forex"] == [
            "C.EUR/USD",
            "C.GBP/USD",
            "C.ZZZ/USD",
            "CA.EUR/USD",
            "CAS.EUR/USD",
        ]


async def test_a_wrong_key_ends_the_session(simulator: SimulatorThread) -> None:
    async with StreamClient(simulator, key="wrong") as client:
        assert await client.status() == "connected"
        await client.say("subscribe", "C.EUR/USD")
        assert await client.status() == "error"
        await client.say("auth", "wrong")
        assert await client.status() == "auth_failed"
        _, closed = await client.until_closed()
        assert closed.rcvd is not None
        assert closed.rcvd.code == 1008
    assert simulator.stream_stats()["sessions"]["auth_failed"] == 1


async def test_a_plan_without_the_market_is_no_entry(simulator: SimulatorThread) -> None:
    _, key = simulator.add_key(Plan(name="forex only", markets=["forex"]))
    async with StreamClient(simulator, key=key) as client:
        await client.enter("C.EUR/USD")
    async with StreamClient(simulator, "crypto", key=key) as client:
        assert await client.status() == "connected"
        await client.say("auth", key)
        assert await client.status() == "auth_failed"


async def test_without_a_key_the_session_times_out(simulator: SimulatorThread) -> None:
    simulator.stream_settings(auth_timeout=0.1)
    async with StreamClient(simulator) as client:
        assert [await client.status(), await client.status()] == ["connected", "auth_timeout"]
        await client.until_closed()


async def test_one_connection_a_cluster_and_key(simulator: SimulatorThread) -> None:
    _, other = simulator.add_key()
    async with StreamClient(simulator) as first:
        await first.enter("C.EUR/USD")
        async with StreamClient(simulator) as second:
            assert await second.status() == "connected"
            await second.say("auth", simulator.api_key)
            assert await second.status() == "max_connections"
            await second.until_closed()
        async with StreamClient(simulator, "crypto") as elsewhere, StreamClient(simulator, key=other) as another:
            await elsewhere.enter("XT.BTC-USD")
            await another.enter("C.EUR/USD")
    for _ in range(3):  # a place is free again at once
        async with StreamClient(simulator) as again:
            await again.enter("C.EUR/USD")
    assert simulator.stream_stats()["sessions"]["max_connections"] == 1


async def test_unsubscribed_pairs_are_mute(simulator: SimulatorThread, utc: Callable[..., datetime]) -> None:
    start = utc(2024, 3, 5, 10)
    simulator.set_now(start)
    async with StreamClient(simulator) as client:
        await client.enter("C.EUR/USD,C.GBP/USD")
        await client.say("unsubscribe", "C.EUR-USD")
        await client.status()
        simulator.advance(start + timedelta(minutes=1))
        events = await client.advanced()
        assert {event["p"] for event in events} == {"GBP/USD"}
        await client.say("nonsense", "")
        await client.ws.send("no json")
        assert await client.status() == "error"


async def test_another_path_is_refused(simulator: SimulatorThread) -> None:
    with pytest.raises(InvalidStatus, match="403"):
        async with StreamClient(simulator, "options"):
            pass


async def test_the_server_pings_and_cuts_off_whoever_does_not_answer(simulator: SimulatorThread) -> None:
    simulator.stream_settings(ping_interval=0.05, ping_timeout=0.3)
    async with StreamClient(simulator) as client:
        await client.enter("C.EUR/USD")
        pong = await client.ws.ping()
        await asyncio.wait_for(pong, 5)
        await asyncio.sleep(0.5)
        assert simulator.stream_stats()["open"] == 1
        client.ws.transport.pause_reading()
        await until(lambda: not simulator.stream_stats()["open"])
        client.ws.transport.abort()


async def test_a_slow_reader_is_cut_off(simulator: SimulatorThread) -> None:
    simulator.stream_settings(slow_reader_bytes=100_000)
    async with StreamClient(simulator) as client:
        await client.enter("C.EUR/USD")
        client.ws.transport.pause_reading()
        simulator.load(["C:EURUSD"], 200_000)
        await until(lambda: "cut_off" in simulator.stream_stats()["sessions"])
        client.ws.transport.abort()
    assert simulator.stream_stats()["lost"] > 0


@pytest.mark.parametrize(
    ("parameter", "market", "keys"),
    [
        ("C.EUR/USD", "forex", ["C.EUR/USD"]),
        ("C.EUR-USD", "forex", ["C.EUR/USD"]),
        ("XT.BTC/USDT", "crypto", ["XT.BTC-USDT"]),
        ("XQ.BTC-USD", "crypto", ["XQ.BTC-USD"]),
        ("T.BRK.B", "stocks", ["T.BRK.B"]),
        ("AM.*", "stocks", ["AM.A", "AM.B"]),
        ("C.EURUSD", "forex", []),
        ("XT.BTC-USD", "forex", None),
        ("", "forex", None),
    ],
)
def test_parameters(parameter: str, market: str, keys: list[str] | None) -> None:
    lanes = lanes_of(parameter, market, lambda: ["A", "B"])  # type: ignore[arg-type]
    assert (None if lanes is None else [lane.key for lane in lanes]) == keys
