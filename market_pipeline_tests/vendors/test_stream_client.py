"""The client of streams against a real WebSocket server: every status, every way to lose a connection."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import pytest
import structlog
from pydantic import SecretStr
from websockets.asyncio.server import ServerConnection, serve
from websockets.datastructures import Headers
from websockets.http11 import Request, Response

from market_pipeline.bus.envelope import now_ms
from market_pipeline.errors import VendorAuthError
from market_pipeline.market.instruments import Instrument
from market_pipeline.vendors.polygon.stream import PolygonStream, StreamTick, topics_of
from market_pipeline.vendors.polygon.stream.client import COUNTED_WHOLE_MS, PONG_PROVES_LESS_MS
from market_pipeline.vendors.polygon.stream.watch import SilenceWatch
from market_pipeline_tests.vendors.stream_vendor import KEY, StreamVendor, quick_stream, quote, status

EURUSD = Instrument(
    symbol="EUR/USD", asset_class="forex", vendor_ticker="C:EURUSD", calendar="forex", history_start=date(2020, 1, 1)
)
GBPUSD = Instrument(
    symbol="GBP/USD", asset_class="forex", vendor_ticker="C:GBPUSD", calendar="forex", history_start=date(2020, 1, 1)
)


@dataclass
class Heard:
    """A listener that remembers."""

    opens: int = 0
    begun: list[str] = field(default_factory=list)
    heard: list[StreamTick] = field(default_factory=list)
    unread: int = 0
    ends: list[str] = field(default_factory=list)

    def opened(self, stream: PolygonStream) -> None:
        self.opens += 1

    def subscribed(self, symbol: str, at_ms: int) -> None:
        self.begun.append(symbol)

    def ticks(self, ticks: list[StreamTick]) -> None:
        self.heard += ticks

    def unreadable(self, stream: PolygonStream, at_ms: int) -> None:
        self.unread += 1

    def closed(self, stream: PolygonStream, cause: str) -> None:
        self.ends.append(cause)


@dataclass
class Running:
    """A stream that runs."""

    stream: PolygonStream
    heard: Heard
    task: asyncio.Task[Any]


async def until(condition: Callable[[], object], what: str = "", timeout: float = 15.0) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, what or "it did not come to be"
        await asyncio.sleep(0.005)


@asynccontextmanager
async def running(
    vendor: StreamVendor,
    *,
    key: str = KEY,
    is_open: bool = True,
    clock: Callable[[], int] = now_ms,
    **settings: Any,
) -> AsyncIterator[Running]:
    """Run a stream of two pairs."""
    heard = Heard()
    stream = PolygonStream(
        f"{vendor.url}/forex",
        SecretStr(key),
        topics_of([EURUSD, GBPUSD], "forex", settings.get("separator", "/")),
        quick_stream(vendor.url, **{"heartbeat_s": 0.1, **settings}),
        heard,
        is_open=lambda: is_open,
        clock=clock,
    )
    task = asyncio.create_task(stream.run())
    try:
        yield Running(stream, heard, task)
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError, VendorAuthError):
            await task


@pytest.fixture
async def vendor() -> AsyncIterator[StreamVendor]:
    async with StreamVendor() as started:
        yield started


async def test_handshake_subscription_and_ticks(vendor: StreamVendor) -> None:
    async with running(vendor) as run:
        connection = await vendor.subscribed()
        assert connection.path == "/forex"
        assert connection.heard[0] == {"action": "auth", "params": KEY}
        assert connection.topics == ["C.EUR/USD", "C.GBP/USD"]
        await connection.send(quote("EUR/USD", 1.1), quote("GBP-USD", 1.3))
        await connection.send(quote("EUR/USD", 1.2))
        await until(lambda: len(run.heard.heard) == 3)
        assert [(tick.symbol, tick.bid) for tick in run.heard.heard] == [
            ("EURUSD", 1.1),
            ("GBPUSD", 1.3),
            ("EURUSD", 1.2),
        ]
        assert run.heard.begun == ["EURUSD", "GBPUSD"]
        assert run.stream.connected
        assert not run.stream.missing


async def test_the_separator_is_a_setting(vendor: StreamVendor) -> None:
    async with running(vendor, separator="-") as run:
        assert (await vendor.subscribed()).topics == ["C.EUR-USD", "C.GBP-USD"]
        await until(lambda: not run.stream.missing)


async def test_a_refused_key_is_terminal_and_never_told(vendor: StreamVendor, caplog: pytest.LogCaptureFixture) -> None:
    wrong = "another-very-secret-key-9876543210"
    vendor.on_auth = lambda number, key: [status("auth_failed", f"authentication failed for {key}")]
    with structlog.testing.capture_logs() as logs, caplog.at_level(logging.DEBUG):
        async with running(vendor, key=wrong) as run:
            with pytest.raises(VendorAuthError, match="POLYGON_API_KEY") as raised:
                await asyncio.wait_for(run.task, 15)
    assert len(vendor.connections) == 1
    assert wrong not in f"{raised.value!r} {run.stream!r} {logs} {caplog.text}"


async def test_the_key_is_in_no_log_even_of_the_library_at_debug(
    vendor: StreamVendor, caplog: pytest.LogCaptureFixture
) -> None:
    with structlog.testing.capture_logs() as logs, caplog.at_level(logging.DEBUG):
        logging.getLogger("market_pipeline.vendors.polygon.stream.wire").setLevel(logging.DEBUG)
        async with running(vendor) as run:
            (await vendor.subscribed()).cut()
            await vendor.subscribed(1)
            await until(lambda: run.heard.opens == 2)
    told = f"{logs} {caplog.text} {run.stream!r}"
    assert "stream_ended" in told
    assert KEY not in told
    assert KEY[:8] not in told


def test_without_a_key_nothing_is_sent(vendor: StreamVendor) -> None:
    with pytest.raises(VendorAuthError, match="POLYGON_API_KEY"):
        PolygonStream("ws://127.0.0.1:1/forex", SecretStr(""), topics_of([EURUSD], "forex"), quick_stream(""), Heard())


async def test_auth_timeout_is_tried_again(vendor: StreamVendor) -> None:
    vendor.on_auth = lambda number, key: [status("auth_timeout" if number < 2 else "auth_success")]
    async with running(vendor) as run:
        await vendor.subscribed(2)
        assert run.stream.counters.statuses["auth_timeout"] == 2
        assert run.heard.opens == 1


@pytest.mark.parametrize("later", [False, True], ids=["at the handshake", "later"])
async def test_max_connections_cools_down(vendor: StreamVendor, later: bool) -> None:
    if not later:
        vendor.on_auth = lambda number, key: [status("max_connections" if number == 0 else "auth_success")]
    async with running(vendor, cooldown_s=0.6):
        if later:
            await (await vendor.subscribed()).send(status("max_connections", "Maximum number of websocket connections"))
        await vendor.subscribed(1)
        first, second = vendor.connections
        assert second.opened_at - first.opened_at >= 0.6


@pytest.mark.parametrize("clean", [True, False], ids=["clean close", "cut"])
async def test_every_end_is_a_disconnect_and_it_comes_back(vendor: StreamVendor, clean: bool) -> None:
    async with running(vendor) as run:
        for number in range(4):
            connection = await vendor.subscribed(number)
            await connection.send(quote(price=number + 1.0))
            await until(lambda number=number: len(run.heard.heard) == number + 1)
            if clean:
                await connection.socket.close(1000, "good bye")
            else:
                connection.cut()
        await vendor.subscribed(4)
        await until(lambda: run.stream.connected)
        assert run.heard.ends == ["disconnect"] * 4
        assert run.heard.opens == 5


async def test_what_was_sent_before_a_cut_arrives(vendor: StreamVendor) -> None:
    async with running(vendor) as run:
        connection = await vendor.subscribed()
        for number in range(50):
            await connection.send(quote(price=number + 1.0))
        await connection.socket.close(1008, "slow reader")
        await until(lambda: run.heard.ends)
        assert len(run.heard.heard) == 50


async def test_the_backoff_grows_until_a_connection_was_stable(vendor: StreamVendor) -> None:
    vendor.on_auth = lambda number, key: [status("auth_success")]
    async with running(vendor, backoff_initial_s=0.04, backoff_max_s=0.64, stable_s=0.5) as run:
        for number in range(5):  # authenticated each time, and gone at once
            (await vendor.subscribed(number)).cut()
        await vendor.subscribed(5)
        opened = [connection.opened_at for connection in vendor.connections]
        # Pauses: 20-40, 40-80, 80-160, 160-320, 320-640 ms
        assert opened[5] - opened[4] >= 0.32
        await until(lambda: run.stream.connected)
        await asyncio.sleep(0.6)
        cut_at = time.monotonic()
        vendor.connections[5].cut()
        await vendor.subscribed(6)
        assert vendor.connections[6].opened_at - cut_at < 0.32, "a stable life resets the pause"


async def test_a_vendor_that_is_away_is_waited_for(vendor: StreamVendor) -> None:
    async with running(vendor) as run:
        await vendor.subscribed()
        port = vendor.port
        await vendor.stop()
        await asyncio.sleep(0.3)
        assert not run.task.done()

        async def welcome(socket: ServerConnection) -> None:
            came.set()
            await socket.wait_closed()

        came = asyncio.Event()
        async with serve(welcome, "127.0.0.1", port):
            await asyncio.wait_for(came.wait(), 10)


async def test_half_a_frame_is_told_and_survived(vendor: StreamVendor) -> None:
    async with running(vendor) as run:
        connection = await vendor.subscribed()
        await connection.socket.send('[{"ev":"C","p":"EUR/USD","a":1.1')
        await connection.socket.send('{"not": "an array"}')
        await connection.socket.send(b'[{"ev":"C","p":"\xff"}]')
        await connection.send({"ev": "CAS", "pair": "EUR/USD"}, quote())
        await until(lambda: run.heard.heard)
        assert run.heard.unread == run.stream.counters.unreadable == 3
        assert run.stream.counters.unknown == {"CAS": 1}
        assert run.heard.opens == 1


async def test_frames_in_fragments_are_joined(vendor: StreamVendor) -> None:
    async with running(vendor) as run:
        connection = await vendor.subscribed()
        text = f'[{{"ev":"C","p":"EUR/USD","a":1.2,"b":1.1,"t":{time.time_ns() // 1_000_000},"x":1}}]'
        await connection.socket.send(iter([text[:9], text[9:30], text[30:]]))
        await until(lambda: len(run.heard.heard) == 1)


async def test_a_burst_of_megabytes_in_one_frame(vendor: StreamVendor) -> None:
    async with running(vendor) as run:
        connection = await vendor.subscribed()
        await connection.send(*[quote()] * 30_000)
        await until(lambda: len(run.heard.heard) == 30_000)
        assert run.heard.opens == 1


async def test_what_is_not_acknowledged_is_named_and_asked_for_again(vendor: StreamVendor) -> None:
    vendor.acknowledges = lambda topic: topic != "C.GBP/USD"
    with structlog.testing.capture_logs() as logs:
        async with running(vendor, ack_timeout_s=0.15) as run:
            connection = await vendor.subscribed()
            await until(lambda: connection.topics.count("C.GBP/USD") >= 3)
            assert run.stream.unacknowledged == {"C.GBP/USD"}
            assert run.heard.begun == ["EURUSD"]
            vendor.acknowledges = lambda topic: True
            await until(lambda: not run.stream.missing)
            assert run.heard.begun == ["EURUSD", "GBPUSD"]
    told = [entry for entry in logs if entry["event"] == "stream_subscriptions_not_acknowledged"]
    assert told[0]["missing"] == ["C.GBP/USD"]
    assert connection.topics.count("C.EUR/USD") == 1


async def test_a_first_event_is_as_good_as_an_acknowledgement(vendor: StreamVendor) -> None:
    vendor.acknowledges = lambda topic: False
    async with running(vendor) as run:
        await (await vendor.subscribed()).send(quote("GBP/USD"), quote("GBP/USD"))
        await until(lambda: len(run.heard.heard) == 2)
        assert run.heard.begun == ["GBPUSD"]


async def test_silence_in_market_hours_forces_a_new_connection(vendor: StreamVendor) -> None:
    async with running(vendor, silence_s=0.4) as run:
        await (await vendor.subscribed()).send(quote())
        await vendor.subscribed(1)
        assert run.heard.ends == ["silence"]
        assert run.stream.counters.pongs > 0, "the connection itself was alive"


async def test_silence_outside_market_hours_is_borne(vendor: StreamVendor) -> None:
    async with running(vendor, silence_s=0.2, is_open=False) as run:
        await vendor.subscribed()
        before = run.stream.alive_ms
        await until(lambda: run.stream.alive_ms >= before + 500, "pongs prove that it lives")
        assert time.time_ns() // 1_000_000 - run.stream.alive_ms >= PONG_PROVES_LESS_MS
        assert run.heard.ends == []


async def test_a_dead_connection_is_noticed_even_outside_market_hours(vendor: StreamVendor) -> None:
    async with running(vendor, silence_s=0.4, is_open=False) as run:
        connection = await vendor.subscribed()
        transport = connection.socket.transport
        transport.pause_reading()  # the vendor answers no ping any more
        await vendor.subscribed(1)
        assert run.heard.ends == ["disconnect"]


async def test_alive_is_never_later_than_what_has_been_told(vendor: StreamVendor) -> None:
    async with running(vendor) as run:
        connection = await vendor.subscribed()
        old = time.time_ns() // 1_000_000 - 5_000
        await connection.send(quote(at_ms=old))
        await until(lambda: run.heard.heard)
        assert run.stream.data_ms <= time.time_ns() // 1_000_000
        future = old + 3_600_000
        await connection.send(quote(at_ms=future))
        await until(lambda: len(run.heard.heard) == 2)
        assert run.stream.alive_ms <= time.time_ns() // 1_000_000


@pytest.mark.parametrize("leap_s", [600, -600])
async def test_a_leap_of_the_clock_proves_nothing(vendor: StreamVendor, leap_s: int) -> None:
    """What was heard until when is told by the time that passed, or a loss would begin minutes after it did."""
    leap = [0]
    async with running(vendor, clock=lambda: now_ms() + leap[0]) as run:
        await vendor.subscribed()
        await until(lambda: run.stream.counters.pongs > 1)
        leap[0] = leap_s * 1000
        pongs, before = run.stream.counters.pongs, run.stream.alive_ms
        await until(lambda: run.stream.counters.pongs > pongs + 3 and run.stream.alive_ms > before)
        assert run.stream.alive_ms <= now_ms()
        assert abs(run.stream.now_ms() - now_ms()) < 1000


@pytest.mark.parametrize("error_s", [600, 5, -5, -600])
async def test_a_clock_that_is_wrong_is_set_by_the_vendors(vendor: StreamVendor, error_s: int) -> None:
    async with running(vendor, clock=lambda: now_ms() + error_s * 1000) as run:
        await vendor.subscribed()
        assert run.stream.clock_error_ms == pytest.approx(error_s * 1000, abs=4000)
        # never behind, or a session would begin before it did; ahead by a Date's second and the handshake
        assert 0 <= run.stream.now_ms() - now_ms() <= 10_000
        await until(lambda: run.stream.counters.pongs > 1)
        assert run.stream.alive_ms <= now_ms()


async def test_a_pause_while_the_clock_is_read_does_not_put_it_behind(vendor: StreamVendor) -> None:
    def slow() -> int:
        read = now_ms()
        time.sleep(0.2)  # as on a machine that gives the process no time just then
        return read

    async with running(vendor, clock=slow) as run:
        await vendor.subscribed()
        assert 0 <= run.stream.now_ms() - now_ms() <= 10_000


async def test_the_clock_is_not_behind_by_a_part_of_a_millisecond(vendor: StreamVendor) -> None:
    """A tick of the millisecond before the subscription would be claimed."""
    async with running(vendor) as run:
        await vendor.subscribed()
        for _ in range(500):
            before_ns = time.time_ns()
            assert before_ns <= run.stream.now_ms() * 1_000_000 <= time.time_ns() + COUNTED_WHOLE_MS * 1_000_000
            await asyncio.sleep(0.0003)


async def test_a_clock_that_is_right_to_the_second_is_left_alone(vendor: StreamVendor) -> None:
    async with running(vendor) as run:
        await vendor.subscribed()
        assert run.stream.clock_error_ms == 0
        assert abs(run.stream.now_ms() - now_ms()) < 100


async def test_a_vendor_that_never_greets_is_left(vendor: StreamVendor) -> None:
    vendor.greets = False
    async with running(vendor, handshake_timeout_s=0.2) as run:
        await until(lambda: len(vendor.connections) >= 3)
        assert run.heard.opens == 0


async def test_a_redirect_is_not_followed_with_the_key(vendor: StreamVendor) -> None:
    def redirect(connection: ServerConnection, request: Request) -> Response:
        asked.append(request.path)
        return Response(302, "Found", Headers({"Location": f"{vendor.url}/forex"}), b"")

    async def never(socket: ServerConnection) -> None:
        raise AssertionError("it was redirected")

    asked: list[str] = []
    async with serve(never, "127.0.0.1", 0, process_request=redirect) as server:
        elsewhere = StreamVendor()
        elsewhere.port = next(iter(server.sockets)).getsockname()[1]
        async with running(elsewhere):
            await until(lambda: len(asked) >= 2)
    assert vendor.connections == []


def test_a_thin_market_is_given_more_time_each_time() -> None:
    now = 0.0
    watch = SilenceWatch(20.0, lambda: True, soon_s=10.0, clock=lambda: now)

    def silent_for(seconds: float) -> bool:
        nonlocal now
        now += seconds
        return watch.too_silent()

    watch.opened()
    assert not silent_for(19)
    assert silent_for(2)
    watch.opened()
    assert silent_for(21), "the new connection is silent too"
    watch.opened()
    assert not silent_for(30)
    assert watch.bound_s == 40
    now += 2
    watch.data()
    assert watch.bound_s == 80, "data came late: the market is thin"
    assert silent_for(81)
    watch.opened()
    now += 1
    watch.data()
    assert watch.bound_s == 20, "data came at once: the connection had been dead"


def test_silence_counts_from_the_open_of_the_market() -> None:
    now, is_open = 0.0, False
    watch = SilenceWatch(20.0, lambda: is_open, clock=lambda: now)
    watch.opened()
    now = 100_000.0
    assert not watch.too_silent()
    is_open = True
    now += 19
    assert not watch.too_silent()
    now += 2
    assert watch.too_silent()
