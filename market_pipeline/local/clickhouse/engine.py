"""The chDB engine: handles, the pool that keeps idle ones, and everything else that touches chDB.

Every method here blocks: call it from a worker thread. A handle is a session of ClickHouse (its own SET, USE and
temporary tables); handles work side by side, one handle does one thing at a time.
"""

from __future__ import annotations

import builtins
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

os.environ["TZ"] = "UTC"  # chDB takes its time zone when it is loaded: later is too late
time.tzset()

import chdb._chdb  # noqa: E402

from market_pipeline.local.clickhouse import sql as text  # noqa: E402
from market_pipeline.local.clickhouse.errors import ClickHouseError, Code, untold_error  # noqa: E402
from market_pipeline.local.clickhouse.sql import Settings  # noqa: E402

_chdb: Any = chdb._chdb  # a compiled module without types
_IDLE_HANDLES = 64
_ERRORS_SO_FAR = "SELECT code, value FROM system.errors WHERE NOT remote"
_ERRORS_NOW = """
    SELECT code, value, query_id = queryID(), replaceAll(last_error_message, '\\n', ' ')
    FROM system.errors
    WHERE NOT remote
    ORDER BY query_id = queryID() DESC, last_error_time DESC
"""


@contextmanager
def _clickhouse_errors() -> Iterator[None]:
    """Turn chDB's only exception into ClickHouse's."""
    try:
        yield
    except RuntimeError as error:
        raise ClickHouseError(str(error)) from None


def ignore_signals() -> None:
    """Keep chDB from taking over the process's signals; counts only before the first Engine."""
    _chdb.set_signal_handlers_enabled(0)


class Result(Protocol):
    """What chDB reports about a statement that ran to its end."""

    def bytes(self) -> builtins.bytes:
        """Return the answer in the format that was asked for."""

    def rows_read(self) -> int:
        """Return the rows of the answer."""

    def bytes_read(self) -> int:
        """Return the bytes of the answer before they were formatted."""

    def storage_rows_read(self) -> int:
        """Return the rows read from tables."""

    def storage_bytes_read(self) -> int:
        """Return the bytes read from tables."""

    def rows_written(self) -> int:
        """Return the rows stored."""

    def bytes_written(self) -> int:
        """Return the bytes stored."""


class Handle:
    """One chDB connection with ClickHouse's errors instead of RuntimeError."""

    def __init__(self, connection: Any, database: str | None = None, settings: Settings = ()) -> None:
        self._chdb = connection
        self.database, self.settings = database, settings

    def query(self, sql: str | bytes, output: str = "Null", params: Mapping[str, str] | None = None) -> Result:
        """Run a statement to its end; without `output` its answer is dropped."""
        with _clickhouse_errors():
            result: Result = self._chdb.query(sql, output, params=params or {})
        return result

    def value(self, sql: str) -> str:
        """Return the single value that a statement yields."""
        return str(self.query(sql, "TSVRaw").bytes().decode().strip())

    def set(self, settings: Mapping[str, str]) -> None:
        """Change settings of this handle."""
        if settings:
            self.query("SET " + ", ".join(f"{name} = {text.quote_string(value)}" for name, value in settings.items()))

    def use(self, database: str) -> None:
        """Change the database of this handle."""
        self.query("USE " + text.quote_identifier(database))

    def stream(self, sql: bytes, output: str, params: Mapping[str, str]) -> Stream:
        """Start a statement whose result comes block by block."""
        with _clickhouse_errors():
            return Stream(self._chdb, self._chdb.send_query(sql, output, params=params))

    def insert(self, statement: str, data_format: str) -> InsertStream:
        """Start an INSERT whose data come piece by piece; the statement ends before FORMAT."""
        with _clickhouse_errors():
            before = self.errors()
            return InsertStream(self, self._chdb, self._chdb.send_insert(statement, data_format), before)

    def errors(self) -> dict[str, int]:
        """Return how often each error has been met since the engine began, by its code."""
        return {code: int(value) for code, value in self._lines(_ERRORS_SO_FAR)}

    def raise_error_since(self, before: Mapping[str, int]) -> None:
        """Raise the error that the statement before this call met without telling.

        chDB takes an INSERT's last piece and answers that it wrote every row also where writing them failed (a
        constraint, an expression that throws, a full disk): only the engine's own table of errors knows. A handle's
        query id there stays the same until another statement begins on it.
        """
        error = untold_error(before, self._lines(_ERRORS_NOW))
        if error is not None:
            raise error

    def _lines(self, sql: str) -> list[list[str]]:
        return [line.split("\t") for line in self.query(sql, "TSVRaw").bytes().decode(errors="replace").splitlines()]

    def check(self, sql: bytes) -> None:
        """Refuse several statements in one, and those that end or stop the process.

        Raises ClickHouseError (SYNTAX_ERROR, UNSUPPORTED_METHOD). The parser is asked only where the words make it
        worth while: it needs 0.3 s for a statement of 400 KB.
        """
        several, ends = text.may_hold_several(sql), text.may_end_process(sql)
        if not several and not ends:
            return
        report = self._chdb.classify_query(sql.decode(errors="replace"))
        if several and report.get("statement_count", 1) > 1:
            raise text.multiple_statements()
        if ends and report.get("query_class") == _chdb.query_class.CONTROL:
            raise ClickHouseError(
                "SYSTEM SHUTDOWN, KILL, SUSPEND and RESTART DISK are not supported here: the engine lives in the "
                "server's process. Stop the process instead.",
                Code.UNSUPPORTED_METHOD,
            )

    def close(self) -> None:
        """Free the handle with its temporary tables."""
        self._chdb.close()


