"""The vendor's events as they stand in a frame (documents and recorded samples of Polygon.io, now Massive)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from market_pipeline.simulator.bars import Bars
from market_pipeline.simulator.sessions import MINUTE_MS
from market_pipeline.simulator.tickers import profile

TickMaker = Callable[[int, int, float, float, float], msgspec.Struct]
_TRADE_DELAY_MS = 3  # from a crypto exchange to the vendor


class Status(msgspec.Struct, tag_field="ev", tag="status"):
    """Tell the client how its session stands."""

    status: str
    message: str


class ForexQuote(msgspec.Struct, tag_field="ev", tag="C"):
    """A forex quote; `t` in epoch ms."""

    p: str
    x: int | str
    a: float
    b: float
    t: int


class CryptoTrade(msgspec.Struct, tag_field="ev", tag="XT"):
    """A crypto trade; `r` is when the vendor received it."""

    pair: str
    p: float
    t: int
    s: float
    c: list[int]
    i: int
    x: int
    r: int


class CryptoQuote(msgspec.Struct, tag_field="ev", tag="XQ", rename={"as_": "as"}):
    """A crypto quote."""

    pair: str
    bp: float
    bs: float
    ap: float
    as_: float
    t: int
    x: int
    r: int


class StockTrade(msgspec.Struct, tag_field="ev", tag="T"):
    """A stock trade; `q` is the sequence number."""

    sym: str
    x: int
    i: str
    z: int
    p: float
    s: float
    c: list[int]
    t: int
    q: int


class StockQuote(msgspec.Struct, tag_field="ev", tag="Q", rename={"as_": "as"}):
    """A stock quote."""

    sym: str
    bx: int
    bp: float
    bs: float
    ax: int
    ap: float
    as_: float
    c: int
    i: list[int]
    t: int
    q: int
    z: int


class _ForexBar(msgspec.Struct):
    pair: str
    o: float
    c: float
    h: float
    l: float  # noqa: E741 - the vendor's name
    v: float
    s: int


class ForexMinute(_ForexBar, tag_field="ev", tag="CA"):
    """A minute of forex quotes; `s` is its open. The vendor's sample has no `e`."""


class ForexSecond(_ForexBar, tag_field="ev", tag="CAS"):
    """A second of forex quotes."""


class _CryptoBar(msgspec.Struct):
    pair: str
    v: float
    vw: float
    z: float
    o: float
    c: float
    h: float
    l: float  # noqa: E741
    s: int
    e: int


class CryptoMinute(_CryptoBar, tag_field="ev", tag="XA"):
    """A minute of crypto trades, [s, e)."""


class CryptoSecond(_CryptoBar, tag_field="ev", tag="XAS"):
    """A second of crypto trades."""


class _StockBar(msgspec.Struct):
    sym: str
    v: float
    av: float
    op: float
    vw: float
    o: float
    c: float
    h: float
    l: float  # noqa: E741
    a: float
    z: float
    s: int
    e: int


class StockMinute(_StockBar, tag_field="ev", tag="AM"):
    """A minute of stock trades, [s, e); `av`, `op` and `a` are the day's volume, open and average price so far."""


class StockSecond(_StockBar, tag_field="ev", tag="A"):
    """A second of stock trades."""


def tick_maker(topic: str, ticker: str, pair: str) -> TickMaker:
    """Return what makes events of a topic out of (ts, number, price, ask, size).

    Where the truth has trades only, quotes stand one step of the price apart, with the trade's size on both sides.
    """
    decimals = profile(ticker).decimals
    step = 10.0**-decimals

    def forex_quote(t: int, number: int, price: float, ask: float, size: float) -> ForexQuote:
        return ForexQuote(pair, 48, ask, price, t)

    def crypto_trade(t: int, number: int, price: float, ask: float, size: float) -> CryptoTrade:
        return CryptoTrade(pair, price, t, size, [2], _identity(t, number), 1, t + _TRADE_DELAY_MS)

    def crypto_quote(t: int, number: int, price: float, ask: float, size: float) -> CryptoQuote:
        return CryptoQuote(pair, price, size, round(price + step, decimals), size, t, 1, t + _TRADE_DELAY_MS)

    def stock_trade(t: int, number: int, price: float, ask: float, size: float) -> StockTrade:
        identity = _identity(t, number)
        return StockTrade(pair, 4, str(identity), 3, price, size, [0], t, identity)

    def stock_quote(t: int, number: int, price: float, ask: float, size: float) -> StockQuote:
        return StockQuote(
            pair, 11, price, size, 11, round(price + step, decimals), size, 0, [604], t, _identity(t, number), 3
        )

    makers: dict[str, TickMaker] = {
        "C": forex_quote,
        "XT": crypto_trade,
        "XQ": crypto_quote,
        "T": stock_trade,
        "Q": stock_quote,
    }
    return makers[topic]


def forex_bar(topic: str, pair: str, bars: Bars, at: int) -> msgspec.Struct:
    """Return the forex bar at a position."""
    kind = ForexMinute if topic == "CA" else ForexSecond
    o, c, h, low, v = _numbers(bars, at, "open", "close", "high", "low", "volume")
    return kind(pair, o, c, h, low, v, int(bars.ts[at]))


def crypto_bar(topic: str, pair: str, bars: Bars, at: int, window_ms: int) -> msgspec.Struct:
    """Return the crypto bar at a position; `z` is the average size of a trade."""
    kind = CryptoMinute if topic == "XA" else CryptoSecond
    v, vw, o, c, h, low = _numbers(bars, at, "volume", "vwap", "open", "close", "high", "low")
    opened = int(bars.ts[at])
    return kind(pair, v, vw, round(v / int(bars.trades[at]), 8), o, c, h, low, opened, opened + window_ms)


def stock_bar(topic: str, pair: str, bars: Bars, at: int, window_ms: int, day: Bars) -> msgspec.Struct:
    """Return the stock bar at a position; `day` holds the day's minutes so far."""
    kind = StockMinute if topic == "AM" else StockSecond
    v, vw, o, c, h, low = _numbers(bars, at, "volume", "vwap", "open", "close", "high", "low")
    opened, sold = int(bars.ts[at]), float(day.volume.sum())
    average = round(float((day.vwap * day.volume).sum()) / sold, 4) if sold else vw
    size = round(v / int(bars.trades[at]), 2)
    first = float(day.open[0]) if len(day) else o
    return kind(pair, v, sold, first, vw, o, c, h, low, average, size, opened, opened + window_ms)


def crossed(event: Any) -> Any:
    """Return a quote with bid and ask exchanged, or None for an event that is no quote or has no spread."""
    if isinstance(event, ForexQuote):
        return msgspec.structs.replace(event, a=event.b, b=event.a) if event.a > event.b else None
    if isinstance(event, CryptoQuote | StockQuote):
        return msgspec.structs.replace(event, ap=event.bp, bp=event.ap) if event.ap > event.bp else None
    return None


def _identity(t: int, number: int) -> int:
    # The trade's id on the REST side.
    return t // MINUTE_MS * 100_000 + number


def _numbers(bars: Bars, at: int, *names: str) -> list[float]:
    return [float(getattr(bars, name)[at]) for name in names]
