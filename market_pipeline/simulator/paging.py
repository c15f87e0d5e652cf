"""Pages of aggregates: which windows a request asks for, and where the limit cuts the answer.

As the vendor's article on its aggregates says: `from` and `to` are widened to whole windows; `limit` counts the BASE
aggregates that are read (seconds for second bars, minutes for minute and hour bars, days for longer ones); a window
that the limit would leave unfinished is not returned but starts the next page. A single window of more base aggregates
than the limit is returned whole, for the pages would never end otherwise.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from urllib.parse import parse_qs, urlencode

import numpy as np

from market_pipeline.simulator.aggregate import TIMESPANS, Timespan, fold, window_end, window_starts
from market_pipeline.simulator.bars import Bars
from market_pipeline.simulator.sessions import DAY_MS, MINUTE_MS, zone_of
from market_pipeline.simulator.state import VendorState
from market_pipeline.simulator.tickers import Market, market_of

DEFAULT_LIMIT, MAX_LIMIT = 5_000, 50_000
_LAST_MS = 253_370_764_800_000  # the year 9999, where calendars end
# Minutes of a session in an average calendar day, for guessing how much time holds a page.
_DENSITY: dict[Market, int] = {"forex": 1_030, "crypto": 1_440, "stocks": 270}


class BadParameter(ValueError):
    """A parameter of a request is wrong; the message is the vendor's answer."""


@dataclass(frozen=True, slots=True)
class AggregatesQuery:
    """Hold a request for aggregates; [start, end) in epoch ms, widened to whole windows."""

    ticker: str
    market: Market
    multiplier: int
    timespan: Timespan
    start: int
    end: int
    limit: int
    descending: bool
    adjusted: bool


@dataclass(frozen=True, slots=True)
class Page:
    """Hold a page: its bars in the order asked for, the base aggregates read, and the query of the next page."""

    bars: Bars
    base_count: int
    following: AggregatesQuery | None


def parse(ticker: str, multiplier: str, timespan: str, start: str, end: str, query: dict[str, str]) -> AggregatesQuery:
    """Read a request's path and query string (with the cursor, when there is one). Raises BadParameter."""
    market = market_of(ticker) or "stocks"
    if timespan not in TIMESPANS:
        raise BadParameter(f"Could not parse the parameter 'timespan': '{timespan}'")
    if not multiplier.isdigit() or not 0 < int(multiplier) < 100_000:
        raise BadParameter(f"Could not parse the parameter 'multiplier': '{multiplier}'")
    if "cursor" in query:
        query = _opened(query["cursor"])
    sort = query.get("sort", "asc")
    if sort not in ("asc", "desc"):
        raise BadParameter(f"Could not parse the parameter 'sort': '{sort}'")
    limit = query.get("limit", str(DEFAULT_LIMIT))
    if not limit.isdigit() or int(limit) < 1:
        raise BadParameter(f"Could not parse the parameter 'limit': '{limit}'")
    first, last = _instant("from", start, market)[0], _instant("to", end, market)[1]
    if last < first:
        raise BadParameter("The parameter 'to' cannot be a time that occurs before 'from'")
    starts = window_starts(np.array([first, last]), int(multiplier), timespan, market)
    return AggregatesQuery(
        ticker=ticker,
        market=market,
        multiplier=int(multiplier),
        timespan=timespan,
        # History begins in 1970 at the earliest, which bounds what a careless range can cost.
        start=max(int(starts[0]), 0),
        end=window_end(int(starts[1]), int(multiplier), timespan, market),
        limit=min(int(limit), MAX_LIMIT),
        descending=sort == "desc",
        adjusted=query.get("adjusted", "true") != "false",
    )


def path_of(query: AggregatesQuery) -> str:
    """Return path and query string of a request for the rest of a query: the cursor hides limit and sort."""
    inner = {
        "adjusted": str(query.adjusted).lower(),
        "limit": query.limit,
        "sort": "desc" if query.descending else "asc",
    }
    cursor = base64.urlsafe_b64encode(urlencode(inner).encode()).decode().rstrip("=")
    span = f"{query.multiplier}/{query.timespan}/{query.start}/{query.end - 1}"
    return f"/v2/aggs/ticker/{query.ticker}/range/{span}?cursor={cursor}"


def read_page(state: VendorState, query: AggregatesQuery) -> Page:
    """Return the first page of a query, as the vendor shows its data now."""
    parts: list[Bars] = []
    read = 0
    for chunk in _base_chunks(state, query):
        parts.append(chunk)
        read += len(chunk)
        if read > query.limit:
            break
    base = Bars.concat(parts[::-1] if query.descending else parts)
    if read <= query.limit:
        return Page(_folded(base, query), read, None)
    return _cut_last(state, query, base) if query.descending else _cut_first(state, query, base)


