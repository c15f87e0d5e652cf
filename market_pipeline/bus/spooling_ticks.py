"""Ticks through an outage: they cannot be asked for again, so what NATS cannot take goes to disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta

import structlog

from market_pipeline.bus.envelope import now_ms
from market_pipeline.bus.losses import LossInterval
from market_pipeline.bus.publisher import PubAck, Publisher
from market_pipeline.bus.session import BusSession
from market_pipeline.bus.spool import SpoolRecord
from market_pipeline.bus.spooling import Spooled, SpoolingPublisher
from market_pipeline.bus.tick_envelope import EncodedTicks, TickHeaders, new_batch_id
from market_pipeline.bus.tick_publisher import RETRY_FOR_S, WAIT_FULL_S, tick_message
from market_pipeline.errors import UnreadableBatch
from market_pipeline.settings import Settings

log = structlog.get_logger(__name__)

_MS = timedelta(milliseconds=1)
OnLoss = Callable[[LossInterval], None]


class SpoolingTicks:
    """Publish tick batches to TICKS, or keep them on disk until NATS is back."""

    def __init__(self, bus: BusSession, settings: Settings, name: str, on_loss: OnLoss) -> None:
        """Prepare; `on_loss` is told what a full spool gives up, where the settings let it give up the oldest."""
        publisher = Publisher(bus.nc, bus.js, ack_timeout_s=2.0, retry_for_s=RETRY_FOR_S, wait_full_s=WAIT_FULL_S)
        self._on_loss = on_loss
        self._spooling = SpoolingPublisher(bus, settings, name, publisher=publisher, on_given_up=self._give_up)

    async def publish(self, batch: EncodedTicks) -> PubAck | Spooled:
        """Publish one batch, or spool it; stamps the stage `published`.

        Raises:
            StreamFull, SpoolError: neither; the batch may be published again.
            PayloadTooLarge: more than the server takes.
        """
        return await self._spooling.publish_message(*tick_message(batch))

    async def spool(self, batch: EncodedTicks) -> Spooled:
        """Spool one batch without trying to publish it; the drain does.

        Raises:
            SpoolError: it is not kept; the batch may be brought again.
        """
        return await self._spooling.spool_message(*tick_message(batch))

    async def settle(self, seconds: float) -> bool:
        """Wait until what is spooled here, or was left by others, is published; False if it is not after so long."""
        return await self._spooling.settle(seconds)

    async def close(self) -> None:
        """Leave what is not drained to the next publisher."""
        await self._spooling.close()

    def facts(self) -> dict[str, int | float | str]:
        """Return flat facts for health."""
        return self._spooling.facts()

    def problems(self) -> list[str]:
        """Return what is wrong, in words a person can act on."""
        return self._spooling.problems()

    def _give_up(self, lost: Sequence[SpoolRecord]) -> list[SpoolRecord]:
        """Tell of a loss in both ways in which one is told: to repair, and in the symbol's stream."""
        by_subject: dict[str, list[TickHeaders]] = {}
        for record in lost:
            try:
                by_subject.setdefault(record.subject, []).append(TickHeaders.from_nats(record.headers))
            except UnreadableBatch as error:
                log.error("spooled_ticks_unreadable", subject=record.subject, error=str(error))
        told = []
        for subject, batches in by_subject.items():
            headers = _loss_of(batches)
            if headers is None:
                # Nothing was in them to lose; the last one says all that they said.
                headers = batches[-1]
                if not headers.number:
                    continue
            else:
                assert headers.lost_from is not None
                self._on_loss(
                    LossInterval(headers.symbol, headers.lost_from, headers.alive_at, "overflow", batches[0].session_id)
                )
            fields = replace(headers, covers=_covered(batches)).to_nats()
            told.append(SpoolRecord(subject, f"{headers.batch_id:x}", fields, b"", now_ms()))
        return told


def _covered(batches: Sequence[TickHeaders]) -> int:
    """Return how many numbers the one stands for that is published instead of batches, under the number of the last."""
    last = batches[-1]
    firsts = [each.number - each.covers + 1 for each in batches if each.epoch == last.epoch and each.number]
    return last.number - min(firsts) + 1 if last.number else 1


def _loss_of(batches: Sequence[TickHeaders]) -> TickHeaders | None:
    """Return the heartbeat that tells of batches which nobody will get; None if there was nothing in them to lose.

    It is of a session of its own, which claims nothing but that: consumers hold what it says against every session.
    """
    begins = [each.first_ts for each in batches if each.first_ts is not None]
    ends = [each.last_ts + _MS for each in batches if each.last_ts is not None]
    for each in batches:  # a loss of which these batches were the ones to tell
        if each.lost_from is not None:
            begins.append(each.lost_from)
            ends.append(each.session_started)
    if not begins or min(begins) >= max(ends):
        return None
    last, at = batches[-1], max(ends)
    batch_id = new_batch_id()
    return replace(
        last,
        batch_id=batch_id,
        correlation_id=f"given-up-{batch_id:x}",
        rows=0,
        first_ts=None,
        last_ts=None,
        session_id=f"{last.session_id}-given-up-{batch_id:x}",
        session_started=at,
        alive_at=at,
        lost_from=min(begins),
    )
