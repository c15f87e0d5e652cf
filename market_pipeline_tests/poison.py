"""Messages that no store may take, one kind for each reason of a dead letter."""

from __future__ import annotations

import polars as pl

from market_pipeline.bus.dead_letters import Reason
from market_pipeline.bus.envelope import EncodedBatch, encode_batches
from market_pipeline.bus.subjects import market_subject

REFUSED_VOLUME = 666.0
"""What the store is made to refuse, as if by a rule of its own."""
KINDS = (
    Reason.UNREADABLE_ENVELOPE,
    Reason.SCHEMA_VERSION,
    Reason.UNREADABLE_PAYLOAD,
    Reason.DIGEST_MISMATCH,
    Reason.MALFORMED_ROW,
    Reason.UNKNOWN_SYMBOL,
    Reason.INSERT_FAILED,
)

Message = tuple[str, bytes, dict[str, str]]
SUBJECT = market_subject("EURUSD", "1m")


def one(frame: pl.DataFrame, correlation_id: str = "poison") -> EncodedBatch:
    """Return the frame as one batch of live bars."""
    [batch] = encode_batches(frame, correlation_id=correlation_id)
    return batch


def poison(kind: Reason, frame: pl.DataFrame, correlation_id: str = "poison") -> Message:
    """Return a batch of these two bars, spoilt so that it goes to dead letters for this reason."""
    if kind is Reason.UNKNOWN_SYMBOL:
        frame = frame.with_columns(symbol=pl.lit("NOSUCH"))
    elif kind is Reason.INSERT_FAILED:
        frame = frame.with_columns(volume=pl.lit(REFUSED_VOLUME))
    elif kind is Reason.MALFORMED_ROW:
        frame = frame.with_columns(volume=pl.Series([frame["volume"][0], -1.0]))
    batch = one(frame, correlation_id)
    headers, payload = batch.headers.to_nats(), batch.payload
    if kind is Reason.UNREADABLE_ENVELOPE:
        headers["Batch-Id"] = "many"
    elif kind is Reason.SCHEMA_VERSION:
        headers["Schema-Version"] = "2"
    elif kind is Reason.UNREADABLE_PAYLOAD:
        payload = b"not Arrow" + payload[:40]
    elif kind is Reason.DIGEST_MISMATCH:
        headers["Digest"] = str(batch.headers.digest ^ 1)
    return market_subject(batch.headers.symbol, "1m"), payload, headers
