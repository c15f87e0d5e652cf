"""What is streamed is the truth of the REST side: ticks, minutes, recordings, loads."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import httpx
import polars as pl
import pytest

from market_pipeline.simulator import truth
from market_pipeline.simulator.server import SimulatorThread
from market_pipeline.simulator.stream.events import ForexQuote, Status, crossed
from market_pipeline_tests.simulator.stream_client import StreamClient

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
MINUTE = timedelta(minutes=1)


def rest_minutes(http: httpx.Client, ticker: str, start: datetime, end: datetime) -> list[dict[str, Any]]:
    """Return the minutes that open in [start, end)."""
    first, last = truth.to_ms(start), truth.to_ms(end) - 1
    answer = http.get(f"/v2/aggs/ticker/{ticker}/range/1/minute/{first}/{last}", params={"limit": 50_000})
    return answer.json().get("results", [])


def folded(prices: list[tuple[int, float]]) -> list[tuple[int, float, float, float, float, int]]:
    """Fold (ts, price) in the order of arrival into minutes."""
    minutes: dict[int, list[float]] = {}
    for ts, price in prices:
        minutes.setdefault(ts // 60_000 * 60_000, []).append(price)
    return [(at, p[0], max(p), min(p), p[-1], len(p)) for at, p in sorted(minutes.items())]


def told(bars: list[dict[str, Any]]) -> list[tuple[int, float, float, float, float, int]]:
    return [(bar["t"], bar["o"], bar["h"], bar["l"], bar["c"], bar["n"]) for bar in bars]


@pytest.mark.parametrize("start", [(2014, 5, 5, 8), (2024, 3, 5, 10)], ids=["real quotes", "generated"])
async def test_streamed_quotes_are_the_minutes_of_rest(
    simulator: SimulatorThread, http: httpx.Client, utc: Callable[..., datetime], start: tuple[int, ...]
) -> None:
    first = utc(*start)
    end = first + 30 * MINUTE
    simulator.set_now(first - timedelta(milliseconds=1))
    async with StreamClient(simulator) as client:
        await client.enter("C.EUR/USD,C.GBP/USD,C.ZZZ/USD,CA.EUR/USD")
        simulator.advance(end)
        events = await client.advanced()
    ticks = [event for event in events if event["ev"] == "C"]
    assert [event["t"] for event in ticks] == sorted(event["t"] for event in ticks)
    assert {event["p"] for event in ticks} == {"EUR/USD", "GBP/USD"}
    for pair, ticker in (("EUR/USD", "C:EURUSD"), ("GBP/USD", "C:GBPUSD")):
        bids = [(event["t"], event["b"]) for event in ticks if event["p"] == pair and event["t"] < truth.to_ms(end)]
        assert folded(bids) == told(rest_minutes(http, ticker, first, end))
        expected = truth.ticks(ticker, first, end)
        asks = [event["a"] for event in ticks if event["p"] == pair and event["t"] < truth.to_ms(end)]
        assert asks == expected["ask"].to_list()
    bars = [
        (e["s"], e["o"], e["h"], e["l"], e["c"], e["v"])
        for e in events
        if e["ev"] == "CA" and e["s"] >= truth.to_ms(first)
    ]
    assert bars == told(rest_minutes(http, "C:EURUSD", first, end))
    stats = simulator.stream_stats()
    assert stats["sent"] == {
        "C.EUR/USD": sum(event["p"] == "EUR/USD" for event in ticks),
        "C.GBP/USD": sum(event["p"] == "GBP/USD" for event in ticks),
        "CA.EUR/USD": len(bars) + 1,  # the minute before closes at the start
    }
    assert (stats["lost"], stats["now"], stats["advancing"]) == (0, truth.to_ms(end), False)


@pytest.mark.parametrize(
    ("market", "params", "ticker", "trade", "quote", "minute", "second"),
    [
        ("crypto", "XT.{0},XQ.{0},XA.{0},XAS.{0}", "X:ETHUSD", "XT", "XQ", "XA", "XAS"),
        ("stocks", "T.{0},Q.{0},AM.{0},A.{0}", "MSFT", "T", "Q", "AM", "A"),
    ],
)
async def test_trades_quotes_and_bars(
    simulator: SimulatorThread,
    http: httpx.Client,
    utc: Callable[..., datetime],
    market: str,
    params: str,
    ticker: str,
    trade: str,
    quote: str,
    minute: str,
    second: str,
) -> None:
    start = utc(2024, 3, 5, 15)
    end = start + 3 * MINUTE
    simulator.set_now(start - timedelta(milliseconds=1))
    async with StreamClient(simulator, market) as client:
        await client.enter(params.format("ETH-USD" if market == "crypto" else ticker))
        simulator.advance(end)
        events = await client.advanced()
    by = {kind: [event for event in events if event["ev"] == kind] for kind in (trade, quote, minute, second)}
    bars = rest_minutes(http, ticker, start, end)
    in_range = [event for event in by[trade] if event["t"] < truth.to_ms(end)]
    assert folded([(event["t"], event["p"]) for event in in_range]) == told(bars)
    assert sum(event["s"] for event in in_range) == pytest.approx(sum(bar["v"] for bar in bars))
    assert len({event["i"] for event in by[trade]}) == len(by[trade])
    assert [e["bp"] for e in by[quote]] == [e["p"] for e in by[trade]]
    assert all(event["ap"] > event["bp"] for event in by[quote])
    assert [(e["s"], e["o"], e["h"], e["l"], e["c"], e["v"]) for e in by[minute] if e["s"] >= truth.to_ms(start)] == [
        (b["t"], b["o"], b["h"], b["l"], b["c"], b["v"]) for b in bars
    ]
    assert sum(event["v"] for event in by[second] if event["s"] >= truth.to_ms(start)) == pytest.approx(
        sum(bar["v"] for bar in bars)
    )
    samples = SHARED / "vendor_websocket_samples.json"
    if samples.exists():
        recorded = json.loads(samples.read_text())
        for kind in by:
            assert set(by[kind][0]) == set(recorded[f"/{market}/{kind}"])


async def test_the_clock_at_speed_sends_what_it_passes(
    simulator: SimulatorThread, utc: Callable[..., datetime]
) -> None:
    start = utc(2014, 5, 5, 8)
    async with StreamClient(simulator) as client:
        simulator.set_now(start)
        await client.enter("C.EUR/USD")
        simulator.set_now(start, running=True, speed=600)
        events = await client.events(100)
        last = events[-1]["t"]
        assert last <= truth.to_ms(simulator.now())
        expected = truth.ticks("C:EURUSD", start + timedelta(milliseconds=1), start + timedelta(hours=1))
        stamps = expected["ts"].dt.epoch("ms").to_list()
        assert [event["t"] for event in events] == stamps[: len(events)]
        # A set clock leaves out what lies between.
        simulator.set_now(start + timedelta(hours=10), running=True, speed=600)
        while (event := (await client.frame())[0])["t"] <= last + 60_000:
            last = max(last, event["t"])
        assert event["t"] > truth.to_ms(start + timedelta(hours=10))


async def test_without_a_set_clock_it_is_live(simulator: SimulatorThread) -> None:
    async with StreamClient(simulator, "crypto") as client:
        simulator.load(["X:ETHUSD"], 50)
        await client.enter("XT.ETH-USD")
        for _ in range(3):
            event = (await client.frame())[0]
            assert abs(event["t"] - datetime.now(UTC).timestamp() * 1000) < 2_000


async def test_ticks_in_flight_are_lost_and_rest_has_the_minutes(
    simulator: SimulatorThread, http: httpx.Client, utc: Callable[..., datetime]
) -> None:
    start = utc(2014, 5, 5, 8)
    simulator.set_now(start)
    async with StreamClient(simulator) as client:
        await client.enter("C.EUR/USD")
        simulator.advance(start + 5 * MINUTE)
        before = await client.advanced()
    simulator.advance(start + 10 * MINUTE, subscriptions=0)
    await asyncio.to_thread(simulator.wait_advanced)
    async with StreamClient(simulator) as client:
        await client.enter("C.EUR/USD")
        simulator.advance(start + 15 * MINUTE)
        after = await client.events(1)
    assert before[-1]["t"] <= truth.to_ms(start + 5 * MINUTE)
    assert after[0]["t"] > truth.to_ms(start + 10 * MINUTE)
    assert len(rest_minutes(http, "C:EURUSD", start, start + 10 * MINUTE)) == 10


async def test_removed_minutes_are_not_streamed_and_restated_ones_as_they_were(
    simulator: SimulatorThread, http: httpx.Client, utc: Callable[..., datetime]
) -> None:
    start = utc(2024, 3, 5, 10)
    simulator.set_now(start)
    simulator.remove("C:EURUSD", start + MINUTE, start + 2 * MINUTE)
    simulator.restate("C:EURUSD", start + 3 * MINUTE, high=9.0)
    async with StreamClient(simulator) as client:
        await client.enter("C.EUR/USD")
        simulator.advance(start + 4 * MINUTE)
        events = await client.advanced()
    assert {event["t"] // 60_000 - truth.to_ms(start) // 60_000 for event in events} - {4} == {0, 2, 3}
    assert max(event["b"] for event in events) < 2
    assert max(bar["h"] for bar in rest_minutes(http, "C:EURUSD", start, start + 4 * MINUTE)) == 9.0


@pytest.mark.skipif(not SHARED.exists(), reason="the full recordings are not in the repository (../shared/data)")
async def test_a_full_recording_is_streamed_tick_by_tick_and_is_the_truth_of_rest(
    simulator: SimulatorThread, http: httpx.Client
) -> None:
    file = SHARED / "eurusd_fxcm_quotes_2014.parquet"
    quotes = pl.read_parquet(file)
    start, end, count = simulator.replay("C:EURUSD", file)
    assert (start.second, end.second, count) == (0, 0, len(quotes))
    simulator.set_now(start - MINUTE)
    got: list[bytes] = []
    async with StreamClient(simulator) as client:
        await client.enter("C.EUR/USD")
        simulator.advance(end)
        read = 0
        while read < count:
            got.append(await client.ws.recv(decode=False))
            read += got[-1].count(b'"ev"')
    await asyncio.to_thread(simulator.wait_advanced)
    streamed = pl.read_json(io.BytesIO(b"[" + b",".join(frame[1:-1] for frame in got) + b"]"))
    assert streamed["t"].to_list() == quotes["ts"].dt.epoch("ms").to_list()
    assert streamed["b"].to_list() == quotes["bid"].to_list()
    assert streamed["a"].to_list() == quotes["ask"].to_list()
    assert (streamed["b"] > streamed["a"]).sum() == 53_302  # the recording's own defect stays
    day = datetime(2014, 5, 7, tzinfo=UTC)
    shown = told(rest_minutes(http, "C:EURUSD", day, day + timedelta(days=1)))
    expected = duckdb.sql(
        """select epoch_ms(time_bucket(interval 1 minute, ts)) as t, first(bid order by n), max(bid), min(bid),
                  last(bid order by n), count(*) from (select *, row_number() over () as n from quotes)
           where ts >= '2014-05-07 00:00+00' and ts < '2014-05-08 00:00+00' group by 1 order by 1"""
    ).fetchall()
    assert [tuple(row) for row in expected] == shown


async def test_a_small_recording_covers_its_minutes_only(
    simulator: SimulatorThread, http: httpx.Client, tmp_path: Path, utc: Callable[..., datetime]
) -> None:
    start = utc(2024, 3, 5, 10)
    stamps = [start + timedelta(seconds=second) for second in (90, 95, 95, 200)]
    pl.DataFrame({"ts": stamps, "price": [9.0, 8.0, 7.0, 6.0], "size": [1.0, 2.0, 3.0, 4.0]}).write_parquet(
        tmp_path / "trades.parquet"
    )
    recorded = simulator.replay("X:ETHUSD", tmp_path / "trades.parquet")
    assert recorded == (start + MINUTE, start + 4 * MINUTE, 4)
    simulator.set_now(start + 6 * MINUTE)
    shown = rest_minutes(http, "X:ETHUSD", start, start + 6 * MINUTE)
    minutes = [(bar["t"] - truth.to_ms(start)) // 60_000 for bar in shown]
    assert minutes == [0, 1, 3, 4, 5]
    assert told(shown)[1][1:] == (9.0, 9.0, 7.0, 7.0, 3)
    assert shown[2]["v"] == 4.0
    generated = truth.minutes("X:ETHUSD", start, start + MINUTE)
    assert shown[0]["o"] == generated["open"][0]
    with pytest.raises(RuntimeError, match="needs rows of ts"):
        simulator.replay("C:EURUSD", tmp_path / "trades.parquet")
    with pytest.raises(RuntimeError, match="can't be read"):
        simulator.replay("C:EURUSD", tmp_path / "absent.parquet")
    simulator.reset()
    assert len(rest_minutes(http, "X:ETHUSD", start, start + 6 * MINUTE)) == 6


async def test_a_load_has_its_rate_and_rest_its_minutes(
    simulator: SimulatorThread, http: httpx.Client, utc: Callable[..., datetime]
) -> None:
    saturday = utc(2024, 3, 9, 10)
    simulator.set_now(saturday - timedelta(milliseconds=1))
    tickers = simulator.load(5, 70)
    async with StreamClient(simulator) as client:
        await client.enter(",".join(f"C.{ticker[2:5]}/XTS" for ticker in tickers))
        simulator.advance(saturday + 2 * MINUTE - timedelta(milliseconds=1))
        events = await client.advanced()
    assert len(events) == 5 * 70 * 120
    for ticker in tickers:
        bids = [(event["t"], event["b"]) for event in events if event["p"] == f"{ticker[2:5]}/XTS"]
        assert folded(bids) == told(rest_minutes(http, ticker, saturday, saturday + 2 * MINUTE))
    simulator.load([], 0)
    simulator.set_now(saturday + 5 * MINUTE)
    assert len(rest_minutes(http, tickers[0], saturday, saturday + 5 * MINUTE)) == 2


async def test_an_advance_waits_for_its_subscribers_and_ends_with_a_set_clock(
    simulator: SimulatorThread, utc: Callable[..., datetime]
) -> None:
    start = utc(2024, 3, 5, 10)
    simulator.set_now(start)
    with pytest.raises(RuntimeError, match="only be advanced"):
        simulator.advance(start)
    simulator.advance(start + MINUTE, subscriptions=2)
    async with StreamClient(simulator) as client:
        await client.enter("C.EUR/USD")
        await asyncio.sleep(0.1)
        assert simulator.now() == start
        await client.say("subscribe", "C.GBP/USD")
        assert len(await client.advanced()) > 1
        assert simulator.now() == start + MINUTE
        simulator.advance(start + 2 * MINUTE, subscriptions=3)
        simulator.set_now(start + 3 * MINUTE)
        await asyncio.to_thread(simulator.wait_advanced)
        assert simulator.now() == start + 3 * MINUTE


def test_only_quotes_with_a_spread_can_be_crossed() -> None:
    made = crossed(ForexQuote("EUR/USD", 48, 1.2, 1.1, 0))
    assert (made.a, made.b) == (1.1, 1.2)
    assert crossed(ForexQuote("EUR/USD", 48, 1.1, 1.1, 0)) is None
    assert crossed(Status("connected", "")) is None
