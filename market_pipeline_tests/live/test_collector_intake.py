"""The collector's bookkeeping by itself: whatever happens, nothing is claimed that was not there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from hypothesis import given, settings
from hypothesis import strategies as st

from market_pipeline.bus.losses import LossInterval
from market_pipeline.bus.tick_envelope import LATE, LOSS_MARGIN, TickHeaders, decode_tick_batch
from market_pipeline.live.collector.batches import tick_batch
from market_pipeline.live.collector.hours import MarketHours
from market_pipeline.live.collector.intake import MARGIN_MS, Intake
from market_pipeline.live.collector.lanes import Lane
from market_pipeline.live.loss_recorder import merged
from market_pipeline.market.ticks import TICK_SCHEMA, validate_ticks
from market_pipeline.market.timeframes import from_ms, to_ms
from market_pipeline.vendors.polygon.stream import PolygonStream, StreamTick
from market_pipeline_tests.bus.tick_batches import EpochFence

START = 1_700_000_000_000
SYMBOLS = ("A", "B")


@dataclass
class Topics:
    """What the intake asks a stream for."""

    symbol_of: dict[str, str] = field(default_factory=lambda: {name: name for name in SYMBOLS})


@dataclass
class Stream:
    """A connection as the intake sees it."""

    alive_ms: int
    data_ms: int
    now_ms: Callable[[], int]
    topics: Topics = field(default_factory=Topics)

    @property
    def real(self) -> PolygonStream:
        """The stub, as what it stands for."""
        return cast(PolygonStream, self)


@dataclass
class Model:
    """Drive an intake as the reader and the lanes do, on a clock of its own, and remember what the vendor sent."""

    limit: int
    now: int = START
    stream: Stream | None = None
    connected: bool = False
    sent: dict[str, list[StreamTick]] = field(default_factory=lambda: {name: [] for name in SYMBOLS})
    published: dict[str, list[tuple[TickHeaders, list[StreamTick]]]] = field(
        default_factory=lambda: {name: [] for name in SYMBOLS}
    )
    losses: list[LossInterval] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.intake = Intake(
            (Lane(name, "crypto", "trade") for name in SYMBOLS),
            self.limit,
            3,
            "x",
            self.losses.append,
        )

    def connect(self) -> None:
        self.disconnect("disconnect")
        self.stream = Stream(self.now, self.now, lambda: self.now)
        self.connected = True
        self.intake.opened(self.stream.real)

    def acknowledge(self, symbol: str) -> None:
        if self.connected and not self.intake.lanes[symbol].acknowledged:
            self.intake.subscribed(symbol, self.now)

    def vendor_sends(self, symbol: str, count: int) -> None:
        """Send trades; without a connection, or before the subscription, they are lost."""
        for _ in range(count):
            self.now += 1
            tick = StreamTick(symbol, self.now, "trade", None, None, float(self.now), 1.0, None, None, self.now)
            self.sent[symbol].append(tick)
            if self.connected and self.stream is not None and self.intake.lanes[symbol].acknowledged:
                self.intake.ticks([tick])
                self.stream.data_ms = self.stream.alive_ms = self.now

    def pong(self) -> None:
        if self.connected and self.stream is not None:
            self.stream.alive_ms = self.now

    def bad_frame(self, symbol: str) -> None:
        if self.connected and self.stream is not None:
            self.now += 1
            if self.intake.lanes[symbol].acknowledged:
                self.sent[symbol].append(
                    StreamTick(symbol, self.now, "trade", None, None, float(self.now), 1.0, None, None, self.now)
                )
            self.now += 1
            self.intake.unreadable(self.stream.real, self.now)

    def disconnect(self, cause: str) -> None:
        if self.connected and self.stream is not None:
            self.intake.closed(self.stream.real, cause)
            self.connected = False

    def publish(self, symbol: str) -> None:
        lane = self.intake.lanes[symbol]
        if lane.pending:
            session, ticks = self.intake.take(lane)
        else:
            quiet = self.intake.quiet_session(lane)
            if quiet is None:
                return
            session, ticks = quiet, []
        batch = tick_batch(lane, session, ticks, collector_id="c", epoch=1, now_ms=self.now)
        if session.ended_ms is not None:
            assert all(tick.ts_ms <= session.ended_ms for tick in ticks), "a tick of another session"
        self.intake.done(len(ticks))
        assert batch.headers.number == len(self.published[symbol]) + 1
        self.published[symbol].append((batch.headers, ticks))


actions = st.one_of(
    st.tuples(st.just("connect")),
    st.tuples(st.just("acknowledge"), st.sampled_from(SYMBOLS)),
    st.tuples(st.just("vendor_sends"), st.sampled_from(SYMBOLS), st.integers(1, 9)),
    st.tuples(st.just("vendor_sends"), st.sampled_from(SYMBOLS), st.integers(1, 3)),
    st.tuples(st.just("publish"), st.sampled_from(SYMBOLS)),
    st.tuples(st.just("publish"), st.sampled_from(SYMBOLS)),
    st.tuples(st.just("pong")),
    st.tuples(st.just("bad_frame"), st.sampled_from(SYMBOLS)),
    st.tuples(st.just("disconnect"), st.sampled_from(["disconnect", "silence"])),
    st.tuples(st.just("wait"), st.integers(1, 5000)),
)


@given(st.integers(1, 12), st.lists(actions, max_size=60))
@settings(max_examples=300)
def test_what_is_proven_is_whole_and_what_is_missing_is_told(limit: int, steps: list[tuple[Any, ...]]) -> None:
    _live_through(limit, steps)


def test_a_silence_after_two_unreadable_frames_does_not_take_back_the_proof_between_them() -> None:
    steps = [("bad_frame", "A"), ("pong",), ("publish", "A"), ("bad_frame", "A"), ("disconnect", "silence")]
    model = _live_through(1, steps)
    alive = model.published["A"][0][0].alive_at
    assert model.published["A"][-1][0].lost_from == alive - LOSS_MARGIN == from_ms(START + 2 - MARGIN_MS)


def test_a_silence_takes_back_what_pongs_proved_since_the_last_event() -> None:
    steps = [
        ("vendor_sends", "A", 1),
        ("wait", 5000),
        ("pong",),
        ("publish", "A"),
        ("wait", 3000),
        ("disconnect", "silence"),
        ("wait", 100),
    ]
    model = _live_through(9, steps)
    (loss,) = [loss for loss in model.losses if loss.symbol == "A"]
    assert (loss.cause, loss.start) == ("silence", from_ms(START + 1 - MARGIN_MS))
    assert model.published["A"][0][0].proven_until == from_ms(START + 5001) - LATE > loss.start


def _live_through(limit: int, steps: list[tuple[Any, ...]]) -> Model:
    model = Model(limit)
    for name, *arguments in [("connect",), *(("acknowledge", name) for name in SYMBOLS), *steps]:
        if name == "wait":
            model.now += arguments[0]
        else:
            getattr(model, name)(*arguments)
        assert model.intake.size <= limit
    model.connect()
    for symbol in SYMBOLS:
        while model.intake.lanes[symbol].pending:
            model.publish(symbol)
    for symbol in SYMBOLS:
        model.acknowledge(symbol)
        model.publish(symbol)
    for symbol in SYMBOLS:
        _judge(model, symbol)
    return model


def _judge(model: Model, symbol: str) -> None:
    batches = model.published[symbol]
    out = [tick for _, ticks in batches for tick in ticks]
    assert out == sorted(out, key=lambda tick: tick.ts_ms), "in the order of arrival"
    assert len(out) == len(set(out)), "each once"
    missing = sorted(set(model.sent[symbol]) - set(out), key=lambda tick: tick.ts_ms)
    losses = [(to_ms(each.start), to_ms(each.end)) for each in model.losses if each.symbol == symbol]
    # A silence takes back what pongs proved, but never what came before the last event.
    silences = {each.end for each in model.losses if each.symbol == symbol and each.cause == "silence"}
    for tick in missing:
        assert any(start <= tick.ts_ms <= end for start, end in losses), "a loss that nobody is told of"
    so_far: list[StreamTick] = []
    told: list[tuple[int, int]] = []
    for headers, ticks in batches:
        so_far += ticks
        started, alive = to_ms(headers.session_started), to_ms(headers.alive_at)
        # What a consumer that has read so far may conclude: in [started, alive) it has everything.
        proven = [tick for tick in model.sent[symbol] if started < tick.ts_ms < alive]
        assert [tick for tick in proven if tick not in so_far] == [], "proven, and not there"
        earlier = [
            each for each, _ in batches if each.session_id != headers.session_id and each.alive_at < headers.alive_at
        ]
        if headers.lost_from is not None:
            if headers.session_started not in silences:
                taken_back = max((each.alive_at - headers.lost_from for each in earlier[-1:]), default=timedelta(0))
                assert taken_back <= LOSS_MARGIN, "proven, then called lost"
            told.append((to_ms(headers.lost_from), started))
    for tick in missing:
        assert any(start <= tick.ts_ms <= end for start, end in told), "the stream itself tells of every loss"


def test_a_gap_is_inherited_from_the_last_batch() -> None:
    model = Model(10)
    model.intake.inherit("A", START - 60_000, "old.1.1")
    model.connect()
    model.acknowledge("A")
    model.acknowledge("B")
    assert model.losses == [
        LossInterval("A", from_ms(START - 60_000 - MARGIN_MS), from_ms(START), "lease", "old.1.1"),
    ]


def test_a_loss_that_no_batch_told_of_is_told_with_the_next() -> None:
    model = Model(10)
    model.connect()
    model.acknowledge("A")
    model.publish("A")
    for _ in range(3):  # connections that end before anything is published
        model.now += 10_000
        model.connect()
        model.acknowledge("A")
    model.publish("A")
    headers = model.published["A"][-1][0]
    assert headers.lost_from == from_ms(START - MARGIN_MS)
    assert headers.session_started == from_ms(START + 30_000)
    assert len(model.losses) == 3


def test_ticks_become_a_batch_of_valid_ticks() -> None:
    model = Model(10)
    model.connect()
    model.acknowledge("A")
    ticks = [
        StreamTick("A", START + 1, "trade", None, None, 5.0, 1.0, "1", "2,3", START + 7),
        StreamTick("A", START, "quote", 1.0, 2.0, None, None, None, None, START + 8),
    ]
    model.intake.ticks(ticks)
    lane = model.intake.lanes["A"]
    batch = tick_batch(lane, *model.intake.take(lane), collector_id="c", epoch=4, now_ms=model.now)
    assert (batch.headers.rows, batch.headers.first_ts, batch.headers.last_ts) == (
        2,
        from_ms(START),
        from_ms(START + 1),
    )
    frame = validate_ticks(decode_tick_batch(batch.payload, batch.headers).select(list(TICK_SCHEMA)), where="a test")
    assert frame.rows() == [(*each[:1], from_ms(each.ts_ms), *each[2:9], from_ms(each.received_ms)) for each in ticks]


def test_a_batch_decodes_to_what_was_taken() -> None:
    model = Model(10)
    model.connect()
    model.acknowledge("A")
    model.vendor_sends("A", 3)
    lane = model.intake.lanes["A"]
    session, ticks = model.intake.take(lane)
    batch = tick_batch(lane, session, ticks, collector_id="c", epoch=4, now_ms=model.now)
    assert decode_tick_batch(batch.payload, batch.headers).get_column("price").to_list() == [
        float(START + number) for number in (1, 2, 3)
    ]
    assert EpochFence().admits(batch.headers)


def test_market_hours_know_the_week_of_forex() -> None:
    hours = MarketHours(["forex"])

    def at(text: str) -> int:
        return to_ms(datetime.fromisoformat(text).replace(tzinfo=UTC))

    assert not hours.is_open(at("2026-03-01T21:59:59"))
    assert hours.is_open(at("2026-03-01T22:00:00"))  # Sunday 17:00 in New York, winter
    assert hours.is_open(at("2026-03-06T21:59:59"))
    assert not hours.is_open(at("2026-03-06T22:00:00"))
    assert hours.is_open(at("2026-03-06T22:01:59"), after_ms=120_000)
    assert not hours.is_open(at("2026-03-06T22:02:00"), after_ms=120_000)
    assert hours.is_open(at("2026-03-08T21:00:00")), "an hour earlier in summer"
    assert MarketHours(["forex", "crypto"]).is_open(at("2026-03-07T12:00:00"))


def test_losses_that_wait_too_long_become_one_of_each_symbol_and_cause() -> None:
    start = from_ms(START)
    losses = [
        LossInterval(symbol, start + timedelta(seconds=number), start + timedelta(seconds=number + 1), "overflow", "s")
        for number in range(10)
        for symbol in SYMBOLS
    ]
    assert merged(losses) == [
        LossInterval(symbol, start, start + timedelta(seconds=10), "overflow", "s") for symbol in SYMBOLS
    ]
