"""Which source wins: the views follow the setting, at once, for every bar, without a row being written."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import permutations

import pytest

from market_pipeline.errors import SettingsError
from market_pipeline.local.clickhouse.process import ServerProcess
from market_pipeline.market.bars import MINUTE_SOURCES
from market_pipeline.settings import PRECEDENCE, HistorySettings, Settings, load_settings
from market_pipeline.stores import migrations, open_stores, prepare
from market_pipeline.stores.bars import BarStore
from market_pipeline.stores.clickhouse import Client, connect
from market_pipeline.stores.precedence import cluster_of, follow, in_force, view
from market_pipeline_tests.market.frames import START, minute_bars, utc
from market_pipeline_tests.servers import new_database
from market_pipeline_tests.stores.frames import raw_rows

VENDOR_FIRST = ("vendor_historical", *PRECEDENCE[:3])
END = utc(2024, 1, 9)


@pytest.fixture
def fresh(server: ServerProcess) -> Iterator[Client]:
    client = connect(new_database(server))
    migrations.apply(client)
    yield client
    client.command("DROP DATABASE IF EXISTS {name:Identifier}", {"name": client.database}, in_database=False)
    client.close()


def text_of_view(client: Client) -> str:
    query = "SELECT as_select FROM system.tables WHERE database = currentDatabase() AND name = 'bars_ranked'"
    return str(client.rows(query)[0][0])


def fill(client: Client, revision: int = 7) -> BarStore:
    """Store ten minutes of every source, alike but for their prices."""
    store = BarStore(client)
    for number, source in enumerate(MINUTE_SOURCES):
        bars = minute_bars(seed=number, source=source, revision=revision)
        store.insert_frame(bars.with_columns(batch_id=number).cast({"batch_id": bars.schema["revision"]}))
    return store


def winners(store: BarStore) -> set[str]:
    return set(store.winners("EURUSD", "1m", START, END, ["source"])["source"])


def test_any_ranking_names_the_winner_without_a_row_being_written(fresh: Client) -> None:
    store = fill(fresh)
    rows = raw_rows(store.client)
    for ranking in permutations(PRECEDENCE):
        changed = follow(fresh, ranking)
        assert changed is (ranking != PRECEDENCE)
        assert winners(store) == {ranking[0]}
        assert in_force(fresh).sources == ranking
        assert follow(fresh, ranking) is False
    assert raw_rows(store.client) == rows == 40


def test_the_replaced_view_is_the_migration_s_own_but_for_the_ranks(fresh: Client) -> None:
    created = text_of_view(fresh)
    follow(fresh, VENDOR_FIRST)
    assert text_of_view(fresh) != created
    follow(fresh, PRECEDENCE)
    assert text_of_view(fresh) == created


def test_a_view_that_somebody_changed_by_hand_is_put_right(fresh: Client) -> None:
    created = text_of_view(fresh)
    fresh.command("CREATE OR REPLACE VIEW bars_ranked AS SELECT *, toInt8(0) AS rank FROM bars FINAL")
    assert in_force(fresh).sources == ()
    assert follow(fresh, PRECEDENCE)
    assert text_of_view(fresh) == created


def test_an_incomplete_bar_never_wins_whatever_its_rank(fresh: Client) -> None:
    store = fill(fresh)
    bars = minute_bars(source=VENDOR_FIRST[0], complete=False, revision=8)
    store.insert_frame(bars.with_columns(batch_id=9).cast({"batch_id": bars.schema["revision"]}))
    follow(fresh, VENDOR_FIRST)
    assert winners(store) == {VENDOR_FIRST[1]}


def test_what_is_derived_after_a_change_is_a_later_revision(fresh: Client) -> None:
    store = fill(fresh)
    seen = [max(store.window_revisions("EURUSD", START, END)["revision"].to_list())]
    for ranking in (VENDOR_FIRST, PRECEDENCE):
        follow(fresh, ranking)
        revisions = store.window_revisions("EURUSD", START, END)["revision"].to_list()
        assert revisions == [in_force(fresh).set_at] * 2
        assert revisions[0] > seen[-1]
        seen.append(revisions[0])
        follow(fresh, ranking)  # again: deriving again must not be a revision
        assert store.window_revisions("EURUSD", START, END)["revision"].to_list() == revisions


def test_programs_that_start_at_once_agree_and_readers_never_miss_the_view(fresh: Client) -> None:
    store = fill(fresh)
    over = threading.Event()
    seen: list[set[str]] = []

    def read() -> None:
        while not over.is_set():
            seen.append(winners(store))

    def start(ranking: tuple[str, ...]) -> bool:
        client = connect(fresh.settings)
        try:
            return follow(client, ranking)
        finally:
            client.close()

    with ThreadPoolExecutor(8) as pool:
        reader = pool.submit(read)
        try:
            for ranking in (VENDOR_FIRST, PRECEDENCE, VENDOR_FIRST):
                assert any(pool.map(start, [ranking] * 6))
                assert in_force(fresh).sources == ranking
                assert winners(store) == {ranking[0]}
        finally:
            over.set()
        reader.result()
    assert seen
    assert {source for one in seen for source in one} <= {PRECEDENCE[0], VENDOR_FIRST[0]}
    assert all(len(one) == 1 for one in seen)


def test_who_opens_the_stores_brings_the_setting_and_who_only_reads_does_not(fresh: Client) -> None:
    other = Settings(clickhouse=fresh.settings, history=HistorySettings(precedence=VENDOR_FIRST))
    with open_stores(other, migrate=False):
        assert in_force(fresh).sources == PRECEDENCE
    with open_stores(other):
        assert in_force(fresh).sources == VENDOR_FIRST
    prepare(fresh, Settings(clickhouse=fresh.settings))
    assert in_force(fresh).sources == PRECEDENCE


def test_on_a_cluster_the_view_is_replaced_on_every_server(fresh: Client) -> None:
    assert in_force(fresh).cluster is None
    assert cluster_of("Distributed('prod', 'market', 'bars_local', cityHash64(symbol))") == "prod"
    assert cluster_of("ReplacingMergeTree(revision, is_deleted) ORDER BY 'Distributed(x)'") is None
    statement = view(VENDOR_FIRST, 5, cluster="prod")
    assert statement.startswith("CREATE OR REPLACE VIEW bars_ranked ON CLUSTER 'prod' AS")
    fresh.rows("SELECT formatQuery({q:String}) AS q", {"q": statement})
    assert "/*" not in statement
    assert "@" not in statement


def test_the_setting_names_each_source_once() -> None:
    assert sorted(PRECEDENCE) == sorted(MINUTE_SOURCES)
    assert HistorySettings().precedence == PRECEDENCE


def test_a_wrong_setting_says_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARKET_PIPELINE_HISTORY__PRECEDENCE", '["vendor_historical", "vendor_historical", "mine"]')
    with pytest.raises(SettingsError) as caught:
        load_settings()
    text = str(caught.value)
    assert "missing: live_aggregated, live_gap_filled, historical_aggregated" in text
    assert "unknown: mine" in text
    assert "named twice: vendor_historical" in text
    assert "MARKET_PIPELINE_HISTORY__PRECEDENCE" in text


@pytest.mark.parametrize("names", [PRECEDENCE[:3], (*PRECEDENCE, "vendor_historical"), (*PRECEDENCE[:3], "x' ; DROP")])
def test_only_the_four_sources_reach_the_view(fresh: Client, names: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="not each of"):
        follow(fresh, names)


def test_what_was_known_is_ranked_as_what_is_known(fresh: Client) -> None:
    for precedence in (MINUTE_SOURCES, MINUTE_SOURCES[::-1]):
        follow(fresh, precedence)
        views = fresh.rows(
            "SELECT name, extract(create_table_query, '\\[[^]]*live[^]]*\\]') FROM system.tables "
            "WHERE database = currentDatabase() AND name IN ('bars_ranked', 'bar_revisions_ranked') ORDER BY name"
        )
        assert len(views) == 2
        assert len({ranks for _, ranks in views}) == 1
        assert views[0][1].index(precedence[0]) < views[0][1].index(precedence[-1])
