"""One open connection with everything that a run or a service says over it, so that other rooms never see nats."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import msgspec
import nats.errors
from nats.aio.client import Client
from nats.js import JetStreamContext

from market_pipeline.bus.connection import connect, probe
from market_pipeline.bus.consumer import BatchConsumer, Delivery
from market_pipeline.bus.dead_letters import DeadLetter, Reason, publish_dead_letter, publish_letter
from market_pipeline.bus.lag import Lag, consumer_lag
from market_pipeline.bus.publisher import Publisher
from market_pipeline.bus.rate import KvRateGate
from market_pipeline.bus.receipts import Receipts, publish_receipts, receipts
from market_pipeline.bus.streams import HISTORY, ensure_streams
from market_pipeline.bus.subjects import history_subject
from market_pipeline.bus.throttle import Throttle, ThrottleGate, publish_throttle, throttle_gate
from market_pipeline.settings import NatsSettings, VendorSettings

__all__ = ["BusSession", "open_bus"]


@dataclass(frozen=True, slots=True)
class BusSession:
    """Hold a connection to NATS and its JetStream."""

    nc: Client
    js: JetStreamContext
    replicas: int = 1

    async def probe(self) -> None:
        """Prove that JetStream stores and returns a message."""
        await probe(self.nc, replicas=self.replicas)

    async def ensure_streams(self, *, scale: float = 1.0) -> None:
        """Create or mend the streams."""
        await ensure_streams(self.js, replicas=self.replicas, scale=scale, max_payload=self.nc.max_payload)

    def publisher(self) -> Publisher:
        """Return a publisher over this connection."""
        return Publisher(self.nc, self.js)

    @asynccontextmanager
    async def consumer(self, stream: str) -> AsyncIterator[BatchConsumer]:
        """Open the bridge's consumer of a stream."""
        async with BatchConsumer(self.nc, self.js, stream) as consumer:
            yield consumer

    async def lag(self, stream: str) -> Lag:
        """Ask how far the bridge is behind on a stream; raises BusUnreachable."""
        return await consumer_lag(self.js, stream)

    async def send_throttle(self, service: str, throttle: Throttle) -> None:
        """Slow a service down, or let it go; raises BusUnreachable."""
        await publish_throttle(self.nc, service, throttle)

    @asynccontextmanager
    async def throttle(self, service: str) -> AsyncIterator[ThrottleGate]:
        """Hear how fast a service may publish."""
        async with throttle_gate(self.nc, service) as gate:
            yield gate

    def rate_gate(self, vendor: VendorSettings) -> KvRateGate:
        """Return the gate that all processes with this vendor key share."""
        return KvRateGate.of(self.nc, vendor, replicas=self.replicas)

    async def bury(
        self,
        delivery: Delivery,
        reason: Reason | str,
        error: str,
        *,
        first_error: str = "",
        attempts: int | None = None,
        rows: bytes | None = None,
    ) -> None:
        """Send a delivery, or with `rows` only these of its rows, to dead letters; returns once it is there.

        `attempts`: how often it truly failed, where that is not the number of its deliveries.
        """
        await publish_dead_letter(
            self.js,
            delivery,
            reason,
            error,
            first_error=first_error,
            attempts=attempts,
            rows=rows,
            max_payload=self.nc.max_payload,
        )

    async def bury_vendor_rows(
        self, rows: Sequence[tuple[str, str]], *, symbol: str, correlation_id: str, request_id: str
    ) -> None:
        """Send rows of a vendor's answer that are no bars to dead letters, each alone: (its JSON text, why)."""
        subject = history_subject(symbol, "1m")
        letters = [
            DeadLetter(
                reason=Reason.VENDOR_MALFORMED_ROW,
                stream=HISTORY,
                subject=subject,
                stream_seq=0,
                correlation_id=correlation_id,
                payload=msgspec.json.encode({"row": text, "vendor_request_id": request_id}),
                last_error=why,
            )
            for text, why in rows
        ]
        for begin in range(0, len(letters), 64):
            await asyncio.gather(
                *(publish_letter(self.js, letter, self.nc.max_payload) for letter in letters[begin : begin + 64])
            )

    async def send_receipts(self, outcomes: Iterable[tuple[str, int, str]]) -> None:
        """Tell each run what became of its batches: (run id, batch id, outcome)."""
        by_run: dict[str, dict[int, str]] = {}
        for run_id, batch_id, outcome in outcomes:
            by_run.setdefault(run_id, {})[batch_id] = outcome
        for run_id, pairs in by_run.items():
            await publish_receipts(self.nc, run_id, pairs)

    @asynccontextmanager
    async def receipts(self, run_id: str) -> AsyncIterator[Receipts]:
        """Hear the receipts of a run."""
        async with receipts(self.nc, run_id) as heard:
            yield heard


@asynccontextmanager
async def open_bus(settings: NatsSettings, name: str) -> AsyncIterator[BusSession]:
    """Connect, and close again.

    Raises:
        BusUnreachable, BusAuthError: naming the address and the setting to mend.
    """
    nc = await connect(settings, name)
    try:
        yield BusSession(nc, nc.jetstream(), settings.replicas)
    finally:
        # A server that went away takes nothing with it that closing could save.
        with suppress(OSError, nats.errors.Error, TimeoutError):
            await nc.close()
