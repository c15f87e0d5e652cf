"""A process that asks a vendor through the shared gate: orders come as JSON on stdin, results go to stdout."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import structlog

from market_pipeline.bus.connection import connect
from market_pipeline.bus.rate import KvRateGate
from market_pipeline.settings import NatsSettings, VendorSettings
from market_pipeline.vendors.polygon import PolygonClient


async def work(given: dict[str, Any]) -> dict[str, Any]:
    """Send `requests` requests from `at_once` tasks, and count them and their retries."""
    vendor = VendorSettings(**given["vendor"])
    nc = await connect(NatsSettings(**given["nats"]), "rate test")
    async with PolygonClient(vendor, KvRateGate.of(nc, vendor)) as client:

        async def ask(times: int) -> None:
            for _ in range(times):
                await client.market_status()

        await asyncio.gather(*(ask(given["requests"] // given["at_once"]) for _ in range(given["at_once"])))
        done = {"requests": client.stats.requests, "retries": dict(client.stats.retries)}
    await nc.close()
    return done


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    sys.stdout.write(json.dumps(asyncio.run(work(json.load(sys.stdin)))))
