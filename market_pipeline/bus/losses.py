"""Losses: intervals in which events of a symbol may have been lost, kept until somebody has repaired them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol

import msgspec
import structlog
from nats.js.kv import KeyValue

from market_pipeline.bus.kv import KV_ERRORS, open_bucket, values_of
from market_pipeline.bus.session import BusSession
from market_pipeline.bus.streams import bus_error
from market_pipeline.bus.subjects import token
from market_pipeline.market.timeframes import to_ms

log = structlog.get_logger(__name__)

LOSS_BUCKET = "losses"
KEEP_S = 30 * 86_400.0

LossCause = Literal["disconnect", "overflow", "silence", "lease", "unreadable", "late", "expired", "missing"]


@dataclass(frozen=True, slots=True)
class LossInterval:
    """Say that events of `symbol` (the key) with a vendor time in [start, end), UTC, may be lost.

    cause: `disconnect`; `overflow` (more came than could be published); `silence` (the feed stood still and was given
    up); `lease` (no collector, or another one); `unreadable` (a frame or batch that could not be read); `late` (ticks
    that came after their bar was final); `expired` (batches left the stream before they were taken); `missing` (batches
    never came, as the numbers of the next ones show: a damaged spool, a message deleted).
    session_id: the session that ended at `start`, empty if none is known.
    """

    symbol: str
    start: datetime
    end: datetime
    cause: LossCause
    session_id: str = ""


class LossSink(Protocol):
    """Keep losses where repair finds them."""

    async def record(self, loss: LossInterval) -> None:
        """Keep one; recording the same one again changes nothing.

        Raises:
            BusError, StoreError: it is not kept; it will be brought again.
        """
        ...


class LossBucket:
    """Keep losses in a key-value bucket, for 30 days at most: the sink where no store is asked for."""

    def __init__(self, bus: BusSession) -> None:
        self._bus = bus
        self._bucket: KeyValue | None = None

    async def record(self, loss: LossInterval) -> None:
        """Keep one; recording the same one again changes nothing.

        Raises:
            BusUnreachable: JetStream does not answer; it is not kept.
        """
        bucket = await self._open()
        try:
            await bucket.put(_key(loss), msgspec.json.encode(loss))
        except KV_ERRORS as error:
            raise bus_error(error, "a loss") from error

    async def all(self) -> list[LossInterval]:
        """Return what is kept, by symbol and start.

        Raises:
            BusUnreachable: JetStream does not answer.
        """
        losses = await values_of(self._bus.js, await self._open(), LOSS_BUCKET, LossInterval, "losses")
        return sorted(losses, key=lambda loss: (loss.symbol, loss.start, loss.end))

    async def remove(self, losses: Sequence[LossInterval]) -> None:
        """Forget losses that are repaired.

        Raises:
            BusUnreachable: JetStream does not answer.
        """
        bucket = await self._open()
        try:
            for loss in losses:
                await bucket.purge(_key(loss))
        except KV_ERRORS as error:
            raise bus_error(error, "losses") from error

    async def _open(self) -> KeyValue:
        if self._bucket is None:
            self._bucket = await open_bucket(
                self._bus.js,
                LOSS_BUCKET,
                "intervals in which events may have been lost, until they are repaired",
                ttl_s=KEEP_S,
                replicas=self._bus.replicas,
            )
        return self._bucket


def _key(loss: LossInterval) -> str:
    return f"{token(loss.symbol)}.{to_ms(loss.start)}.{to_ms(loss.end)}.{loss.cause}"
