"""The latest values: the last tick of each symbol in a key-value bucket, for whoever wants to know it now.

A cache: nothing depends on it, it lies in the server's memory, and what it holds may be a moment old. In production a
DragonflyDB can take this place; that is not built.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

import msgspec
from nats.js import api
from nats.js.errors import KeyNotFoundError
from nats.js.kv import KeyValue

from market_pipeline.bus.kv import KV_ERRORS, open_bucket
from market_pipeline.bus.session import BusSession
from market_pipeline.bus.streams import bus_error
from market_pipeline.bus.subjects import token

LATEST_BUCKET = "latest"
KEEP_S = 7 * 86_400.0
AT_ONCE = 64


class LatestTick(msgspec.Struct, frozen=True, omit_defaults=True):
    """Hold the last quote and the last trade of a symbol (the key); times are epoch ms UTC, of the later of both."""

    symbol: str
    ts: int
    received_at: int
    bid: float | None = None
    ask: float | None = None
    price: float | None = None
    size: float | None = None


class LatestValues:
    """Write and read the latest values."""

    def __init__(self, bus: BusSession) -> None:
        self._bus = bus
        self._bucket: KeyValue | None = None

    async def put(self, ticks: Sequence[LatestTick]) -> None:
        """Write values, each over the one before.

        Raises:
            BusUnreachable: JetStream does not answer; some may be written.
        """
        bucket = await self._open()
        try:
            for begin in range(0, len(ticks), AT_ONCE):
                part = ticks[begin : begin + AT_ONCE]
                await asyncio.gather(*(bucket.put(token(tick.symbol), msgspec.json.encode(tick)) for tick in part))
        except KV_ERRORS as error:
            self._bucket = None  # it may be gone: look again
            raise bus_error(error, "the latest values") from error

    async def get(self, symbols: Iterable[str]) -> dict[str, LatestTick]:
        """Return the values of the symbols (keys) that have one.

        Raises:
            BusUnreachable: JetStream does not answer.
        """
        bucket = await self._open()
        found: dict[str, LatestTick] = {}
        try:
            for symbol in symbols:
                try:
                    entry = await bucket.get(token(symbol))
                    found[symbol] = msgspec.json.decode(entry.value or b"", type=LatestTick)
                except (KeyNotFoundError, msgspec.MsgspecError):
                    continue
        except KV_ERRORS as error:
            self._bucket = None
            raise bus_error(error, "the latest values") from error
        return found

    async def _open(self) -> KeyValue:
        if self._bucket is None:
            self._bucket = await open_bucket(
                self._bus.js,
                LATEST_BUCKET,
                "the last tick of each symbol",
                ttl_s=KEEP_S,
                replicas=self._bus.replicas,
                storage=api.StorageType.MEMORY,
            )
        return self._bucket
