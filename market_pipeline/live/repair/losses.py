"""What is known of lost ticks: the collector's bucket in NATS, and the tick store's table in PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

import structlog

from market_pipeline.bus.losses import LossBucket, LossInterval
from market_pipeline.bus.session import BusSession
from market_pipeline.errors import StoreError, StoreQueryError
from market_pipeline.market.timeframes import ceil, floor
from market_pipeline.settings import PostgresSettings
from market_pipeline.stores.ticks import TickReader
from market_pipeline.stores.vendor_requests import Interval, merged

log = structlog.get_logger(__name__)


class KnownLosses:
    """Read the losses of both places; the tick store may be away, or not exist, and its losses are then not known.

    tick_store: what became of the last question to it, in a word or a sentence. away: whether it should have answered.
    """

    def __init__(self, postgres: PostgresSettings) -> None:
        self._reader = TickReader(postgres)
        self.tick_store = "not asked yet"
        self.away = False

    async def in_bucket(self, bus: BusSession, symbols: Iterable[str]) -> list[LossInterval]:
        """Return the losses of these symbols that nobody has repaired yet.

        Raises:
            BusUnreachable: JetStream does not answer.
        """
        wanted = set(symbols)
        return [loss for loss in await LossBucket(bus).all() if loss.symbol in wanted]

    async def in_tick_store(self, spans: Mapping[str, Interval]) -> dict[str, list[Interval]]:
        """Return, by symbol, the losses that touch its span; of what cannot be read there is none."""
        return await asyncio.to_thread(self._read, spans)

    async def forget(self, bus: BusSession, losses: Sequence[LossInterval]) -> None:
        """Take losses out of the bucket: their minutes have come, or are confirmed not to.

        Raises:
            BusUnreachable: JetStream does not answer.
        """
        if losses:
            await LossBucket(bus).remove(losses)

    async def close(self) -> None:
        """Close the connection to the tick store."""
        await asyncio.to_thread(self._reader.close)

    def _read(self, spans: Mapping[str, Interval]) -> dict[str, list[Interval]]:
        found: dict[str, list[Interval]] = {}
        try:
            for symbol, (start, end) in spans.items():
                table = self._reader.losses(symbol, start, end)
                found[symbol] = list(table.select("start", "end").iter_rows())
        except StoreError as error:
            # Where no tick store was ever started there is nothing to know: that is no fault.
            away = not isinstance(error, StoreQueryError)
            if away and not self.away:
                log.warning("losses_of_tick_store_unknown", error=str(error))
            self.tick_store, self.away = f"not known: {error}", away
        else:
            self.tick_store, self.away = "known", False
        return found


def lost_minutes(losses: Sequence[LossInterval], stored: Sequence[Interval]) -> list[Interval]:
    """Return the whole minutes that the losses of one symbol touch, merged, in order."""
    spans = [*((loss.start, loss.end) for loss in losses), *stored]
    return merged(whole(start, end) for start, end in spans if start < end)


def whole(start: datetime, end: datetime) -> Interval:
    """Return the minutes that [start, end) touches."""
    return floor(start, "1m"), ceil(end, "1m")
