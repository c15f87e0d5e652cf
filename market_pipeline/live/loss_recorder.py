"""Losses on their way to where repair finds them."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress

import structlog

from market_pipeline.bus.losses import LossInterval, LossSink
from market_pipeline.errors import BusError, StoreError

log = structlog.get_logger(__name__)

# More than this wait only while the sink is away for long: then each symbol's become one.
MOST_WAITING = 4096
RETRY_S = 0.5


class LossRecorder:
    """Bring losses to a sink in their order, again and again while it is away."""

    def __init__(self, sink: LossSink) -> None:
        self._sink = sink
        self._waiting: list[LossInterval] = []
        self._arrived = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self.recorded: Counter[str] = Counter()

    @property
    def waiting(self) -> int:
        """Losses that the sink does not have yet."""
        return len(self._waiting)

    def add(self, loss: LossInterval) -> None:
        """Take a loss; returns at once."""
        log.warning(
            "ticks_may_be_lost",
            symbol=loss.symbol,
            start=loss.start.isoformat(),
            end=loss.end.isoformat(),
            cause=loss.cause,
            session_id=loss.session_id,
        )
        self._waiting.append(loss)
        if len(self._waiting) > MOST_WAITING:
            # The first is perhaps being recorded just now: it stays.
            self._waiting[1:] = merged(self._waiting[1:])
        self._idle.clear()
        self._arrived.set()

    async def run(self) -> None:
        """Record until cancelled."""
        said = False
        while True:
            while not self._waiting:
                self._arrived.clear()
                self._idle.set()
                await self._arrived.wait()
            loss = self._waiting[0]
            try:
                await self._sink.record(loss)
            except (BusError, StoreError) as error:
                if not said:
                    log.warning("loss_not_recorded", waiting=len(self._waiting), error=str(error))
                said = True
                await asyncio.sleep(RETRY_S)
                continue
            said = False
            self._waiting.pop(0)
            self.recorded[loss.cause] += 1

    async def drain(self, seconds: float) -> None:
        """Wait until the sink has everything, but not longer than this."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._idle.wait()


def merged(losses: list[LossInterval]) -> list[LossInterval]:
    """Return one loss for each symbol and cause, from the first start to the last end."""
    groups: dict[tuple[str, str], list[LossInterval]] = {}
    for loss in losses:
        groups.setdefault((loss.symbol, loss.cause), []).append(loss)
    return [
        LossInterval(
            symbol,
            min(each.start for each in group),
            max(each.end for each in group),
            group[0].cause,
            group[0].session_id,
        )
        for (symbol, _), group in groups.items()
    ]
