"""How far the consumer of a stream is behind, asked without becoming one."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import nats.errors
from nats.js import JetStreamContext
from nats.js.errors import APIError, NotFoundError
from nats.js.errors import Error as JetStreamError

from market_pipeline.bus.streams import BRIDGE, bus_error


@dataclass(frozen=True, slots=True)
class Lag:
    """Say how far a consumer is behind: not yet delivered, delivered but unacknowledged, age of the oldest (s)."""

    num_pending: int
    num_ack_pending: int
    oldest_age_s: float


async def consumer_lag(js: JetStreamContext, stream: str, durable: str = BRIDGE) -> Lag:
    """Ask the server how far a durable consumer is behind; one that was never created has everything before it.

    Raises:
        BusUnreachable: JetStream does not answer, or the stream is gone.
    """
    try:
        try:
            info = await js.consumer_info(stream, durable)
        except NotFoundError:
            messages = (await js.stream_info(stream)).state.messages
            return Lag(messages, 0, await oldest_age_s(js, stream) if messages else 0.0)
        undelivered, unacknowledged = info.num_pending or 0, info.num_ack_pending or 0
        oldest = 0.0
        if undelivered or unacknowledged:
            floor = info.ack_floor.stream_seq if info.ack_floor else 0
            oldest = await oldest_age_s(js, stream, floor)
    except (APIError, JetStreamError, nats.errors.Error, TimeoutError) as error:
        raise bus_error(error, f"consumer {durable} of {stream}") from error
    return Lag(undelivered, unacknowledged, oldest)


async def oldest_age_s(js: JetStreamContext, stream: str, after: int = 0) -> float:
    """Return the age in seconds of the oldest message behind a sequence; 0 where there is none."""
    try:
        oldest = await js.get_msg(stream, seq=after + 1, subject=">", next=True)
    except NotFoundError:
        return 0.0  # acknowledged while we asked
    if oldest.time is None:
        return 0.0
    return max(0.0, (datetime.now(UTC) - oldest.time).total_seconds())
