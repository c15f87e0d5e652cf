"""The envelope of external observations: headers, an Arrow payload of a bounded size, and how they are published."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from hashlib import blake2b

import polars as pl
import pyarrow as pa
import pyarrow.ipc

from market_pipeline.bus.envelope import MAX_BYTES, new_batch_id, now_ms
from market_pipeline.bus.header_fields import EVER_MS, BatchFields, read_stages, stage_fields
from market_pipeline.bus.publisher import PubAck, Publisher
from market_pipeline.bus.subjects import external_subject
from market_pipeline.errors import InputError, PayloadTooLarge, UnreadableBatch
from market_pipeline.market.external import OBSERVATION_SCHEMA, check_observations

SCHEMA_VERSION = 1
UNREADABLE = "unreadable_payload"
_FIRST_ROWS = 16_384
_FIELDS = BatchFields(
    SCHEMA_VERSION,
    "a batch of observations",
    {"correlation_id": "Correlation-Id", "dataset": "Dataset"},
    span_ms=EVER_MS,
)


@dataclass(frozen=True, slots=True)
class ExternalHeaders:
    """Describe a batch of observations without its payload.

    batch_id: random, 1 … 2^63 − 1, in every stored row and in the ledger. dataset: of every row, such as `fred`.
    digest: BLAKE2b (64 bits) of the payload's bytes. start_ts, end_ts: first and last ts, UTC, both inclusive.
    stages: epoch ms at which the batch passed each stage.
    """

    batch_id: int
    correlation_id: str
    dataset: str
    rows: int
    digest: int
    start_ts: datetime
    end_ts: datetime
    run_id: str = ""
    vendor_request_id: str = ""
    stages: Mapping[str, int] = field(default_factory=dict)

    def with_stage(self, name: str, at_ms: int | None = None) -> ExternalHeaders:
        """Return the headers with one more stage, by default passed now."""
        return replace(self, stages={**self.stages, name: now_ms() if at_ms is None else at_ms})

    def to_nats(self) -> dict[str, str]:
        """Return the NATS headers: printable ASCII; empty texts are left out."""
        return _FIELDS.write(self) | stage_fields(self.stages)

    @classmethod
    def from_nats(cls, headers: Mapping[str, str] | None) -> ExternalHeaders:
        """Read the NATS headers of a message; headers of others are passed over.

        Raises:
            UnreadableBatch: a header is missing or wrong (reason `unreadable_envelope`), or the schema version is
                not ours (reason `schema_version`).
        """
        given = headers or {}
        return cls(**_FIELDS.read(given), stages=read_stages(given))


@dataclass(frozen=True, slots=True)
class ExternalBatch:
    """Hold a batch that is ready to be published; `frame_slice` has the rows that `payload` encodes."""

    headers: ExternalHeaders
    payload: bytes
    frame_slice: pl.DataFrame


def encode_external(
    dataset: str,
    frame: pl.DataFrame,
    *,
    correlation_id: str,
    run_id: str = "",
    vendor_request_id: str = "",
    stages: Mapping[str, int] | None = None,
    max_bytes: int = MAX_BYTES,
) -> list[ExternalBatch]:
    """Cut observations of one dataset (OBSERVATION_SCHEMA) into batches whose payload is at most `max_bytes`.

    Rows are taken in the order of series and ts. An empty frame gives no batch.

    Raises:
        InputError: the dataset has no name, or the columns are not those of OBSERVATION_SCHEMA.
        PayloadTooLarge: not even one row fits.
    """
    if not dataset:
        raise InputError("a dataset needs a name")
    left = check_observations(frame).sort("series", "ts")
    batches: list[ExternalBatch] = []
    rows = _FIRST_ROWS
    while left.height:
        part = left.head(rows)
        payload = _encoded(part)
        if len(payload) > max_bytes:
            if part.height == 1:
                raise PayloadTooLarge(f"one row takes {len(payload)} bytes, more than the {max_bytes} of a batch")
            rows = part.height // 2
            continue
        left = left.slice(part.height)
        ts = part.get_column("ts")
        first, last = ts.min(), ts.max()
        if not (isinstance(first, datetime) and isinstance(last, datetime)):
            raise InputError("ts: null")
        headers = ExternalHeaders(
            batch_id=new_batch_id(),
            correlation_id=correlation_id,
            dataset=dataset,
            rows=part.height,
            digest=_digest(payload),
            start_ts=first,
            end_ts=last,
            run_id=run_id,
            vendor_request_id=vendor_request_id,
            stages={**(stages or {}), "encoded": now_ms()},
        )
        batches.append(ExternalBatch(headers, payload, part))
    return batches


def decode_external(payload: bytes, headers: ExternalHeaders) -> pl.DataFrame:
    """Decode the payload of a batch and prove that it is the one of these headers; columns of OBSERVATION_SCHEMA.

    Raises:
        UnreadableBatch: reason `unreadable_payload` (not Arrow, or other columns) or `digest_mismatch`.
    """
    if _digest(payload) != headers.digest:
        raise UnreadableBatch("the digest of the payload is not the headers'", reason="digest_mismatch")
    try:
        with pa.ipc.open_stream(payload) as reader:
            table = reader.read_all()
        table.validate(full=True)
        frame = pl.from_arrow(table)
        assert isinstance(frame, pl.DataFrame)
        frame = check_observations(frame)
    except (pa.ArrowException, ValueError, KeyError, TypeError, OSError, InputError) as error:
        raise UnreadableBatch(f"the payload is no Arrow stream of observations: {error}", reason=UNREADABLE) from error
    if frame.height != headers.rows:
        raise UnreadableBatch(
            f"the headers say {headers.rows} rows, the payload has {frame.height}", reason="digest_mismatch"
        )
    return frame


async def publish_external(publisher: Publisher, batch: ExternalBatch) -> PubAck:
    """Publish a batch to `external.{dataset}`, under the rules of `Publisher.publish`."""
    headers = batch.headers.with_stage("published").to_nats()
    return await publisher.publish_message(external_subject(batch.headers.dataset), batch.payload, headers)


def _encoded(frame: pl.DataFrame) -> bytes:
    sink = io.BytesIO()
    frame.select(list(OBSERVATION_SCHEMA)).rechunk().write_ipc_stream(
        sink, compression="lz4", compat_level=pl.CompatLevel.oldest()
    )
    return sink.getvalue()


def _digest(payload: bytes) -> int:
    return int.from_bytes(blake2b(payload, digest_size=8).digest(), "big")
