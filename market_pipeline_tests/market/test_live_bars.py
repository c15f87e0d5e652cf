"""Live bars: however ticks are cut, doubled or disordered, the bars are those of the ticks, and say what is proven."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import date
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market_pipeline.market.aggregation import bars_from_quotes, bars_from_trades
from market_pipeline.market.bars import BAR_SCHEMA, LIVE_AGGREGATED, TS, validate_bars
from market_pipeline.market.instruments import Instrument
from market_pipeline.market.live_bars import LiveBars
from market_pipeline.market.live_facts import BatchFacts, LiveRules, SymbolState, first_state
from market_pipeline.market.tick_arrays import TickArrays
from market_pipeline_tests.market.real import OHLC, assert_equal_bars, key, side

T0 = 1_709_542_800_000  # 2024-03-04 09:00 UTC
MINUTE, SECOND = 60_000, 1000
FOREX = Instrument(
    symbol="EUR/USD",
    asset_class="forex",
    vendor_ticker="C:EURUSD",
    calendar="forex",
    history_start=date(2020, 1, 1),
)
CRYPTO = Instrument(
    symbol="BTC/USD",
    asset_class="crypto",
    vendor_ticker="X:BTCUSD",
    calendar="crypto",
    history_start=date(2020, 1, 1),
)
COLUMNS = ["ts", *OHLC, "volume", "vwap", "trades"]
RULES = LiveRules(delay_ms=200, lateness_ms=60_000)
FRESH = first_state(1, seen_from=0)

Row = tuple[int, float, float]  # ts, then bid and ask or price and size


def ticks(rows: Sequence[Row], kind: str = "quote", received: int | None = None) -> pl.DataFrame:
    a, b = ("bid", "ask") if kind == "quote" else ("price", "size")
    times = pl.Series([row[0] for row in rows], dtype=pl.Int64)
    return pl.DataFrame(
        {
            "kind": pl.repeat(kind, len(rows), dtype=pl.String, eager=True),
            "ts": times.cast(TS),
            a: pl.Series([row[1] for row in rows], dtype=pl.Float64),
            b: pl.Series([row[2] for row in rows], dtype=pl.Float64),
            "received_at": (times if received is None else pl.repeat(received, len(rows), eager=True)).cast(TS),
        }
    )


class Feed:
    """Number batches as a stream does and gather the last word on every bar."""

    def __init__(self, instrument: Instrument = FOREX, rules: LiveRules = RULES, state: SymbolState = FRESH) -> None:
        self.instrument, self.rules = instrument, rules
        self.kind = "quote" if instrument.asset_class == "forex" else "trade"
        self.bars = LiveBars(instrument, rules, state)
        self.said: dict[str, dict[int, dict[str, Any]]] = {"1s": {}, "1m": {}}
        self.published: list[tuple[str, dict[str, Any]]] = []
        self.sent: list[tuple[BatchFacts, pl.DataFrame]] = []
        self.now = 0

    def send(self, rows: Sequence[Row] = (), *, alive: int, session: str = "s", started: int = 0, **more: Any) -> None:
        facts = BatchFacts(
            seq=len(self.sent) + 1,
            batch_id=more.pop("batch_id", len(self.sent) + 1),
            epoch=more.pop("epoch", 1),
            session_id=session,
            session_started=started,
            proven=alive,
            alive=alive,
            **more,
        )
        self.sent.append((facts, ticks(rows, self.kind)))
        self.bars.take(facts, TickArrays.of(self.sent[-1][1]))

    def flush(self) -> dict[str, pl.DataFrame]:
        self.now += 1
        made = self.bars.due(self.now)
        for code, frame in made.items():
            assert frame.schema == BAR_SCHEMA
            for row in frame.iter_rows(named=True):
                opened = int(row["ts"].timestamp() * 1000)
                self.said[code][opened] = row
                self.published.append((code, row))
        return made

    def restart(self, next_seq: int, state: SymbolState) -> None:
        """Forget everything but the state and what the stream holds."""
        self.bars = LiveBars(self.instrument, self.rules, state)
        for facts, frame in self.sent[:next_seq]:
            self.bars.take(facts, TickArrays.of(frame))

    def frame(self, code: str) -> pl.DataFrame:
        rows = [self.said[code][opened] for opened in sorted(self.said[code])]
        return pl.DataFrame(rows, schema=BAR_SCHEMA)

    def complete(self, code: str = "1m") -> dict[int, bool]:
        return {(opened - T0) // 1000: row["complete"] for opened, row in sorted(self.said[code].items())}


def expected(rows: Sequence[Row], kind: str, code: str, basis: str = "mid") -> pl.DataFrame:
    frame = ticks(rows, kind)
    return bars_from_quotes(frame, code, basis) if kind == "quote" else bars_from_trades(frame, code)


def same(made: pl.DataFrame, wanted: pl.DataFrame) -> None:
    assert made.select(COLUMNS).rows() == wanted.select(COLUMNS).rows()


# ---------------------------------------------------------------- whatever the cut, the bars are those of the ticks

prices = st.integers(100_000, 120_000).map(lambda n: n / 100_000)
sizes = st.integers(0, 10**6).map(lambda n: n / 10_000)


@st.composite
def feeds(draw: st.DrawFn) -> tuple[str, list[Row], list[int], list[int], random.Random]:
    """Ticks of four minutes in an order of arrival that is off by half a minute at most, cuts, and repeats."""
    kind = draw(st.sampled_from(["quote", "trade"]))
    number = draw(st.integers(1, 60))
    rng = draw(st.randoms(use_true_random=False))
    grid = draw(st.sampled_from([1, 250, 20_000]))  # coarse: many ticks of one ts, and edges of windows
    rows = sorted(
        (T0 + rng.randrange(0, 4 * MINUTE, grid), rng.randint(100_000, 100_010) / 1e5, rng.randint(0, 99) / 100 + 0.01)
        for _ in range(number)
    )
    rows = [row for _, row in sorted((row[0] + rng.randrange(0, 30_000), row) for row in rows)]
    cuts = sorted(draw(st.lists(st.integers(0, number), max_size=12)))
    doubled = draw(st.lists(st.integers(0, 12), max_size=4))
    return kind, rows, cuts, doubled, rng


def play(feed: Feed, rows: list[Row], cuts: list[int], doubled: Iterable[int], rng: random.Random) -> None:
    bounds = [0, *cuts, len(rows)]
    until = T0
    for begin, end in pairwise(bounds):
        batch = rows[begin:end]
        # the sign of life runs ahead of ticks that are still to come late
        until = max([until, *(row[0] for row in batch)])
        feed.send(batch, alive=until)
        if rng.random() < 0.5:
            feed.flush()
    for place in doubled:  # the same batch once more, under a sequence of its own
        facts, frame = feed.sent[place % (len(bounds) - 1)]
        facts = replace(facts, seq=len(feed.sent) + 1)
        feed.sent.append((facts, frame))
        feed.bars.take(facts, TickArrays.of(frame))
    feed.send(alive=T0 + 4 * MINUTE + 50_000)
    feed.flush()


@settings(max_examples=80, deadline=None)
@given(feeds())
def test_any_cut_any_repeat_and_any_disorder_make_the_bars_of_the_whole(case: Any) -> None:
    kind, rows, cuts, doubled, rng = case
    feed = Feed(FOREX if kind == "quote" else CRYPTO, LiveRules(lateness_ms=5 * MINUTE))
    play(feed, rows, cuts, doubled, rng)
    for code in ("1s", "1m"):
        same(feed.frame(code), expected(rows, kind, code))
        assert feed.frame(code)["complete"].all()
    assert feed.bars.counts.ticks == len(rows)
    assert not feed.bars.waiting


@settings(max_examples=80, deadline=None)
@given(feeds(), st.integers(0, 30), st.integers(0, 30))
def test_a_restart_anywhere_makes_the_same_bars(case: Any, at: int, further: int) -> None:
    kind, rows, cuts, _, rng = case
    instrument = FOREX if kind == "quote" else CRYPTO
    rules = LiveRules(lateness_ms=40_000)  # so short that windows become final on the way
    whole = Feed(instrument, rules)
    play(whole, rows, cuts, (), rng)

    feed = Feed(instrument, rules)
    sent = whole.sent
    at, further = at % len(sent), further % len(sent)
    for facts, frame in sent[: at + 1]:
        feed.sent.append((facts, frame))
        feed.bars.take(facts, TickArrays.of(frame))
    feed.flush()
    state = feed.bars.state(at + 2)
    # it went on a little after the checkpoint, then died
    for facts, frame in sent[at + 1 : at + 1 + further]:
        feed.bars.take(facts, TickArrays.of(frame))
    feed.flush()
    feed.sent = list(sent)
    feed.restart(at + 1, state)
    assert feed.bars.counts.late_dropped == 0, "what was judged before the checkpoint is not judged again"
    feed.flush()
    for facts, frame in sent[at + 1 :]:
        feed.bars.take(facts, TickArrays.of(frame))
        if rng.random() < 0.3:
            feed.flush()
    feed.flush()
    for code in ("1s", "1m"):
        assert feed.frame(code).drop("revision").rows() == whole.frame(code).drop("revision").rows()
    assert feed.bars.counts.late_dropped == 0


@pytest.mark.parametrize("basis", ["bid", "ask", "mid"])
def test_real_quotes_make_the_real_minutes(basis: str) -> None:
    frame = key("eurusd_oanda_quotes").head(8_000)
    feed = Feed(FOREX.model_copy(update={"price_basis": basis}), LiveRules())
    rows = list(zip(frame["ts"].dt.epoch("ms").to_list(), frame["bid"].to_list(), frame["ask"].to_list(), strict=True))
    rng = random.Random(7)
    begin = 0
    while begin < len(rows):
        batch = rows[begin : begin + rng.randint(1, 400)]
        begin += len(batch)
        feed.send(batch, alive=batch[-1][0])
        if rng.random() < 0.3:
            feed.flush()
    feed.send(alive=rows[-1][0] + 2 * MINUTE)
    feed.flush()
    for code in ("1s", "1m"):
        same(feed.frame(code), bars_from_quotes(frame, code, basis))
    if basis != "mid":
        made = feed.frame("1m").head(-1)  # the cut may have cut the last one
        assert_equal_bars(made, side(key("eurusd_oanda_1m"), basis), OHLC, 100)
    assert validate_bars(feed.frame("1m"), where="live").height == feed.frame("1m").height
    assert feed.bars.counts.revisions == 0


# ---------------------------------------------------------------- closing, lateness, revisions


def test_a_window_closes_when_the_time_after_it_is_told_and_is_published_once() -> None:
    feed = Feed()
    feed.send([(T0 + 10, 1.0, 1.0), (T0 + 59_999, 2.0, 2.0)], alive=T0 + 59_999)
    assert feed.flush()["1s"]["ts"].len() == 1  # the first second; the last one is not over
    feed.send(alive=T0 + MINUTE + 199)
    assert feed.flush() == {}
    feed.send(alive=T0 + MINUTE + 200)
    made = feed.flush()
    assert made["1m"].select(*OHLC, "volume", "trades", "complete", "source", "origin", "is_deleted").rows() == [
        (1.0, 2.0, 1.0, 2.0, 2.0, 2, True, LIVE_AGGREGATED, "", 0)
    ]
    assert made["1s"].height == 1
    feed.send(alive=T0 + 2 * MINUTE)
    assert feed.flush() == {}
    assert feed.bars.counts.bars == 3
    assert feed.bars.counts.revisions == 0


def test_a_late_tick_makes_a_revision_of_its_second_and_its_minute_only() -> None:
    feed = Feed()
    feed.send([(T0 + 10, 1.0, 1.0), (T0 + 1010, 1.0, 1.0)], alive=T0 + MINUTE + 300)
    first = feed.flush()
    feed.send([(T0 + 20, 9.0, 9.0)], alive=T0 + MINUTE + 400)
    late = feed.flush()
    assert late["1s"].select("ts", "close", "trades").rows() == [(first["1s"]["ts"][0], 9.0, 2)]
    assert late["1m"].select("high", "close", "trades", "complete").rows() == [(9.0, 1.0, 3, True)]
    assert late["1m"]["revision"][0] > first["1m"]["revision"][0]
    counts = feed.bars.counts
    assert (counts.late, counts.late_dropped, counts.revisions, counts.bars) == (1, 0, 2, 3)


def test_revisions_rise_though_the_clock_falls() -> None:
    feed = Feed()
    feed.now = 1000
    feed.send([(T0 + 10, 1.0, 1.0)], alive=T0 + MINUTE + 300)
    first = feed.flush()["1m"]["revision"][0]
    feed.now = 10
    feed.send([(T0 + 20, 9.0, 9.0)], alive=T0 + MINUTE + 400)
    assert feed.flush()["1m"]["revision"][0] > first
    assert feed.bars.state(3).revision > first


@pytest.mark.parametrize("flushed", [True, False])
def test_beyond_the_lateness_a_tick_is_dropped_and_its_bar_called_incomplete(flushed: bool) -> None:
    feed = Feed()
    feed.send([(T0 + 10, 1.0, 1.0)], alive=T0 + 2 * MINUTE - 1)
    feed.flush()
    feed.send([(T0 + 20, 3.0, 3.0)], alive=T0 + 2 * MINUTE - 1)  # the last moment
    assert feed.flush()["1m"]["trades"][0] == 2
    feed.send(alive=T0 + 2 * MINUTE)
    if flushed:
        feed.flush()
    feed.send([(T0 + 30, 5.0, 5.0), (T0 + 31, 5.0, 5.0)], alive=T0 + 2 * MINUTE)
    feed.flush()
    feed.send([(T0 + 40, 5.0, 5.0)], alive=T0 + 2 * MINUTE)
    demoted = feed.flush()
    rows = [row for code, row in feed.published if code == "1m"]
    assert [(row["high"], row["trades"], row["complete"]) for row in rows] == [
        (1.0, 1, True),
        (3.0, 2, True),
        (3.0, 2, False),
    ]
    assert demoted.keys() <= {"1m"}
    assert feed.bars.late_minutes() == {T0: 3}
    assert feed.bars.late_minutes() == {}
    assert feed.bars.counts.late_dropped == 3


def test_one_batch_after_an_outage_may_hold_the_ticks_of_many_minutes() -> None:
    feed = Feed()
    feed.send([(T0 - 10, 1.0, 1.0)], alive=T0 - 10)
    rows = [(T0 + n * 10_000, 1.0 + n, 1.0 + n) for n in range(60)]
    feed.send(rows, alive=T0 + 10 * MINUTE + 200)
    feed.flush()
    same(feed.frame("1m").tail(-1), expected(rows, "quote", "1m"))
    assert feed.frame("1m")["complete"].to_list() == [True] * 11


def test_what_is_no_tick_of_ours_makes_no_bar() -> None:
    feed = Feed(CRYPTO)
    rows = [(T0, 1.0, 1.0), (T0 + 1, float("nan"), 1.0), (T0 + 2, 1.0, -1.0), (T0 + 3, float("inf"), 1.0)]
    frame = ticks([*rows, (T0 + 5 * MINUTE, 7.0, 7.0)], "trade", received=T0)
    other = ticks([(T0, 1.0, 2.0), (T0, 2.0, 1.0)], "quote", received=T0)
    feed.bars.take(BatchFacts(1, 99, 1, "s", 0, T0, T0), TickArrays.of(pl.concat([frame, other], how="diagonal")))
    feed.send(alive=T0 + 7 * MINUTE)
    assert feed.flush()["1m"].select("ts", "open", "volume", "vwap", "trades").rows() == [
        (feed.frame("1m")["ts"][0], 1.0, 1.0, 1.0, 1)
    ]
    counts = feed.bars.counts
    assert (counts.malformed, counts.ahead, counts.other_kind, counts.ticks) == (3, 1, 2, 1)


def test_crossed_quotes_are_kept_and_counted() -> None:
    feed = Feed()
    feed.send([(T0, 1.2, 1.0), (T0 + 1, 1.0, 1.2), (T0 + 2, 1.2, 1.0)], alive=T0 + MINUTE + 200)
    assert feed.flush()["1m"]["trades"].to_list() == [3]
    assert feed.bars.counts.crossed == 2


def test_repeated_quotes_count_and_repeated_batches_do_not() -> None:
    feed = Feed()
    feed.send([(T0, 1.0, 1.0)] * 3, alive=T0, batch_id=5)
    feed.send([(T0, 1.0, 1.0)] * 3, alive=T0, batch_id=5)
    feed.send([(T0, 1.0, 1.0)] * 3, alive=T0 + 2 * MINUTE, batch_id=6)
    assert feed.flush()["1m"]["volume"].to_list() == [6.0]
    assert feed.bars.counts.duplicates == 1


def test_an_older_epoch_is_refused_and_what_two_collectors_sent_counts_once() -> None:
    feed = Feed()
    feed.send([(T0, 1.0, 1.0), (T0 + 1, 2.0, 2.0), (T0 + 1, 2.0, 2.0), (T0 + 2, 3.0, 3.0)], alive=T0 + 2, epoch=1)
    # the successor had the last three as well, and once more
    rows = [(T0 + 1, 2.0, 2.0), (T0 + 2, 3.0, 3.0), (T0 + 2, 3.0, 3.0), (T0 + 3, 4.0, 4.0)]
    feed.send(rows, alive=T0 + 3, epoch=2, session="t", started=T0 + 1)
    feed.send([(T0 + 4, 9.0, 9.0)], alive=T0 + 4, epoch=1)
    feed.send(alive=T0 + 2 * MINUTE, epoch=2, session="t", started=T0 + 1)
    assert feed.flush()["1m"].select("close", "high", "trades", "complete").rows() == [(4.0, 4.0, 6, False)]
    assert (feed.bars.counts.fenced, feed.bars.counts.superseded) == (1, 2)


# ---------------------------------------------------------------- complete, as the design defines it


def minute_of(feed: Feed) -> bool:
    feed.flush()
    return feed.complete()[0]


@pytest.mark.parametrize(
    ("started", "ok"), [(T0 - 5000, True), (T0, True), (T0 + 1, False), (T0 + 30_000, False), (T0 + MINUTE, False)]
)
def test_a_session_that_begins_in_the_minute_proves_nothing_of_it(started: int, ok: bool) -> None:
    feed = Feed()
    feed.send([(T0 + 10, 1.0, 1.0)], alive=T0 + 40_000, started=started)
    feed.send(alive=T0 + 2 * MINUTE, started=started)
    assert minute_of(feed) is ok


@pytest.mark.parametrize(
    ("proof", "ok"), [(T0 + MINUTE - 1, False), (T0 + MINUTE, True), (T0 + MINUTE + 5000, True), (None, False)]
)
def test_a_quiet_end_is_proven_by_a_sign_of_life_after_it(proof: int | None, ok: bool) -> None:
    feed = Feed()
    feed.send([(T0 + 10, 1.0, 1.0)], alive=T0 + 10)
    if proof is not None:
        feed.send(alive=proof)
    feed.bars.close(T0 + 2 * MINUTE)  # nothing more came for long
    assert minute_of(feed) is ok


def test_the_proof_may_come_after_the_bar() -> None:
    feed = Feed()
    feed.send([(T0 + 10, 1.0, 1.0)], alive=T0 + 10)
    feed.bars.close(T0 + 2 * MINUTE)
    feed.flush()
    assert feed.complete() == {0: False}
    feed.send(alive=T0 + MINUTE - 1)
    assert "1m" not in feed.flush()
    feed.send(alive=T0 + MINUTE)
    assert feed.flush()["1m"]["complete"].to_list() == [True]
    assert feed.flush() == {}


@pytest.mark.parametrize(
    ("down", "up", "complete"),
    [
        (T0 + 30_000, T0 + 31_000, [False, True]),  # both in the first minute
        (T0 + 59_000, T0 + 61_000, [False, False]),  # across the edge
        (T0 + MINUTE, T0 + MINUTE, [True, True]),  # exactly at it
        (T0 + MINUTE + 1, T0 + MINUTE + 2, [True, False]),
    ],
)
def test_a_disconnect_takes_the_proof_of_the_minutes_it_touches(down: int, up: int, complete: list[bool]) -> None:
    feed = Feed()
    feed.send([(T0 + 10, 1.0, 1.0)], alive=min(down, T0 + 59_000))
    feed.send(alive=down)
    feed.send([(T0 + MINUTE + 5000, 1.0, 1.0)], alive=T0 + 2 * MINUTE + 200, session="t", started=up, lost_from=down)
    feed.flush()
    assert list(feed.complete().values()) == complete


def test_a_loss_that_reaches_back_takes_a_proof_that_was_given() -> None:
    feed = Feed()
    feed.send([(T0 + 10, 1.0, 1.0)], alive=T0 + MINUTE + 300)
    feed.flush()
    assert feed.complete() == {0: True}
    # the overflow began with a tick of the minute before
    feed.send(
        [(T0 + MINUTE + 900, 1.0, 1.0)],
        alive=T0 + MINUTE + 900,
        session="t",
        started=T0 + MINUTE + 800,
        lost_from=T0 + MINUTE - 700,
    )
    made = feed.flush()
    assert made["1m"].select("trades", "complete").rows() == [(1, False)]
    assert feed.complete("1s")[0] is True  # its tenth of a second lay before the loss


def test_a_session_that_is_not_acknowledged_proves_nothing() -> None:
    feed = Feed()
    for at in range(T0 - 10_000, T0 + 2 * MINUTE, 10_000):  # each says that it starts now
        feed.send([(at + 1, 1.0, 1.0)], alive=at, started=at)
    feed.flush()
    assert not any(feed.complete().values())


def test_what_came_before_the_first_batch_seen_is_not_proven() -> None:
    feed = Feed(state=first_state(1, seen_from=None))
    feed.send([(T0 + 10, 1.0, 1.0)], alive=T0 + 20, started=T0 - MINUTE)
    feed.send([(T0 + MINUTE + 10, 1.0, 1.0)], alive=T0 + 2 * MINUTE + 300, started=T0 - MINUTE)
    feed.flush()
    assert list(feed.complete().values()) == [False, True]


def test_batches_that_were_missed_take_the_proof() -> None:
    feed = Feed()
    feed.send([(T0 + 10, 1.0, 1.0)], alive=T0 + MINUTE + 300)
    feed.send([(T0 + MINUTE + 400, 1.0, 1.0)], alive=T0 + MINUTE + 500)
    feed.bars.interrupt()
    feed.send([(T0 + MINUTE + 900, 1.0, 1.0)], alive=T0 + MINUTE + 900)
    feed.send([(T0 + 2 * MINUTE + 900, 1.0, 1.0)], alive=T0 + 3 * MINUTE + 900)
    feed.flush()
    assert list(feed.complete().values()) == [True, False, True]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(-30, 150), st.integers(0, 60), st.booleans()), min_size=1, max_size=6))
def test_complete_means_one_session_whole_and_no_loss(spans: list[tuple[int, int, bool]]) -> None:
    """Against the definition, second by second: every window inside one session, outside every loss."""
    feed = Feed(rules=LiveRules(lateness_ms=10 * MINUTE))
    rows = [(T0 + second * SECOND + 500, 1.0, 1.0) for second in range(120)]
    feed.send(rows, alive=0, session="none", started=0)
    claims, losses, last = [], [], 0
    for number, (start, length, loses) in enumerate(spans):
        started, alive = T0 + start * SECOND, T0 + (start + length) * SECOND
        lost_from = started - 1500 if loses else None
        feed.send(alive=alive, session=str(number), started=started, lost_from=lost_from)
        claims.append((started, alive))
        losses += [(lost_from, started)] if lost_from is not None else []
        last = max(last, alive)
        feed.flush()
    feed.bars.close(T0 + 10 * MINUTE)
    feed.flush()
    for code, window in (("1s", SECOND), ("1m", MINUTE)):
        for opened, row in feed.said[code].items():
            end = opened + window
            inside = any(a <= opened and end <= b for a, b in claims)
            lost = any(a < end and opened < b for a, b in losses)
            assert row["complete"] is (inside and not lost), (code, (opened - T0) / 1000)


def test_rules_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="final"):
        LiveRules(delay_ms=2000, lateness_ms=1000)


def test_memory_is_let_go_of() -> None:
    feed = Feed()
    rng = np.random.default_rng(1)
    for minute in range(30):
        at = np.sort(rng.integers(0, MINUTE, 50)) + T0 + minute * MINUTE
        feed.send([(int(ts), 1.0, 1.0) for ts in at], alive=T0 + (minute + 1) * MINUTE)
        feed.flush()
    assert len(feed.bars._minutes) <= 3
    assert len(feed.bars._batches) <= 4
    assert feed.bars.state(99).from_seq >= 28
