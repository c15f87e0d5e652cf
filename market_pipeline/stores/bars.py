"""Bars in ClickHouse: every source's rows go in, the winning bars come out.

Ranges [start, end) are half-open and UTC, except where a batch's own range is meant (BatchRange, `stored_rows`): its
ends are the ts of its first and last row, both inclusive. Blocking and thread-safe; raises StoreError's kinds.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import polars as pl

from market_pipeline import payload
from market_pipeline.market.bars import BAR_SCHEMA, STORED_SCHEMA, TS
from market_pipeline.stores.arrow import splice
from market_pipeline.stores.bar_facts import BarFacts
from market_pipeline.stores.series_ranges import BatchRange, RangeSet, SeriesDigest, disjoint
from market_pipeline.stores.sql_files import load_sql

__all__ = ["BarStore", "BatchRange", "SeriesDigest"]

TABLE = "bars"
REVISIONS = "bar_revisions"
_ALL_COLUMNS = "/* columns */ *"
_BAR_KEY = ("symbol", "timeframe", "source", "ts")


class BarStore(BarFacts):
    """Write and read bars through one Client; what is known about them, it inherits."""

    def insert_arrow_messages(self, payloads: Sequence[bytes]) -> None:
        """Insert the payloads of several batches (Arrow IPC streams) in one statement, without decoding them.

        Payloads of a foreign encoding are inserted by a statement of their own. When the server refuses one,
        those before it may be in; a repetition does no harm, since key and revision are the same.

        Raises:
            UnreadableBatch: a payload is no Arrow stream; nothing was inserted.
        """
        if not payloads:
            return
        for stream in splice(payloads):
            self.client.insert_stream(TABLE, stream)

    def insert_frame(self, frame: pl.DataFrame) -> None:
        """Insert rows with the columns of BAR_SCHEMA and `batch_id`; further columns are left out."""
        if frame.height:
            self.client.insert_stream(TABLE, payload.encode(frame.select(list(payload.BATCH_SCHEMA))))

    def insert_changes(self, changed: pl.DataFrame, replaced: pl.DataFrame) -> None:
        """Insert rows of which some replace stored ones, and keep every version of those in bar_revisions.

        The versions go first, the earlier and the later, and the later ones carry the same time in both tables. So a
        crash in between loses none, a repetition doubles none, and of two writers that replace the same bar at once
        both versions are kept though only one of them stays in bars.

        Args:
            changed: columns of BAR_SCHEMA and `batch_id`.
            replaced: STORED_SCHEMA; the stored rows whose place rows of `changed` take (`Changes.replaced`).
        """
        if replaced.is_empty():
            self.insert_frame(changed)
            return
        now = self.client.rows(load_sql("server_now"))[0][0]
        stamped = changed.with_columns(pl.lit(now).cast(TS).alias("ingested_at")).select(list(STORED_SCHEMA))
        later = stamped.join(replaced.select(_BAR_KEY), on=_BAR_KEY, how="semi")
        versions = pl.concat([replaced.select(list(STORED_SCHEMA)), later]).rename({"ingested_at": "known_at"})
        self.client.insert_frame(REVISIONS, versions)
        self.client.insert_frame(TABLE, stamped)

    def series_digests(self, ranges: Sequence[BatchRange]) -> list[SeriesDigest]:
        """Return count and digest of what each range's own source has stored, in the order of the ranges.

        What counts is the last word on each bar, a tombstone included (`is_deleted` is part of the digest), so the
        answer compares with the headers of the batch that wrote the range: equal count and digest prove every row.
        (0, 0) means that this source never wrote there. One query where nothing is stored near the ranges, three
        otherwise, whatever their number; one more for each range with tombstones, which are rare.

        Raises:
            ValueError: two ranges of one series overlap.
        """
        if not ranges:
            return []
        if not disjoint(ranges):
            raise ValueError("two of the ranges overlap: ask for them one after the other")
        laid = RangeSet.of(ranges)
        if not self.client.rows(laid.fill(load_sql("series_anything")), laid.parameters):
            return [SeriesDigest(0, 0)] * len(ranges)
        tombstones = self.client.rows(laid.fill(load_sql("series_tombstones")), laid.parameters)
        rows = self.client.rows(laid.fill(load_sql("series_digests")), laid.parameters)
        found = {place: SeriesDigest(count, digest) for place, count, digest in rows}
        digests = [found.get(place, SeriesDigest(0, 0)) for place in laid.places]
        withdrawn = {row[:3]: row[3:] for row in tombstones}
        for number, one in enumerate(ranges):
            hull = withdrawn.get(one[:3])
            if hull and hull[0] <= one.end_ts and one.start_ts <= hull[1]:
                digests[number] = self._digest_with_tombstones(one)
        return digests

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
        """Return the final rows of one source with ts in [start_ts, end_ts], BOTH inclusive as in a BatchRange.

        Columns of STORED_SCHEMA, sorted by ts. A withdrawn bar is left out unless `with_tombstones`, which returns
        it as its tombstone.
        """
        statement = load_sql("stored_rows_with_tombstones" if with_tombstones else "stored_rows")
        frame = self.client.frame(statement, _parameters(BatchRange(symbol, timeframe, source, start_ts, end_ts)))
        return _with_constants(frame, {"symbol": symbol, "timeframe": timeframe, "source": source}, list(STORED_SCHEMA))

    def _digest_with_tombstones(self, one: BatchRange) -> SeriesDigest:
        return SeriesDigest(*self.client.rows(load_sql("range_digest_with_tombstones"), _parameters(one))[0])

    def winners(
        self,
        symbol: str,
        timeframe: str,
        start: datetime,
        end: datetime,
        columns: Sequence[str] | None = None,
    ) -> pl.DataFrame:
        """Return the winning bars (the view bars_final) of a series with ts in [start, end), sorted by ts.

        `columns` of STORED_SCHEMA (`is_deleted` is 0 for every winner); default: those of BAR_SCHEMA.
        """
        return self._read_winners(
            "winners", {"symbol": symbol, "timeframe": timeframe, "start": start, "end": end}, columns
        )

    def winners_as_of(
        self,
        symbol: str,
        timeframe: str,
        start: datetime,
        end: datetime,
        as_of: datetime,
        columns: Sequence[str] | None = None,
    ) -> pl.DataFrame:
        """Return the winning bars as `winners` would have at the moment `as_of`, to within the time of an insert.

        A version is known from its `ingested_at` on (the server's clock, ms), whatever its ts. Precedence is the
        view's of today: a changed ranking holds for the past too.

        Raises:
            ValueError: of 1s, whose versions are not kept; or as `winners`.
        """
        if timeframe == "1s":
            raise ValueError("earlier versions of bars of 1s are not kept")
        parameters = {"symbol": symbol, "timeframe": timeframe, "start": start, "end": end, "as_of": as_of}
        return self._read_winners("winners_as_of", parameters, columns)

    def versions_span(self, symbol: str, timeframe: str) -> tuple[datetime, datetime, datetime] | None:
        """Return first and last ts of all that a series ever held, and when the first of it became known; None: never.

        Unlike `span`, withdrawn bars count, so that a reader of the past finds them.
        """
        rows = self.client.rows(load_sql("versions_span"), {"symbol": symbol, "timeframe": timeframe})
        return (rows[0][0], rows[0][1], rows[0][2]) if rows else None

    def _read_winners(
        self, statement: str, parameters: dict[str, object], columns: Sequence[str] | None
    ) -> pl.DataFrame:
        wanted = list(BAR_SCHEMA) if columns is None else list(columns)
        unknown = [name for name in wanted if name not in STORED_SCHEMA]
        if unknown:
            raise ValueError(f"no such columns of a bar: {', '.join(unknown)}")
        constants = {name: str(parameters[name]) for name in ("symbol", "timeframe")}
        asked = [name for name in wanted if name not in constants and name != "is_deleted"] or ["ts"]
        frame = self.client.frame(load_sql(statement).replace(_ALL_COLUMNS, ", ".join(asked)), parameters)
        return _with_constants(frame.with_columns(pl.lit(0, pl.UInt8).alias("is_deleted")), constants, wanted)

    def window_revisions(self, symbol: str, start: datetime, end: datetime) -> pl.DataFrame:
        """Return, for each 5m window of [start, end), a number that grows whenever one of its stored 1m rows changes.

        It is the largest revision among them or, if later, the time (epoch ms) at which the last of them was stored.

        Losing sources and tombstones count, and so does the time at which the precedence was last changed (ms).
        Columns: ts (open of the window), revision (UInt64); sorted by ts.
        """
        parameters = {"symbol": symbol, "start": start, "end": end}
        return self.client.frame(load_sql("window_revisions"), parameters).rename({"window": "ts"})


def _parameters(one: BatchRange) -> dict[str, object]:
    return {
        "symbol": one.symbol,
        "timeframe": one.timeframe,
        "source": one.source,
        "first": one.start_ts,
        "last": one.end_ts,
    }


def _with_constants(frame: pl.DataFrame, constants: dict[str, str], columns: Sequence[str]) -> pl.DataFrame:
    """Add what every row shares, which the server need not send, and order the columns."""
    return frame.with_columns(pl.lit(value, pl.String).alias(name) for name, value in constants.items()).select(columns)
