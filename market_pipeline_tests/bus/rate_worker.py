"""A process that asks a vendor through the shared gate: orders come as JSON on stdin, results go to stdout."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import structlog
from nats.aio.client import Client

from market_pipeline.bus.connection import connect
from market_pipeline.bus.rate import KvRateGate
from market_pipeline.settings import NatsSettings, VendorSettings
from market_pipeline.vendors.polygon import PolygonClient


async def work(nc: Client, order: dict[str, Any]) -> dict[str, Any]:
    """Send `requests` requests from `at_once` tasks, and count them and their retries."""
    vendor = VendorSettings(**order["vendor"])
    async with PolygonClient(vendor, KvRateGate.of(nc, vendor)) as client:

        async def ask(times: int) -> None:
            for _ in range(times):
                await client.market_status()

        await asyncio.gather(*(ask(order["requests"] // order["at_once"]) for _ in range(order["at_once"])))
        return {"requests": client.stats.requests, "retries": dict(client.stats.retries)}


async def main(given: dict[str, Any]) -> list[dict[str, Any]]:
    """Carry out the orders, one after the other."""
    nc = await connect(NatsSettings(**given["nats"]), "rate test")
    done = [await work(nc, order) for order in given["orders"]]
    await nc.close()
    return done


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    sys.stdout.write(json.dumps(asyncio.run(main(json.load(sys.stdin)))))
