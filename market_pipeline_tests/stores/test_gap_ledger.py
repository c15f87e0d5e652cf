"""The gap ledger in ClickHouse."""

from __future__ import annotations

from datetime import datetime, timedelta

import polars as pl
import pytest

from market_pipeline.market.bars import TS
from market_pipeline.stores.clickhouse import Client
from market_pipeline.stores.ledgers import GapLedger
from market_pipeline_tests.stores.frames import MINUTE, START

NOW = datetime.fromisoformat("2024-06-01T00:00:00+00:00")
END = START + timedelta(days=1)


def at(minute: int) -> datetime:
    return START + minute * MINUTE


def missing(*minutes: int) -> pl.Series:
    return pl.Series("ts", [at(minute) for minute in minutes], dtype=TS)


@pytest.fixture
def ledger(client: Client) -> GapLedger:
    client.command("TRUNCATE TABLE gaps")
    return GapLedger(client)


def rows(table: pl.DataFrame) -> list[tuple[object, ...]]:
    return table.select("symbol", "start_ts", "end_ts", "minutes", "cause", "state", "attempts").rows()


def test_from_missing_to_repaired(ledger: GapLedger) -> None:
    ledger.sync("EURUSD", START, END, missing(5, 6, 7, 20), now=NOW)
    ledger.sync("USDJPY", START, END, missing(1), now=NOW)
    assert rows(ledger.open(["EURUSD"])) == [
        ("EURUSD", at(5), at(8), 3, "not_loaded", "open", 0),
        ("EURUSD", at(20), at(21), 1, "not_loaded", "open", 0),
    ]
    assert ledger.open().height == 3
    assert ledger.table([]).is_empty()
    ledger.sync("EURUSD", START, END, missing(6, 7, 20), asked_at=NOW, attempts_to_confirm=2)
    ledger.sync("EURUSD", START, END, missing(6, 7), asked_at=NOW, attempts_to_confirm=2, note="asked twice")
    assert ledger.open(["EURUSD"]).is_empty()
    assert rows(ledger.table(["EURUSD"])) == [("EURUSD", at(6), at(8), 2, "vendor_missing", "confirmed", 2)]
    assert ledger.confirmed("EURUSD", START, at(7)) == [(at(6), at(7))]
    assert ledger.confirmed_minutes("EURUSD", START, END).to_list() == [at(6), at(7)]
    assert ledger.confirmed_minutes("USDJPY", START, END).to_list() == []
    history = ledger.table(["EURUSD"], states=("repaired",))
    assert rows(history) == [
        ("EURUSD", at(5), at(6), 1, "not_loaded", "repaired", 0),
        ("EURUSD", at(20), at(21), 1, "not_loaded", "repaired", 1),
    ]
    assert history["first_seen"].to_list() == [NOW, NOW]


def test_a_gap_whose_start_moves_is_one_gap(ledger: GapLedger) -> None:
    ledger.sync("EURUSD", START, END, missing(10, 11), now=NOW)
    ledger.sync("EURUSD", START, END, missing(9, 10, 11), now=NOW + MINUTE)
    assert rows(ledger.table()) == [("EURUSD", at(9), at(12), 3, "not_loaded", "open", 0)]
    assert ledger.table()["first_seen"].to_list() == [NOW]


def test_tables_are_cut_by_range_and_keep_gaps_whole(ledger: GapLedger) -> None:
    ledger.sync("EURUSD", START, END, missing(10, 11, 12, 30))
    assert ledger.table(["EURUSD"], at(12), at(20))["start_ts"].to_list() == [at(10)]
    assert ledger.table(["EURUSD"], at(13), at(30)).is_empty()
    assert ledger.table(["EURUSD"], at(13), None)["start_ts"].to_list() == [at(30)]


def test_a_look_with_nothing_to_change_writes_nothing(ledger: GapLedger, client: Client) -> None:
    assert len(ledger.sync("EURUSD", START, END, missing(1, 3))) == 2
    before = client.rows("SELECT count() AS n FROM gaps")
    assert ledger.sync("EURUSD", START, END, missing(1, 3)) == []
    assert ledger.sync("EURUSD", START, START, missing()) == []
    assert client.rows("SELECT count() AS n FROM gaps") == before


def test_thousands_of_thin_minutes(ledger: GapLedger) -> None:
    thin = missing(*range(0, 20_000, 2))
    end = START + 20_000 * MINUTE
    assert len(ledger.sync("IBM", START, end, thin, asked_at=NOW)) == 10_000
    assert ledger.table(["IBM"])["minutes"].sum() == 10_000
    assert ledger.sync("IBM", START, end, thin) == []


def test_an_unknown_state_is_refused(ledger: GapLedger) -> None:
    with pytest.raises(ValueError, match="no such states of a gap: closed"):
        ledger.table(states=("closed",))


def test_what_failed_too_often_is_given_up_and_stands(ledger: GapLedger) -> None:
    ledger.sync("EURUSD", START, END, missing(5, 6, 7), now=NOW)
    assert ledger.fail("EURUSD", at(5), at(8), "the first", most=2, now=NOW) == []
    (given_up,) = ledger.fail("EURUSD", at(5), at(8), "the second", most=2, now=NOW)
    assert (given_up.start, given_up.failures, given_up.note) == (at(5), 2, "the second")
    assert ledger.open(["EURUSD"]).is_empty()
    standing = ledger.table(["EURUSD"])
    assert standing.select("state", "attempts", "failures", "note").rows() == [("given_up", 0, 2, "the second")]
