"""What becomes of a message that belongs into dead letters and that they do not take."""

from __future__ import annotations

import structlog

from market_pipeline.bus.consumer import BatchConsumer, Delivery
from market_pipeline.errors import BusError, PayloadTooLarge, StreamFull

log = structlog.get_logger(__name__)

UNBURIED_S = 15.0
"""What dead letters do not take is tried again so often."""
NOT_TAKEN = (StreamFull, PayloadTooLarge)


async def give_back_unburied(consumer: BatchConsumer, delivery: Delivery, refusal: BusError) -> None:
    """Give one delivery back, and say why: it alone waits, until a person made room."""
    log.error("dead_letter_not_taken", sequence=delivery.stream_seq, stream=delivery.stream, error=str(refusal))
    await consumer.give_back([delivery], delay_s=UNBURIED_S)
