"""The envelope of external observations: bounded batches that come back as they went, and damage that is named."""

from __future__ import annotations

import secrets
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest

from market_pipeline.bus.external_envelope import ExternalHeaders, decode_external, encode_external
from market_pipeline.errors import InputError, PayloadTooLarge, UnreadableBatch
from market_pipeline.market.external import OBSERVATION_SCHEMA


def observations(rows: int) -> pl.DataFrame:
    start = datetime(1900, 1, 1, tzinfo=UTC)
    return pl.DataFrame(
        {
            "series": [f"s{number % 7}" for number in range(rows)],
            "ts": [start + timedelta(days=number) for number in range(rows)],
            "value": [secrets.randbelow(10**9) / 7 for _ in range(rows)],
            "revision": [1] * rows,
            "is_deleted": [0] * rows,
        },
        schema=OBSERVATION_SCHEMA,
    )


def test_a_frame_comes_back_from_batches_of_a_bounded_size() -> None:
    frame = observations(20_000)
    batches = encode_external("a b.c", frame, correlation_id="c", run_id="r", max_bytes=64 * 1024)
    assert len(batches) > 3
    assert max(len(batch.payload) for batch in batches) <= 64 * 1024
    parts = []
    for batch in batches:
        headers = ExternalHeaders.from_nats(batch.headers.with_stage("published", 5).to_nats())
        assert headers == batch.headers.with_stage("published", 5)
        parts.append(decode_external(batch.payload, headers))
    assert pl.concat(parts).equals(frame.sort("series", "ts"))
    assert encode_external("d", frame.clear(), correlation_id="c") == []


def test_what_cannot_be_a_batch_is_refused() -> None:
    with pytest.raises(InputError, match="name"):
        encode_external("", observations(1), correlation_id="c")
    with pytest.raises(PayloadTooLarge):
        encode_external("d", observations(1), correlation_id="c", max_bytes=100)


def test_damage_is_named() -> None:
    (batch,) = encode_external("d", observations(3), correlation_id="c")
    with pytest.raises(UnreadableBatch) as found:
        decode_external(batch.payload + b"x", batch.headers)
    assert found.value.reason == "digest_mismatch"
    with pytest.raises(UnreadableBatch, match="the headers say 4 rows"):
        decode_external(batch.payload, replace(batch.headers, rows=4))
    with pytest.raises(UnreadableBatch, match="Dataset is missing"):
        ExternalHeaders.from_nats({k: v for k, v in batch.headers.to_nats().items() if k != "Dataset"})
    with pytest.raises(UnreadableBatch, match="schema version 2"):
        ExternalHeaders.from_nats(batch.headers.to_nats() | {"Schema-Version": "2"})