class Stream:
    """The result of a running statement."""

    def __init__(self, connection: Any, result: Any) -> None:
        self._chdb, self._result = connection, result

    def fetch(self) -> bytes | None:
        """Return the next block in the stream's format, None at its end."""
        with _clickhouse_errors():
            block = self._chdb.streaming_fetch_result(self._result)
        return block.bytes() if block is not None and block.rows_read() else None

    def cancel(self) -> None:
        """Stop the statement."""
        with _clickhouse_errors():
            self._chdb.streaming_cancel_query(self._result)


class InsertStream:
    """An INSERT that takes its data in pieces."""

    def __init__(self, handle: Handle, connection: Any, result: Any, errors_before: Mapping[str, int]) -> None:
        self._handle, self._chdb, self._result = handle, connection, result
        self._errors_before = errors_before

    def append(self, data: bytes) -> None:
        """Give the engine the next piece; pieces may end anywhere."""
        with _clickhouse_errors():
            self._chdb.insert_append(self._result, data)

    def finish(self) -> Result:
        """Store what came and return what was written; raise ClickHouseError where that failed."""
        with _clickhouse_errors():
            result: Result = self._chdb.insert_done(self._result)
        self._handle.raise_error_since(self._errors_before)
        return result

    def cancel(self) -> None:
        """Drop what is not stored yet."""
        with suppress(RuntimeError):  # it may have failed by itself
            self._chdb.insert_cancel(self._result)


class Engine:
    """The one engine of this process over one folder.

    `defaults` are settings that every handle starts with; a request may override them. `version` and `timezone` are
    answers of the engine: an Engine that exists has answered a query.
    """

    def __init__(self, folder: Path, *, max_memory: int, defaults: Mapping[str, str] | None = None) -> None:
        self.path = str(folder)
        self.defaults = dict(defaults or {})
        self._lock = threading.Lock()
        self._idle: OrderedDict[tuple[str | None, Settings], list[Handle]] = OrderedDict()  # used last comes last
        with _clickhouse_errors():
            # The first connection opens the folder and keeps the engine alive; server settings count only here.
            self._root = Handle(_chdb.connect(f"{self.path}?max_server_memory_usage={max_memory}"))
        self.version = self._root.value("SELECT version()")
        self.timezone = self._root.value("SELECT timezone()")

    def connect(self, database: str | None = None, settings: Settings = (), comment: str | None = None) -> Handle:
        """Return a fresh handle with the engine's default settings, then `settings`, then the query's comment."""
        with _clickhouse_errors():
            handle = Handle(_chdb.connect(self.path), database, settings)
        try:
            handle.set(self.defaults | dict(settings) | ({"log_comment": comment} if comment else {}))
            if database:
                handle.use(database)
        except BaseException:
            handle.close()
            raise
        return handle

    def take(self, database: str | None, settings: Settings, comment: str | None) -> Handle:
        """Return an idle handle of this database and these settings, or a fresh one; `comment` finds it for kill."""
        with self._lock:
            pool = self._idle.get((database, settings))
            handle = pool.pop() if pool else None
            if not pool:
                self._idle.pop((database, settings), None)
        if handle is None:
            return self.connect(database, settings, comment)
        try:
            handle.set({"log_comment": comment} if comment else {})
        except BaseException:
            handle.close()
            raise
        return handle

    def give_back(self, handle: Handle, *, clean: bool) -> None:
        """Keep a handle for the next request, or close it: clean is one that only read or inserted."""
        surplus: Handle | None = handle
        if clean:
            with self._lock:
                key = (handle.database, handle.settings)
                self._idle.setdefault(key, []).append(handle)
                self._idle.move_to_end(key)
                surplus = self._surplus()
        if surplus:
            surplus.close()

    def _surplus(self) -> Handle | None:
        if sum(map(len, self._idle.values())) <= _IDLE_HANDLES:
            return None
        key, pool = next(iter(self._idle.items()))
        handle = pool.pop(0)
        if not pool:
            del self._idle[key]
        return handle

    def kill(self, comment: str) -> None:
        """Ask the running statements that bear a comment to stop, without waiting for them."""
        self._run(f"KILL QUERY WHERE Settings['log_comment'] = {text.quote_string(comment)} ASYNC")

    def kill_all(self) -> None:
        """Ask every running statement to stop, without waiting for them."""
        self._run("KILL QUERY WHERE 1 ASYNC")

    def _run(self, sql: str) -> None:
        handle = self.connect()
        try:
            handle.query(sql)
        finally:
            handle.close()

    def close(self) -> None:
        """Close every idle handle and the engine; no handle may be in use."""
        with self._lock:
            idle = [handle for pool in self._idle.values() for handle in pool]
            self._idle.clear()
        for handle in [*idle, self._root]:
            handle.close()
