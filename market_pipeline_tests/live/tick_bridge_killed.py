"""A bridge that is killed when it has stored ticks and is about to acknowledge them: settings come on stdin."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys

from market_pipeline.bus.consumer import BatchConsumer
from market_pipeline.live.tick_bridge import TickBridgeService
from market_pipeline.settings import NatsSettings, PostgresSettings
from market_pipeline_tests.live.tick_bridging import settings_of


async def _die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    given = json.load(sys.stdin)
    settings = settings_of(NatsSettings(**given["nats"]), PostgresSettings(**given["postgres"]))
    BatchConsumer.ack = _die  # type: ignore[method-assign]
    asyncio.run(TickBridgeService(settings, lease_ttl_s=1.0, gather_s=0.02).run(asyncio.Event()))
