"""Bars of every timeframe behind one store: those of 1s lie in a table of their own, whose days are soon dropped."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from datetime import datetime
from typing import Any, TypeVar

import polars as pl
import pyarrow as pa
import pyarrow.ipc

from market_pipeline.errors import UnreadableBatch
from market_pipeline.stores.bars import BarStore, BatchRange, SeriesDigest
from market_pipeline.stores.clickhouse import Client

A = TypeVar("A")
R = TypeVar("R")

SECONDS = "1s"
_RELATIONS = {
    "bars": "bars_1s",
    "bars_ranked": "bars_1s_ranked",
    "bars_final": "bars_1s_final",
    "bar_digests": "bar_1s_digests",
}
_RELATION = re.compile(r"\b(" + "|".join(sorted(_RELATIONS, key=len, reverse=True)) + r")\b")


class _SecondsClient(Client):
    """Speak through another client, of the table of seconds wherever a statement names the one of bars."""

    def __init__(self, client: Client) -> None:  # it has no connection of its own
        self._through = client
        self.database, self.settings = client.database, client.settings

    def frame(self, statement: str, parameters: Mapping[str, Any] | None = None) -> pl.DataFrame:
        return self._through.frame(retargeted(statement), parameters)

    def insert_stream(self, table: str, stream: bytes) -> None:
        self._through.insert_stream(_RELATIONS[table], stream)


class AllBarStore(BarStore):
    """Write and read bars of every timeframe: a BarStore that knows where the seconds are.

    What LIVE brings has both kinds; HISTORY has no seconds, and a plain BarStore serves it. Ranges of one second long
    and of a minute long may stand in one call.
    """

    def __init__(self, client: Client) -> None:
        super().__init__(client)
        self.seconds = BarStore(_SecondsClient(client))
        # Not more: so many groups are in flight at most.
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="seconds")

    def insert_arrow_messages(self, payloads: Sequence[bytes]) -> None:
        """Insert payloads as BarStore does, each into its table; a payload of ours holds one timeframe."""
        codes = [_timeframe_of(payload, position) for position, payload in enumerate(payloads)]
        coarser = [each for each, code in zip(payloads, codes, strict=True) if code != SECONDS]
        seconds = [each for each, code in zip(payloads, codes, strict=True) if code == SECONDS]
        self._both((self.seconds.insert_arrow_messages, seconds), (super().insert_arrow_messages, coarser))

    def insert_frame(self, frame: pl.DataFrame) -> None:
        """Insert rows as BarStore does, each into its table."""
        super().insert_frame(frame.filter(pl.col("timeframe") != SECONDS))
        self.seconds.insert_frame(frame.filter(pl.col("timeframe") == SECONDS))

    def insert_changes(self, changed: pl.DataFrame, replaced: pl.DataFrame) -> None:
        """Insert changed rows as BarStore does; of seconds, which are soon dropped, no earlier version is kept."""
        super().insert_changes(
            changed.filter(pl.col("timeframe") != SECONDS), replaced.filter(pl.col("timeframe") != SECONDS)
        )
        self.seconds.insert_frame(changed.filter(pl.col("timeframe") == SECONDS))

    def series_digests(self, ranges: Sequence[BatchRange]) -> list[SeriesDigest]:
        """Return counts and digests as BarStore does: one query for the seconds, one for all others."""
        seconds = [each for each in ranges if each.timeframe == SECONDS]
        coarser = [each for each in ranges if each.timeframe != SECONDS]
        of_seconds, of_coarser = self._both((self.seconds.series_digests, seconds), (super().series_digests, coarser))
        found = {True: iter(of_seconds), False: iter(of_coarser)}
        return [next(found[each.timeframe == SECONDS]) for each in ranges]

    def stored_rows(
        self,
        symbol: str,
        timeframe: str,
        source: str,
        start_ts: datetime,
        end_ts: datetime,
        *,
        with_tombstones: bool = False,
    ) -> pl.DataFrame:
        """Return one source's final rows as BarStore does."""
        read: Callable[..., pl.DataFrame] = self._of(timeframe, "stored_rows")
        return read(symbol, timeframe, source, start_ts, end_ts, with_tombstones=with_tombstones)

    def winners(
        self,
        symbol: str,
        timeframe: str,
        start: datetime,
        end: datetime,
        columns: Sequence[str] | None = None,
    ) -> pl.DataFrame:
        """Return the winning bars as BarStore does."""
        read: Callable[..., pl.DataFrame] = self._of(timeframe, "winners")
        return read(symbol, timeframe, start, end, columns)

    def live_bars(self, timeframe: str, since: datetime) -> pl.DataFrame:
        """Return what there is of live bars as BarFacts does."""
        read: Callable[..., pl.DataFrame] = self._of(timeframe, "live_bars")
        return read(timeframe, since)

    def span(self, symbol: str, timeframe: str) -> tuple[datetime, datetime, int] | None:
        """Return ts of the first and the last bar and the number of bars; None if there is none."""
        read: Callable[..., tuple[datetime, datetime, int] | None] = self._of(timeframe, "span")
        return read(symbol, timeframe)

    def rows_of_bar(self, symbol: str, timeframe: str, ts: datetime) -> pl.DataFrame:
        """Return every stored row of one bar as BarFacts does."""
        read: Callable[..., pl.DataFrame] = self._of(timeframe, "rows_of_bar")
        return read(symbol, timeframe, ts)

    def _both(
        self, seconds: tuple[Callable[[list[A]], R], list[A]], coarser: tuple[Callable[[list[A]], R], list[A]]
    ) -> tuple[R, R]:
        """Call both, at once where both have something to do: a flush at the end of a minute brings both kinds."""
        if not (seconds[1] and coarser[1]):
            return seconds[0](seconds[1]), coarser[0](coarser[1])
        other = self._threads.submit(seconds[0], seconds[1])
        try:
            mine = coarser[0](coarser[1])
        finally:
            wait([other])
        return other.result(), mine

    def _of(self, timeframe: str, method: str) -> Callable[..., Any]:
        store = self.seconds if timeframe == SECONDS else super()
        found: Callable[..., Any] = getattr(store, method)
        return found


def retargeted(statement: str) -> str:
    """Return a statement on bars as one on the bars of 1s."""
    return _RELATION.sub(lambda found: _RELATIONS[found[1]], statement)


def _timeframe_of(payload: bytes, position: int) -> str:
    """Return the timeframe of a payload's first row; of one without rows any will do."""
    try:
        with pa.ipc.open_stream(payload) as reader:
            for batch in reader:
                if batch.num_rows:
                    return str(batch.column("timeframe")[0].as_py())
    except (pa.ArrowException, KeyError, ValueError, OSError) as error:
        raise UnreadableBatch(
            f"payload {position} is not an Arrow stream of bars: {error}", reason="unreadable_payload"
        ) from error
    return ""
