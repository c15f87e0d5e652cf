from __future__ import annotations

import time

from nats.aio.client import Client

from market_pipeline.bus.receipts import publish_receipts, receipts
from market_pipeline.bus.subjects import receipt_subject


async def test_a_run_hears_of_its_batches_and_of_no_others(nc: Client) -> None:
    async with receipts(nc, "run.1 *") as inbox:
        await publish_receipts(nc, "run.1 *", {2**63 - 1: "stored", 5: "rejected"})
        await publish_receipts(nc, "run.1", {6: "stored"})
        await publish_receipts(nc, "", {7: "stored"})
        assert await inbox.wait(20) == {2**63 - 1: "stored", 5: "rejected"}
        started = time.monotonic()
        assert await inbox.wait(0.2) == {}
        assert 0.15 < time.monotonic() - started < 20


async def test_what_has_come_is_taken_together(nc: Client) -> None:
    async with receipts(nc, "run") as inbox:
        for number in range(3):
            await publish_receipts(nc, "run", dict.fromkeys(range(number * 1500, (number + 1) * 1500), "stored"))
        await nc.flush()
        heard: dict[int, str] = {}
        while more := await inbox.wait(0.3):
            heard |= more
        assert heard == dict.fromkeys(range(4500), "stored")


async def test_losing_one_is_harmless(nc: Client) -> None:
    async with receipts(nc, "run") as inbox:
        await nc.publish(receipt_subject("run"), b"not json")
        assert await inbox.wait(0.2) == {}
    await publish_receipts(nc, "run", {1: "stored"})  # nobody hears
    await nc.close()
    await publish_receipts(nc, "run", {1: "stored"})  # nobody can
