"""Answer every statement that is no INSERT: block by block where the format allows it, else whole."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from starlette.types import Receive

from market_pipeline.local.clickhouse.answer import BINARY, TEXT, Answer, summary
from market_pipeline.local.clickhouse.arrow import END_OF_STREAM, ArrowSplicer
from market_pipeline.local.clickhouse.engine import Engine, Handle, Stream
from market_pipeline.local.clickhouse.errors import ClickHouseError, Code
from market_pipeline.local.clickhouse.sql import READS, RETURNS_ROWS, first_word, output_format
from market_pipeline.local.clickhouse.workers import Workers

T = TypeVar("T")

_ARROW = "arrowstream"
# Formats whose blocks form one answer when written one after another; Arrow's are spliced.
_STREAMED = frozenset({"native", "tabseparated", "tsv", "csv", "rowbinary", "jsoneachrow", _ARROW})


class Select:
    """One statement on its way to its answer."""

    def __init__(
        self,
        engine: Engine,
        workers: Workers,
        handle: Handle,
        *,
        sql: bytes,
        params: Mapping[str, str],
        default_format: str,
        answer: Answer,
        query_id: str,
    ) -> None:
        self._engine, self._workers, self._handle = engine, workers, handle
        self._sql, self._params, self._answer, self._query_id = sql, params, answer, query_id
        self._word = first_word(sql)
        self._format = output_format(sql) or default_format
        self._content_type = BINARY if self._format.lower() == "native" else TEXT
        self._started = time.monotonic_ns()

    async def run(self, receive: Receive, *, streamed: bool) -> bool:
        """Run the statement and answer; say whether it ran to its end, so that its handle is as it was.

        A statement that only reads is killed when the client goes away. `streamed` allows an answer block by block,
        whose later errors come inside the stream.
        """
        if self._word in RETURNS_ROWS:
            self._answer.headers["X-ClickHouse-Format"] = self._format
        await self._workers.run(self._handle.check, self._sql)
        gone = asyncio.ensure_future(_disconnect(receive))
        try:
            if streamed and self._word in READS and self._format.lower() in _STREAMED:
                try:
                    stream, block = await self._killable(gone, self._first_block)
                except ClickHouseError as error:
                    # A few statements that read (EXPLAIN, some of SHOW) cannot be streamed: nothing has run yet.
                    if error.code != Code.BAD_ARGUMENTS or "Streaming query is not supported" not in error.text:
                        raise
                else:
                    return await self._stream(gone, stream, block)
            return await self._whole(gone)
        finally:
            gone.cancel()

    async def _whole(self, gone: asyncio.Future[None]) -> bool:
        result = await self._killable(gone, lambda: self._handle.query(self._sql, self._format, self._params))
        body = result.bytes()
        self._answer.headers["X-ClickHouse-Summary"] = summary(
            time.monotonic_ns() - self._started,
            read=(
                result.storage_rows_read() or result.rows_read(),
                result.storage_bytes_read() or result.bytes_read(),
            ),
            result=(result.rows_read(), len(body)),
        )
        await self._answer.whole(body, self._content_type)
        return True

    def _first_block(self) -> tuple[Stream, bytes | None]:
        stream = self._handle.stream(self._sql, self._format, self._params)
        return stream, stream.fetch()

    async def _stream(self, gone: asyncio.Future[None], stream: Stream, block: bytes | None) -> bool:
        arrow = ArrowSplicer() if self._format.lower() == _ARROW else None
        if block is None and arrow:  # a stream without blocks has no schema either: ask for one that is whole
            return await self._whole(gone)
        self._answer.headers["X-ClickHouse-Summary"] = summary(time.monotonic_ns() - self._started)
        await self._answer.begin(self._content_type)
        while block is not None:
            if gone.done():
                await self._workers.run(stream.cancel)
                return False
            await self._answer.piece(arrow.splice(block) if arrow else block)
            block = await self._killable(gone, stream.fetch)
        await self._answer.end(END_OF_STREAM if arrow else b"")
        return True

    async def _killable(self, gone: asyncio.Future[None], call: Callable[[], T]) -> T:
        job = asyncio.ensure_future(self._workers.run(call))
        either: set[asyncio.Future[Any]] = {job, gone}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not job.done() and self._word in READS:
            await self._workers.run(self._engine.kill, self._query_id)
        return await job


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
