"""Answer an INSERT: its data flow from the request's body into the engine piece by piece."""

from __future__ import annotations

import time
from collections.abc import Mapping

from market_pipeline.local.clickhouse.answer import Answer, summary
from market_pipeline.local.clickhouse.bodies import HEAD, Body, Part
from market_pipeline.local.clickhouse.engine import Handle, Result
from market_pipeline.local.clickhouse.errors import ClickHouseError, Code
from market_pipeline.local.clickhouse.sql import Insert, quote_identifier, reads_input, split_insert
from market_pipeline.local.clickhouse.workers import Workers

_MAX_STATEMENT = 1 << 18  # ClickHouse's max_query_size


async def insert(
    workers: Workers,
    handle: Handle,
    *,
    sql: bytes,
    data: bytes,
    body: Body,
    answer: Answer,
    params: Mapping[str, str],
) -> None:
    """Run an INSERT and answer with its summary.

    `sql` is the parameter `query`, `data` the first piece of the body; where the body holds the statement too, `sql`
    is its first piece and `data` is empty. A body that fails halfway cancels the INSERT, but blocks that the engine
    had already stored stay: a streamed INSERT is not atomic.
    """
    while not body.ended and b"\n" not in sql and len(sql) < _MAX_STATEMENT and not data:
        sql += await body.read(HEAD)
    cut = split_insert(sql)
    started = time.monotonic_ns()
    if cut.carries_data:
        result = await _stream(workers, handle, cut, sql[cut.data_at :] + data, body, params)
        counts = result.rows_written(), result.bytes_written()
    else:
        rest = data + await body.read_all()
        statement = sql + b"\n" + rest if data else sql + rest
        if reads_input(statement):  # chDB would answer OK and drop every row
            raise ClickHouseError(
                "INSERT ... SELECT ... FROM input() is not supported by chDB: insert the data as they are, or send "
                "them as an external table.",
                Code.NOT_IMPLEMENTED,
            )
        await workers.run(handle.check, statement)
        result = await workers.run(handle.query, statement, "TabSeparated", params)
        counts = (
            result.rows_written() or result.rows_read(),
            result.bytes_written() or result.bytes_read(),
        )
    answer.headers["X-ClickHouse-Summary"] = summary(
        time.monotonic_ns() - started, read=counts, written=counts, result=counts
    )
    await answer.whole(b"")


async def _stream(
    workers: Workers, handle: Handle, cut: Insert, piece: bytes, body: Body, params: Mapping[str, str]
) -> Result:
    if params:  # an INSERT with data takes no parameters but those of its session
        await workers.run(handle.set, {f"param_{name}": value for name, value in params.items()})
    stream = await workers.run(handle.insert, cut.statement.decode(errors="surrogateescape"), cut.format)
    try:
        while True:
            if piece:
                await workers.run(stream.append, piece)
            if body.ended:
                break
            piece = await body.read()
    except BaseException:
        await workers.run(stream.cancel)
        raise
    return await workers.run(stream.finish)


def load_external(handle: Handle, part: Part, parameters: Mapping[str, str]) -> None:
    """Make a temporary table of a file that came with the request; blocks.

    Its columns come from the parameter NAME_structure, or as `_1`, `_2`, ... from NAME_types; its format from
    NAME_format, TabSeparated by default. Raises ClickHouseError (BAD_ARGUMENTS) without columns.
    """
    columns = parameters.get(f"{part.name}_structure")
    types = parameters.get(f"{part.name}_types")
    if not columns and types:
        columns = ", ".join(f"_{i} {column_type}" for i, column_type in enumerate(types.split(","), 1))
    if not columns:
        raise ClickHouseError(f"External table {part.name!r} has neither structure nor types", Code.BAD_ARGUMENTS)
    table = quote_identifier(part.name)
    create = f"CREATE OR REPLACE TEMPORARY TABLE {table} ({columns})"
    handle.check(create.encode(errors="surrogateescape"))
    handle.query(create)
    stream = handle.insert(f"INSERT INTO {table}", parameters.get(f"{part.name}_format", "TabSeparated"))
    stream.append(part.data)
    stream.finish()


def drop_external(handle: Handle, name: str) -> None:
    """Drop the temporary table of a request from a session that goes on; blocks."""
    handle.query(f"DROP TEMPORARY TABLE IF EXISTS {quote_identifier(name)}")
