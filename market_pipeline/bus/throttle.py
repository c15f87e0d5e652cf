"""The throttle: how fast a service may publish for now, said on core NATS and kept nowhere.

A limit is a loan: it lapses by itself unless it is renewed, so a hub that died slows nobody down for long. Its life is
given in seconds, not as a moment, so that the clocks of two hosts need not agree.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import msgspec
import nats.errors
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg

from market_pipeline.bus.streams import bus_error
from market_pipeline.bus.subjects import throttle_subject
from market_pipeline.errors import BusUnreachable

log = structlog.get_logger(__name__)

HISTORY_SERVICE = "history"
"""The service that loads, derives and repairs history, in any number of processes; each keeps to the limit alone."""


class Throttle(msgspec.Struct, frozen=True):
    """Limit a service to `batches_per_s` in each of its processes for `expiry_s` seconds; None lets it go."""

    batches_per_s: float | None
    expiry_s: float
    reason: str = ""


async def publish_throttle(nc: Client, service: str, throttle: Throttle) -> None:
    """Tell every process of a service how fast it may publish.

    Raises:
        BusUnreachable: it could not be sent.
    """
    if not nc.is_connected:
        raise BusUnreachable("no connection to NATS")  # the client would keep it, and send it when it is stale
    try:
        await nc.publish(throttle_subject(service), msgspec.json.encode(throttle))
    except nats.errors.Error as error:
        raise bus_error(error, throttle_subject(service)) from error


class ThrottleGate:
    """Let batches through: at once where no limit was heard or it has lapsed, else evenly spaced.

    `seconds_throttled`, `batches_throttled`: what all that passed have waited together, and how many waited.
    """

    def __init__(self, service: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._service, self._clock = service, clock
        self._rate: float | None = None
        self._until = self._next = 0.0
        self._changed = asyncio.Event()
        self.seconds_throttled = 0.0
        self.batches_throttled = 0

    @property
    def limited(self) -> bool:
        """Whether a limit holds now."""
        return self._rate is not None and self._clock() < self._until

    def hear(self, throttle: Throttle) -> None:
        """Take a limit, or the end of one."""
        rate = throttle.batches_per_s
        if rate is not None and not (rate > 0 and throttle.expiry_s > 0):
            log.warning("throttle_makes_no_sense", service=self._service, throttle=throttle)
            return
        was = self.limited
        self._rate = rate
        self._until = self._clock() + throttle.expiry_s if rate is not None else 0.0
        if was != self.limited:
            log.info(
                "throttled" if self.limited else "throttle_released",
                service=self._service,
                batches_per_s=rate,
                reason=throttle.reason,
            )
        # Whoever waits looks again: the limit may have changed, or be gone.
        self._changed.set()
        self._changed = asyncio.Event()

    async def pass_(self) -> float:
        """Wait until one batch may be published; return the seconds waited."""
        started = now = self._clock()
        while self._rate is not None and now < self._until:
            if now >= self._next:
                self._next = now + 1 / self._rate
                break
            with suppress(TimeoutError):
                async with asyncio.timeout(min(self._next, self._until) - now):
                    await self._changed.wait()
            now = self._clock()
        waited = now - started
        if waited > 0:
            self.seconds_throttled += waited
            self.batches_throttled += 1
        return waited


@asynccontextmanager
async def throttle_gate(nc: Client, service: str) -> AsyncIterator[ThrottleGate]:
    """Listen for limits of a service while the block runs; one that holds already is heard at its next renewal."""
    gate = ThrottleGate(service)

    async def heard(message: Msg) -> None:
        try:
            gate.hear(msgspec.json.decode(message.data, type=Throttle))
        except msgspec.MsgspecError as error:
            log.warning("throttle_cannot_be_read", service=service, error=str(error))

    subscription = await nc.subscribe(throttle_subject(service), cb=heard)
    await nc.flush()
    try:
        yield gate
    finally:
        with suppress(nats.errors.Error):
            await subscription.unsubscribe()
