"""Point in time: what was known at a moment, whatever was corrected since, and the report of what was."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from market_pipeline.errors import StoreUnreachable
from market_pipeline.market.bars import MINUTE_SOURCES
from market_pipeline.market.restatement import compare
from market_pipeline.stores.bars import BarStore
from market_pipeline.stores.clickhouse import Client
from market_pipeline.stores.restatements import Restatements
from market_pipeline.stores.seconds import AllBarStore
from market_pipeline_tests.stores.frames import MINUTE, START, bar, minutes, plain, tombstones
from market_pipeline_tests.stores.test_bars import BY_RANK

END = START + timedelta(days=1)


@pytest.fixture
def store(client: Client) -> Iterator[BarStore]:
    """An empty store in which nothing merges, so that reading alone must get it right."""
    empty(client)
    for table in ("bars", "bar_revisions"):
        client.command(f"SYSTEM STOP MERGES {table}")
    yield BarStore(client)
    for table in ("bars", "bar_revisions"):
        client.command(f"SYSTEM START MERGES {table}")


def empty(client: Client) -> None:
    for table in ("bars", "bar_revisions"):
        client.command(f"TRUNCATE TABLE {table}")


def server_now(client: Client) -> datetime:
    now: datetime = client.rows("SELECT now64(3, 'UTC') AS now")[0][0]
    return now


def pause(client: Client) -> datetime:
    """Return a moment of the server's clock that lies after all that was written, and before all that will be."""
    before = server_now(client)
    while (now := server_now(client)) <= before:
        pass
    while server_now(client) <= now:
        pass
    return now


def publish(store: BarStore, frame: pl.DataFrame) -> None:
    """Store the bars of one series as the bridge does."""
    first = frame.row(0, named=True)
    stored = store.stored_rows(
        first["symbol"],
        first["timeframe"],
        first["source"],
        frame["ts"].min(),  # type: ignore[arg-type]
        frame["ts"].max(),  # type: ignore[arg-type]
        with_tombstones=True,
    )
    changes = compare(frame, stored)
    store.insert_changes(changes.write, changes.replaced)


def closes(store: BarStore, as_of: datetime) -> list[float]:
    return store.winners_as_of("EURUSD", "1m", START, END, as_of)["close"].to_list()


def merge(client: Client) -> None:
    for table in ("bars", "bar_revisions"):
        client.command(f"SYSTEM START MERGES {table}")
        client.command(f"OPTIMIZE TABLE {table} FINAL")


def test_three_moments_around_a_restatement(store: BarStore) -> None:
    before = pause(store.client)
    publish(store, minutes(3, close=1.0, revision=1))
    between = pause(store.client)
    publish(store, bar(START + MINUTE, close=2.0, revision=2))
    after = pause(store.client)
    for _ in ("unmerged", "merged"):
        assert closes(store, before) == []
        assert closes(store, between) == [1.0, 1.0, 1.0]
        assert closes(store, after) == [1.0, 2.0, 1.0]
        assert_frame_equal(
            store.winners_as_of("EURUSD", "1m", START, END, after), store.winners("EURUSD", "1m", START, END)
        )
        versions = store.rows_of_bar("EURUSD", "1m", START + MINUTE)
        assert versions.select("close", "revision").rows() == [(2.0, 2), (1.0, 1)]
        merge(store.client)


def test_withdrawn_returned_and_demoted_bars(store: BarStore) -> None:
    live = bar(source="live_aggregated", close=9.0, revision=1)
    steps = [
        (bar(close=1.0, revision=1), 1.0),
        (live, 9.0),
        (live.with_columns(pl.lit(False).alias("complete"), pl.lit(2, pl.UInt64).alias("revision")), 1.0),
        (tombstones(bar(), revision=3), 9.0),
        (tombstones(live, revision=4), None),
        (bar(close=1.5, revision=5), 1.5),
    ]
    moments = []
    for frame, _ in steps:
        publish(store, frame)
        moments.append(pause(store.client))
    for _ in ("unmerged", "merged"):
        assert [closes(store, moment) for moment in moments] == [[] if c is None else [c] for _, c in steps]
        merge(store.client)
    assert store.client.rows("SELECT kind FROM bar_changes ORDER BY known_at") == [
        ("demoted",),
        ("withdrawn",),
        ("withdrawn",),
        ("returned",),
    ]


