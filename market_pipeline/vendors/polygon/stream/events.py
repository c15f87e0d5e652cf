"""The events of a frame, and the ticks that they are.

Every inbound frame is a JSON array of events, told apart by `ev`. Field names are the vendor's: forex quote `C`,
crypto trade and quote `XT` and `XQ`, stock trade and quote `T` and `Q`; https://polygon.io/docs/websocket
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from market_pipeline.errors import VendorBadAnswer
from market_pipeline.market.ticks import QUOTE, TRADE

Code = int | str | None
Codes = int | str | list[int | str] | None
# Later than 1973 and at most a day ahead: seconds, microseconds and nanoseconds lie outside. The tick store takes no
# time further ahead of this machine's, and would refuse the whole batch.
_EARLIEST_MS, _AHEAD_MS = 10**11, 86_400_000
_MOST_KINDS = 64


class StreamTick(NamedTuple):
    """A quote or a trade: columns of `market.ticks.TICK_SCHEMA`, times as epoch ms."""

    symbol: str
    ts_ms: int
    kind: str
    bid: float | None
    ask: float | None
    price: float | None
    size: float | None
    exchange: str | None
    conditions: str | None
    received_ms: int


class Status(msgspec.Struct, tag_field="ev", tag="status"):
    """What the vendor says about the connection, the key or a subscription."""

    status: str = ""
    message: str = ""


class ForexQuote(msgspec.Struct, tag_field="ev", tag="C", gc=False):
    """A quote of a currency pair."""

    p: str
    t: int
    a: float | None = None
    b: float | None = None
    x: Code = None

    def tick(self, symbol: str, at: int) -> StreamTick | None:
        """Return the tick; None where a side is missing."""
        if self.b is None or self.a is None:
            return None
        return StreamTick(symbol, self.t, QUOTE, self.b, self.a, None, None, _text(self.x), None, at)

    @property
    def name(self) -> str:
        """The vendor's form of the symbol."""
        return self.p


class CryptoTrade(msgspec.Struct, tag_field="ev", tag="XT"):
    """A trade of a crypto pair."""

    pair: str
    t: int
    p: float | None = None
    s: float | None = None
    c: Codes = None
    x: Code = None

    def tick(self, symbol: str, at: int) -> StreamTick | None:
        """Return the tick; None where price or size is missing."""
        if self.p is None or self.s is None or self.s < 0:
            return None
        return StreamTick(symbol, self.t, TRADE, None, None, self.p, self.s, _text(self.x), _texts(self.c), at)

    @property
    def name(self) -> str:
        """The vendor's form of the symbol."""
        return self.pair


class CryptoQuote(msgspec.Struct, tag_field="ev", tag="XQ", gc=False):
    """The best bid and ask of a crypto pair."""

    pair: str
    t: int
    bp: float | None = None
    ap: float | None = None
    x: Code = None

    def tick(self, symbol: str, at: int) -> StreamTick | None:
        """Return the tick; None where a side is missing."""
        if self.bp is None or self.ap is None:
            return None
        return StreamTick(symbol, self.t, QUOTE, self.bp, self.ap, None, None, _text(self.x), None, at)

    @property
    def name(self) -> str:
        """The vendor's form of the symbol."""
        return self.pair


class StockTrade(msgspec.Struct, tag_field="ev", tag="T"):
    """A trade of a stock."""

    sym: str
    t: int
    p: float | None = None
    s: float | None = None
    c: Codes = None
    x: Code = None

    def tick(self, symbol: str, at: int) -> StreamTick | None:
        """Return the tick; None where price or size is missing."""
        if self.p is None or self.s is None or self.s < 0:
            return None
        return StreamTick(symbol, self.t, TRADE, None, None, self.p, self.s, _text(self.x), _texts(self.c), at)

    @property
    def name(self) -> str:
        """The vendor's form of the symbol."""
        return self.sym


