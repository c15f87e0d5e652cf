"""The progress of a long run, in its log."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

_MINUTES_OF_A_DAY = 1440


class Progress(Protocol):
    """What a history function reports: minutes of the asked range done, rows verified, rate, time left."""

    @property
    def phase(self) -> str: ...
    @property
    def symbol(self) -> str: ...
    @property
    def done_minutes(self) -> int: ...
    @property
    def total_minutes(self) -> int: ...
    @property
    def rows(self) -> int: ...
    @property
    def rows_per_second(self) -> float: ...
    @property
    def seconds_left(self) -> float | None: ...


def log_progress(
    log: Any, *, every: float = 5.0, clock: Callable[[], float] = time.monotonic
) -> Callable[[Progress], None]:
    """Return a callback that writes a line at most every `every` seconds, and the last of each phase always.

    The line names rows, partitions (symbol days) done of all, rate and time left.
    """
    last: dict[str, float] = {}

    def report(progress: Progress) -> None:
        now = clock()
        finished = 0 < progress.total_minutes <= progress.done_minutes
        if not finished and now - last.get(progress.phase, -every) < every:
            return
        last[progress.phase] = now
        log.info(progress_line(progress))

    return report


def progress_line(progress: Progress) -> str:
    """Return the line: `load EURUSD: 1,204,000 rows, 850 of 1,800 partitions (47%), 61,000 rows/s, 1 min 20 s left`."""
    done, total = progress.done_minutes, progress.total_minutes
    share = ""
    if total:  # a repair learns only on the way how much there is to do
        days = f"{done // _MINUTES_OF_A_DAY:,} of {-(-total // _MINUTES_OF_A_DAY):,} partitions"
        share = f"{days} ({done / total:.0%}), "
    text = f"{progress.phase} {progress.symbol}: {progress.rows:,} rows, {share}{progress.rows_per_second:,.0f} rows/s"
    if progress.seconds_left is not None and done < total:
        text += f", {_duration(progress.seconds_left)} left"
    return text


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"