def test_first_versions_and_equal_ones_are_not_copied(store: BarStore) -> None:
    publish(store, minutes(10, revision=1))
    publish(store, minutes(10, revision=2))
    assert store.client.rows("SELECT count() AS n FROM bar_revisions") == [(0,)]
    publish(store, pl.concat([minutes(10, revision=3)[:9], bar(START + 9 * MINUTE, close=7.0, revision=3)]))
    both = store.client.rows(
        "SELECT close = 7, known_at = ingested_at FROM bar_revisions "
        "JOIN bars USING (symbol, timeframe, ts, source, revision) ORDER BY revision"
    )
    assert both == [(0, 1), (1, 1)]


class Broken(Client):
    """Lose the connection on the way to the bars, once."""

    def __init__(self, client: Client) -> None:
        self.__dict__ |= client.__dict__
        self.whole = False

    def insert_frame(self, table: str, frame: pl.DataFrame) -> None:
        if table == "bars" and not self.whole:
            raise StoreUnreachable("gone")
        super().insert_frame(table, frame)


def test_a_failure_between_the_two_writes_loses_and_doubles_nothing(store: BarStore) -> None:
    publish(store, bar(close=1.0, revision=1))
    between = pause(store.client)
    broken = Broken(store.client)
    with pytest.raises(StoreUnreachable):
        publish(BarStore(broken), bar(close=2.0, revision=2))
    away = pause(store.client)
    assert store.winners("EURUSD", "1m", START, END)["close"].to_list() == [1.0]
    broken.whole = True
    publish(BarStore(broken), bar(close=2.0, revision=2))
    after = pause(store.client)
    for _ in ("unmerged", "merged"):
        assert [closes(store, moment) for moment in (between, away, after)] == [[1.0], [1.0], [2.0]]
        assert store.client.rows("SELECT close, was_close FROM bar_changes") == [(2.0, 1.0)]
        merge(store.client)


def test_two_writers_that_compared_before_either_wrote_keep_both_versions(store: BarStore) -> None:
    publish(store, bar(close=1.0, revision=1))
    stored = store.stored_rows("EURUSD", "1m", "vendor_historical", START, START, with_tombstones=True)
    moments = []
    for close, revision in ((2.0, 2), (3.0, 3)):
        changes = compare(bar(close=close, revision=revision), stored)
        store.insert_changes(changes.write, changes.replaced)
        moments.append(pause(store.client))
    merge(store.client)
    assert [closes(store, moment) for moment in moments] == [[2.0], [3.0]]
    assert store.client.rows("SELECT was_close, close FROM bar_changes ORDER BY revision") == [(1.0, 2.0), (2.0, 3.0)]


def test_both_views_rank_alike(store: BarStore) -> None:
    for source in MINUTE_SOURCES:
        publish(store, bar(source=source, close=1.0, revision=1))
        publish(store, bar(source=source, close=2.0, revision=2))
    now = store.client.rows("SELECT source, rank FROM bars_ranked ORDER BY rank")
    then = store.client.rows("SELECT DISTINCT source, rank FROM bar_revisions_ranked ORDER BY rank")
    assert now == then
    assert [source for source, _ in now] == list(BY_RANK)


def test_seconds_keep_no_versions(store: BarStore) -> None:
    both = AllBarStore(store.client)
    recent = datetime.now(UTC).replace(second=0, microsecond=0) - MINUTE  # what is older than the TTL may be dropped
    until = recent + MINUTE
    second = bar(recent, timeframe="1s", source="live_aggregated", revision=1)
    minute = bar(recent, source="live_aggregated", revision=1)
    both.insert_frame(pl.concat([second, minute]))
    replaced = pl.concat(
        both.stored_rows("EURUSD", code, "live_aggregated", recent, recent, with_tombstones=True)
        for code in ("1s", "1m")
    )
    changed = pl.concat([second, minute]).with_columns(
        pl.lit(2.0).alias("close"), pl.lit(2, pl.UInt64).alias("revision")
    )
    both.insert_changes(changed, replaced)
    assert both.winners("EURUSD", "1s", recent, until)["close"].to_list() == [2.0]
    assert both.winners("EURUSD", "1m", recent, until)["close"].to_list() == [2.0]
    assert store.client.rows("SELECT DISTINCT timeframe FROM bar_revisions") == [("1m",)]
    with pytest.raises(ValueError, match="bars of 1s are not kept"):
        both.winners_as_of("EURUSD", "1s", recent, until, until)
    store.client.command("TRUNCATE TABLE bars_1s")


