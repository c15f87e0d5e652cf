"""Faults of events, applied: repeated, overtaken, late, crossed, held back for a burst."""

from __future__ import annotations

import heapq
from itertools import count

from market_pipeline.simulator.stream.events import crossed
from market_pipeline.simulator.stream.faults import Active
from market_pipeline.simulator.stream.feed import Event

_OVERTAKEN_MS = 1_000  # an event that nothing overtakes is not held back for longer than this


class Shaper:
    """Spoil one connection's events, and hold those that are to come later."""

    def __init__(self) -> None:
        self._late: list[tuple[int, int, Event]] = []
        self._overtaken: list[tuple[int, int, Event]] = []
        self._burst: list[Event] = []
        self._sequence = count()
        self._passed = 0

    @property
    def holding(self) -> bool:
        """Tell whether events are held back."""
        return bool(self._late or self._overtaken or self._burst)

    def shape(self, events: list[Event], now_ms: int, faults: list[Active]) -> list[Event]:
        """Return what is to be sent now of the events due until `now`."""
        shaped: list[Event] = []
        for event in events:
            self._release(shaped, event[0])
            self._strike(event, faults, shaped)
        self._release(shaped, now_ms)
        bursts = [active for active in faults if active.fault.kind == "burst" and not active.spent]
        return self._collect(shaped, bursts[0]) if bursts else self._freed(shaped)

    def let_go(self) -> list[Event]:
        """Return everything held back, in its order of time."""
        held = [event for _, _, event in (*self._late, *self._overtaken)] + self._burst
        self._late, self._overtaken, self._burst = [], [], []
        return sorted(held, key=lambda event: event[0])

    def _strike(self, event: Event, faults: list[Active], shaped: list[Event]) -> None:
        due, lane, content = event
        copies = 1
        for active in faults:
            fault = active.fault
            if fault.kind == "burst" or not active.matches_ticker(lane.ticker):
                continue
            if fault.kind == "crossed":
                exchanged = crossed(content)
                if exchanged is not None and active.strikes():
                    content = exchanged
            elif not active.strikes():
                continue
            elif fault.kind == "duplicates":
                copies += 1
            elif fault.kind == "late":
                at = due + int((1.0 if fault.seconds is None else fault.seconds) * 1000)
                heapq.heappush(self._late, (at, next(self._sequence), (due, lane, content)))
                return
            else:
                self._overtaken.append((self._passed + fault.positions, due + _OVERTAKEN_MS, (due, lane, content)))
                return
        self._pass(shaped, [(due, lane, content)] * copies)

    def _pass(self, shaped: list[Event], events: list[Event]) -> None:
        shaped += events
        self._passed += len(events)
        if self._overtaken:
            shaped += [event for after, _, event in self._overtaken if after <= self._passed]
            self._overtaken = [held for held in self._overtaken if held[0] > self._passed]

    def _release(self, shaped: list[Event], now_ms: int) -> None:
        while self._late and self._late[0][0] <= now_ms:
            self._pass(shaped, [heapq.heappop(self._late)[2]])
        if self._overtaken and any(until <= now_ms for _, until, _ in self._overtaken):
            shaped += [event for _, until, event in self._overtaken if until <= now_ms]
            self._overtaken = [held for held in self._overtaken if held[1] > now_ms]

    def _collect(self, shaped: list[Event], burst: Active) -> list[Event]:
        held = self._burst + shaped
        burst.seen += len(shaped)
        sent: list[Event] = []
        while len(held) >= burst.fault.count and not burst.spent:
            sent += held[: burst.fault.count]
            held = held[burst.fault.count :]
            burst.used += 1
        if burst.spent:
            sent, held = sent + held, []
        self._burst = held
        return sent

    def _freed(self, shaped: list[Event]) -> list[Event]:
        if not self._burst:
            return shaped
        held, self._burst = self._burst, []
        return held + shaped
