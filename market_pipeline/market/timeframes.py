"""The timeframes and the arithmetic of their windows.

Windows are left-closed and left-labelled: a bar's ts is the open of its window. Windows up to a day are aligned to the
UTC epoch; weeks start on Sunday 00:00 UTC, as the vendor's do, or on Monday where the caller says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Literal

from market_pipeline.errors import BadRange, UnknownTimeframe

WeekStart = Literal["sunday", "monday"]

MILLISECOND, MINUTE = timedelta(milliseconds=1), timedelta(minutes=1)
DAY, WEEK = timedelta(days=1), timedelta(days=7)
MINUTE_MS = 60_000
DAY_MS = 86_400_000
WEEK_MS = 7 * DAY_MS
# 1970-01-01 was a Thursday: the first Sunday and the first Monday of the epoch.
_FIRST_WEEK_MS: dict[str, int] = {"sunday": 3 * DAY_MS, "monday": 4 * DAY_MS}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Timeframe:
    """Describe one timeframe: its code, the length of its window in seconds and what it is folded from.

    `parent_code` is None for 1s and 1m, which are made of ticks or come from the vendor.
    """

    code: str
    seconds: int
    parent_code: str | None

    @property
    def milliseconds(self) -> int:
        """Length of the window in ms."""
        return self.seconds * 1000

    @property
    def length(self) -> timedelta:
        """Length of the window."""
        return timedelta(seconds=self.seconds)

    @property
    def parent(self) -> Timeframe | None:
        """The timeframe that this one is folded from."""
        return TIMEFRAMES[self.parent_code] if self.parent_code else None


TIMEFRAMES: dict[str, Timeframe] = {
    each.code: each
    for each in (
        Timeframe("1s", 1, None),
        Timeframe("1m", 60, None),
        Timeframe("5m", 300, "1m"),
        Timeframe("15m", 900, "5m"),
        Timeframe("30m", 1800, "15m"),
        Timeframe("1h", 3600, "30m"),
        Timeframe("4h", 14_400, "1h"),
        Timeframe("1d", 86_400, "1h"),
        Timeframe("1w", 604_800, "1d"),
    )
}

# Parents come before their children, so that a cascade can walk this order.
DERIVED: tuple[str, ...] = ("5m", "15m", "30m", "1h", "4h", "1d", "1w")


def midnight(day: date) -> datetime:
    """Return the UTC midnight at which a day opens."""
    return datetime.combine(day, time(), tzinfo=UTC)


def timeframe(code: str | Timeframe) -> Timeframe:
    """Return the timeframe of this code.

    Raises:
        UnknownTimeframe: the code is not one of TIMEFRAMES.
    """
    if isinstance(code, Timeframe):
        return code
    try:
        return TIMEFRAMES[code]
    except (KeyError, TypeError):
        raise UnknownTimeframe(f"unknown timeframe {code!r}: one of {', '.join(TIMEFRAMES)}") from None


def origin_ms(tf: str | Timeframe, week_start: WeekStart = "sunday") -> int:
    """Return the epoch ms of some window's open: windows lie at origin + n × length.

    Raises:
        BadRange: `week_start` is neither sunday nor monday.
    """
    if week_start not in _FIRST_WEEK_MS:
        raise BadRange(f"a week starts on sunday or monday, not on {week_start!r}")
    return _FIRST_WEEK_MS[week_start] if timeframe(tf).code == "1w" else 0


def to_ms(ts: datetime) -> int:
    """Return the epoch ms of an aware datetime, rounded down.

    Raises:
        BadRange: the datetime is naive.
    """
    if ts.tzinfo is None:
        raise BadRange(f"{ts.isoformat()} has no time zone: give UTC")
    return (ts - _EPOCH) // timedelta(milliseconds=1)


def from_ms(ms: int) -> datetime:
    """Return the UTC datetime of epoch ms."""
    return _EPOCH + timedelta(milliseconds=ms)


def floor(ts: datetime, tf: str | Timeframe, week_start: WeekStart = "sunday") -> datetime:
    """Return the open of the window that holds `ts` (UTC)."""
    tf = timeframe(tf)
    origin = origin_ms(tf, week_start)
    ms = to_ms(ts)
    return from_ms(ms - (ms - origin) % tf.milliseconds)


def ceil(ts: datetime, tf: str | Timeframe, week_start: WeekStart = "sunday") -> datetime:
    """Return the first window's open at or after `ts` (UTC)."""
    tf = timeframe(tf)
    opened = floor(ts, tf, week_start)
    return opened if opened == ts else opened + tf.length
