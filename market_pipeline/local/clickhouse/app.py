"""The ASGI application: one HTTP request from its first byte to its last."""

from __future__ import annotations

import asyncio
import socket

import structlog
from starlette.types import Receive, Scope, Send

from market_pipeline.local.clickhouse import insert as inserts
from market_pipeline.local.clickhouse.answer import Answer
from market_pipeline.local.clickhouse.bodies import HEAD, Body, multipart
from market_pipeline.local.clickhouse.compression import accepted_encoding, compressor
from market_pipeline.local.clickhouse.engine import Engine, Handle
from market_pipeline.local.clickhouse.errors import ClickHouseError, Code
from market_pipeline.local.clickhouse.options import Limits
from market_pipeline.local.clickhouse.protocol import Credentials, Request, parse
from market_pipeline.local.clickhouse.select import Select
from market_pipeline.local.clickhouse.sessions import Session, Sessions
from market_pipeline.local.clickhouse.sql import READS, first_word
from market_pipeline.local.clickhouse.workers import Workers

log = structlog.get_logger(__name__)

_SPARE_WORKERS = 4  # for KILL, while every slot waits for the engine


class App:
    """ClickHouse's HTTP interface over one engine."""

    def __init__(
        self, engine: Engine, credentials: Credentials, limits: Limits | None = None, *, compress: bool = False
    ) -> None:
        self._engine, self._credentials = engine, credentials
        self._limits = limits or Limits()
        self._compress = compress
        self._workers = Workers(self._limits.slots + _SPARE_WORKERS)
        self._slots = asyncio.Semaphore(self._limits.slots)
        self._sessions = Sessions(engine)
        self._host = socket.gethostname()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)

    async def kill_all(self) -> None:
        """Ask every running statement to stop: their requests then fail and end."""
        await self._workers.run(self._engine.kill_all)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.shutdown":
                # Requests have drained by now. Later than this is never: uvicorn may end the process by a signal.
                await self._workers.run(self._sessions.close)
                await self._workers.run(self._engine.close)
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = parse(scope)
        answer = Answer(send, self._workers, {})
        if request.path in ("/ping", "/replicas_status"):
            await answer.whole(b"Ok.\n")
            return await answer.release()
        if request.path != "/" or request.method not in ("GET", "POST", "HEAD"):
            await answer.whole(f"There is no handle {request.path}\n".encode(errors="replace"), status=404)
            return await answer.release()
        answer.headers |= {
            "X-ClickHouse-Query-Id": request.query_id,
            "X-ClickHouse-Server-Display-Name": self._host,
            "X-ClickHouse-Timezone": self._engine.timezone,
        }
        try:
            self._credentials.check(request)
            async with self._slots:
                await self._answer(request, receive, answer)
        except ClickHouseError as error:
            await answer.fail(error, self._engine.version)
        except Exception as error:
            log.exception("unexpected error", query_id=request.query_id)
            await answer.fail(ClickHouseError(f"{type(error).__name__}: {str(error)[:300]}"), self._engine.version)
        await answer.release()

    async def _answer(self, request: Request, receive: Receive, answer: Answer) -> None:
        body = Body(
            receive,
            self._workers,
            encoding=request.headers.get("content-encoding", ""),
            length=request.headers.get("content-length", ""),
            limit=self._limits.max_body,
            patience=self._limits.receive_timeout,
        )
        sql, data = await _statement(request, body)
        word = first_word(sql)
        if not word:
            raise ClickHouseError("Syntax error: Empty query.", Code.SYNTAX_ERROR)
        encoding = accepted_encoding(request.headers.get("accept-encoding", ""))
        if encoding and self._compress and request.flag("enable_http_compression"):
            answer.encode_as(encoding, compressor(encoding))

        default_format, params = request.default_format, request.query_parameters
        handle, session = await self._handle(request)
        clean = False
        try:
            for part in request.externals:
                await self._workers.run(inserts.load_external, handle, part, request.parameters)
            if word == "INSERT":
                await inserts.insert(self._workers, handle, sql=sql, data=data, body=body, answer=answer, params=params)
                clean = not params and not request.externals
            else:
                select = Select(
                    self._engine,
                    self._workers,
                    handle,
                    sql=sql,
                    params=params,
                    default_format=default_format,
                    answer=answer,
                    query_id=request.query_id,
                )
                ran = await select.run(receive, streamed=not request.flag("wait_end_of_query"))
                clean = ran and word in READS and not request.externals
        finally:
            if session:
                await self._workers.run(self._end_of_turn, request, session, used_use=word == "USE")
            else:
                await self._workers.run(self._engine.give_back, handle, clean=clean)

    def _end_of_turn(self, request: Request, session: Session, *, used_use: bool) -> None:
        if used_use:
            session.used_use()
        try:
            for part in request.externals:
                inserts.drop_external(session.handle, part.name)
        finally:
            close = request.flag("close_session")
            self._sessions.give_back(request.parameters["session_id"], session, close=close)

    async def _handle(self, request: Request) -> tuple[Handle, Session | None]:
        settings = request.settings
        # KILL QUERY finds a statement by its comment: chDB gives no query id of ours to the engine.
        comment = None if "log_comment" in dict(settings) else request.query_id
        if "session_id" not in request.parameters:
            return await self._workers.run(self._engine.take, request.database, settings, comment), None
        session = await self._workers.run(
            self._sessions.take,
            request.parameters["session_id"],
            request.database,
            (*settings, ("log_comment", comment)) if comment else settings,
            timeout=request.parameters.get("session_timeout"),
            must_exist=request.flag("session_check"),
        )
        return session.handle, session


async def _statement(request: Request, body: Body) -> tuple[bytes, bytes]:
    """Return a request's statement and, for an INSERT, the first piece of its data; the rest is still in the body."""
    content_type = request.headers.get("content-type", "")
    if content_type.startswith("multipart/form-data"):
        for part in multipart(await body.read_all(), content_type):
            request.add_form(part)
        return request.sql, b""
    head = b""
    while not head and not body.ended:  # the first bytes of a compressed body may yield nothing yet
        head = await body.read(HEAD)
    if sql := request.sql:
        if first_word(sql) == "INSERT":
            return sql, head
        head += await body.read_all()
        return (sql + b"\n" + head if head else sql), b""
    if first_word(head) != "INSERT":
        head += await body.read_all()
    return head, b""