class StockQuote(msgspec.Struct, tag_field="ev", tag="Q"):
    """The best bid and ask of a stock, each with its exchange."""

    sym: str
    t: int
    bp: float | None = None
    ap: float | None = None
    bx: Code = None
    ax: Code = None
    c: Codes = None

    def tick(self, symbol: str, at: int) -> StreamTick | None:
        """Return the tick; None where a side is missing. Two exchanges are joined: `4/7`."""
        if self.bp is None or self.ap is None:
            return None
        exchange = _text(self.bx) if self.bx == self.ax else f"{self.bx}/{self.ax}"
        return StreamTick(symbol, self.t, QUOTE, self.bp, self.ap, None, None, exchange, _texts(self.c), at)

    @property
    def name(self) -> str:
        """The vendor's form of the symbol."""
        return self.sym


Event = Status | ForexQuote | CryptoTrade | CryptoQuote | StockTrade | StockQuote


class _Kind(msgspec.Struct):
    ev: str = ""


_EVENTS = msgspec.json.Decoder(list[Event])
_RAW_EVENTS = msgspec.json.Decoder(list[msgspec.Raw])
_EVENT = msgspec.json.Decoder(Event)
_KIND = msgspec.json.Decoder(_Kind)
_KNOWN = frozenset(kind.__struct_config__.tag for kind in Event.__args__)


class UnreadableFrame(VendorBadAnswer):
    """A frame that is no JSON array of objects: nobody can say what was in it."""


@dataclass(slots=True)
class EventCounters:
    """Count events: `unknown` by their `ev`, `unasked` of symbols that nobody asked for, `bad` that are no ticks."""

    ticks: int = 0
    bad: int = 0
    unasked: int = 0
    unknown: Counter[str] = field(default_factory=Counter)


def decode_frame(frame: bytes, counters: EventCounters) -> list[Event]:
    """Decode a frame to the events that are known; others are counted and left out.

    Raises:
        UnreadableFrame: the frame is cut or is no array.
    """
    try:
        return _EVENTS.decode(frame)
    except msgspec.ValidationError:
        pass  # one event among many may be wrong or unknown: look at each
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UnreadableFrame(str(error)) from None
    try:
        raws = _RAW_EVENTS.decode(frame)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UnreadableFrame(str(error)) from None
    events: list[Event] = []
    for raw in raws:
        try:
            events.append(_EVENT.decode(raw))
        except (msgspec.DecodeError, UnicodeDecodeError):
            kind = _kind_of(raw)
            if kind in _KNOWN:
                counters.bad += 1
            else:
                counters.unknown[kind if kind in counters.unknown or len(counters.unknown) < _MOST_KINDS else ""] += 1
    return events


def ticks_of(
    events: list[Event], symbol_of: Mapping[str, str], received_ms: int, counters: EventCounters
) -> list[StreamTick]:
    """Return the ticks among events, in their order; what is no tick of a symbol asked for is counted.

    Well-formed is all that is asked of a price: a crossed quote or a price of zero is what the vendor says. A time more
    than a day after this machine's (and after `received_ms`, which is a replay's where one is replayed), or a NUL in a
    code, is none that can be stored.
    """
    ticks: list[StreamTick] = []
    latest_ms = max(received_ms, time.time_ns() // 1_000_000) + _AHEAD_MS
    for event in events:
        if isinstance(event, Status):
            continue
        symbol = symbol_of.get(event.name)
        if symbol is None:
            counters.unasked += 1
            continue
        tick = event.tick(symbol, received_ms)
        if (
            tick is None
            or not _EARLIEST_MS < tick.ts_ms <= latest_ms
            or (tick.exchange is not None and "\0" in tick.exchange)
            or (tick.conditions is not None and "\0" in tick.conditions)
        ):
            counters.bad += 1
            continue
        ticks.append(tick)
    counters.ticks += len(ticks)
    return ticks


def _kind_of(raw: msgspec.Raw) -> str:
    try:
        # Names come from outside: long ones would fill memory and logs.
        return _KIND.decode(raw).ev[:16]
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""


def _text(code: Code) -> str | None:
    return None if code is None else str(code)


def _texts(codes: Codes) -> str | None:
    if isinstance(codes, list):
        return ",".join(map(str, codes)) or None
    return _text(codes)
