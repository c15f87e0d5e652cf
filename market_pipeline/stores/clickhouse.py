"""A ClickHouse client for this room: statements in, polars frames out, every failure one of our errors.

Over HTTP by clickhouse-connect. One Client serves any number of threads: requests carry no session, and each takes a
connection of its own from the pool. Nothing is tried again here; who calls knows whether that is safe.
"""

from __future__ import annotations

import io
import logging
import math
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import clickhouse_connect
import polars as pl
import pyarrow as pa
import pyarrow.ipc
from clickhouse_connect.driver.exceptions import ClickHouseError
from clickhouse_connect.driver.httputil import get_pool_manager
from urllib3.exceptions import HTTPError

from market_pipeline.errors import StoreAuthError, StoreError, StoreQueryError, StoreUnreachable
from market_pipeline.settings import ClickHouseSettings
from market_pipeline.stores.sql_files import load_sql

# https://github.com/ClickHouse/ClickHouse/blob/master/src/Common/ErrorCodes.cpp
AUTH_CODES = frozenset({192, 193, 194, 195, 497, 516})
TRANSIENT_CODES: dict[int, str] = {
    159: "the query took too long",
    202: "too many queries at once",
    203: "no free connection",
    209: "a socket timed out",
    210: "a network error",
    225: "its keeper is away",
    236: "the query was aborted",
    241: "it is out of memory",
    242: "the table is read-only",
    243: "its disk is full",
    252: "too many parts: merges cannot keep up",
    279: "no replica answers",
    285: "too few replicas are alive",
    286: "the insert's quorum was not reached",
    319: "the state of the insert is unknown",
    373: "the session is busy",
    394: "the query was cancelled",
    439: "it cannot start a thread",
    499: "its object storage failed",
    999: "its keeper failed",
    1000: "an I/O error",
    1001: "an exception of its own",
    1002: "an unknown exception",
}
DATABASE_MISSING = 81
TABLE_MISSING = 60

_INSERT_SETTINGS = {
    # The default since ClickHouse 26.3 would acknowledge before the rows are in a part.
    "async_insert": 0,
    # The default of 100 months is less than a backfill of daily bars spans.
    "max_partitions_per_insert_block": 1000,
    # A null where none may be is an error, not a zero price.
    "input_format_null_as_default": 0,
}
_FRAME_SETTINGS = {
    "output_format_arrow_string_as_string": 1,
    # A dictionary per block is replaced within the stream, which not every reader takes.
    "output_format_arrow_low_cardinality_as_dictionary": 0,
    "output_format_arrow_compression_method": "lz4_frame",
}
_POOL_SIZE = 16

# It logs every failed request with its trace; here each becomes an error that says what to do.
logging.getLogger("clickhouse_connect").setLevel(logging.CRITICAL)


class Client:
    """Send statements to one database of one ClickHouse.

    Every method raises StoreUnreachable (transient), StoreAuthError or StoreQueryError (terminal, with `code`).
    Parameters are bound by the server: `{symbol:String}` in the statement, `{"symbol": ...}` here.
    """

    def __init__(self, settings: ClickHouseSettings) -> None:
        self.database = settings.database
        self.settings = settings
        with self._errors():
            self._pool = get_pool_manager(maxsize=_POOL_SIZE, retries=False)
            self._client = clickhouse_connect.get_client(
                interface="https" if settings.secure else "http",
                host=settings.host,
                port=settings.port,
                username=settings.user,
                password=settings.password.get_secret_value(),
                # named per request: it may not exist yet
                database="__default__",
                connect_timeout=max(1, math.ceil(settings.connect_timeout)),
                send_receive_timeout=max(1, math.ceil(settings.request_timeout)),
                query_retries=0,
                autogenerate_session_id=False,
                autogenerate_query_id=True,
                # Arrow buffers are compressed already
                compress=False,
                pool_mgr=self._pool,
            )
        self._client.database = settings.database

    @property
    def address(self) -> str:
        """host:port, for messages."""
        return f"{self.settings.host}:{self.settings.port}"

    def command(self, statement: str, parameters: Mapping[str, Any] | None = None, *, in_database: bool = True) -> None:
        """Execute a statement that returns nothing of interest."""
        with self._errors():
            self._client.raw_query(statement, parameters=_bound(parameters), use_database=in_database)

    def rows(self, statement: str, parameters: Mapping[str, Any] | None = None) -> list[tuple[Any, ...]]:
        """Return the rows of a query as tuples."""
        return self.frame(statement, parameters).rows()

    def frame(self, statement: str, parameters: Mapping[str, Any] | None = None) -> pl.DataFrame:
        """Return the rows of a query as a polars frame; DateTime64(3, 'UTC') becomes Datetime("ms", "UTC")."""
        with self._errors():
            answer = self._client.raw_query(
                statement,
                parameters=_bound(parameters),
                settings=_FRAME_SETTINGS,
                fmt="ArrowStream",
            )
        try:
            with pa.ipc.open_stream(answer) as reader:
                frame = pl.from_arrow(reader.read_all(), rechunk=False)
        except (pa.ArrowException, OSError) as error:  # a failure after the first byte cuts the answer
            raise StoreUnreachable(f"ClickHouse at {self.address} broke off its answer: {error}") from error
        assert isinstance(frame, pl.DataFrame)
        return frame

    def insert_stream(self, table: str, stream: bytes) -> None:
        """Insert an Arrow IPC stream whose columns are named as the table's."""
        with self._errors():
            self._client.raw_insert(
                f"{self.database}.{table}",
                insert_block=stream,
                fmt="ArrowStream",
                settings=_INSERT_SETTINGS,
            )

    def insert_frame(self, table: str, frame: pl.DataFrame) -> None:
        """Insert a polars frame whose columns are named as the table's."""
        stream = io.BytesIO()
        frame.rechunk().write_ipc_stream(stream, compression="lz4", compat_level=pl.CompatLevel.oldest())
        self.insert_stream(table, stream.getvalue())

    def close(self) -> None:
        """Close the connections."""
        self._client.close()
        self._pool.clear()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (ClickHouseError, HTTPError, OSError) as error:
            raise translate(error, self.settings) from error


