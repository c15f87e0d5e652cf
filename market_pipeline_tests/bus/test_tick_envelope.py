"""The envelope of tick batches: what goes round comes round, and nothing wrong gets in."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_pipeline.bus.publisher import headers_size
from market_pipeline.bus.tick_envelope import (
    TickHeaders,
    decode_tick_batch,
    new_batch_id,
    usual_correlation_id,
)
from market_pipeline.errors import UnreadableBatch
from market_pipeline.market.ticks import TICK_SCHEMA
from market_pipeline_tests.bus.tick_batches import EpochFence, encode_tick_batch

NOW = datetime(2026, 3, 2, 12, 0, 0, 123_000, tzinfo=UTC)
HEADERS = TickHeaders(
    batch_id=7,
    correlation_id="host.1:EURUSD:1",
    symbol="EURUSD",
    collector_id="host-1",
    epoch=3,
    rows=0,
    session_id="host-1.3.1",
    session_started=NOW - timedelta(minutes=1),
    alive_at=NOW,
    lost_from=NOW - timedelta(minutes=2),
    stages={"received": 1_700_000_000_000},
    replayed=True,
)


def frame(rows: int, symbol: str = "EURUSD") -> pl.DataFrame:
    ticks = [
        {
            "symbol": symbol,
            "ts": NOW + timedelta(milliseconds=(37 * row) % 100),
            "kind": "quote",
            "bid": 1.1 + row,
            "ask": 1.2 + row,
            "price": None,
            "size": None,
            "exchange": "48",
            "conditions": None,
            "received_at": NOW,
        }
        for row in range(rows)
    ]
    return pl.DataFrame(ticks, schema=TICK_SCHEMA)


def test_round_trip_of_a_batch() -> None:
    batch = encode_tick_batch(frame(50), HEADERS)
    headers = TickHeaders.from_nats(batch.headers.to_nats())
    assert headers == batch.headers
    assert (headers.rows, headers.first_ts) == (50, NOW)
    assert headers.last_ts == batch.headers.last_ts == frame(50).get_column("ts").max()
    back = decode_tick_batch(batch.payload, headers)
    assert back.select(list(TICK_SCHEMA)).equals(frame(50))
    assert back.get_column("n").to_list() == list(range(50))
    assert back.get_column("batch_id").unique().to_list() == [7]


def test_a_heartbeat_has_no_payload_and_keeps_its_proof() -> None:
    batch = encode_tick_batch(frame(0), HEADERS)
    assert batch.payload == b""
    headers = TickHeaders.from_nats(batch.headers.to_nats())
    assert headers.heartbeat
    assert (headers.first_ts, headers.last_ts) == (None, None)
    assert (headers.alive_at, headers.session_started, headers.lost_from) == (
        NOW,
        NOW - timedelta(minutes=1),
        NOW - timedelta(minutes=2),
    )
    assert decode_tick_batch(b"", headers).is_empty()


def test_what_is_usual_is_not_sent() -> None:
    usual = replace(HEADERS, correlation_id=usual_correlation_id(HEADERS.batch_id), lost_from=None)
    sent = encode_tick_batch(frame(50), usual).headers.with_stage("published").to_nats()
    assert not {"Source", "Correlation-Id", "Lost-From"} & set(sent)
    assert headers_size(sent) <= 330
    back = TickHeaders.from_nats(sent)
    assert (back.source, back.correlation_id) == ("vendor_stream", "7")
    unusual = replace(HEADERS, source="replay", correlation_id="dagster-1")
    assert TickHeaders.from_nats(unusual.to_nats()) == unusual


@given(st.text(min_size=1, max_size=20), st.text(min_size=1, max_size=20), st.integers(0, 2**63 - 1))
def test_any_text_goes_round(symbol: str, session: str, epoch: int) -> None:
    headers = replace(HEADERS, symbol=symbol, session_id=session, epoch=epoch, lost_from=None)
    sent = headers.to_nats()
    assert all(value.isascii() and value.isprintable() for value in sent.values())
    assert TickHeaders.from_nats(sent) == headers


@pytest.mark.parametrize(
    ("header", "value", "reason"),
    [
        ("Batch-Id", "0", "unreadable_envelope"),
        ("Batch-Id", None, "unreadable_envelope"),
        ("Rows", "-1", "unreadable_envelope"),
        ("Rows", "2", "unreadable_envelope"),  # rows without their times
        ("Epoch", "x", "unreadable_envelope"),
        ("Symbol", "", "unreadable_envelope"),
        ("Alive-At", None, "unreadable_envelope"),
        ("Alive-At", "-62135596800000", "unreadable_envelope"),  # nothing is earlier, no margin can be taken off
        ("Session-Started", "1e9", "unreadable_envelope"),
        ("Lost-From", "yesterday", "unreadable_envelope"),
        ("Schema-Version", "9", "schema_version"),
    ],
)
def test_a_wrong_header_is_named(header: str, value: str | None, reason: str) -> None:
    sent: dict[str, Any] = HEADERS.to_nats()
    sent.pop(header)
    if value is not None:
        sent[header] = value
    with pytest.raises(UnreadableBatch, match="version" if reason == "schema_version" else header) as raised:
        TickHeaders.from_nats(sent)
    assert raised.value.reason == reason


def test_a_payload_of_other_headers_is_refused() -> None:
    batch = encode_tick_batch(frame(3), HEADERS)
    for wrong in ({"rows": 2}, {"symbol": "GBPUSD"}, {"batch_id": 8}):
        with pytest.raises(UnreadableBatch):
            decode_tick_batch(batch.payload, replace(batch.headers, **wrong))
    with pytest.raises(UnreadableBatch):
        decode_tick_batch(b"", batch.headers)


def test_batch_ids_are_random_and_fit() -> None:
    ids = {new_batch_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(0 < each < 2**63 for each in ids)


def test_the_fence_keeps_out_who_lost_the_lease() -> None:
    fence = EpochFence({"EURUSD": 2})
    assert not fence.admits(replace(HEADERS, epoch=1))
    assert fence.admits(replace(HEADERS, epoch=2))
    assert fence.admits(replace(HEADERS, epoch=4))
    assert not fence.admits(replace(HEADERS, epoch=3))
    assert fence.admits(replace(HEADERS, epoch=3, symbol="GBPUSD"))
    assert fence.highest == {"EURUSD": 4, "GBPUSD": 3}
