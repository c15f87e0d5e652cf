"""The answers to `/v3/quotes/{ticker}` and `/v3/trades/{ticker}`: the truth's ticks, in nanoseconds."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qsl, urlencode

import numpy as np

from market_pipeline.simulator.answers import Answer, error, request_id
from market_pipeline.simulator.hashing import Int64Array
from market_pipeline.simulator.paging import BadParameter
from market_pipeline.simulator.sessions import DAY_MS, MINUTE_MS, zone_of
from market_pipeline.simulator.state import VendorState
from market_pipeline.simulator.tickers import Market, market_of
from market_pipeline.simulator.ticks import Ticks

DEFAULT_LIMIT, MAX_LIMIT = 1_000, 50_000
_NS = 1_000_000


@dataclass(frozen=True, slots=True)
class _Query:
    start: int  # first and last nanosecond, both included
    end: int
    limit: int
    descending: bool


def answer_ticks(state: VendorState, base_url: str, kind: str, ticker: str, query: dict[str, str]) -> Answer:
    """Answer a request for quotes or trades (`kind`) of a ticker, written with a hyphen or without.

    Takes `timestamp` (a day), `timestamp.gte|gt|lte|lt` (a day, RFC 3339 or nanoseconds), `order` (the latest first by
    default), `limit` and `cursor`. A tick's nanoseconds are those of its millisecond plus its number in the minute.
    Forex has quotes only, crypto trades only; the other kind is empty.
    """
    plain = ticker.replace("-", "")
    market = market_of(plain) or "stocks"
    try:
        asked = _parse(query, market, state.now_ms())
    except BadParameter as wrong:
        return error(400, "ERROR", str(wrong))
    wanted = {"forex": ("quotes",), "crypto": ("trades",), "stocks": ("quotes", "trades")}[market]
    if not state.knows(plain) or kind not in wanted:
        return Answer.json(200, {"results": [], "status": "OK", "request_id": request_id()})
    ticks, ns = _first(state, plain, asked)
    more, ticks, ns = len(ticks) > asked.limit, ticks.take(slice(0, asked.limit)), ns[: asked.limit]
    rows = _quotes(ticks, ns, market) if kind == "quotes" else _trades(ticks, ns, market)
    body: dict[str, Any] = {"results": rows, "status": "OK", "request_id": request_id()}
    if more:
        body["next_url"] = f"{base_url}/v3/{kind}/{ticker}?cursor={_cursor(asked, int(ns[-1]))}"
    return Answer.json(200, body, rows=len(rows))


def _first(state: VendorState, ticker: str, asked: _Query) -> tuple[Ticks, Int64Array]:
    """Return the first limit + 1 ticks in the order asked for, with their nanoseconds."""
    parts: list[tuple[Ticks, Int64Array]] = []
    read = 0
    for start, end in _spans(asked):
        ticks = state.ticks(ticker, start, end)
        ns = ticks.ts * _NS + ticks.number
        inside = slice(*np.searchsorted(ns, (asked.start, asked.end + 1)))
        ticks, ns = ticks.take(inside), ns[inside]
        if asked.descending:
            ticks, ns = ticks.take(slice(None, None, -1)), ns[::-1]
        parts.append((ticks, ns))
        read += len(ticks)
        if read > asked.limit:
            break
    if not parts:
        return state.ticks(ticker, 0, 0), np.empty(0, np.int64)
    joined = Ticks(
        *(
            np.concatenate([getattr(part, name) for part, _ in parts])
            for name in ("ts", "number", "price", "ask", "size")
        )
    )
    return joined.take(slice(0, asked.limit + 1)), np.concatenate([ns for _, ns in parts])[: asked.limit + 1]


def _spans(asked: _Query) -> Iterator[tuple[int, int]]:
    """Yield spans of whole minutes (ms) over the range, growing so that a long empty stretch is soon crossed."""
    low = asked.start // _NS // MINUTE_MS * MINUTE_MS
    high = asked.end // _NS // MINUTE_MS * MINUTE_MS + MINUTE_MS
    span = max(10, asked.limit // 20) * MINUTE_MS
    while low < high:
        if asked.descending:
            yield max(low, high - span), high
            high -= span
        else:
            yield low, min(high, low + span)
            low += span
        span = min(span * 2, 7 * DAY_MS)


def _quotes(ticks: Ticks, ns: Int64Array, market: Market) -> list[dict[str, Any]]:
    exchange = 48 if market == "forex" else 11
    clock = "participant_timestamp" if market == "forex" else "sip_timestamp"
    ask = ticks.ask if market == "forex" else (ticks.price + 0.01).round(2)
    return [
        {"ask_exchange": exchange, "ask_price": a, "bid_exchange": exchange, "bid_price": b, clock: at}
        for a, b, at in zip(ask.tolist(), ticks.price.tolist(), ns.tolist(), strict=True)
    ]


def _trades(ticks: Ticks, ns: Int64Array, market: Market) -> list[dict[str, Any]]:
    exchange, condition = (1, 2) if market == "crypto" else (4, 0)
    extra = ("participant_timestamp",) if market == "crypto" else ("participant_timestamp", "sip_timestamp")
    rows = zip(ticks.price.tolist(), ticks.size.tolist(), ns.tolist(), ticks.number.tolist(), strict=True)
    return [
        {
            "conditions": [condition],
            "exchange": exchange,
            "id": f"{at // _NS // MINUTE_MS}{number:05d}",
            **dict.fromkeys(extra, at),
            "price": price,
            "size": size,
        }
        for price, size, at, number in rows
    ]


def _parse(query: dict[str, str], market: Market, now_ms: int) -> _Query:
    if "cursor" in query:
        query = _opened(query["cursor"])
    order = query.get("order", "desc")
    limit = query.get("limit", str(DEFAULT_LIMIT))
    if order not in ("asc", "desc"):
        raise BadParameter(f"Could not parse the parameter 'order': '{order}'")
    if not limit.isdigit() or not 0 < int(limit) <= MAX_LIMIT:
        raise BadParameter(f"'limit' must be between 1 and {MAX_LIMIT}")
    start, end = 0, now_ms * _NS + _NS - 1
    for name, value in query.items():
        if name != "timestamp" and not name.startswith("timestamp."):
            continue
        first, last = _instant(value, market)
        bound = name.removeprefix("timestamp").lstrip(".")
        if bound in ("", "gte"):
            start = max(start, first)
        if bound in ("", "lte"):
            end = min(end, last)
        if bound == "gt":
            start = max(start, last + 1)
        if bound == "lt":
            end = min(end, first - 1)
    return _Query(start, max(end, start - 1), int(limit), order == "desc")


def _instant(text: str, market: Market) -> tuple[int, int]:
    if text.isdigit():
        return int(text), int(text)
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise BadParameter(f"Could not parse the parameter 'timestamp': '{text}'") from None
    if len(text) == 10:
        day = at.replace(tzinfo=zone_of(market))
        following = (at + timedelta(days=1)).replace(tzinfo=zone_of(market))
        return round(day.timestamp()) * 10**9, round(following.timestamp()) * 10**9 - 1
    aware = at if at.tzinfo else at.replace(tzinfo=UTC)
    ns = round(aware.timestamp() * 1000) * _NS
    return ns, ns


def _cursor(asked: _Query, last_ns: int) -> str:
    start, end = (asked.start, last_ns - 1) if asked.descending else (last_ns + 1, asked.end)
    inner = {
        "timestamp.gte": start,
        "timestamp.lte": end,
        "limit": asked.limit,
        "order": "desc" if asked.descending else "asc",
    }
    return base64.urlsafe_b64encode(urlencode(inner).encode()).decode().rstrip("=")


def _opened(cursor: str) -> dict[str, str]:
    try:
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode()
        inner = dict(parse_qsl(text, strict_parsing=True))
    except ValueError:
        raise BadParameter("Could not parse the parameter 'cursor'") from None
    if "limit" not in inner or "order" not in inner:
        raise BadParameter("Could not parse the parameter 'cursor'")
    return inner
