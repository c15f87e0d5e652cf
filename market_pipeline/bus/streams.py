"""The five streams and their consumers: what each keeps, how much, and what happens when it is full."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import nats.errors
import structlog
from nats.js import JetStreamContext, api
from nats.js.errors import APIError, NoStreamResponseError, NotFoundError
from nats.js.errors import Error as JetStreamError

from market_pipeline.bus.limits import MAX_PAYLOAD, MB, message_limit
from market_pipeline.errors import BusError, BusUnreachable, SettingsError, StreamMissing
from market_pipeline.market.timeframes import TIMEFRAMES

log = structlog.get_logger(__name__)

HISTORY = "HISTORY"
LIVE = "LIVE"
EXTERNAL = "EXTERNAL"
TICKS = "TICKS"
DEAD_LETTERS = "DEAD_LETTERS"
BRIDGE = "bridge"  # the durable of a work queue's one consumer, shared by every bridge

# Longer than a publisher goes on sending one batch again, so that a re-send is always recognised.
DUPLICATE_WINDOW_S = 120.0
ACK_WAIT_S = 15.0
# TICKS: three groups of the tick bridge: one is stored, one decoded, one fetched.
MAX_ACK_PENDING = {HISTORY: 64, TICKS: 2048}
MAX_ACK_PENDING_OTHERS = 256
# Room for one batch and its acknowledgement even on the smallest disk.
LEAST_BYTES = 8 * MB

NAME_IN_USE, NO_STORAGE, NO_RESOURCES, OVERLAP = 10058, 10047, 10023, 10065
NO_ROOM = frozenset({NO_STORAGE, NO_RESOURCES})
SECOND_ON_WORK_QUEUE = frozenset({10099, 10100})
CANNOT_CHANGE = frozenset({10052})
REPLICAS_NEED_CLUSTER = frozenset({10074, 10005})


@dataclass(frozen=True, slots=True)
class StreamSpec:
    """Say what one stream keeps: `max_bytes` at scale 1, `max_age_s` 0 for ever.

    discard: what gives way when it is full. NEW makes whoever publishes wait, which is right for what can be made
    again later or must not be lost. OLD is for live ticks: they cannot wait. A collector that stood still until age
    made room would lose every tick of that time; so the oldest go, which two days ago were meant to be taken, and a
    consumer that finds its place gone records that interval as lost (cause `expired`), to be repaired from REST.
    """

    name: str
    description: str
    subjects: tuple[str, ...]
    retention: api.RetentionPolicy
    max_bytes: int
    max_age_s: float = 0.0
    discard: api.DiscardPolicy = api.DiscardPolicy.NEW

    def config(self, *, replicas: int, scale: float, max_payload: int = MAX_PAYLOAD) -> api.StreamConfig:
        """Return the configuration as NATS takes it, of a server with this max_payload."""
        return api.StreamConfig(
            name=self.name,
            description=self.description,
            subjects=list(self.subjects),
            retention=self.retention,
            storage=api.StorageType.FILE,
            discard=self.discard,
            max_bytes=self.bytes_at(scale),
            max_age=self.max_age_s,
            max_msg_size=-1 if self.name == DEAD_LETTERS else message_limit(max_payload),
            duplicate_window=DUPLICATE_WINDOW_S,
            num_replicas=replicas,
        )

    def bytes_at(self, scale: float) -> int:
        """Return the limit in bytes at this scale."""
        return max(min(LEAST_BYTES, self.max_bytes), int(self.max_bytes * scale))


STREAMS: dict[str, StreamSpec] = {
    spec.name: spec
    for spec in (
        StreamSpec(
            HISTORY,
            "historical and derived bars on their way into the store",
            ("history.*.*",),
            api.RetentionPolicy.WORK_QUEUE,
            512 * MB,
        ),
        StreamSpec(
            LIVE,
            "live bars on their way into the store",
            # One by one, not market.*.*: that would take the ticks too.
            tuple(f"market.*.{code}" for code in TIMEFRAMES),
            api.RetentionPolicy.WORK_QUEUE,
            2048 * MB,
        ),
        StreamSpec(
            EXTERNAL,
            "external datasets on their way into the store",
            ("external.>",),
            api.RetentionPolicy.WORK_QUEUE,
            256 * MB,
        ),
        StreamSpec(
            TICKS,
            "live quotes and trades of two days",
            ("market.*.tick",),
            api.RetentionPolicy.LIMITS,
            4096 * MB,
            48 * 3600.0,
            api.DiscardPolicy.OLD,
        ),
        StreamSpec(
            DEAD_LETTERS,
            "messages that could not be stored, with the reason",
            ("dlq.>",),
            api.RetentionPolicy.LIMITS,
            512 * MB,
            30 * 86_400.0,
        ),
    )
}

# What we decide; everything else of an existing stream (placement, compression, metadata) stays its operator's.
_OURS = (
    "description",
    "subjects",
    "retention",
    "storage",
    "discard",
    "max_bytes",
    "max_age",
    "max_msg_size",
    "duplicate_window",
    "num_replicas",
)


def storage_needed(scale: float = 1.0) -> int:
    """Return the bytes that the five streams reserve on disk: the server's max_file_store must be at least this."""
    return sum(spec.bytes_at(scale) for spec in STREAMS.values())


