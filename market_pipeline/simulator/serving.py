"""The simulator's server: one ASGI application on one loopback socket, run by uvicorn."""

from __future__ import annotations

import socket
from collections.abc import Callable

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.routing import Mount, WebSocketRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from market_pipeline.simulator.control import control_app
from market_pipeline.simulator.rest import TRANSPORT, VendorApp
from market_pipeline.simulator.stream.wire import StreamProtocol
from market_pipeline.simulator.vendor import Vendor

HOST = "127.0.0.1"


def application(vendor: Vendor, control_token: str) -> Starlette:
    """Return the application: the control interface under `/_control`, the vendor (REST, WebSocket) elsewhere."""
    return Starlette(
        routes=[
            Mount("/_control", app=control_app(vendor, control_token)),
            WebSocketRoute("/{path:path}", vendor.stream),
            Mount("/", app=_Dated(VendorApp(vendor), vendor)),
        ]
    )


class _Dated:
    """An application whose answers bear the date of the vendor's clock, whole seconds, as every server's do."""

    def __init__(self, app: ASGIApp, vendor: Vendor) -> None:
        self._app, self._vendor = app, vendor

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def dated(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["date"] = self._vendor.state.http_date()
            await send(message)

        await self._app(scope, receive, dated)


def bind(port: int = 0) -> socket.socket:
    """Bind a loopback socket; port 0 takes a free one. Raises OSError when the port is taken."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
    except OSError:
        listener.close()
        raise
    return listener


class SimulatorServer(uvicorn.Server):
    """Run the application until `should_exit`, and say when it answers."""

    def __init__(self, vendor: Vendor, control_token: str, on_ready: Callable[[], None]) -> None:
        super().__init__(
            uvicorn.Config(
                application(vendor, control_token),
                http=_Protocol,
                ws=StreamProtocol,
                ws_per_message_deflate=False,
                log_config=None,
                access_log=False,
                lifespan="off",
                date_header=False,
                timeout_graceful_shutdown=2,
                timeout_keep_alive=60,
            )
        )
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then report."""
        await super().startup(sockets)
        self._on_ready()


class _Protocol(HttpToolsProtocol):
    # Faults that end a connection act below HTTP: the application needs the transport.
    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope[TRANSPORT] = self.transport  # type: ignore[literal-required]
