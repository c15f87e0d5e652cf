"""Frames to ticks: the vendor's recorded samples, and what is no tick."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_pipeline.vendors.polygon.stream.events import (
    EventCounters,
    StreamTick,
    UnreadableFrame,
    decode_frame,
    ticks_of,
)

SAMPLES = Path(__file__).parents[3] / "shared" / "data" / "vendor_websocket_samples.json"
SYMBOLS = {"EUR/USD": "EURUSD", "EUR-USD": "EURUSD", "BTC-USD": "BTCUSD", "USD/CNH": "USDCNH", "MSFT": "MSFT"}
NOW = 1_700_000_001_000
QUOTE = {"ev": "C", "p": "EUR/USD", "x": 48, "a": 1.1001, "b": 1.1, "t": 1_700_000_000_000}


def read(*events: Any, counters: EventCounters | None = None) -> list[StreamTick]:
    counters = counters or EventCounters()
    return ticks_of(decode_frame(json.dumps(events).encode(), counters), SYMBOLS, NOW, counters)


def test_a_forex_quote() -> None:
    assert read(QUOTE) == [
        StreamTick("EURUSD", 1_700_000_000_000, "quote", 1.1, 1.1001, None, None, "48", None, received_ms=NOW)
    ]


def test_the_exchange_may_be_text_and_the_separator_a_hyphen() -> None:
    assert read({**QUOTE, "x": "48", "p": "EUR-USD"}) == read(QUOTE)


def test_crypto_and_stocks() -> None:
    trade = {
        "ev": "XT",
        "pair": "BTC-USD",
        "p": 33021.9,
        "t": 1610462007425,
        "s": 0.5,
        "c": [2],
        "i": 14,
        "x": 3,
        "r": 1,
    }
    quote = {"ev": "XQ", "pair": "BTC-USD", "bp": 1, "bs": 0.4, "ap": 2, "as": 0.6, "t": 1610462411115, "x": 1, "r": 1}
    stock = {"ev": "T", "sym": "MSFT", "x": 4, "i": "1", "z": 3, "p": 114.1, "s": 100, "c": [0, 12], "t": 1536036818784}
    best = {"ev": "Q", "sym": "MSFT", "bx": 4, "bp": 114.1, "ax": 7, "ap": 114.2, "c": 0, "t": 1536036818784, "q": 5}
    assert read(trade, quote, stock, best) == [
        StreamTick("BTCUSD", 1610462007425, "trade", None, None, 33021.9, 0.5, "3", "2", NOW),
        StreamTick("BTCUSD", 1610462411115, "quote", 1.0, 2.0, None, None, "1", None, NOW),
        StreamTick("MSFT", 1536036818784, "trade", None, None, 114.1, 100.0, "4", "0,12", NOW),
        StreamTick("MSFT", 1536036818784, "quote", 114.1, 114.2, None, None, "4/7", "0", NOW),
    ]


def test_a_crossed_quote_and_exact_repeats_are_kept() -> None:
    crossed = {**QUOTE, "a": 1.0, "b": 1.2}
    assert [(tick.bid, tick.ask) for tick in read(crossed, crossed, QUOTE)] == [(1.2, 1.0), (1.2, 1.0), (1.1, 1.1001)]


def test_what_is_unknown_is_counted_and_the_rest_of_the_frame_is_read() -> None:
    counters = EventCounters()
    ticks = read(
        {"ev": "CA", "pair": "EUR/USD"}, QUOTE, {"ev": "LULD"}, {}, 7, {**QUOTE, "p": "NOK/SEK"}, counters=counters
    )
    assert [tick.symbol for tick in ticks] == ["EURUSD"]
    assert counters.unknown == {"CA": 1, "LULD": 1, "": 2}
    assert (counters.ticks, counters.unasked, counters.bad) == (1, 1, 0)


@pytest.mark.parametrize(
    "change",
    [
        {"a": None},
        {"b": "x"},
        {"t": None},
        {"t": 1_700_000_000},
        {"t": round(time.time() * 1000) + 2 * 86_400_000},
        {"t": 10**14 - 1},
        {"x": "4\0"},
        {"t": 1_700_000_000_000_000_000},
        {"p": 5},
        {"t": "now"},
    ],
)
def test_an_event_that_is_no_tick_is_counted_alone(change: dict[str, Any]) -> None:
    counters = EventCounters()
    assert len(read({**QUOTE, **change}, QUOTE, counters=counters)) == 1
    assert counters.bad == 1


def test_a_replay_whose_clock_lags_behind_its_events_loses_none() -> None:
    counters = EventCounters()
    assert len(read({**QUOTE, "t": NOW + 3 * 86_400_000}, counters=counters)) == 1
    assert counters.bad == 0


@pytest.mark.parametrize(
    "frame", [b"", b"[", b"{}", b"null", b'[{"ev":"C","p":"EUR/U', b"\xff\xfe", b'[{"ev":"C","p":"\xff"}]']
)
def test_a_frame_that_cannot_be_read_says_so(frame: bytes) -> None:
    with pytest.raises(UnreadableFrame):
        decode_frame(frame, EventCounters())


@given(st.binary(max_size=200) | st.text(max_size=80).map(str.encode))
def test_no_frame_raises_anything_else(frame: bytes) -> None:
    with suppress(UnreadableFrame):
        decode_frame(frame, EventCounters())


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(["p", "pair", "sym", "t", "a", "b", "bp", "ap", "s", "c", "x", "bx", "status"]), json_values
        ).flatmap(
            lambda event: st.sampled_from(["C", "XT", "XQ", "T", "Q", "status", "AM"]).map(
                lambda ev: {**event, "ev": ev}
            )
        ),
        max_size=4,
    )
)
def test_every_event_is_a_tick_or_is_counted(events: list[dict[str, Any]]) -> None:
    counters = EventCounters()
    decoded = decode_frame(json.dumps(events).encode(), counters)
    ticks = ticks_of(decoded, SYMBOLS, NOW, counters)
    statuses = sum(1 for event in decoded if not hasattr(event, "tick"))
    assert len(ticks) + counters.bad + counters.unasked + counters.unknown.total() + statuses == len(events)


def test_the_number_of_unknown_names_is_bounded() -> None:
    counters = EventCounters()
    decode_frame(json.dumps([{"ev": f"E{number}"} for number in range(500)]).encode(), counters)
    assert len(counters.unknown) < 100
    assert counters.unknown.total() == 500


@pytest.mark.skipif(not SAMPLES.exists(), reason="the vendor's recorded samples are not in this checkout")
def test_every_recorded_sample_is_read_or_counted() -> None:
    samples = json.loads(SAMPLES.read_text())
    counters = EventCounters()
    ticks = read(*samples.values(), counters=counters)
    assert {(tick.symbol, tick.kind) for tick in ticks} == {
        ("MSFT", "trade"),
        ("MSFT", "quote"),
        ("USDCNH", "quote"),
        ("BTCUSD", "trade"),
        ("BTCUSD", "quote"),
    }
    assert counters.bad == 0
    assert counters.unasked == 2, "the two of options"
    assert len(ticks) + counters.unasked + counters.unknown.total() == len(samples)
