"""The control interface under `/_control`: faults, deviations from the truth, the clock, plans, journal, stream.

Guarded by a token of its own in the header X-Control-Token. Times are epoch milliseconds, ranges [start, end).
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router

from market_pipeline.simulator.faults import Fault
from market_pipeline.simulator.plans import Plan
from market_pipeline.simulator.stream.faults import StreamFault
from market_pipeline.simulator.stream.settings import StreamSettings
from market_pipeline.simulator.vendor import Vendor

TOKEN_HEADER = "X-Control-Token"  # noqa: S105 - the header's name


class Restatement(msgspec.Struct, forbid_unknown_fields=True):
    """Ask for other values of one minute."""

    ticker: str
    minute: int
    values: dict[str, float]


class Span(msgspec.Struct, forbid_unknown_fields=True):
    """Name a range of a ticker's minutes."""

    ticker: str
    start: int
    end: int


class Clock(msgspec.Struct, forbid_unknown_fields=True):
    """Set the clock; `now` None is the wall clock, `speed` that of a running one."""

    now: int | None = None
    running: bool = False
    speed: float = 1.0


class Advance(msgspec.Struct, forbid_unknown_fields=True):
    """Move the clock as fast as the stream's clients read, while so many subscriptions are there."""

    until: int
    subscriptions: int = 1


class Replay(msgspec.Struct, forbid_unknown_fields=True):
    """Name a parquet file of recorded ticks on this machine."""

    ticker: str
    path: str


class Load(msgspec.Struct, forbid_unknown_fields=True):
    """Make so many ticks a second of each ticker."""

    tickers: list[str]
    per_second: int


class PlanOf(msgspec.Struct, forbid_unknown_fields=True):
    """Give a key a plan."""

    plan: Plan
    key: str = "default"


class Settle(msgspec.Struct, forbid_unknown_fields=True):
    """Set the share of young bars that are unsettled."""

    share: float


class Unknown(msgspec.Struct, forbid_unknown_fields=True):
    """Name the tickers that the vendor does not know."""

    tickers: list[str]


_Body = TypeVar("_Body")
Endpoint = Callable[[Request], Awaitable[Response]]


def control_app(vendor: Vendor, token: str) -> Router:
    """Return the control interface of a vendor."""
    state, faults, plans, journal, stream = vendor.state, vendor.faults, vendor.plans, vendor.journal, vendor.stream

    def guarded(endpoint: Endpoint) -> Endpoint:
        async def checked(request: Request) -> Response:
            given = request.headers.get(TOKEN_HEADER, "")
            if not hmac.compare_digest(given.encode(), token.encode()):
                return _json({"error": "wrong control token"}, 401)
            try:
                return await endpoint(request)
            except (KeyError, ValueError, re.error, msgspec.ValidationError) as wrong:
                return _json({"error": str(wrong)}, 400)

        return checked

    def takes(kind: type[_Body], act: Callable[[_Body], Any]) -> Endpoint:
        async def endpoint(request: Request) -> Response:
            body = msgspec.json.decode(await request.body(), type=kind)
            return _json(await run_in_threadpool(act, body))

        return endpoint

    def tells_stream(kind: type[_Body], act: Callable[[_Body], Any]) -> Endpoint:
        # The stream belongs to the event loop's thread.
        async def endpoint(request: Request) -> Response:
            return _json(act(msgspec.json.decode(await request.body(), type=kind)))

        return endpoint

    def gives(read: Callable[[], Any]) -> Endpoint:
        async def endpoint(request: Request) -> Response:
            return _json(read())

        return endpoint

    async def clear_faults(request: Request) -> Response:
        number = request.path_params.get("number")
        faults.clear(number)
        return _json(None)

    async def clear_stream_faults(request: Request) -> Response:
        stream.faults.clear(request.path_params.get("number"))
        return _json(None)

    def replay(body: Replay) -> dict[str, int]:
        recording = state.record(body.ticker, Path(body.path))
        return {"start": recording.start, "end": recording.end, "ticks": len(recording.held)}

    def reset() -> None:
        stream.reset()
        faults.clear()
        state.reset()
        journal.clear()

    def restate(body: Restatement) -> None:
        values = {name: int(value) if name == "trades" else value for name, value in body.values.items()}
        state.restate(body.ticker, body.minute, values)

    def add_key(body: Plan) -> dict[str, str]:
        name, api_key = plans.add_key(body)
        return {"name": name, "api_key": api_key}

    def spans(act: Callable[[str, int, int], None]) -> Endpoint:
        return takes(Span, lambda body: act(body.ticker, body.start, body.end))

    posts: dict[str, Endpoint] = {
        "/faults": takes(Fault, lambda body: {"id": faults.add(body)}),
        "/restate": takes(Restatement, restate),
        "/withdraw": spans(state.withdraw),
        "/remove": spans(state.remove),
        "/restore": spans(state.restore),
        "/now": takes(Clock, lambda body: state.set_now(body.now, running=body.running, speed=body.speed)),
        "/settle": takes(Settle, lambda body: state.set_settle(body.share)),
        "/unknown": takes(Unknown, lambda body: state.set_unknown(body.tickers)),
        "/plan": takes(PlanOf, lambda body: plans.set_plan(body.key, body.plan)),
        "/keys": takes(Plan, add_key),
        "/reset": gives(reset),
        "/journal/clear": gives(journal.clear),
        "/advance": tells_stream(Advance, lambda body: stream.advance(body.until, body.subscriptions)),
        "/replay": takes(Replay, replay),
        "/load": takes(Load, lambda body: state.load(body.tickers, body.per_second)),
        "/stream/faults": tells_stream(StreamFault, lambda body: {"id": stream.faults.add(body)}),
        "/stream/settings": tells_stream(StreamSettings, stream.set),
    }
    gets: dict[str, Endpoint] = {
        "/faults": gives(faults.listed),
        "/requests": gives(journal.entries),
        "/stats": gives(journal.stats),
        "/now": gives(lambda: {"now": state.now_ms()}),
        "/stream/faults": gives(stream.faults.listed),
        "/stream/stats": gives(stream.shown),
    }
    return Router(
        [
            *(Route(path, guarded(endpoint), methods=["POST"]) for path, endpoint in posts.items()),
            *(Route(path, guarded(endpoint), methods=["GET"]) for path, endpoint in gets.items()),
            Route("/faults", guarded(clear_faults), methods=["DELETE"]),
            Route("/faults/{number:int}", guarded(clear_faults), methods=["DELETE"]),
            Route("/stream/faults", guarded(clear_stream_faults), methods=["DELETE"]),
            Route("/stream/faults/{number:int}", guarded(clear_stream_faults), methods=["DELETE"]),
        ]
    )


def _json(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status_code=status, media_type="application/json")
