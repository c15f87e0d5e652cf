"""One server for the room; each test gets empty streams of small limits."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
from nats.aio.client import Client
from nats.js import JetStreamContext

from market_pipeline.bus.connection import connect
from market_pipeline.bus.streams import ensure_streams
from market_pipeline_tests.servers import NatsProcess

SCALE = 1 / 64  # HISTORY 8 MB


@pytest.fixture(scope="session")
def server() -> Iterator[NatsProcess]:
    with NatsProcess() as running:
        yield running


@pytest.fixture
def own_server() -> Iterator[NatsProcess]:
    """A server that the test may kill."""
    with NatsProcess() as running:
        yield running


@pytest.fixture
async def nc(server: NatsProcess) -> AsyncIterator[Client]:
    client = await connect(server.settings, "test")
    yield client
    await client.close()


@pytest.fixture
async def js(nc: Client) -> JetStreamContext:
    context = nc.jetstream()
    for stream in await context.streams_info():
        await context.delete_stream(stream.config.name or "")
    await ensure_streams(context, scale=SCALE)
    return context
