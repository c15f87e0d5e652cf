"""Keeping the latest values up to date: a few times a second, at best effort."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import structlog

from market_pipeline.bus.latest import LatestTick, LatestValues
from market_pipeline.bus.session import BusSession
from market_pipeline.errors import BusError
from market_pipeline.market.ticks import QUOTE
from market_pipeline.market.timeframes import to_ms
from market_pipeline.stores.ticks import TickBatch

log = structlog.get_logger(__name__)

EVERY_S = 0.25
AGAIN_S = 2.0


class LatestWriter:
    """Write what changed since the last time, each symbol once every 250 ms at most. `problem`: why it cannot."""

    def __init__(self, bus: BusSession) -> None:
        self._values = LatestValues(bus)
        self._known: dict[str, LatestTick] = {}
        self._changed: set[str] = set()
        self.problem = ""

    def take(self, batches: Iterable[TickBatch]) -> None:
        """Note the last tick of each symbol of batches that were just stored, in their order."""
        for batch in batches:
            self._known[batch.symbol] = _merged(self._known.get(batch.symbol), batch)
            self._changed.add(batch.symbol)

    async def run(self) -> None:
        """Write for ever."""
        while True:
            await asyncio.sleep(AGAIN_S if self.problem else EVERY_S)
            if not self._changed:
                continue
            symbols, self._changed = self._changed, set()
            try:
                await self._values.put([self._known[symbol] for symbol in symbols])
            except BusError as error:
                self._changed |= symbols
                if not self.problem:
                    log.warning("latest_values_not_written", error=str(error))
                self.problem = str(error)
            else:
                self.problem = ""


def _merged(before: LatestTick | None, batch: TickBatch) -> LatestTick:
    """Return the batch's last quote and last trade, each as known before where it has none."""
    kinds = batch.frame.get_column("kind")
    rows = [batch.frame.row(-1, named=True)]
    other = kinds != rows[0]["kind"]
    if other.any():
        rows.append(batch.frame.filter(other).row(-1, named=True))
    bid, ask = (before.bid, before.ask) if before else (None, None)
    price, size = (before.price, before.size) if before else (None, None)
    for row in rows:
        if row["kind"] == QUOTE:
            bid, ask = row["bid"], row["ask"]
        else:
            price, size = row["price"], row["size"]
    return LatestTick(batch.symbol, to_ms(rows[0]["ts"]), to_ms(rows[0]["received_at"]), bid, ask, price, size)
