"""Find the window that each moment belongs to."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import polars as pl
from numpy.typing import NDArray

from market_pipeline.errors import BadRange
from market_pipeline.market.timeframes import DAY_MS, WEEK_MS, Timeframe, WeekStart, from_ms, origin_ms

Ints = NDArray[np.int64]

_FIRST_WEEKDAY = {"sunday": 7, "monday": 1}  # ISO weekdays, as polars counts them


def window_opens(
    ts: Ints,
    tf: Timeframe,
    *,
    week_start: WeekStart = "sunday",
    day_zone: str = "UTC",
    offset: timedelta = timedelta(0),
) -> Ints:
    """Return the open (epoch ms) of the window that holds each of `ts` (epoch ms, in any order).

    Windows of 4h and less are aligned to the UTC epoch. Days begin `offset` after midnight on the clocks of `day_zone`
    and so last 23 or 25 hours where these change; weeks begin with the day `week_start`.

    Raises:
        BadRange: no such zone, or a week start that is none.
    """
    origin = origin_ms(tf, week_start)
    local_days = tf.code in {"1d", "1w"} and (day_zone != "UTC" or offset)
    if not local_days or len(ts) == 0:
        return ts - (ts - origin) % tf.milliseconds
    opens = _local_opens(int(ts.min()), int(ts.max()), tf, week_start, day_zone, offset)
    return opens[np.searchsorted(opens, ts, side="right") - 1]


def _local_opens(first: int, last: int, tf: Timeframe, week_start: WeekStart, day_zone: str, offset: timedelta) -> Ints:
    margin = (WEEK_MS if tf.code == "1w" else 0) + 2 * DAY_MS + abs(offset) // timedelta(milliseconds=1)
    days = pl.date_range(from_ms(first - margin).date(), from_ms(last + margin).date(), "1d", eager=True)
    if tf.code == "1w":
        days = days.filter(days.dt.weekday() == _FIRST_WEEKDAY[week_start])
    clocks = days.cast(pl.Datetime("ms")) + offset
    try:
        # where the clocks skip the very moment (midnight, in some zones), the day begins when they go on
        opens, skipped = (
            local.dt.replace_time_zone(day_zone, ambiguous="earliest", non_existent="null")
            for local in (clocks, clocks + timedelta(hours=1))
        )
    except pl.exceptions.ComputeError as error:
        raise BadRange(f"no time zone {day_zone!r}: {error}") from None
    return opens.fill_null(skipped).drop_nulls().dt.epoch("ms").to_numpy()