def connect(settings: ClickHouseSettings) -> Client:
    """Connect to ClickHouse.

    Raises:
        StoreUnreachable: nothing answers at host:port.
        StoreAuthError: user or password are refused.
        StoreQueryError: something answers that is not ClickHouse, or it refuses the connection's settings.
    """
    return Client(settings)


def create_database(client: Client) -> None:
    """Create the client's database unless it exists."""
    client.command(load_sql("create_database"), {"name": client.database}, in_database=False)


def probe(client: Client) -> float:
    """Prove that ClickHouse reads and writes: a query, and a row written, read back and removed; return seconds.

    Raises:
        StoreError: with the reason, as every method of Client.
    """
    began = datetime.now(UTC)
    mark = secrets.randbits(63)
    create_database(client)
    client.rows(load_sql("probe_query"))
    client.command(load_sql("probe_table"))
    client.insert_frame("probes", pl.DataFrame({"mark": [mark]}, schema={"mark": pl.UInt64}))
    if client.rows(load_sql("probe_read"), {"mark": mark}) != [(mark,)]:
        raise StoreQueryError(f"ClickHouse at {client.address} took a row and does not return it")
    return (datetime.now(UTC) - began).total_seconds()


def translate(error: Exception, settings: ClickHouseSettings) -> StoreError:
    """Return our error for one of the driver's: one sentence that names host:port and what to mend, no password."""
    where = f"ClickHouse at {settings.host}:{settings.port}"
    code = getattr(error, "code", None)
    text = _cleaned(str(error), settings.password.get_secret_value())
    if code in AUTH_CODES or (code is None and "HTTP status 401" in text):
        return StoreAuthError(
            f"{where} refuses user {settings.user!r}: mend clickhouse.user and clickhouse.password "
            "(MARKET_PIPELINE_CLICKHOUSE__USER, MARKET_PIPELINE_CLICKHOUSE__PASSWORD)"
        )
    if code in TRANSIENT_CODES:
        return StoreUnreachable(f"{where} cannot serve now, {TRANSIENT_CODES[code]}: {text}")
    if code is not None:
        hint = ""
        if code in (DATABASE_MISSING, TABLE_MISSING):
            hint = f" (has the schema been applied to database {settings.database!r}?)"
        return StoreQueryError(f"{where} refuses the statement: {text}{hint}", code=code)
    if _is_connection_trouble(error):
        return StoreUnreachable(
            f"{where} does not answer ({_cause(error)}): start it, or mend clickhouse.host and clickhouse.port "
            "(MARKET_PIPELINE_CLICKHOUSE__HOST, MARKET_PIPELINE_CLICKHOUSE__PORT)"
        )
    return StoreQueryError(f"{where} gave an answer that is not ClickHouse's: {text}")


def _bound(parameters: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return {name: _value(value) for name, value in parameters.items()} if parameters else None


def _value(value: Any) -> Any:
    if isinstance(value, datetime):  # the driver would cut the milliseconds
        return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
    if isinstance(value, list | tuple):
        return type(value)(_value(each) for each in value)
    return value


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        reason = getattr(error, "reason", None)
        error = reason if isinstance(reason, BaseException) else (error.__cause__ or error.__context__)


def _is_connection_trouble(error: Exception) -> bool:
    return any(isinstance(each, HTTPError | OSError) for each in _chain(error)) or any(
        mark in str(error) for mark in ("HTTP status 502", "HTTP status 503", "HTTP status 504")
    )


def _cause(error: Exception) -> str:
    chain = list(_chain(error))
    text = " ".join(f"{type(each).__name__} {each}" for each in chain).lower()
    for mark, said in (
        ("refused", "connection refused"),
        ("name or service", "unknown host"),
        ("failed to resolve", "unknown host"),
        ("nameresolution", "unknown host"),
        ("certificate", "its certificate is not trusted"),
        ("ssl", "no TLS: check clickhouse.secure"),
        ("timed out", "timed out"),
        ("timeout", "timed out"),
        ("reset", "connection reset"),
        ("closed", "connection closed"),
        ("disconnected", "connection closed"),
    ):
        if mark in text:
            return said
    return type(chain[-1]).__name__


def _cleaned(text: str, password: str) -> str:
    return text.replace(password, "***") if password else text