async def ensure_streams(
    js: JetStreamContext, *, replicas: int = 1, scale: float = 1.0, max_payload: int = MAX_PAYLOAD
) -> None:
    """Create the streams that are missing and mend those whose configuration drifted; safe in several processes.

    `scale` multiplies every limit in bytes: for small disks and for tests. `max_payload` is the server's.

    Raises:
        SettingsError: the server has no room for the limits, a stream of somebody else takes our subjects, or one
            exists in a way that NATS cannot change.
        BusUnreachable: JetStream does not answer.
    """
    for spec in STREAMS.values():
        await _ensure_stream(js, spec.config(replicas=replicas, scale=scale, max_payload=max_payload), scale)


def consumer_config(stream: str, durable: str, *, ack_wait_s: float = ACK_WAIT_S) -> api.ConsumerConfig:
    """Return the configuration of a durable pull consumer over the whole stream.

    Every message is acknowledged by itself, and is delivered again for as long as it is not: whoever consumes counts
    the deliveries and decides. (With max_deliver a work queue keeps a message that it never shows again.)
    """
    return api.ConsumerConfig(
        name=durable,
        durable_name=durable,
        deliver_policy=api.DeliverPolicy.ALL,
        ack_policy=api.AckPolicy.EXPLICIT,
        ack_wait=ack_wait_s,
        max_deliver=-1,
        max_ack_pending=MAX_ACK_PENDING.get(stream, MAX_ACK_PENDING_OTHERS),
    )


async def ensure_consumer(
    js: JetStreamContext, stream: str, durable: str = BRIDGE, *, ack_wait_s: float = ACK_WAIT_S
) -> api.ConsumerInfo:
    """Create the durable pull consumer, or update it where its configuration drifted; safe in several processes.

    A work queue has one consumer, which every bridge shares by its name.

    Raises:
        StreamMissing: the stream does not exist. SettingsError: another consumer owns the work queue.
        BusUnreachable: JetStream does not answer.
    """
    try:
        return await js.add_consumer(stream, consumer_config(stream, durable, ack_wait_s=ack_wait_s))
    except NotFoundError as error:
        raise StreamMissing(f"the stream {stream} does not exist: start with ensure_streams") from error
    except APIError as error:
        if error.err_code in SECOND_ON_WORK_QUEUE:
            raise SettingsError(
                f"{stream} is a work queue and has a consumer already: join it by its name or delete it, "
                f"{durable!r} cannot stand beside it"
            ) from error
        raise bus_error(error, f"consumer {durable} of {stream}") from error
    except (JetStreamError, nats.errors.Error, TimeoutError) as error:
        raise bus_error(error, f"consumer {durable} of {stream}") from error


