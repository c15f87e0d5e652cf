"""A subscription's events in time order: the ticks of all its lanes merged, and the bars that close in between."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from market_pipeline.simulator.aggregate import window_starts
from market_pipeline.simulator.hashing import Int64Array
from market_pipeline.simulator.sessions import MINUTE_MS
from market_pipeline.simulator.state import VendorState
from market_pipeline.simulator.stream.events import TickMaker, crypto_bar, forex_bar, stock_bar, tick_maker
from market_pipeline.simulator.stream.topics import BAR_TOPICS, TICK_TOPICS, Lane
from market_pipeline.simulator.tickers import Market
from market_pipeline.simulator.ticks import Ticks, joined

Event = tuple[int, Lane, msgspec.Struct]
"""When it is due (epoch ms of the vendor's clock), its lane, and what is sent."""

_BLOCK_EVENTS, _LANE_EVENTS = 5_000, 50  # in a block, and of each lane at least
_BLOCK_MS = (250, 24 * 60 * MINUTE_MS)
_KEPT_MS = 10 * MINUTE_MS


@dataclass(frozen=True, slots=True)
class _Block:
    start: int
    end: int
    lane: Int64Array
    ticks: Ticks


@dataclass(frozen=True, slots=True)
class _Draft:
    start: int
    end: int
    parts: list[Ticks]  # of the first lanes, as far as they are read


class Feed:
    """Give the events of some lanes, a stretch of time at once; the lanes of tickers that nobody knows are mute.

    It holds for one `version` of the vendor's state: after a change take another.
    """

    def __init__(self, state: VendorState, market: Market, lanes: Sequence[Lane]) -> None:
        known = [lane for lane in lanes if state.knows(lane.ticker)]
        self._state = state
        self._market = market
        self._lanes = [lane for lane in known if lane.topic in TICK_TOPICS[market]]
        self._bars = [lane for lane in known if lane.topic in BAR_TOPICS[market]]
        self._makers: list[TickMaker] = [tick_maker(lane.topic, lane.ticker, lane.pair) for lane in self._lanes]
        self._block: _Block | None = None
        self._draft: _Draft | None = None
        self._length = _BLOCK_MS[0]
        self._kept: dict[str, tuple[int, int, Ticks]] = {}
        self.version = state.version

    def take(self, start_ms: int, end_ms: int) -> list[Event]:
        """Return the events due in [start, end); a bar is due when its window ends."""
        events: list[Event] = []
        at = start_ms
        while at < end_ms and self._lanes:
            block = self._block_at(at)
            stop = min(end_ms, block.end)
            first, last = np.searchsorted(block.ticks.ts, (at, stop))
            if first < last:
                events += self._made(block, slice(first, last))
            at = stop
        if self._bars:
            events += self._closed(start_ms, end_ms)
            events.sort(key=lambda event: event[0])
        return events

    def reach(self, start_ms: int, end_ms: int, events: int) -> int:
        """Return how far from `start`, and not beyond `end`, to go for about so many events."""
        if not self._lanes:
            return min(end_ms, start_ms + MINUTE_MS) if self._bars else end_ms
        block = self._block_at(start_ms)
        last = int(np.searchsorted(block.ticks.ts, start_ms)) + events
        stop = int(block.ticks.ts[last]) + 1 if last < len(block.ticks) else block.end
        return min(end_ms, stop)

    def prepare(self, seconds: float) -> None:
        """Spend at most about this time on what `take` will need next, so that it need not do it all at once."""
        if self._block is not None:
            if self._draft is None:
                self._draft = _Draft(self._block.end, self._block.end + self._length, [])
            self._read(self._draft, time.perf_counter() + seconds)

    def _made(self, block: _Block, at: slice) -> list[Event]:
        ticks, lanes, makers = block.ticks.take(at), self._lanes, self._makers
        rows = zip(
            block.lane[at].tolist(),
            ticks.ts.tolist(),
            ticks.number.tolist(),
            ticks.price.tolist(),
            ticks.ask.tolist(),
            ticks.size.tolist(),
            strict=True,
        )
        return [(t, lanes[k], makers[k](t, number, price, ask, size)) for k, t, number, price, ask, size in rows]

    def _block_at(self, at: int) -> _Block:
        if self._block is not None and self._block.start <= at < self._block.end:
            return self._block
        draft = self._draft
        if draft is None or draft.start != at:
            draft = _Draft(at, at + self._length, [])
        self._draft = None
        self._read(draft)
        merged = joined(draft.parts)
        lane = np.repeat(np.arange(len(draft.parts)), [len(part) for part in draft.parts])
        order = np.argsort(merged.ts, kind="stable")
        self._block = _Block(at, draft.end, lane[order], merged.take(order))
        # As many events a block as keep numpy's overhead small without holding up the stream while it is made.
        wanted = max(_BLOCK_EVENTS, _LANE_EVENTS * len(self._lanes))
        factor = min(4.0, wanted / max(len(merged), 1))
        self._length = int(min(max(self._length * factor, _BLOCK_MS[0]), _BLOCK_MS[1]))
        return self._block

    def _read(self, draft: _Draft, until: float = math.inf) -> None:
        for lane in self._lanes[len(draft.parts) :]:
            if time.perf_counter() >= until:
                return
            draft.parts.append(self._ticks(lane.ticker, draft.start, draft.end))

    def _ticks(self, ticker: str, start: int, end: int) -> Ticks:
        if self._state.loaded(ticker):
            return self._state.coming_ticks(ticker, start, end)
        # A stretch of the generated truth costs hardly more than one of its minutes, so some are kept.
        kept = self._kept.get(ticker)
        if kept is None or start < kept[0] or end > kept[1]:
            first, last = start, max(end, start + _KEPT_MS)
            kept = self._kept[ticker] = (first, last, self._state.coming_ticks(ticker, first, last))
        return kept[2].between(start, end)

    def _closed(self, start: int, end: int) -> list[Event]:
        events: list[Event] = []
        for lane in self._bars:
            window = BAR_TOPICS[self._market][lane.topic]
            # Windows that end in [start, end).
            first, last = -(-start // window) * window - window, -(-end // window) * window - window
            if first >= last:
                continue
            read = self._state.minutes if window == MINUTE_MS else self._state.seconds
            bars = read(lane.ticker, first, last)
            for at in range(len(bars)):
                due = int(bars.ts[at]) + window
                if self._market == "forex":
                    made = forex_bar(lane.topic, lane.pair, bars, at)
                elif self._market == "crypto":
                    made = crypto_bar(lane.topic, lane.pair, bars, at, window)
                else:
                    day = int(window_starts(bars.ts[at : at + 1], 1, "day", "stocks")[0])
                    made = stock_bar(
                        lane.topic, lane.pair, bars, at, window, self._state.minutes(lane.ticker, day, due)
                    )
                events.append((due, lane, made))
        return events
