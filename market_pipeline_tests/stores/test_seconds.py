"""Bars of 1s lie in a table of their own and are written and read like all others."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import polars as pl
import pytest

from market_pipeline import payload
from market_pipeline.errors import UnreadableBatch
from market_pipeline.market.bars import BAR_SCHEMA, LIVE_AGGREGATED, TS
from market_pipeline.market.digest import value_digest
from market_pipeline.stores.bars import BarStore, BatchRange
from market_pipeline.stores.clickhouse import Client
from market_pipeline.stores.seconds import AllBarStore, retargeted
from market_pipeline_tests.stores.frames import minutes, plain, tombstones

# of now: what is older than the TTL is dropped when it pleases the server
START = datetime.now(UTC).replace(second=0, microsecond=0) - timedelta(hours=1)
SECOND = timedelta(seconds=1)


def seconds(count: int, **columns: object) -> pl.DataFrame:
    ts = pl.Series("ts", [START + place * SECOND for place in range(count)]).cast(TS)
    return minutes(count, START, timeframe="1s", source=LIVE_AGGREGATED, **columns).with_columns(ts)


def range_of(frame: pl.DataFrame) -> BatchRange:
    first = frame.row(0, named=True)
    return BatchRange(first["symbol"], first["timeframe"], first["source"], frame["ts"].min(), frame["ts"].max())


@pytest.fixture
def store(client: Client) -> AllBarStore:
    for table in ("bars", "bars_1s"):
        client.command(f"TRUNCATE TABLE {table}")
    return AllBarStore(client)


def count(client: Client, table: str) -> int:
    return int(client.rows(f"SELECT count() FROM {table}")[0][0])


@pytest.mark.parametrize("spliced", [True, False])
def test_each_goes_to_its_table_and_comes_back(store: AllBarStore, client: Client, spliced: bool) -> None:
    long, short = minutes(30, START, source=LIVE_AGGREGATED), seconds(90)
    if spliced:
        store.insert_arrow_messages([payload.encode(each) for each in (short.head(40), long, short.tail(50))])
    else:
        store.insert_frame(pl.concat([long, short]))
    assert (count(client, "bars"), count(client, "bars_1s")) == (30, 90)
    for frame, code in ((long, "1m"), (short, "1s")):
        where = range_of(frame)
        assert plain(store.stored_rows(*where)).equals(plain(frame))
        assert plain(store.winners("EURUSD", code, START, START + timedelta(days=1))).equals(plain(frame))
        assert store.span("EURUSD", code) == (where.start_ts, where.end_ts, frame.height)
        assert store.rows_of_bar("EURUSD", code, where.end_ts).height == 1
    assert BarStore(client).winners("EURUSD", "1s", START, START + timedelta(days=1)).is_empty()


def test_digests_of_both_in_one_call(store: AllBarStore) -> None:
    long, short = minutes(30, START, source=LIVE_AGGREGATED), seconds(90)
    store.insert_frame(pl.concat([long, short]))
    ranges = [range_of(short.head(40)), range_of(long), range_of(short.tail(50))]
    wanted = [(each.height, value_digest(each)) for each in (short.head(40), long, short.tail(50))]
    assert store.series_digests(ranges) == wanted
    assert store.series_digests([]) == []
    nothing = BatchRange("GBPUSD", "1s", LIVE_AGGREGATED, START, START)
    assert store.series_digests([ranges[1], nothing]) == [wanted[1], (0, 0)]


def test_the_last_word_counts_tombstones_too(store: AllBarStore) -> None:
    first = seconds(10)
    store.insert_frame(first)
    later = first.head(1).with_columns(high=pl.lit(9.0), revision=pl.col("revision") + 1)
    gone = tombstones(first.tail(1), revision=first["revision"][0] + 1)
    store.insert_frame(pl.concat([later, gone]))
    kept = store.winners("EURUSD", "1s", START, START + timedelta(minutes=1))
    assert (kept.height, kept["high"][0]) == (9, 9.0)
    assert store.stored_rows(*range_of(first), with_tombstones=True).height == 10
    said = pl.concat([later, first[1:9], gone])
    assert store.series_digests([range_of(first)]) == [(10, value_digest(said))]


def test_days_are_partitions_that_the_ttl_drops(client: Client, store: AllBarStore) -> None:
    store.insert_frame(seconds(5))
    parts = "SELECT DISTINCT partition FROM system.parts WHERE database = currentDatabase() AND table = 'bars_1s'"
    assert client.rows(parts) == [(START.strftime("%Y%m%d"),)]
    made = "SELECT create_table_query FROM system.tables WHERE database = currentDatabase() AND name = 'bars_1s'"
    assert "TTL toDateTime(ts) + toIntervalDay(7)" in client.rows(made)[0][0]


def test_statements_are_retargeted_by_whole_names() -> None:
    assert retargeted("FROM bars_ranked, bars FINAL, bar_digests, bars_final, my_bars, barsx") == (
        "FROM bars_1s_ranked, bars_1s FINAL, bar_1s_digests, bars_1s_final, my_bars, barsx"
    )


def test_what_is_no_batch_is_refused(store: AllBarStore) -> None:
    with pytest.raises(UnreadableBatch):
        store.insert_arrow_messages([payload.encode(seconds(1)), b"nothing"])
    assert list(BAR_SCHEMA) == plain(seconds(1)).columns