def bus_error(error: BaseException, what: str) -> BusError:
    """Turn an error of the client into one of ours: everything that is not told apart elsewhere is an outage."""
    if isinstance(error, APIError):
        return BusUnreachable(f"{what}: JetStream says {error.description or error} (code {error.err_code})")
    if isinstance(error, NoStreamResponseError):
        return BusUnreachable(f"{what}: no stream takes it, or JetStream is still starting")
    return BusUnreachable(f"{what}: JetStream does not answer ({error or type(error).__name__})")


async def _ensure_stream(js: JetStreamContext, wanted: api.StreamConfig, scale: float) -> None:
    assert wanted.name is not None
    try:
        found = await _find(js, wanted.name)
        if found is None:
            try:
                await js.add_stream(wanted)
                log.info("stream created", stream=wanted.name, max_bytes=wanted.max_bytes)
                return
            except APIError as error:
                if error.err_code == NAME_IN_USE:
                    found = await _find(js, wanted.name)  # another process was first
                elif error.err_code in NO_ROOM:
                    found = await _made_meanwhile(js, wanted.name)
                    if found is None:
                        raise
                else:
                    raise
        if found is None:
            raise BusUnreachable(f"the stream {wanted.name} comes and goes: is somebody deleting it?")
        drift = _drift(found, wanted)
        if drift:
            await js.update_stream(found.evolve(**{name: getattr(wanted, name) for name in drift}))
            log.info("stream updated", stream=wanted.name, changed=sorted(drift))
    except APIError as error:
        raise _stream_error(error, wanted, scale) from error
    except (JetStreamError, nats.errors.Error, TimeoutError) as error:
        raise bus_error(error, f"stream {wanted.name}") from error


async def _made_meanwhile(js: JetStreamContext, name: str) -> api.StreamConfig | None:
    """Return the stream that another process is just making: the server reserves room for every attempt at once."""
    for _ in range(10):
        await asyncio.sleep(0.1)
        if (found := await _find(js, name)) is not None:
            return found
    return None


async def _find(js: JetStreamContext, name: str) -> api.StreamConfig | None:
    try:
        return (await js.stream_info(name)).config
    except NotFoundError:
        return None


def _drift(found: api.StreamConfig, wanted: api.StreamConfig) -> set[str]:
    return {name for name in _OURS if _plain(getattr(found, name)) != _plain(getattr(wanted, name))}


def _plain(value: Any) -> Any:
    """Compare subjects as sets, and nothing as zero: the server leaves zeros out."""
    return sorted(value) if isinstance(value, list) else value or 0


def _stream_error(error: APIError, wanted: api.StreamConfig, scale: float) -> Exception:
    name = wanted.name
    if error.err_code in NO_ROOM:
        return SettingsError(
            f"NATS has no room on disk for the stream {name} ({(wanted.max_bytes or 0) // MB} MB): "
            f"all streams need {storage_needed(scale) // MB} MB; raise the server's max_file_store, "
            f"or ask for a smaller scale than {scale:g}"
        )
    if error.err_code == OVERLAP:
        return SettingsError(
            f"another stream takes subjects of {name} ({', '.join(wanted.subjects or [])}): "
            "delete it or change its subjects"
        )
    if error.err_code in REPLICAS_NEED_CLUSTER:
        return SettingsError(
            f"the stream {name} cannot have {wanted.num_replicas} replicas here ({error.description}): "
            "set nats.replicas (MARKET_PIPELINE_NATS__REPLICAS) to what the cluster has"
        )
    if error.err_code in CANNOT_CHANGE:
        return SettingsError(
            f"the stream {name} exists in a way that cannot be changed ({error.description}): "
            "let its consumers drain it, then delete it"
        )
    return bus_error(error, f"stream {name}")
