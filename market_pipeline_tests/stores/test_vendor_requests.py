"""The checkpoint of a load: what a root run has done, and what was ever asked."""

from __future__ import annotations

from datetime import datetime, timedelta
from itertools import pairwise

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_pipeline.stores.clickhouse import Client
from market_pipeline.stores.ledgers import VendorRequestLedger, VendorRequestRow
from market_pipeline.stores.vendor_requests import merged
from market_pipeline_tests.stores.frames import MINUTE, START

DAY = timedelta(days=1)
LATER = START + timedelta(days=900)


def day(number: int) -> datetime:
    return START + number * DAY


def request(first: int, last: int, outcome: str = "ok", root: str = "root", **more: object) -> VendorRequestRow:
    given: dict[str, object] = {"symbol": "EURUSD", "requested_at": LATER, **more}
    return VendorRequestRow(root_run_id=root, start_ts=day(first), end_ts=day(last), outcome=outcome, **given)  # type: ignore[arg-type]


@pytest.fixture
def ledger(client: Client) -> VendorRequestLedger:
    client.command("TRUNCATE TABLE vendor_requests")
    return VendorRequestLedger(client)


def of_run(client: Client, root_run_id: str) -> pl.DataFrame:
    return client.frame("SELECT * FROM vendor_requests FINAL WHERE root_run_id = {root:String}", {"root": root_run_id})


def test_done_is_what_this_root_run_asked_with_success(ledger: VendorRequestLedger, client: Client) -> None:
    ledger.record(
        [
            request(0, 10),
            request(10, 20, "empty"),
            request(20, 30, "failed", error="it's 503"),
            request(40, 50),
            request(60, 70, root="another"),
            request(80, 90, symbol="USDJPY"),
        ]
    )
    assert ledger.done("root", "EURUSD") == [(day(0), day(20)), (day(40), day(50))]
    assert ledger.done("another", "EURUSD") == [(day(60), day(70))]
    assert ledger.done("nobody", "EURUSD") == []
    table = of_run(client, "root")
    assert table.height == 5
    assert table.filter(outcome="failed")["error"].to_list() == ["it's 503"]
    ledger.record([])


def test_a_request_recorded_again_is_replaced(ledger: VendorRequestLedger, client: Client) -> None:
    ledger.record([request(0, 10, "failed", request_id=5)])
    ledger.record([request(0, 10, "ok", request_id=5)])
    assert ledger.done("root", "EURUSD") == [(day(0), day(10))]
    assert of_run(client, "root").height == 1


def test_asked_counts_every_run_and_only_settled_minutes(ledger: VendorRequestLedger) -> None:
    noon = day(5) + timedelta(hours=12)
    ledger.record([request(0, 3), request(2, 6, root="another", requested_at=noon), request(8, 9, "failed")])
    settle = timedelta(minutes=5)
    assert ledger.asked("EURUSD", day(0), day(30), settle=settle) == [(day(0), noon - settle)]
    assert ledger.asked("EURUSD", day(1), day(2)) == [(day(1), day(2))]
    assert ledger.asked("EURUSD", day(6), day(30)) == []
    assert ledger.asked("USDJPY", day(0), day(30)) == []


def test_a_request_for_what_had_not_settled_asked_nothing(ledger: VendorRequestLedger) -> None:
    ledger.record([request(0, 1, requested_at=day(0) + 3 * MINUTE)])
    assert ledger.asked("EURUSD", day(0), day(1)) == []


def test_an_outcome_is_one_of_three() -> None:
    with pytest.raises(ValueError, match="'fine' is no outcome"):
        request(0, 1, "fine")


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)), max_size=20))
def test_merged_covers_the_same_days_with_the_fewest_intervals(spans: list[tuple[int, int]]) -> None:
    out = merged((day(first), day(first + length)) for first, length in spans)
    covered = {d for first, length in spans for d in range(first, first + length)}
    assert {(start - START).days + i for start, end in out for i in range((end - start).days)} == covered
    assert all(a[1] < b[0] for a, b in pairwise(out))
