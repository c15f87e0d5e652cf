"""Derive every bar of 5m and more from the winning minutes: one pure function for history and live alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import polars as pl
from numpy.typing import NDArray

from market_pipeline.errors import InvalidBars, UnknownTimeframe
from market_pipeline.market.aggregation.fold import bar_columns, epoch_ms, one_value
from market_pipeline.market.aggregation.reduce import BarColumns, Ints, reduce_bars, run_starts
from market_pipeline.market.aggregation.windows import window_opens
from market_pipeline.market.bars import BAR_SCHEMA, DERIVED, TS
from market_pipeline.market.sessions import MINUTE_MS, Calendar
from market_pipeline.market.timeframes import DERIVED as DERIVED_TIMEFRAMES
from market_pipeline.market.timeframes import TIMEFRAMES, Timeframe, WeekStart, from_ms, timeframe, to_ms

_FIRST, _LAST = TIMEFRAMES["5m"], TIMEFRAMES["1w"]
_NO_SOURCE = 255  # among codes of sources, of which the lowest is the weakest


@dataclass(frozen=True, slots=True)
class _Level:
    """Hold one timeframe of the cascade: its bars, and for every window of the span what is known of it.

    The dense arrays have one entry for each window of the span, which begins and ends with a week: so the windows of a
    child are whole groups of its parent's.
    """

    tf: Timeframe
    bars: BarColumns
    origin: NDArray[np.uint8]  # of each bar: the code of the weakest parent's source
    revision: NDArray[np.uint64]  # dense, as are all that follow
    touched: NDArray[np.bool_]  # the window has a row of some source
    expected: Ints  # minutes that the calendar expects
    proven: Ints  # of these, those that are there and complete
    unproven: NDArray[np.bool_]  # the window has a minute that is not complete


def derive(
    minutes: pl.DataFrame,
    window_revisions: pl.DataFrame,
    timeframes: Sequence[str],
    calendar: Calendar,
    now: datetime,
    *,
    symbol: str,
    weakest_first: Sequence[str],
    week_start: WeekStart = "sunday",
) -> dict[str, pl.DataFrame]:
    """Derive bars of `timeframes` (5m and more) from the winning 1m bars of `symbol` (its key).

    `minutes`: BAR_SCHEMA, rising ts, `source` the winning source. `window_revisions`: ts (open of the 5m window) and
    revision (UInt64, the highest of all stored 1m rows in it, losers and tombstones included) of the same range, read
    BEFORE the minutes: read after them it could lend a newer revision to older values. A window is made of what is
    here: the range must cover each asked window whole. `weakest_first`: sources of minutes, weakest first.

    Each level is folded from the one below (5m → 15m → 30m → 1h → 4h and 1d; 1d → 1w), so a sum comes out the same
    whichever timeframes are asked. Returns one frame (BAR_SCHEMA, source `derived`) for each timeframe, of the windows
    that are closed at `now` and hold at least one stored row:

    - complete: every minute that the calendar expects in the window is there and complete; a window in which none is
      expected is complete if all its minutes are.
    - origin: the weakest source among its minutes. revision: the highest of the window.
    - a window without a winning minute is a tombstone: is_deleted 1, prices 0, origin "", not complete.

    Raises:
        UnknownTimeframe: a timeframe is not among those derived.
        InvalidBars: minutes of another symbol or timeframe, not rising, off the minute, or of a source that
            `weakest_first` does not name.
    """
    for code in timeframes:
        if code not in DERIVED_TIMEFRAMES:
            raise UnknownTimeframe(f"{code!r} is not derived: one of {', '.join(DERIVED_TIMEFRAMES)}")
    minutes = minutes.filter(pl.col("is_deleted") == 0)
    _check(minutes, symbol)
    opened = _first_opens(minutes, window_revisions)
    if not timeframes or len(opened) == 0:
        return {code: pl.DataFrame(schema=BAR_SCHEMA) for code in timeframes}
    span = _span(opened, week_start)
    levels = {_FIRST.code: _first_level(minutes, window_revisions, calendar, span, weakest_first)}
    for code in DERIVED_TIMEFRAMES[1:]:
        tf = timeframe(code)
        levels[code] = _next_level(levels[str(tf.parent_code)], tf, span, week_start)
    return {code: _frame(levels[code], symbol, span[0], now, weakest_first) for code in timeframes}


def _check(minutes: pl.DataFrame, symbol: str) -> None:
    for name, wanted in (("symbol", symbol), ("timeframe", "1m")):
        if others := [value for value in minutes.get_column(name).unique().to_list() if value != wanted]:
            raise InvalidBars(f"derive: {name}: is {others[0]!r}, not {wanted!r}")
    ts = epoch_ms(minutes.get_column("ts"))
    wrong = np.flatnonzero((np.diff(ts, prepend=ts[:1] - 1) <= 0) | (ts % MINUTE_MS != 0))
    if len(wrong):
        raise InvalidBars(f"derive: ts: {from_ms(int(ts[wrong[0]])).isoformat()} does not rise, or opens no minute")


def _first_opens(minutes: pl.DataFrame, window_revisions: pl.DataFrame) -> Ints:
    stored = epoch_ms(window_revisions.get_column("ts"))
    if np.any(stored % _FIRST.milliseconds):
        raise InvalidBars("derive: window_revisions: ts: opens no 5m window")
    return np.concatenate([stored, window_opens(epoch_ms(minutes.get_column("ts")), _FIRST)])


def _span(opened: Ints, week_start: WeekStart) -> tuple[int, int]:
    """Return the whole weeks that hold all windows, as epoch ms."""
    ends = window_opens(np.array([opened.min(), opened.max()]), _LAST, week_start=week_start)
    return int(ends[0]), int(ends[1]) + _LAST.milliseconds


def _first_level(
    minutes: pl.DataFrame,
    window_revisions: pl.DataFrame,
    calendar: Calendar,
    span: tuple[int, int],
    weakest_first: Sequence[str],
) -> _Level:
    begin, end = span
    columns = bar_columns(minutes)
    opens = window_opens(columns.ts, _FIRST)
    starts = run_starts(opens)
    window = (opens[starts] - begin) // _FIRST.milliseconds
    place = (columns.ts - begin) // MINUTE_MS  # of each bar among all minutes of the span
    per_window = _FIRST.milliseconds // MINUTE_MS

    expected = np.zeros((end - begin) // MINUTE_MS, dtype=bool)
    expected[(calendar.expected_ms(from_ms(begin), from_ms(end)) - begin) // MINUTE_MS] = True
    complete = minutes.get_column("complete").to_numpy()
    proven, unproven = np.zeros_like(expected), np.zeros_like(expected)
    proven[place] = complete
    unproven[place] = ~complete
    proven &= expected  # a minute outside the calendar must not stand in for one that lacks

    revision = np.zeros(len(expected) // per_window, dtype=np.uint64)
    touched = np.zeros(len(revision), dtype=bool)
    if len(starts):
        revision[window] = np.maximum.reduceat(minutes.get_column("revision").to_numpy(), starts)
        touched[window] = True
    stored = window_revisions.group_by("ts").agg(pl.col("revision").max())
    at = (epoch_ms(stored.get_column("ts")) - begin) // _FIRST.milliseconds
    revision[at] = np.maximum(revision[at], stored.get_column("revision").to_numpy())
    touched[at] = True
    return _Level(
        tf=_FIRST,
        bars=reduce_bars(columns, starts, opens[starts]),
        origin=_weakest(_source_codes(minutes, weakest_first), starts),
        revision=revision,
        touched=touched,
        expected=expected.reshape(-1, per_window).sum(axis=1),
        proven=proven.reshape(-1, per_window).sum(axis=1),
        unproven=unproven.reshape(-1, per_window).max(axis=1),
    )


def _next_level(parent: _Level, tf: Timeframe, span: tuple[int, int], week_start: WeekStart) -> _Level:
    opens = window_opens(parent.bars.ts, tf, week_start=week_start)
    starts = run_starts(opens)
    group = (-1, tf.seconds // parent.tf.seconds)
    return _Level(
        tf=tf,
        bars=reduce_bars(parent.bars, starts, opens[starts]),
        origin=_weakest(parent.origin, starts),
        revision=parent.revision.reshape(group).max(axis=1),
        touched=parent.touched.reshape(group).max(axis=1),
        expected=parent.expected.reshape(group).sum(axis=1),
        proven=parent.proven.reshape(group).sum(axis=1),
        unproven=parent.unproven.reshape(group).max(axis=1),
    )


def _frame(level: _Level, symbol: str, begin: int, now: datetime, weakest_first: Sequence[str]) -> pl.DataFrame:
    """Return the closed windows of one level that hold a stored row, as a bars frame."""
    length = level.tf.milliseconds
    window = np.flatnonzero(level.touched)
    window = window[begin + (window + 1) * length <= to_ms(now)]
    ts = begin + window * length
    filled = np.isin(ts, level.bars.ts, assume_unique=True)
    made = slice(0, int(np.count_nonzero(filled)))  # bars are sorted, and those that are not closed come last

    def spread(values: NDArray[np.generic], nothing: float) -> NDArray[np.generic]:
        """Return the bars' values with one for each tombstone."""
        if filled.all():
            return values[made]
        dense = np.full(len(ts), nothing, dtype=values.dtype)
        dense[filled] = values[made]
        return dense

    complete = np.where(
        level.expected[window] > 0, level.proven[window] == level.expected[window], ~level.unproven[window]
    )
    bars = level.bars
    return pl.DataFrame(
        {
            "symbol": pl.repeat(symbol, len(ts), dtype=pl.String, eager=True),
            "timeframe": pl.repeat(level.tf.code, len(ts), dtype=pl.String, eager=True),
            "ts": pl.Series(ts).cast(TS),
            "source": pl.repeat(DERIVED, len(ts), dtype=pl.String, eager=True),
            "origin": _source_names(spread(level.origin, _NO_SOURCE), weakest_first),
            **{name: spread(getattr(bars, name), 0.0) for name in ("open", "high", "low", "close", "volume")},
            "vwap": pl.Series(spread(bars.vwap, np.nan)).fill_nan(None),
            "trades": pl.Series(spread(bars.trades, 0)).cast(pl.UInt32),
            "complete": complete & filled,
            "revision": level.revision[window],
            "is_deleted": (~filled).astype(np.uint8),
        },
        schema=BAR_SCHEMA,
    )


def _source_codes(minutes: pl.DataFrame, weakest_first: Sequence[str]) -> NDArray[np.uint8]:
    source = minutes.get_column("source")
    codes = {name: code for code, name in enumerate(weakest_first)}
    if unknown := [name for name in source.unique().to_list() if name not in codes]:
        raise InvalidBars(f"derive: source: {unknown[0]!r} is not among {', '.join(weakest_first)}")
    if minutes.height and one_value(source):
        return np.full(minutes.height, codes[source[0]], dtype=np.uint8)
    return source.replace_strict(codes, return_dtype=pl.UInt8).to_numpy()


def _source_names(codes: NDArray[np.generic], weakest_first: Sequence[str]) -> pl.Series:
    names = pl.Series([*weakest_first, ""], dtype=pl.String)
    return names.gather(np.minimum(codes, len(weakest_first)).astype(np.uint32))


def _weakest(codes: NDArray[np.uint8], starts: Ints) -> NDArray[np.uint8]:
    return np.minimum.reduceat(codes, starts) if len(starts) else codes
