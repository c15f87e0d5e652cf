"""The vendor's REST interface: routes, key check, plan, faults, journal.

A plain ASGI application, for some faults act on the connection below the answer.
"""

from __future__ import annotations

import asyncio
import gzip
import re
import time
from collections.abc import Callable
from dataclasses import replace

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from market_pipeline.simulator import market_status
from market_pipeline.simulator.aggregates import answer_aggregates
from market_pipeline.simulator.answers import Answer, error, forbidden, rate_limited, unauthorized
from market_pipeline.simulator.fault_effects import broken_json, refusal, spoil
from market_pipeline.simulator.faults import Fault
from market_pipeline.simulator.journal import Entry
from market_pipeline.simulator.tick_pages import answer_ticks
from market_pipeline.simulator.tickers import market_of
from market_pipeline.simulator.vendor import Vendor

TRANSPORT = "market_pipeline.transport"
_TRICKLE_PIECES = 20

Handler = Callable[[Vendor, str, dict[str, str], dict[str, str]], Answer]

_ROUTES: tuple[tuple[str, re.Pattern[str], Handler], ...] = (
    (
        "aggregates",
        re.compile(
            r"/v2/aggs/ticker/(?P<ticker>[^/]+)/range/(?P<multiplier>[^/]+)/(?P<timespan>[^/]+)"
            r"/(?P<start>[^/]+)/(?P<end>[^/]+)"
        ),
        lambda vendor, base, parts, query: answer_aggregates(vendor.state, base, parts, query),
    ),
    (
        "quotes",
        re.compile(r"/v3/quotes/(?P<ticker>[^/]+)"),
        lambda vendor, base, parts, query: answer_ticks(vendor.state, base, "quotes", parts["ticker"], query),
    ),
    (
        "trades",
        re.compile(r"/v3/trades/(?P<ticker>[^/]+)"),
        lambda vendor, base, parts, query: answer_ticks(vendor.state, base, "trades", parts["ticker"], query),
    ),
    (
        "market_status",
        re.compile(r"/v1/marketstatus/now"),
        lambda vendor, *_: Answer.json(200, market_status.now(vendor.state.now_ms())),
    ),
    (
        "market_status",
        re.compile(r"/v1/marketstatus/upcoming"),
        lambda vendor, *_: Answer.json(200, market_status.upcoming(vendor.state.now_ms())),
    ),
)


