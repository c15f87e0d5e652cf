"""Receipts: a bridge tells a run at once what became of its batches.

They travel over core NATS, kept nowhere: a receipt only speeds up the reading of the ledger, which is the truth, so
losing one is harmless.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress

import msgspec
import nats.errors
import structlog
from nats.aio.client import Client
from nats.aio.subscription import Subscription

from market_pipeline.bus.subjects import receipt_subject

log = structlog.get_logger(__name__)

_DECODER = msgspec.json.Decoder(list[tuple[int, str]])
# One message stays well under any max_payload.
_AT_ONCE = 1000


async def publish_receipts(nc: Client, run_id: str, outcomes: Mapping[int, str]) -> None:
    """Tell the run the outcome (`stored`, `rejected`) of batches by id; without a run, or a connection, do nothing."""
    if not run_id:
        return
    pairs = list(outcomes.items())
    try:
        for begin in range(0, len(pairs), _AT_ONCE):
            await nc.publish(receipt_subject(run_id), msgspec.json.encode(pairs[begin : begin + _AT_ONCE]))
    except nats.errors.Error as error:
        log.debug("receipts not sent", run_id=run_id, batches=len(pairs), error=str(error))


class Receipts:
    """Hear the receipts of one run."""

    def __init__(self, subscription: Subscription) -> None:
        self._subscription = subscription

    async def wait(self, max_wait_s: float) -> dict[int, str]:
        """Return outcomes by batch id: all that have come, else the next to come within `max_wait_s`, else none."""
        outcomes: dict[int, str] = {}
        patience = max_wait_s
        # The client takes a time-out of 0 for none at all.
        with suppress(nats.errors.TimeoutError, nats.errors.ConnectionClosedError):
            while True:
                message = await self._subscription.next_msg(max(patience, 0.001))
                try:
                    outcomes.update(_DECODER.decode(message.data))
                except msgspec.MsgspecError:
                    log.debug("a receipt that cannot be read", subject=message.subject)
                if not self._subscription.pending_msgs:
                    break
                patience = 0.0
        return outcomes


@asynccontextmanager
async def receipts(nc: Client, run_id: str) -> AsyncIterator[Receipts]:
    """Subscribe to the receipts of a run for as long as the block runs: enter before the first batch is published."""
    subscription = await nc.subscribe(receipt_subject(run_id))
    await nc.flush()
    try:
        yield Receipts(subscription)
    finally:
        with suppress(nats.errors.Error):
            await subscription.unsubscribe()
