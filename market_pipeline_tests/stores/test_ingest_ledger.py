"""The ingest ledger: the line of a batch, its trace, a run's sums and latencies."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import polars as pl
import pytest

from market_pipeline.bus.envelope import BatchHeaders
from market_pipeline.market.timeframes import from_ms, to_ms
from market_pipeline.stores.bars import BarStore
from market_pipeline.stores.clickhouse import Client
from market_pipeline.stores.ledgers import IngestLedger, IngestRow, now_ms
from market_pipeline_tests.stores.frames import MINUTE, START, bar

# lines older than 90 days are gone with the next merge
PUBLISHED = now_ms() - 3_600_000


def headers(batch_id: int, **changed: object) -> BatchHeaders:
    stages = {
        "fetched": PUBLISHED - 300,
        "received": PUBLISHED - 200,
        "decoded": PUBLISHED - 100,
        "published": PUBLISHED,
    }
    one = BatchHeaders(
        batch_id=batch_id,
        correlation_id="c",
        source="vendor_historical",
        symbol="EURUSD",
        timeframe="1m",
        rows=100,
        digest=2**64 - 1,
        start_ts=START,
        end_ts=START + 99 * MINUTE,
        run_id="run",
        vendor_request_id="v",
        stages=stages,
    )
    return replace(one, **changed)


def line(
    batch_id: int, *, inserted: int = 50, outcome: str = "stored", run_id: str = "run", **counts: int
) -> IngestRow:
    return IngestRow.of(
        headers(batch_id, run_id=run_id),
        stream="HISTORY",
        stream_seq=2**40,
        subject="history.EURUSD.1m",
        outcome=outcome,
        stages={"bridge_received": PUBLISHED + 10, "inserted": PUBLISHED + inserted, "unknown_stage": 1},
        **counts,
    )


@pytest.fixture
def ledger(client: Client) -> IngestLedger:
    client.command("TRUNCATE TABLE ingest_batches")
    return IngestLedger(client)


def test_a_line_comes_back_as_it_went_in(ledger: IngestLedger) -> None:
    one, other = (
        line(2**63 - 1, new_rows=100),
        replace(line(3, outcome="rejected", rejected_rows=100), error="it's bad\n"),
    )
    ledger.record([one, other])
    assert ledger.outcomes([one.batch_id, other.batch_id, 99]) == {one.batch_id: one, other.batch_id: other}
    assert to_ms(one.inserted_at) == PUBLISHED + 50
    assert one.encoded_at is None
    assert ledger.outcomes([]) == {}
    ledger.record([])


def test_a_line_without_an_insert_stage_is_stamped_now() -> None:
    before = now_ms()
    row = IngestRow.of(headers(1, stages={}), stream="s", stream_seq=1, subject="x", outcome="stored")
    assert before <= to_ms(row.inserted_at) <= now_ms()
    assert row.fetched_at is None


def test_a_batch_delivered_again_keeps_what_it_changed_the_first_time(ledger: IngestLedger) -> None:
    first, again = line(1, new_rows=100), line(1, inserted=9000, unchanged_rows=100)
    ledger.record([first])
    ledger.record([again])
    assert ledger.outcomes([1]) == {1: first}
    assert ledger.trace(1) == [first, again]
    assert ledger.run_summary("run").select("batches", "new_rows", "unchanged_rows").rows() == [(1, 100, 0)]


def test_rows_are_settled_once_they_are_stored_or_rejected(ledger: IngestLedger) -> None:
    rejected = replace(line(1, outcome="rejected", rejected_rows=100), stream_seq=900)
    ledger.record([line(1, new_rows=100), rejected, rejected, line(2, new_rows=100)])
    assert ledger.rows_settled([1, 2, 3], "1m") == {1: 200, 2: 100}
    assert ledger.rows_settled([1, 2], "5m") == {}
    assert ledger.rows_settled([], "1m") == {}


def test_stored_beats_rejected(ledger: IngestLedger) -> None:
    rejected, stored = line(1, outcome="rejected", rejected_rows=100), line(1, inserted=500, new_rows=100)
    ledger.record([rejected, stored])
    assert ledger.outcomes([1]) == {1: stored}


def test_a_run_s_sums(ledger: IngestLedger) -> None:
    ledger.record([line(i, new_rows=90, restated_rows=6, unchanged_rows=4) for i in (1, 2, 3)])
    ledger.record([line(4, outcome="rejected", rejected_rows=100), line(5, run_id="another", new_rows=100)])
    (row,) = ledger.run_summary("run").iter_rows(named=True)
    assert (row["batches"], row["rejected_batches"], row["rows"]) == (4, 1, 400)
    assert (row["new_rows"], row["restated_rows"], row["unchanged_rows"], row["rejected_rows"]) == (270, 18, 12, 100)
    assert ledger.run_summary("nobody").is_empty()


def test_latency_by_stage(ledger: IngestLedger) -> None:
    ledger.record([line(i, inserted=10 + i) for i in range(1, 101)])
    ledger.record([line(999, inserted=100_000, outcome="rejected"), line(998, inserted=77_000, run_id="another")])
    found = ledger.latency("run")
    assert found["bridge_to_inserted_max"] == 100
    assert found["bridge_to_inserted_p50"] == pytest.approx(50, abs=1)
    assert found["published_to_inserted_p99"] == pytest.approx(109, abs=1)
    assert found["fetched_to_inserted_max"] == 410
    assert found["published_to_bridge_p50"] == 10
    assert ledger.latency()["published_to_inserted_max"] == 77_000
    assert ledger.latency(stream="LIVE") == {}
    assert ledger.latency(since=from_ms(now_ms()) + timedelta(days=2)) == {}


def test_the_trace_of_a_bar(ledger: IngestLedger, client: Client) -> None:
    BarStore(client).insert_frame(pl.concat([bar(batch_id=11), bar(source="live_aggregated", batch_id=12)]))
    ledger.record([line(11, inserted=70), line(12, inserted=60), line(13)])
    assert [row.batch_id for row in ledger.trace_bar("EURUSD", "1m", START)] == [12, 11]
    assert [row.batch_id for row in ledger.trace_bar("EURUSD", "1m", START, "vendor_historical")] == [11]
    assert ledger.trace_bar("EURUSD", "1m", START + MINUTE) == []


def test_lines_live_for_ninety_days(ledger: IngestLedger, client: Client) -> None:
    old = replace(line(1), inserted_at=datetime.fromisoformat("2020-01-01T00:00:00+00:00"))
    new = replace(line(2), inserted_at=datetime.fromisoformat("2099-01-01T00:00:00+00:00"))
    ledger.record([old, new])
    client.command("OPTIMIZE TABLE ingest_batches FINAL")
    assert set(ledger.outcomes([1, 2])) == {2}