class VendorApp:
    """Serve the vendor's REST interface over ASGI."""

    def __init__(self, vendor: Vendor) -> None:
        self._vendor = vendor

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request and note it in the journal."""
        began = time.perf_counter()
        request = Request(scope, receive)
        exchange = _Exchange(self._vendor, request)
        status, rows = 0, 0
        try:
            answer = await exchange.answer()
            if answer is None:
                await exchange.drop()
                return
            status, rows = answer.status, answer.rows
            await exchange.deliver(answer, send)
        finally:
            self._vendor.journal.add(exchange.entry(status, rows, (time.perf_counter() - began) * 1000))


class _Exchange:
    def __init__(self, vendor: Vendor, request: Request) -> None:
        self._vendor = vendor
        self._request = request
        self._path: str = request.scope["path"]
        self._query = dict(request.query_params)
        self._kind, self._parts, self._handler = _routed(self._path)
        ticker = self._parts.get("ticker")
        self._ticker = ticker.replace("-", "") if ticker else None
        self._key: str | None = None
        self._struck: list[str] = []
        self._trickle: Fault | None = None
        self._cut = False

    async def answer(self) -> Answer | None:
        """Return the answer, or None when the connection is to be dropped without one."""
        if self._handler is None:
            return Answer.text(404, "404 page not found")
        self._key = self._vendor.plans.name_of(_api_key(self._request))
        if self._key is None:
            return unauthorized()
        if not self._vendor.plans.spend(self._key):
            return rate_limited()
        if not self._vendor.plans.allows(self._key, market_of(self._ticker) if self._ticker else None):
            return forbidden()
        for fault in self._vendor.faults.claim_before(self._ticker, self._path):
            self._struck.append(fault.kind)
            if fault.kind == "drop_connection":
                return None
            if fault.kind == "slow":
                await self._slow(fault)
            elif (refused := refusal(fault)) is not None:
                return refused
        if self._request.method != "GET":
            return error(405, "ERROR", "method not allowed")
        base = str(self._request.base_url).rstrip("/")
        answer = await run_in_threadpool(self._handler, self._vendor, base, self._parts, self._query)
        return self._spoiled(answer)

    def _spoiled(self, answer: Answer) -> Answer:
        if answer.status != 200:
            return answer
        faults = self._vendor.faults
        if faults.wants_page(self._ticker, self._path):
            page = msgspec.json.decode(answer.body)
            if isinstance(page, dict):
                url = _without_key(self._request)
                for fault, first_url in faults.claim_page(self._ticker, self._path, url, page):
                    self._struck.append(fault.kind)
                    spoil(fault, page, url=url, first_url=first_url)
                answer = replace(answer, body=msgspec.json.encode(page), rows=len(page.get("results") or ()))
        broken = faults.claim_bytes(self._ticker, self._path)
        if broken is None:
            return answer
        self._struck.append(broken.kind)
        self._cut = broken.kind == "cut_body"
        return answer if self._cut else replace(answer, body=broken_json(answer.body))

    async def _slow(self, fault: Fault) -> None:
        if fault.trickle:
            self._trickle = fault
        else:
            await asyncio.sleep(fault.delay)

    async def deliver(self, answer: Answer, send: Send) -> None:
        """Send the answer, whole, piece by piece, or cut off in the middle."""
        body, headers = answer.body, dict(answer.headers)
        if self._vendor.gzip and "gzip" in self._request.headers.get("accept-encoding", ""):
            body = gzip.compress(body, compresslevel=1)
            headers["Content-Encoding"] = "gzip"
        headers |= {"Content-Type": answer.media, "Content-Length": str(len(body))}
        raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": answer.status, "headers": raw})
        if self._cut:
            await send({"type": "http.response.body", "body": body[: len(body) // 2], "more_body": True})
            self._request.scope[TRANSPORT].close()
            await self._gone()
        elif self._trickle is not None:
            size = -(-len(body) // _TRICKLE_PIECES) or 1
            for at in range(0, len(body), size):
                await asyncio.sleep(self._trickle.delay / _TRICKLE_PIECES)
                await send({"type": "http.response.body", "body": body[at : at + size], "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        else:
            await send({"type": "http.response.body", "body": body})

    async def drop(self) -> None:
        """Close the connection without a word."""
        self._request.scope[TRANSPORT].abort()
        await self._gone()

    async def _gone(self) -> None:
        while (await self._request.receive())["type"] != "http.disconnect":
            pass

    def entry(self, status: int, rows: int, elapsed_ms: float) -> Entry:
        """Return what the journal notes: names and times, never a key or the query string."""
        parts = self._parts
        return Entry(
            at=time.time(),
            key=self._key,
            kind=self._kind,
            path=self._path,
            ticker=self._ticker,
            start=parts.get("start") or self._query.get("timestamp.gte") or self._query.get("timestamp"),
            end=parts.get("end") or self._query.get("timestamp.lte") or self._query.get("timestamp.lt"),
            multiplier=parts.get("multiplier"),
            timespan=parts.get("timespan"),
            cursor="cursor" in self._query,
            status=status,
            rows=rows,
            elapsed_ms=round(elapsed_ms, 3),
            faults=self._struck,
        )


def _routed(path: str) -> tuple[str, dict[str, str], Handler | None]:
    for kind, pattern, handler in _ROUTES:
        if match := pattern.fullmatch(path):
            return kind, match.groupdict(), handler
    return "unknown", {}, None


def _api_key(request: Request) -> str | None:
    scheme, _, value = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and value:
        return value.strip()
    return request.query_params.get("apiKey")


def _without_key(request: Request) -> str:
    return str(request.url.remove_query_params("apiKey"))
