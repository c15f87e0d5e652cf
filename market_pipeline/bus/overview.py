"""Streams, consumers and dead letters at one look, for those who look from outside; nothing is changed."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import nats.errors
from nats.js.api import DiscardPolicy
from nats.js.errors import APIError, NotFoundError
from nats.js.errors import Error as JetStreamError

from market_pipeline.bus.dead_letter_box import DeadLetterBox
from market_pipeline.bus.lag import Lag, consumer_lag, oldest_age_s
from market_pipeline.bus.session import BusSession, open_bus
from market_pipeline.bus.streams import BRIDGE, EXTERNAL, HISTORY, LIVE, STREAMS, TICKS, bus_error
from market_pipeline.settings import Settings

CONSUMERS = {HISTORY: BRIDGE, LIVE: BRIDGE, EXTERNAL: BRIDGE, TICKS: "ticks"}


@dataclass(frozen=True, slots=True)
class StreamStatus:
    """What one stream holds. exists: False where nobody has created it yet.

    limit: in bytes. discards_old: a full one drops its oldest; else whoever publishes waits. oldest_age_s: of the
    oldest message; None without any. lag: of its consumer into the store; None where it has none.
    """

    name: str
    exists: bool
    messages: int = 0
    bytes: int = 0
    limit: int = 0
    discards_old: bool = False
    oldest_age_s: float | None = None
    lag: Lag | None = None

    @property
    def full(self) -> float:
        """Which share of its limit it holds, 0 to 1."""
        return self.bytes / self.limit if self.limit > 0 else 0.0


@dataclass(frozen=True, slots=True)
class BusStatus:
    """The streams, and the unread dead letters as (stream, reason, how many)."""

    streams: tuple[StreamStatus, ...]
    unread: tuple[tuple[str, str, int], ...]


def read_bus_status(settings: Settings) -> BusStatus:
    """Ask NATS.

    Raises:
        BusUnreachable, BusAuthError: it cannot be asked.
    """

    async def ask() -> BusStatus:
        async with open_bus(settings.nats, "status") as bus:
            streams = await asyncio.gather(*(_stream(bus, name) for name in STREAMS))
            unread = await DeadLetterBox(bus).unread()
            return BusStatus(tuple(streams), tuple((*key, count) for key, count in sorted(unread.counts.items())))

    return asyncio.run(ask())


async def _stream(bus: BusSession, name: str) -> StreamStatus:
    try:
        info = await bus.js.stream_info(name)
        age_s = await oldest_age_s(bus.js, name) if info.state.messages else None
    except NotFoundError:
        return StreamStatus(name, exists=False)
    except (APIError, JetStreamError, nats.errors.Error, TimeoutError) as error:
        raise bus_error(error, name) from error
    return StreamStatus(
        name,
        exists=True,
        messages=info.state.messages,
        bytes=info.state.bytes,
        limit=max(0, info.config.max_bytes or 0),
        discards_old=info.config.discard == DiscardPolicy.OLD,
        oldest_age_s=age_s,
        lag=await consumer_lag(bus.js, name, CONSUMERS[name]) if name in CONSUMERS else None,
    )
