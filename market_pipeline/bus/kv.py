"""Opening a key-value bucket that several processes may be the first to want."""

from __future__ import annotations

from typing import TypeVar

import msgspec
import nats.errors
import structlog
from nats.js import JetStreamContext, api
from nats.js.errors import APIError, BucketNotFoundError, KeyNotFoundError
from nats.js.errors import Error as JetStreamError
from nats.js.kv import KeyValue

from market_pipeline.bus.streams import NAME_IN_USE, bus_error

log = structlog.get_logger(__name__)

T = TypeVar("T")

KV_ERRORS = (APIError, JetStreamError, nats.errors.Error, TimeoutError, OSError)
"""What an operation on a bucket raises when JetStream is away, besides what it is asked to tell apart."""


async def open_bucket(
    js: JetStreamContext,
    name: str,
    description: str,
    *,
    ttl_s: float | None = None,
    replicas: int = 1,
    storage: api.StorageType = api.StorageType.FILE,
) -> KeyValue:
    """Return the bucket of this name, one revision a key; it is created when there is none, on disk unless told so.

    Raises:
        BusUnreachable: JetStream does not answer.
    """
    try:
        try:
            return await js.key_value(name)
        except BucketNotFoundError:
            pass
        try:
            return await js.create_key_value(
                api.KeyValueConfig(
                    bucket=name,
                    description=description,
                    storage=storage,
                    history=1,
                    ttl=ttl_s,
                    replicas=replicas,
                )
            )
        except APIError as error:
            if error.err_code != NAME_IN_USE:
                raise
            return await js.key_value(name)  # another process was first
    except KV_ERRORS as error:
        raise bus_error(error, f"bucket {name}") from error


async def values_of(js: JetStreamContext, bucket: KeyValue, name: str, kind: type[T], what: str) -> list[T]:
    """Return every value of the bucket of this name, as JSON of this kind; what cannot be read is said and left out.

    The server lists the keys: `KeyValue.keys()` watches for them, and now and then finds none or too few, where the
    first ones come before it has asked how many there are.

    Raises:
        BusUnreachable: JetStream does not answer; `what` is named.
    """
    found: list[T] = []
    try:
        prefix = f"$KV.{name}."
        subjects = (await js.stream_info(f"KV_{name}", subjects_filter=f"{prefix}>")).state.subjects or {}
        for key in sorted(subject.removeprefix(prefix) for subject in subjects):
            try:
                found.append(msgspec.json.decode((await bucket.get(key)).value or b"", type=kind))
            except KeyNotFoundError:
                continue  # it went meanwhile
            except msgspec.MsgspecError as error:
                log.warning("value_unreadable", bucket=what, key=key, error=str(error))
    except KV_ERRORS as error:
        raise bus_error(error, what) from error
    return found
