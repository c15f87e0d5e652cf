"""Bars: which of several rows wins, what a source's last word is, and what readers get."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from itertools import combinations, permutations

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from market_pipeline import payload
from market_pipeline.errors import InvalidBars, StoreQueryError, UnreadableBatch
from market_pipeline.market.bars import BAR_SCHEMA, MINUTE_SOURCES, STORED_SCHEMA
from market_pipeline.stores.bars import BarStore
from market_pipeline.stores.clickhouse import Client
from market_pipeline_tests.stores.frames import MINUTE, START, bar, minutes, plain, raw_rows, tombstones

END = START + timedelta(days=1)
BY_RANK = ("vendor_historical", "historical_aggregated", "live_gap_filled", "live_aggregated")
"""The sources of minutes, weakest first, as the design ranks them."""


@pytest.fixture
def store(client: Client) -> Iterator[BarStore]:
    """An empty table in which nothing merges, so that reading alone must get it right."""
    client.command("TRUNCATE TABLE bars")
    client.command("SYSTEM STOP MERGES bars")
    yield BarStore(client)
    client.command("SYSTEM START MERGES bars")


def winner(store: BarStore) -> tuple[str, float]:
    """Return source and close of the one winning bar, as the read view and the API agree on it."""
    ours = store.winners("EURUSD", "1m", START, END)
    theirs = store.client.frame("SELECT * FROM bars_final")
    assert_frame_equal(
        ours.select("ts", "source", "close", "revision"), theirs.select("ts", "source", "close", "revision")
    )
    assert ours.height == 1
    return ours["source"][0], ours["close"][0]


def test_the_ranked_sources_are_all_sources_of_minutes() -> None:
    assert set(BY_RANK) == set(MINUTE_SOURCES)


@pytest.mark.parametrize(("weaker", "stronger"), list(combinations(BY_RANK, 2)))
def test_the_higher_rank_wins_whatever_came_last_or_is_newer(store: BarStore, weaker: str, stronger: str) -> None:
    store.insert_frame(bar(source=stronger, close=2.0, revision=10))
    store.insert_frame(bar(source=weaker, close=1.0, revision=99))
    assert winner(store) == (stronger, 2.0)


@pytest.mark.parametrize(("incomplete", "complete"), list(permutations(BY_RANK, 2)))
def test_an_incomplete_bar_never_beats_a_complete_one(store: BarStore, incomplete: str, complete: str) -> None:
    store.insert_frame(bar(source=complete, close=1.0))
    store.insert_frame(bar(source=incomplete, close=2.0, complete=False, revision=9_999_999_999_999))
    assert winner(store) == (complete, 1.0)


@pytest.mark.parametrize(("weaker", "stronger"), list(combinations(BY_RANK, 2)))
def test_of_two_incomplete_bars_the_higher_rank_wins(store: BarStore, weaker: str, stronger: str) -> None:
    store.insert_frame(pl.concat([bar(source=weaker, complete=False), bar(source=stronger, complete=False, close=2.0)]))
    assert winner(store) == (stronger, 2.0)


def test_a_source_that_demotes_its_bar_loses_it(store: BarStore) -> None:
    store.insert_frame(pl.concat([bar(source="live_aggregated", close=2.0, revision=1), bar(close=1.0)]))
    assert winner(store)[0] == "live_aggregated"
    store.insert_frame(bar(source="live_aggregated", close=2.0, revision=2, complete=False))
    assert winner(store) == ("vendor_historical", 1.0)


def test_the_later_revision_of_a_source_wins_in_any_order(store: BarStore) -> None:
    for revision in (5, 9, 7):
        store.insert_frame(bar(close=float(revision), revision=revision))
    assert winner(store) == ("vendor_historical", 9.0)
    assert raw_rows(store.client) == 3
    assert store.max_revision("EURUSD", "1m", "vendor_historical", START, END) == 9
    assert store.max_revision("EURUSD", "1m", "vendor_historical", END, END + MINUTE) == 0


def test_a_tombstone_uncovers_the_next_source_and_a_later_revision_lifts_it(store: BarStore) -> None:
    live = bar(source="live_aggregated", close=2.0, revision=5)
    store.insert_frame(pl.concat([live, bar(close=1.0)]))
    store.insert_frame(tombstones(live, revision=6))
    assert winner(store) == ("vendor_historical", 1.0)
    assert store.stored_rows("EURUSD", "1m", "live_aggregated", START, START).is_empty()
    kept = store.stored_rows("EURUSD", "1m", "live_aggregated", START, START, with_tombstones=True)
    assert_frame_equal(plain(kept), plain(tombstones(live, revision=6)))
    store.insert_frame(bar(source="live_aggregated", close=3.0, revision=7))
    assert winner(store) == ("live_aggregated", 3.0)


def test_an_earlier_revision_does_not_lift_a_tombstone(store: BarStore) -> None:
    store.insert_frame(tombstones(bar(), revision=10))
    store.insert_frame(bar(revision=9))
    assert store.winners("EURUSD", "1m", START, END).is_empty()
    assert (
        store.stored_rows("EURUSD", "1m", "vendor_historical", START, START, with_tombstones=True)["is_deleted"][0] == 1
    )


def test_merged_parts_say_the_same_as_unmerged_ones(store: BarStore) -> None:
    first, second = minutes(200), minutes(200, seed=2, revision=1_800_000_000_000)
    store.insert_frame(first)
    store.insert_frame(second[50:])
    store.insert_frame(tombstones(second[150:], revision=1_900_000_000_000))
    store.insert_frame(minutes(100, seed=3, source="live_gap_filled"))
    before = store.winners("EURUSD", "1m", START, END)
    assert before.height == 150
    store.client.command("SYSTEM START MERGES bars")
    store.client.command("OPTIMIZE TABLE bars FINAL")
    assert_frame_equal(store.winners("EURUSD", "1m", START, END), before)
    assert_frame_equal(store.client.frame("SELECT close FROM bars_final ORDER BY ts"), before.select("close"))


def test_several_writers_at_once_lose_nothing(store: BarStore) -> None:
    parts = [minutes(100, START + i * 100 * MINUTE, seed=i) for i in range(24)]

    def write(part: pl.DataFrame) -> None:
        half = part.height // 2
        store.insert_arrow_messages([payload.encode(part[:half]), payload.encode(part[half:])])

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(write, parts))
    whole = pl.concat(parts)
    assert_frame_equal(plain(store.winners("EURUSD", "1m", START, END + timedelta(days=1))), plain(whole))


def test_winners_have_the_columns_asked_for(store: BarStore) -> None:
    frame = minutes(10)
    store.insert_frame(frame)
    all_columns = store.winners("EURUSD", "1m", START, END)
    assert all_columns.schema == BAR_SCHEMA
    assert_frame_equal(all_columns, plain(frame))
    some = store.winners("EURUSD", "1m", START, START + 4 * MINUTE, ["symbol", "close", "is_deleted", "batch_id"])
    assert some.columns == ["symbol", "close", "is_deleted", "batch_id"]
    assert some.height == 4
    assert store.winners("EURUSD", "1m", START, END, ["symbol"])["symbol"].to_list() == ["EURUSD"] * 10
    assert store.winners("USDJPY", "1m", START, END).schema == BAR_SCHEMA
    with pytest.raises(ValueError, match="no such columns of a bar: nope"):
        store.winners("EURUSD", "1m", START, END, ["nope"])


def test_stored_rows_include_both_ends(store: BarStore) -> None:
    frame = minutes(10)
    store.insert_frame(frame)
    for with_tombstones in (False, True):
        rows = store.stored_rows(
            "EURUSD", "1m", "vendor_historical", frame["ts"][2], frame["ts"][5], with_tombstones=with_tombstones
        )
        assert rows.schema == STORED_SCHEMA
        assert_frame_equal(plain(rows), plain(frame[2:6]))


def test_series_keep_apart(store: BarStore) -> None:
    store.insert_frame(
        pl.concat(
            [
                bar(),
                bar(symbol="USDJPY", close=2.0),
                bar(timeframe="5m", source="derived", origin="live_aggregated", close=3.0),
            ]
        )
    )
    assert store.winners("EURUSD", "5m", START, END)["origin"].to_list() == ["live_aggregated"]
    assert store.client.rows("SELECT count() AS n FROM bars_final") == [(3,)]


def test_window_revisions_count_losers_and_tombstones(store: BarStore) -> None:
    far = 2**50  # larger than any time in ms
    store.insert_frame(minutes(10, revision=far + 5))
    store.insert_frame(bar(START + 2 * MINUTE, source="live_aggregated", revision=far + 9))
    store.insert_frame(tombstones(bar(START + 7 * MINUTE), revision=far + 8))
    store.insert_frame(bar(START + 20 * MINUTE, timeframe="5m", source="derived", revision=far + 99))
    found = store.window_revisions("EURUSD", START, END)
    assert found.schema == {"ts": BAR_SCHEMA["ts"], "revision": pl.UInt64}
    assert found.rows() == [(START, far + 9), (START + 5 * MINUTE, far + 8)]


def test_a_window_has_a_later_revision_whenever_one_of_its_minutes_changed(store: BarStore) -> None:
    def revision() -> int:
        return int(store.window_revisions("EURUSD", START, START + 5 * MINUTE)["revision"][0])

    store.insert_frame(minutes(5, revision=5))
    seen = [revision()]
    assert seen == [revision()]
    # the vendor's revision is large, those of live minutes that change afterwards are smaller
    for change in (bar(START, revision=1_000), bar(START + MINUTE, revision=7), bar(START + MINUTE, revision=8)):
        time.sleep(0.002)  # the server tells changes apart by the millisecond
        store.insert_frame(change)
        seen.append(revision())
    assert seen == sorted(set(seen))


def test_facts(store: BarStore) -> None:
    day = timedelta(days=1)
    store.insert_frame(minutes(3))
    store.insert_frame(minutes(3, source="live_aggregated", complete=False, revision=1))
    store.insert_frame(minutes(2, START + day, complete=False))
    counts = store.counts_by_day("EURUSD", "1m", START, START + 3 * day)
    assert counts.select("date", "rows", "complete_rows").rows() == [(START.date(), 3, 3), ((START + day).date(), 2, 0)]
    assert store.span("EURUSD", "1m") == (START, START + day + MINUTE, 5)
    assert store.span("EURUSD", "1h") is None
    newest = store.latest(["EURUSD", "USDJPY"], "1m")
    assert newest.select("symbol", "ts", "complete_ts").rows() == [("EURUSD", START + day + MINUTE, START + 2 * MINUTE)]
    assert store.latest(["USDJPY"], "1m").is_empty()
    assert store.overview().select("symbol", "timeframe", "bars").rows() == [("EURUSD", "1m", 5)]
    assert store.rows_of_bar("EURUSD", "1m", START)["source"].to_list() == ["live_aggregated", "vendor_historical"]
    assert store.rows_of_bar("EURUSD", "1m", START).schema == STORED_SCHEMA


def test_implausible_bars_are_stored_and_found(store: BarStore) -> None:
    upside_down = bar(START + 1 * MINUTE, high=1.0, low=1.2, open=1.1, close=1.1)
    negative = bar(START + 2 * MINUTE, low=-1.0)
    outside = bar(START + 3 * MINUTE, close=9.0)
    free = bar(START + 4 * MINUTE, vwap=0.0)
    store.insert_frame(pl.concat([bar(), upside_down, negative, outside, free]))
    found = store.implausible(["EURUSD"], ["1m"], START, END)
    assert found["ts"].to_list() == [START + i * MINUTE for i in (1, 2, 3, 4)]
    assert found["reason"].n_unique() == 4
    assert store.implausible(["EURUSD"], ["1m"], START, END, limit=2).height == 2
    # a better source repairs it
    store.insert_frame(minutes(5, source="live_aggregated"))
    assert store.implausible(["EURUSD"], ["1m"], START, END).is_empty()


def test_bad_inserts_are_refused_whole(store: BarStore) -> None:
    with pytest.raises(InvalidBars, match="batch_id"):
        store.insert_frame(minutes(2).with_columns(pl.lit("x").alias("batch_id")))
    with pytest.raises(UnreadableBatch):
        store.insert_arrow_messages([payload.encode(minutes(2)), b"junk"])
    with pytest.raises(StoreQueryError):
        store.client.insert_stream("bars", b"junk")
    without_price = minutes(2).with_columns(pl.lit(None, pl.Float64).alias("open"))
    with pytest.raises(StoreQueryError):
        store.insert_arrow_messages([payload.encode(without_price)])
    assert raw_rows(store.client) == 0
    store.insert_arrow_messages([])
    store.insert_frame(minutes(0))
    assert raw_rows(store.client) == 0


def test_a_backfill_over_more_than_a_hundred_months_is_one_insert(store: BarStore) -> None:
    days = pl.concat([bar(START - timedelta(days=32 * i), timeframe="1d", source="derived") for i in range(105)])
    store.insert_frame(days)
    assert store.span("EURUSD", "1d") == (days["ts"].min(), days["ts"].max(), 105)


def test_a_user_s_filters_on_the_view_reach_the_primary_key(store: BarStore) -> None:
    store.insert_frame(minutes(30_000))
    store.insert_frame(minutes(30_000, symbol="USDJPY"))
    plan = (
        store.client.frame(
            "EXPLAIN indexes = 1 SELECT close FROM bars_final "
            "WHERE symbol = 'USDJPY' AND timeframe = '1m' AND ts >= '2024-03-05' AND ts < '2024-03-06'"
        )
        .to_series()
        .str.join("\n")[0]
    )
    granules = [line for line in plan.splitlines() if "Granules:" in line]
    read, total = granules[-1].split(":")[1].strip().split("/")
    assert int(read) < int(total)
    assert "symbol in ['USDJPY', 'USDJPY']" in plan.replace("\\", "")
