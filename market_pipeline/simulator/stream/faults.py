"""Faults of the stream on demand: which they are, whom they strike, how often."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import msgspec

from market_pipeline.simulator.stream.feed import Event
from market_pipeline.simulator.tickers import Market

SessionKind = Literal["auth_failed", "auth_timeout", "max_connections", "drop_topic_ack"]
ConnectionKind = Literal["close_clean", "close_unclean", "silence", "slow_frames", "half_frame"]
EventKind = Literal["duplicates", "out_of_order", "late", "crossed", "burst"]
Kind = Literal[SessionKind, ConnectionKind, EventKind]

CONNECTION: frozenset[str] = frozenset(get_args(ConnectionKind))
EVENT: frozenset[str] = frozenset(get_args(EventKind))
_NEED_EVENT = frozenset({"slow_frames", "half_frame"})


class StreamFault(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Describe a fault.

    It strikes in one `market` ("forex", "crypto", "stocks") or in all, and only where `ticker`, a regular expression,
    matches a whole vendor ticker ("C:EURUSD"). `times`: how often (events, for kinds of events); by default a fault of
    events strikes for ever (None), any other once. `after_events` matching events pass before it strikes: for kinds of
    a connection counted anew after every strike, so that `times=3, after_events=500` strikes at every 500th.

    - auth_failed, auth_timeout (`seconds` after the key was sent), max_connections: the answer to a right key
    - drop_topic_ack: a subscription is not acknowledged; with `mute` it does not exist either
    - close_clean with `code`; close_unclean resets the TCP connection
    - silence: nothing is sent for `seconds` (None: as long as the fault is there); with `pongs` False no ping is sent
      or answered either. What happens meanwhile is lost
    - slow_frames: a frame arrives in `pieces` within `seconds`; half_frame: half of it, then a TCP reset
    - duplicates, out_of_order, late, crossed strike a `share` of the events, drawn from `seed`: sent twice; overtaken
      by the next `positions` events; `seconds` later on the vendor's clock; bid and ask exchanged
    - burst: `count` events of a connection (whatever their ticker) are held back, then sent at once
    """

    kind: Kind
    market: Market | None = None
    ticker: str | None = None
    times: int | msgspec.UnsetType | None = msgspec.UNSET
    after_events: int = 0
    share: float = 1.0
    seed: int = 0
    seconds: float | None = None
    pongs: bool = True
    mute: bool = False
    code: int = 1000
    pieces: int = 10
    positions: int = 3
    count: int = 100


@dataclass
class Active:
    """Hold a fault that is there, the matching events `seen` (since its last strike) and the times `used`."""

    fault: StreamFault
    number: int
    seen: int = 0
    used: int = 0
    times: int | None = field(init=False)
    _ticker: re.Pattern[str] | None = field(init=False)
    _random: random.Random = field(init=False)

    def __post_init__(self) -> None:
        given, forever = self.fault.times, self.fault.kind in EVENT
        self.times = (None if forever else 1) if isinstance(given, msgspec.UnsetType) else given
        self._ticker = re.compile(self.fault.ticker) if self.fault.ticker else None
        self._random = random.Random(self.fault.seed)

    @property
    def spent(self) -> bool:
        """Tell whether it struck as often as it may."""
        return self.times is not None and self.used >= self.times

    def matches(self, market: Market, ticker: str | None = None) -> bool:
        """Tell whether it concerns the market and the ticker (None: any)."""
        return self.fault.market in (None, market) and (ticker is None or self.matches_ticker(ticker))

    def matches_ticker(self, ticker: str) -> bool:
        """Tell whether it concerns the ticker."""
        return self._ticker is None or self._ticker.fullmatch(ticker) is not None

    def strikes(self) -> bool:
        """Count a matching event and tell whether it is struck."""
        self.seen += 1
        if self.spent or self.seen <= self.fault.after_events or self._random.random() >= self.fault.share:
            return False
        self.used += 1
        return True


class StreamFaults:
    """Keep the active faults in the order in which they were added. For the event loop's thread only."""

    def __init__(self) -> None:
        self._active: dict[int, Active] = {}
        self._last = 0

    def add(self, fault: StreamFault) -> int:
        """Add a fault and return its number. Raises re.error for a bad pattern."""
        active = Active(fault, self._last + 1)
        self._last += 1
        self._active[self._last] = active
        return self._last

    def clear(self, number: int | None = None) -> None:
        """Remove one fault, or all."""
        if number is None:
            self._active.clear()
        else:
            self._active.pop(number, None)

    def listed(self) -> list[dict[str, Any]]:
        """Return each active fault with its number, the events `seen` and the times `used`."""
        return [
            {"id": number, "seen": active.seen, "used": active.used, **msgspec.to_builtins(active.fault)}
            for number, active in self._active.items()
        ]

    def holds(self, active: Active) -> bool:
        """Tell whether the fault is still there."""
        return active.number in self._active

    def claim(self, kinds: tuple[str, ...], market: Market, ticker: str | None = None) -> StreamFault | None:
        """Take the first fault of the kinds that strikes a session or subscription."""
        for active in self._active.values():
            if active.fault.kind in kinds and not active.spent and active.matches(market, ticker):
                active.used += 1
                return active.fault
        return None

    def of_events(self, market: Market) -> list[Active]:
        """Return the faults that act on the market's events."""
        return [a for a in self._active.values() if a.fault.kind in EVENT and a.matches(market)]

    def interruption(self, market: Market, events: list[Event]) -> tuple[int, Active] | None:
        """Return the first fault of a connection that strikes among the events, and how many of them come before it.

        Those events count as passed; without such a fault all do.
        """
        waiting = [a for a in self._active.values() if a.fault.kind in CONNECTION and not a.spent and a.matches(market)]
        if not waiting:
            return None
        first: tuple[int, Active] | None = None
        for active in waiting:
            at = _strikes_at(active, events)
            if at is not None and (first is None or at < first[0]):
                first = at, active
        passed = events if first is None else events[: first[0]]
        for active in waiting:
            active.seen += sum(active.matches_ticker(lane.ticker) for _, lane, _ in passed)
        if first is not None:
            first[1].seen = 0
            first[1].used += 1
        return first


def _strikes_at(active: Active, events: list[Event]) -> int | None:
    """Return how many of the events come before the strike; None when they don't bring it about."""
    left = active.fault.after_events - active.seen
    at = 0
    if left > 0:
        for at, (_, lane, _) in enumerate(events, 1):  # noqa: B007 - the position is what is looked for
            left -= active.matches_ticker(lane.ticker)
            if left == 0:
                break
        else:
            return None
    return None if active.fault.kind in _NEED_EVENT and at == len(events) else at