def test_the_report_by_day(store: BarStore) -> None:
    today = server_now(store.client).replace(hour=0, minute=0, second=0, microsecond=0)
    tomorrow = today + timedelta(days=2)
    report = Restatements(store.client)
    publish(store, minutes(10, open=1.0, high=1.0, low=1.0, close=1.0, revision=1))
    publish(store, bar(START + 20 * MINUTE, complete=False, revision=1))
    assert report.by_day(today, tomorrow).is_empty()
    publish(
        store,
        pl.concat(
            [
                bar(START, open=1.0, high=1.0, low=1.0, close=1.02, revision=2, batch_id=31),
                bar(START + MINUTE, open=1.0, high=1.5, low=0.9, close=1.0, revision=2, batch_id=32),
                tombstones(bar(START + 2 * MINUTE), revision=2),
                bar(START + 20 * MINUTE, close=50.0, revision=2),
            ]
        ),
    )
    publish(store, bar(START + 2 * MINUTE, revision=3))
    rows = report.by_day(today, tomorrow)
    assert rows.select("symbol", "timeframe", "source").rows() == [("EURUSD", "1m", "vendor_historical")]
    row = rows.row(0, named=True)
    counts = ("restated", "demoted", "withdrawn", "returned", "completed", "batches")
    assert [row[name] for name in counts] == [2, 0, 1, 1, 1, 3]
    assert [round(row[f"largest_{name}"], 9) for name in ("close", "high", "low")] == [0.02, 0.5, 0.1]
    assert (row["largest_ts"], row["largest_batch"]) == (START + MINUTE, 32)
    assert (row["first_ts"], row["last_ts"]) == (START, START + 20 * MINUTE)
    assert today <= row["first_known_at"] < row["last_known_at"] < tomorrow
    assert report.by_day(today - timedelta(days=3), today - timedelta(days=1)).is_empty()


Event = tuple[str, int, float, str]
"""A source says of one bar (minute) a close: complete, incomplete or withdrawn."""

EVENTS = st.tuples(
    st.sampled_from(MINUTE_SOURCES),
    st.integers(0, 1),
    st.sampled_from([1.0, 2.0, 3.0]),
    st.sampled_from(["complete", "complete", "incomplete", "withdrawn"]),
)


@dataclass
class Model:
    """What each source last said of each bar, in plain Python."""

    said: dict[tuple[int, str], tuple[float, str]] = field(default_factory=dict)

    def winners(self) -> list[tuple[int, str, float]]:
        out = []
        for minute in (0, 1):
            here = [
                (state == "complete", BY_RANK.index(source), source, close)
                for (where, source), (close, state) in self.said.items()
                if where == minute and state != "withdrawn"
            ]
            if here:
                *_, source, close = max(here)
                out.append((minute, source, close))
        return out


@settings(max_examples=6)
@given(events=st.lists(EVENTS, min_size=8, max_size=14), merged=st.booleans())
def test_any_history_of_corrections_is_known_at_every_moment(client: Client, events: list[Event], merged: bool) -> None:
    empty(client)
    store, model = BarStore(client), Model()
    moments: list[tuple[datetime, list[tuple[int, str, float]]]] = [(pause(client), [])]
    for revision, (source, minute, close, state) in enumerate(events, start=1):
        frame = bar(
            START + minute * MINUTE, source=source, close=close, complete=state != "incomplete", revision=revision
        )
        publish(store, tombstones(frame, revision=revision) if state == "withdrawn" else frame)
        model.said[minute, source] = (close, state)
        moments.append((pause(client), model.winners()))
    if merged:
        merge(client)
    for moment, expected in moments:
        found = store.winners_as_of("EURUSD", "1m", START, END, moment)
        rows = found.select("ts", "source", "close").iter_rows()
        said = [((ts - START) // MINUTE, source, close) for ts, source, close in rows]
        assert said == expected
    assert_frame_equal(plain(found), plain(store.winners("EURUSD", "1m", START, END)))
