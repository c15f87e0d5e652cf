"""When a market is open: which minutes are expected to have a bar.

Forex trades from Sunday 17:00 to Friday 17:00 New York time, crypto always, stocks in the sessions of their exchange
(exchange_calendars: holidays, early closes, lunch breaks). A minute is named by its open: a session from 09:30 to 16:00
expects the minutes 09:30 … 15:59. Outside the calendar nothing is expected, though bars may well be there (pre-market).
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from datetime import date, datetime, timedelta
from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from market_pipeline.errors import BadRange, InstrumentsFileError
from market_pipeline.market.bars import TS
from market_pipeline.market.timeframes import DAY_MS, MINUTE_MS, from_ms, to_ms

NEW_YORK = "America/New_York"
FOREX, CRYPTO = "forex", "crypto"

Ms = NDArray[np.int64]


class Calendar(ABC):
    """Know the sessions of one market. Stateless but for caches; may be shared between threads."""

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def _bounds(self, start_ms: int, end_ms: int) -> tuple[Ms, Ms]:
        """Return opens and closes (epoch ms) of at least the whole sessions that overlap [start, end), in order."""

    def session_bounds(self, start: datetime, end: datetime) -> tuple[Ms, Ms]:
        """Return opens and closes (exclusive) of the whole sessions that overlap [start, end), as epoch ms arrays.

        A market that never closes has one session: the range itself. A lunch break ends a session.

        Raises:
            BadRange: the range is out of order, naive, or outside what the exchange's calendar knows.
        """
        return self._overlapping(*_range_ms(start, end))

    def sessions(self, start: datetime, end: datetime) -> list[tuple[datetime, datetime]]:
        """Return `session_bounds` as pairs of UTC datetimes."""
        opens, closes = self.session_bounds(start, end)
        return [
            (from_ms(opened), from_ms(closed)) for opened, closed in zip(opens.tolist(), closes.tolist(), strict=True)
        ]

    def expected_ms(self, start: datetime, end: datetime) -> Ms:
        """Return the opens of the expected minutes in [start, end) as sorted epoch ms."""
        start_ms, end_ms = _range_ms(start, end)
        opens, closes = self._overlapping(start_ms, end_ms)
        opens = np.maximum(opens, -(-start_ms // MINUTE_MS) * MINUTE_MS)
        closes = np.minimum(closes, -(-end_ms // MINUTE_MS) * MINUTE_MS)
        counts = np.maximum(-(-(closes - opens) // MINUTE_MS), 0)
        # minute n of all is minute n − (those before its session) of its session
        before = np.cumsum(counts) - counts
        minutes: Ms = np.repeat(opens - before * MINUTE_MS, counts)
        minutes += np.arange(len(minutes), dtype=np.int64) * MINUTE_MS
        return minutes

    def expected_minutes(self, start: datetime, end: datetime) -> pl.Series:
        """Return the opens of the expected minutes in [start, end): sorted Datetime("ms", "UTC"), named ts."""
        return pl.Series("ts", self.expected_ms(start, end)).cast(TS)

    def is_open(self, at: datetime) -> bool:
        """Say whether the market is open at this moment."""
        at_ms = to_ms(at)
        opens, _ = self._overlapping(at_ms, at_ms + 1)
        return len(opens) > 0

    def _overlapping(self, start_ms: int, end_ms: int) -> tuple[Ms, Ms]:
        opens, closes = self._bounds(start_ms, end_ms)
        inside = (closes > start_ms) & (opens < end_ms)
        return opens[inside], closes[inside]


class AlwaysOpen(Calendar):
    """Crypto: every minute is expected."""

    def _bounds(self, start_ms: int, end_ms: int) -> tuple[Ms, Ms]:
        return np.array([start_ms], dtype=np.int64), np.array([end_ms], dtype=np.int64)


class ForexWeek(Calendar):
    """Forex: Sunday 17:00 to Friday 17:00 on New York's clocks, so in UTC an hour earlier in summer."""

    def _bounds(self, start_ms: int, end_ms: int) -> tuple[Ms, Ms]:
        first = from_ms(start_ms - 8 * DAY_MS).date()
        sundays = pl.date_range(
            first + timedelta(days=6 - first.weekday()), from_ms(end_ms + DAY_MS).date(), "1w", eager=True
        )
        evening = sundays.cast(pl.Datetime("ms")) + timedelta(hours=17)
        # the clocks change on Sunday at 02:00, outside any session, so neither time can be ambiguous
        opens, closes = (
            local.dt.replace_time_zone(NEW_YORK).dt.epoch("ms").to_numpy()
            for local in (evening, evening + timedelta(days=5))
        )
        return opens, closes


