"""Where the tick bridge goes on, and what counts as missed: pure."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from market_pipeline.bus.tick_envelope import LATE, LOSS_MARGIN, TickHeaders
from market_pipeline.bus.tick_reader import StreamSpan
from market_pipeline.live.tick_bridge.meter import Meter
from market_pipeline.live.tick_bridge.place import Place, resume

T0 = datetime(2024, 3, 5, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
SENT = [(1, 1), (2, 2), (4, 4), (5, 5)]  # sequence, number


def headers(symbol: str, first_ts: datetime | None, alive_at: datetime = T0) -> TickHeaders:
    rows = 0 if first_ts is None else 1
    return TickHeaders(1, "c", symbol, "a", 1, rows, "s", T0, alive_at, first_ts, first_ts)


@given(seq=st.integers(0, 50), first=st.integers(0, 50), length=st.integers(0, 50), floor=st.integers(0, 120))
def test_nothing_that_the_stream_still_holds_is_passed_over(seq: int, first: int, length: int, floor: int) -> None:
    """Unless it is acknowledged; and what the stream lost above the place is always told."""
    span = StreamSpan(first, first + length - 1, "one")
    place, gone = resume(Place("one", seq), span, floor)
    after = max(place.seq, gone or 0)
    assert after + 1 <= max(first, seq + 1, min(floor, span.last_seq) + 1)
    if seq <= span.last_seq:
        assert (gone is not None) == (first - 1 > seq)


def test_another_stream_is_begun_from_its_start_and_the_old_one_is_missed() -> None:
    known = Place("one", 70, {"A": 5})
    for span in (StreamSpan(1, 100, "two"), StreamSpan(0, 0, "two"), StreamSpan(1, 60, "one")):
        place, gone = resume(known, span, 0)
        assert (place.seq, gone, place.missed) == (0, 0, {"A": 5})
        assert place.stream == span.created
    assert resume(None, StreamSpan(11, 20, "one"), 15) == (Place("one", 0), 10)


def test_the_first_batch_after_a_hole_ends_the_loss_of_its_symbol() -> None:
    place = Place("one", 10).with_hole(20, {"A": T0, "B": T0, "C": T0})
    later = T0 + timedelta(minutes=1)
    losses = place.losses(
        [headers("B", None, later), headers("A", later), headers("A", later + LATE), headers("D", T0)]
    )
    assert [(loss.symbol, loss.start, loss.end, loss.cause) for loss in losses] == [
        ("B", T0, later + LATE, "expired"),
        ("A", T0, later + LATE, "expired"),
    ]
    assert set(place.without({"A", "B", "D"}).missed) == {"C"}
    assert place.losses([headers("A", T0 - 2 * LATE)]) == []  # it ends before it begins: nothing is missed
    # a second hole before the end of the first: it goes on
    assert place.with_hole(30, {"A": later}).missed["A"] == place.missed["A"]
    assert msgspec.json.decode(msgspec.json.encode(place), type=Place) == place


def test_numbers_that_lack_are_a_loss_once_and_what_is_told_as_expired_is_none() -> None:
    numbered = [(seq, replace(headers("A", None, T0 + seq * MINUTE), number=number)) for seq, number in SENT]
    place, losses = Place("one", 0).numbered(numbered)
    assert [(loss.start, loss.end, loss.cause) for loss in losses] == [
        (T0 + 2 * MINUTE - LOSS_MARGIN, T0 + 4 * MINUTE + LOSS_MARGIN, "missing")
    ]
    place = msgspec.json.decode(msgspec.json.encode(place.moved(5)), type=Place)
    assert place.numbered(numbered) == (place, []), "delivered again"
    later = [(9, replace(headers("A", None, T0 + 9 * MINUTE), number=9))]
    assert [loss.start for loss in place.numbered(later)[1]] == [T0 + 5 * MINUTE - LOSS_MARGIN]
    assert place.with_hole(8, {"A": T0}).numbered(later)[1] == []
    known, gone = resume(place, StreamSpan(1, 9, "one"), 8)
    assert (known.seq, gone, known.numbered(later)[1]) == (8, None, []), "stored by one who died before it said so"


def test_meter_forgets() -> None:
    now = [0.0]
    meter = Meter(lambda: now[0])
    meter.stored(1000, [10, 20])
    now[0] = 5.0
    assert meter.ticks_per_s() == 200.0
    assert meter.latency_ms() == (15.0, 19.9)
    now[0] = 65.0
    assert (meter.ticks_per_s(), meter.latency_ms()) == (0.0, None)


def test_a_collector_that_found_nothing_of_the_one_before_leaves_time_for_which_nobody_answers() -> None:
    """As behind a wiped stream: the place tells, also where it was kept by one who died."""
    before = (1, replace(headers("A", T0), number=1))
    after = (2, replace(headers("A", None, T0 + 4 * MINUTE), epoch=2, number=1, session_started=T0 + 3 * MINUTE))
    place, _ = Place("one", 0).numbered([before])
    expected = [("A", T0 - LOSS_MARGIN, T0 + 3 * MINUTE, "missing")]
    for known in (place, place.unnumbered()):
        _, losses = known.numbered([after])
        assert [(loss.symbol, loss.start, loss.end, loss.cause) for loss in losses] == expected
