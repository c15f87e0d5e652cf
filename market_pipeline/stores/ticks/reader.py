"""Read ticks back: for notebooks, models and checks. Blocking; from asyncio call it in a thread."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from types import TracebackType
from typing import Any

import polars as pl
import psycopg

from market_pipeline.errors import StoreQueryError
from market_pipeline.market.ticks import STORED_TICK_SCHEMA
from market_pipeline.settings import PostgresSettings
from market_pipeline.stores.ticks.connection import connect_blocking, errors
from market_pipeline.stores.ticks.copy_format import KIND_CODES
from market_pipeline.stores.ticks.losses import LOSSES_SCHEMA
from market_pipeline.stores.ticks.sql_files import load_sql

_KINDS = {code: kind for kind, code in KIND_CODES.items()}
# What ticks_read.sql writes.
_CSV_SCHEMA = pl.Schema(
    {
        "ts": pl.Int64(),
        "kind": pl.String(),
        "bid": pl.Float64(),
        "ask": pl.Float64(),
        "price": pl.Float64(),
        "size": pl.Float64(),
        "exchange": pl.String(),
        "conditions": pl.String(),
        "received_at": pl.Int64(),
        "batch_id": pl.UInt64(),
        "n": pl.UInt32(),
    }
)
SESSION_SPANS_SCHEMA = pl.Schema(
    {
        "collector_id": pl.String(),
        "session_id": pl.String(),
        "epoch": pl.Int64(),
        "first_ts": pl.Datetime("ms", "UTC"),
        "last_ts": pl.Datetime("ms", "UTC"),
    }
)
_COUNTS_SCHEMA = pl.Schema({"ts": pl.Datetime("ms", "UTC"), "quotes": pl.UInt32(), "trades": pl.UInt32()})


class TickReader:
    """Read ticks and losses over one connection, made on first use and anew when it broke; thread-safe.

    Every method raises StoreUnreachable (transient), StoreAuthError or StoreQueryError (terminal; also where the tick
    store has never been started in the database). Symbols are keys. Ranges are [start, end), UTC.
    """

    def __init__(self, settings: PostgresSettings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._connection: psycopg.Connection[tuple[Any, ...]] | None = None

    def __enter__(self) -> TickReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the reader can be used again and makes a new one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def ticks(self, symbol: str, start: datetime, end: datetime) -> pl.DataFrame:
        """Return the ticks by ts, of one ts in the order of arrival (batch, then place in it): STORED_TICK_SCHEMA."""
        with self._session() as connection, connection.cursor() as cursor:
            values = {"symbol": symbol, "start": start, "end": end}
            with cursor.copy(load_sql("ticks_read"), values) as copy:
                data = b"".join(copy)
        if not data:
            return pl.DataFrame(schema=STORED_TICK_SCHEMA)
        frame = pl.read_csv(data, has_header=False, schema=_CSV_SCHEMA, null_values=r"\N")
        return frame.with_columns(
            pl.lit(symbol).alias("symbol"),
            pl.col("kind").replace_strict(_KINDS, return_dtype=pl.String),
            pl.col("exchange", "conditions").str.slice(1),
            pl.col("ts", "received_at").cast(pl.Datetime("ms")).dt.replace_time_zone("UTC"),
        ).select(list(STORED_TICK_SCHEMA))

    def per_minute(self, symbol: str, start: datetime, end: datetime) -> pl.DataFrame:
        """Return the minutes that have ticks: ts (open of the minute, Datetime ms UTC), quotes, trades (UInt32)."""
        values = {"symbol": symbol, "start": start, "end": end}
        return pl.DataFrame(self._rows("ticks_per_minute", values), schema=_COUNTS_SCHEMA, orient="row")

    def latest(self, symbols: Iterable[str] | None = None) -> pl.DataFrame:
        """Return the last tick of each symbol (default: all that have ticks), by symbol: STORED_TICK_SCHEMA."""
        values = {"symbols": None if symbols is None else list(symbols)}
        frame = pl.DataFrame(self._rows("ticks_latest", values), schema=STORED_TICK_SCHEMA, orient="row")
        return frame.with_columns(pl.col("kind").replace_strict(_KINDS, return_dtype=pl.String))

    def losses(self, symbol: str, start: datetime, end: datetime) -> pl.DataFrame:
        """Return the recorded losses that touch the range, by start: LOSSES_SCHEMA."""
        values = {"symbol": symbol, "start": start, "end": end}
        return pl.DataFrame(self._rows("losses", values), schema=LOSSES_SCHEMA, orient="row")

    def session_spans(self, symbol: str, start: datetime, end: datetime) -> pl.DataFrame:
        """Return from when to when each session is seen in the batches that end in the range: SESSION_SPANS_SCHEMA.

        Between its first and its last tick a session of a collector was one connection, so that what it sent in
        between and was not stored is among the losses.
        """
        values = {"symbol": symbol, "start": start, "end": end}
        return pl.DataFrame(self._rows("session_spans", values), schema=SESSION_SPANS_SCHEMA, orient="row")

    def _rows(self, statement: str, values: dict[str, Any]) -> list[tuple[Any, ...]]:
        with self._session() as connection:
            return connection.execute(load_sql(statement), values).fetchall()

    @contextmanager
    def _session(self) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
        with self._lock:
            if self._connection is None or self._connection.closed:
                self._connection = connect_blocking(self._settings)
                self._connection.read_only = True
            try:
                with errors(self._settings):
                    yield self._connection
            except BaseException as error:
                if isinstance(error, StoreQueryError) and isinstance(error.__cause__, psycopg.errors.UndefinedTable):
                    raise StoreQueryError(
                        f"{error}: the tick store has not been started in database {self._settings.database!r} yet"
                    ) from error
                if not isinstance(error, StoreQueryError):
                    self.close()
                raise
