"""Publishing tick batches, and what the last batch of a symbol says."""

from __future__ import annotations

from nats.js.errors import NotFoundError

from market_pipeline.bus.kv import KV_ERRORS
from market_pipeline.bus.publisher import IN_FLIGHT, PubAck, Publisher
from market_pipeline.bus.session import BusSession
from market_pipeline.bus.streams import TICKS, bus_error
from market_pipeline.bus.subjects import market_subject
from market_pipeline.bus.tick_envelope import EncodedTicks, TickHeaders
from market_pipeline.errors import UnreadableBatch

# Short, so that whoever publishes looks at its lease again in between; it goes on trying by itself.
RETRY_FOR_S = 2.0
WAIT_FULL_S = 2.0


class TickPublisher:
    """Publish tick batches to TICKS, at most `in_flight` at once."""

    def __init__(self, bus: BusSession, *, in_flight: int = IN_FLIGHT) -> None:
        self._bus = bus
        self._publisher = Publisher(
            bus.nc, bus.js, in_flight=in_flight, ack_timeout_s=2.0, retry_for_s=RETRY_FOR_S, wait_full_s=WAIT_FULL_S
        )

    @property
    def connected(self) -> bool:
        """Whether there is a connection to NATS now."""
        return bool(self._bus.nc.is_connected)

    async def publish(self, batch: EncodedTicks) -> PubAck:
        """Publish one batch and return once JetStream has it; stamps the stage `published`.

        The batch id is the publication's id: the same batch published again is dropped within the duplicate window,
        and after it the tick store drops it.

        Raises:
            BusUnreachable, StreamFull: not within about 2 seconds; the batch may be published again.
            PayloadTooLarge: more than the server takes.
        """
        return await self._publisher.publish_message(*tick_message(batch))

    async def last(self, symbol: str) -> TickHeaders | None:
        """Return the headers of the symbol's last batch; None if TICKS holds none, or one that cannot be read.

        Raises:
            BusUnreachable: JetStream does not answer.
        """
        try:
            message = await self._bus.js.get_last_msg(TICKS, market_subject(symbol, "tick"))
            return TickHeaders.from_nats(message.headers)
        except (NotFoundError, UnreadableBatch):
            return None
        except KV_ERRORS as error:
            raise bus_error(error, f"the last ticks of {symbol}") from error


def tick_message(batch: EncodedTicks) -> tuple[str, bytes, dict[str, str]]:
    """Return a batch as it is published now: subject, payload and headers, under the batch's own id."""
    headers = batch.headers.with_stage("published").to_nats()
    headers["Nats-Msg-Id"] = f"{batch.headers.batch_id:x}"
    return market_subject(batch.headers.symbol, "tick"), batch.payload, headers
