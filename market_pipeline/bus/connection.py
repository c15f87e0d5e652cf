"""Connections to NATS: fail clearly at first, then come back for ever."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from contextlib import suppress
from urllib.parse import urlsplit

import nats
import nats.errors
import structlog
from nats.aio.client import Client
from nats.js import JetStreamContext, api
from nats.js.errors import APIError, NotFoundError
from nats.js.errors import Error as JetStreamError

from market_pipeline.errors import BusAuthError, BusError, BusUnreachable, SettingsError
from market_pipeline.settings import NatsSettings

log = structlog.get_logger(__name__)

# Enough for a window of publishes while the server is away for a moment; more would only hide backpressure.
PENDING_BYTES = 8 * 1024 * 1024
# nats-py waits without end when its buffer is full and the flusher died with the connection.
FLUSH_TIMEOUT_S = 10
RECONNECT_WAIT_S = 0.25
PING_INTERVAL_S = 10
SAY_AGAIN_S = 30.0
PROBE_STREAM = "PROBE"
PROBE_BYTES = 64 * 1024

JETSTREAM_DISABLED = frozenset({10039, 10076})


def addresses(settings: NatsSettings) -> str:
    """Show the servers as host:port, without scheme, user or password.

    Raises:
        SettingsError: one of them is no address.
    """
    shown = []
    for url in settings.url.split(","):
        try:
            parts = urlsplit(url.strip() if "://" in url else f"nats://{url.strip()}")
            host, port = parts.hostname, parts.port or 4222
        except ValueError:
            host = None
        if not host:
            raise SettingsError("nats.url is not an address: write nats://host:port (MARKET_PIPELINE_NATS__URL)")
        shown.append(f"{host}:{port}")
    return ", ".join(shown)


async def connect(settings: NatsSettings, name: str) -> Client:
    """Connect to NATS; afterwards the client reconnects for ever by itself.

    The first connection is tried again until `connect_timeout` (s) has passed, so that a server which is just
    starting is met; a refused password ends it at once. `url` may name several servers, separated by commas.
    `name` is what the server's monitoring shows.

    Raises:
        BusAuthError: user or password are refused.
        BusUnreachable: nothing answers in time.
        SettingsError: the address cannot be one.
    """
    where = addresses(settings)
    connected = False
    last_error: Exception | None = None
    refused = asyncio.Event()

    said: tuple[str, float] = ("", 0.0)

    async def on_error(error: Exception) -> None:
        nonlocal last_error, said
        last_error = error
        if _is_refusal(error):
            refused.set()
        text, now = _text(error), time.monotonic()
        if connected and (text != said[0] or now - said[1] > SAY_AGAIN_S):  # each attempt to reconnect fails alike
            said = (text, now)
            log.warning("bus error", connection=name, server=where, error=text)

    async def on_disconnected() -> None:
        if connected and not client.is_closed:  # a close of our own is no news
            log.warning("bus disconnected", connection=name, server=where)

    async def on_reconnected() -> None:
        log.info("bus reconnected", connection=name, server=where)

    async def on_closed() -> None:
        if connected:
            log.debug("bus connection closed", connection=name, server=where)

    client = Client()
    attempt = asyncio.ensure_future(
        client.connect(
            servers=[url.strip() for url in settings.url.split(",")],
            name=name,
            user=settings.user or None,
            password=settings.password.get_secret_value() or None,
            error_cb=on_error,
            disconnected_cb=on_disconnected,
            reconnected_cb=on_reconnected,
            closed_cb=on_closed,
            connect_timeout=max(1, round(settings.connect_timeout)),
            max_reconnect_attempts=-1,
            reconnect_time_wait=RECONNECT_WAIT_S,  # type: ignore[arg-type]  # seconds, a float serves as well
            ping_interval=PING_INTERVAL_S,
            max_outstanding_pings=2,
            pending_size=PENDING_BYTES,
            flush_timeout=FLUSH_TIMEOUT_S,
        )
    )
    refusal = asyncio.ensure_future(refused.wait())
    try:
        await asyncio.wait({attempt, refusal}, timeout=settings.connect_timeout, return_when=asyncio.FIRST_COMPLETED)
        if attempt.done() and attempt.exception() is None:
            connected = True
            return client
        error = attempt.exception() if attempt.done() else last_error
    finally:
        refusal.cancel()
        if not connected:
            await _abandon(client, attempt)
    if refused.is_set():
        raise BusAuthError(
            f"NATS at {where} refuses the user {settings.user!r} or its password: set nats.user and nats.password "
            "(MARKET_PIPELINE_NATS__USER, MARKET_PIPELINE_NATS__PASSWORD)"
        )
    raise BusUnreachable(
        f"NATS at {where} does not answer within {settings.connect_timeout:g} s ({_text(error)}): "
        "start it or mend nats.url (MARKET_PIPELINE_NATS__URL)"
    )


async def probe(client: Client, *, replicas: int = 1, timeout_s: float = 5.0) -> float:
    """Publish a message to a small stream on disk, read it back, and return the seconds that both took.

    Raises:
        BusUnreachable: JetStream does not answer or does not keep what it acknowledges.
        SettingsError: the server runs without JetStream, or with no room left for it.
    """
    js = client.jetstream(timeout=timeout_s)
    server = client.connected_url.netloc.rpartition("@")[2] if client.connected_url else "a lost connection"
    started = time.perf_counter()
    try:
        await _probe_stream(js, replicas)
        started = time.perf_counter()
        sent = secrets.token_bytes(16)
        ack = await js.publish(f"probe.{secrets.token_hex(4)}", sent, stream=PROBE_STREAM)
        kept = await js.get_msg(PROBE_STREAM, seq=ack.seq)
    except APIError as error:
        if error.err_code in JETSTREAM_DISABLED:
            raise SettingsError(f"NATS at {server} runs without JetStream: start nats-server with -js") from error
        raise BusUnreachable(f"JetStream at {server} refuses to work: {error.description}") from error
    except (JetStreamError, nats.errors.Error, TimeoutError) as error:
        raise BusUnreachable(f"JetStream at {server} does not answer ({_text(error)}): is it enabled?") from error
    if kept.data != sent:
        raise BusUnreachable(f"JetStream at {server} gives back other bytes than it acknowledged")
    return time.perf_counter() - started


async def _probe_stream(js: JetStreamContext, replicas: int) -> None:
    try:
        await js.stream_info(PROBE_STREAM)
    except NotFoundError:
        await js.add_stream(
            api.StreamConfig(
                name=PROBE_STREAM,
                description="what a starting component publishes and reads back",
                subjects=["probe.*"],
                storage=api.StorageType.FILE,
                max_bytes=PROBE_BYTES,
                max_age=3600,
                num_replicas=replicas,
            )
        )


def closed_error(client: Client) -> BusError:
    """Say why a client that is closed for good can do nothing any more."""
    return BusUnreachable(f"the connection to NATS is closed ({_text(client.last_error)}): connect again")


async def _abandon(client: Client, attempt: asyncio.Future[None]) -> None:
    attempt.cancel()
    with suppress(asyncio.CancelledError, Exception):
        await attempt
    with suppress(Exception):
        await asyncio.wait_for(client.close(), 1)


def _is_refusal(error: BaseException) -> bool:
    return isinstance(error, nats.errors.AuthorizationError) or "authorization violation" in str(error).lower()


def _text(error: BaseException | None) -> str:
    if error is None:
        return "no answer"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno).lower()  # asyncio's own text repeats the address
    return str(error) or type(error).__name__
