"""Checkpoints: where a consumer that keeps its own place in a stream goes on after a restart."""

from __future__ import annotations

from typing import TypeVar

import msgspec
import structlog
from nats.js.errors import KeyNotFoundError
from nats.js.kv import KeyValue

from market_pipeline.bus.kv import KV_ERRORS, open_bucket
from market_pipeline.bus.session import BusSession
from market_pipeline.bus.streams import bus_error
from market_pipeline.bus.subjects import token

log = structlog.get_logger(__name__)

CHECKPOINT_BUCKET = "checkpoints"

T = TypeVar("T")


class Checkpoints:
    """Keep one value a name, as JSON in a key-value bucket."""

    def __init__(self, bus: BusSession) -> None:
        self._bus = bus
        self._bucket: KeyValue | None = None

    async def load(self, name: str, kind: type[T]) -> T | None:
        """Return what was saved last under this name; None if there is nothing, or nothing that can be read.

        Raises:
            BusUnreachable: JetStream does not answer.
        """
        bucket = await self._open()
        try:
            entry = await bucket.get(token(name))
        except KeyNotFoundError:
            return None
        except KV_ERRORS as error:
            raise bus_error(error, f"checkpoint {name}") from error
        try:
            return msgspec.json.decode(entry.value or b"", type=kind)
        except msgspec.MsgspecError as error:
            # Of another version, most likely: all of the stream is read again, which costs time and nothing else.
            log.warning("checkpoint_unreadable", name=name, error=str(error))
            return None

    async def save(self, name: str, value: object) -> None:
        """Save a value (whatever msgspec encodes: structs, dataclasses, numbers, texts, lists, dicts).

        Raises:
            BusUnreachable: JetStream does not answer; the value may or may not be saved.
        """
        bucket = await self._open()
        try:
            await bucket.put(token(name), msgspec.json.encode(value))
        except KV_ERRORS as error:
            raise bus_error(error, f"checkpoint {name}") from error

    async def _open(self) -> KeyValue:
        if self._bucket is None:
            self._bucket = await open_bucket(
                self._bus.js, CHECKPOINT_BUCKET, "where consumers go on after a restart", replicas=self._bus.replicas
            )
        return self._bucket