class ExchangeSessions(Calendar):
    """Stocks: the sessions of an exchange, from exchange_calendars, which takes a while to build and so is kept."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._lock = threading.Lock()
        self._years: tuple[int, int] | None = None
        self._known: tuple[Ms, Ms] = (np.empty(0, np.int64), np.empty(0, np.int64))

    def _bounds(self, start_ms: int, end_ms: int) -> tuple[Ms, Ms]:
        # a session can begin or end in the neighbouring year of UTC
        years = from_ms(start_ms - DAY_MS).year, from_ms(end_ms + DAY_MS).year
        with self._lock:
            if self._years is None or years[0] < self._years[0] or years[1] > self._years[1]:
                wanted = (min(years[0], self._years[0]), max(years[1], self._years[1])) if self._years else years
                self._years, self._known = self._build(*wanted)
            return self._known

    def _build(self, first: int, last: int) -> tuple[tuple[int, int], tuple[Ms, Ms]]:
        # whole decades, so that a walk through history does not build anew for each year that it reaches;
        # exchange_calendars' own default would end 20 years back, and some exchanges are known from one year on only
        for begin, end in ((first // 10 * 10, last // 10 * 10 + 9), (first, last)):
            try:
                return (begin, end), _exchange_bounds(self.name, begin, end)
            except ValueError as error:
                refused = error
        raise BadRange(f"calendar {self.name} does not know {first} to {last}: {refused}")


@lru_cache(maxsize=256)
def calendar(name: str) -> Calendar:
    """Return the calendar of this name: forex, crypto, or a code of exchange_calendars such as XNYS.

    Raises:
        InstrumentsFileError: there is no calendar of this name.
    """
    if name == FOREX:
        return ForexWeek(name)
    if name == CRYPTO:
        return AlwaysOpen(name)
    if name not in _exchanges().get_calendar_names():
        raise InstrumentsFileError(
            f"unknown calendar {name!r}: forex, crypto, or an exchange's code of exchange_calendars (XNYS, XNAS, …)"
        )
    return ExchangeSessions(name)


def _exchanges() -> Any:
    import exchange_calendars  # brings pandas: a second and more that forex and crypto need not wait for

    return exchange_calendars


def _exchange_bounds(code: str, first_year: int, last_year: int) -> tuple[Ms, Ms]:
    """Return opens and closes (epoch ms) of an exchange's sessions in whole years, split at lunch breaks."""
    known = _exchanges().get_calendar(code, start=date(first_year, 1, 1), end=date(last_year, 12, 31))
    opens, closes = known.opens_nanos, known.closes_nanos
    breaks = known.break_starts_nanos > np.iinfo(np.int64).min  # NaT where the session has no break
    opens = np.sort(np.concatenate([opens, known.break_ends_nanos[breaks]]))
    closes = np.sort(np.concatenate([closes, known.break_starts_nanos[breaks]]))
    return opens // 1_000_000, closes // 1_000_000


def _range_ms(start: datetime, end: datetime) -> tuple[int, int]:
    start_ms, end_ms = to_ms(start), to_ms(end)
    if end_ms < start_ms:
        raise BadRange(f"the range ends ({end.isoformat()}) before it starts ({start.isoformat()})")
    return start_ms, end_ms