def _cut_first(state: VendorState, query: AggregatesQuery, base: Bars) -> Page:
    starts = window_starts(base.ts, query.multiplier, query.timespan, query.market)
    unfinished = int(starts[query.limit])
    kept = base.take(slice(0, int(np.searchsorted(starts, unfinished))))
    if len(kept):
        return Page(_folded(kept, query), query.limit, replace(query, start=unfinished))
    end = window_end(unfinished, query.multiplier, query.timespan, query.market)
    return _whole(state, query, (unfinished, end), replace(query, start=end))


def _cut_last(state: VendorState, query: AggregatesQuery, base: Bars) -> Page:
    starts = window_starts(base.ts, query.multiplier, query.timespan, query.market)
    unfinished = int(starts[-query.limit - 1])
    end = window_end(unfinished, query.multiplier, query.timespan, query.market)
    kept = base.take(slice(int(np.searchsorted(starts, unfinished, side="right")), None))
    if len(kept):
        return Page(_folded(kept, query), query.limit, replace(query, end=end))
    return _whole(state, query, (unfinished, end), replace(query, end=unfinished))


def _whole(state: VendorState, query: AggregatesQuery, window: tuple[int, int], rest: AggregatesQuery) -> Page:
    alone = replace(query, start=window[0], end=window[1], descending=False)
    bars = Bars.concat(list(_base_chunks(state, alone)))
    more = any(len(chunk) for chunk in _base_chunks(state, rest))
    return Page(_folded(bars, query), query.limit, rest if more else None)


def _folded(base: Bars, query: AggregatesQuery) -> Bars:
    bars = fold(base, query.multiplier, query.timespan, query.market)
    return bars.take(slice(None, None, -1)) if query.descending else bars


def _base_chunks(state: VendorState, query: AggregatesQuery) -> Iterator[Bars]:
    """Yield the base aggregates of the query, the latest chunk first when descending, until its range is spent."""
    end = min(query.end, state.now_ms() + 1)
    read: Callable[[str, int, int], Bars]
    if query.timespan == "second":
        span = max(10, query.limit // 60) * MINUTE_MS
        read = state.seconds
    else:
        daily = query.timespan not in ("minute", "hour")
        days = 366 if daily else (query.limit + 1) * 1.02 / _DENSITY[query.market]
        span = int(days * DAY_MS) + 2 * DAY_MS
        read = _days_reader(state) if daily else state.minutes
    low, high = query.start, end
    while low < high:
        if query.descending:
            at = max(low, _day_start(high - span, query.market))
            yield read(query.ticker, at, high)
            high = at
        else:
            at = min(high, _day_start(low + span, query.market))
            at = at if at > low else min(high, low + span)
            yield read(query.ticker, low, at)
            low = at


def _days_reader(state: VendorState) -> Callable[[str, int, int], Bars]:
    def read(ticker: str, start: int, end: int) -> Bars:
        market = market_of(ticker) or "stocks"
        return fold(state.minutes(ticker, start, end), 1, "day", market)

    return read


def _day_start(at_ms: int, market: Market) -> int:
    return int(window_starts(np.array([at_ms]), 1, "day", market)[0])


def _instant(name: str, text: str, market: Market) -> tuple[int, int]:
    """Return the first and the last millisecond that a parameter means: one instant, or a whole day of the market."""
    if text.isdigit() and len(text) > 4 and int(text) < _LAST_MS:
        return int(text), int(text)
    try:
        day = datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=zone_of(market))
        following = (day.replace(tzinfo=None) + timedelta(days=1)).replace(tzinfo=zone_of(market))
    except (ValueError, OverflowError):
        raise BadParameter(
            f"Could not parse the time parameter: '{name}'. Use YYYY-MM-DD or Unix MS Timestamps"
        ) from None
    return int(day.timestamp() * 1000), int(following.timestamp() * 1000) - 1


def _opened(cursor: str) -> dict[str, str]:
    try:
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode()
        inner = {name: values[0] for name, values in parse_qs(text, strict_parsing=True).items()}
    except ValueError:
        raise BadParameter("Could not parse the parameter 'cursor'") from None
    if not {"limit", "sort", "adjusted"} <= inner.keys():
        raise BadParameter("Could not parse the parameter 'cursor'")
    return inner
