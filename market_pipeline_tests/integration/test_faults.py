"""Every fault of the vendor: recover, or fail with symbol, range and cause; a retry finishes what is left."""

from __future__ import annotations

from typing import Any

import pytest

from market_pipeline.bus.session import open_bus
from market_pipeline.bus.streams import HISTORY
from market_pipeline.errors import RangeNotLoaded, VendorAuthError, VendorNotEntitled
from market_pipeline.vendors.polygon import PolygonClient
from market_pipeline_tests.integration.world import World, assert_bars_equal, day_range, truth

KEY, TICKER = "GBPUSD", "C:GBPUSD"
DAYS = {KEY: day_range("2024-03-04", "2024-03-05")}
AGGS = "/v2/aggs"


def assert_loaded(world: World) -> None:
    assert_bars_equal(world.bars(KEY, "1m"), truth(TICKER, DAYS[KEY]), "after the fault")


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "rate_limited", "times": 2},
        {"kind": "rate_limited", "times": 1, "body": False, "retry_after": 0},
        {"kind": "server_error", "times": 2, "status": 502},
        {"kind": "server_error", "times": 1, "status": 503},
        {"kind": "drop_connection", "times": 2},
        {"kind": "cut_body", "times": 2},
        {"kind": "invalid_json", "times": 2},
        {"kind": "null_results", "times": 2},
        {"kind": "null_results", "times": 1, "absent": True},
        {"kind": "duplicate_rows", "times": 1},
        {"kind": "unsorted_rows", "times": 1},
        {"kind": "missing_fields", "times": 1, "fields": ["vw"]},
    ],
    ids=lambda f: "-".join(str(v) for v in f.values()),
)
def test_a_passing_fault_is_recovered_from(world: World, fault: dict[str, Any]) -> None:
    world.vendor.add_fault(path=AGGS, **fault)
    report = world.load(DAYS)
    used = sum(f["used"] for f in world.vendor.faults())
    assert used == fault["times"], "the fault must have struck"
    if fault["kind"] == "missing_fields":
        ours = world.bars(KEY, "1m")
        assert ours["vwap"].null_count() == ours.height
        return
    assert report.counts.rows == truth(TICKER, DAYS[KEY]).height
    assert_loaded(world)


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        ({"kind": "rate_limited"}, "429|too many|rate"),
        ({"kind": "server_error", "status": 500}, "500"),
        ({"kind": "drop_connection"}, "connection|disconnect|closed|cut"),
        ({"kind": "invalid_json"}, "JSON|unreadable"),
        ({"kind": "not_found"}, "404|not found"),
    ],
    ids=lambda f: f["kind"] if isinstance(f, dict) else None,
)
def test_a_lasting_fault_fails_with_symbol_range_and_cause_and_a_retry_finishes(
    world: World, fault: dict[str, Any], cause: str
) -> None:
    world.vendor.add_fault(path=AGGS, **fault)
    with pytest.raises(Exception, match=rf"(?i)(?s)GBP/USD.*2024-03-04.*2024-03-06.*({cause})"):
        world.load(DAYS, run_id="first", root="first")
    assert world.query("SELECT count() AS n FROM vendor_requests WHERE outcome = 'failed'")["n"][0] >= 1
    world.vendor.clear_faults()
    world.load(DAYS, run_id="second", root="first")
    assert_loaded(world)


@pytest.mark.parametrize(("kind", "error"), [("unauthorized", VendorAuthError), ("forbidden", VendorNotEntitled)])
def test_terminal_answers_end_the_run_at_once(world: World, kind: str, error: type[Exception]) -> None:
    world.vendor.add_fault(kind, path=AGGS)
    with pytest.raises(error) as raised:
        world.load(DAYS)
    assert "GBP/USD" in str(raised.value)
    assert world.vendor.api_key not in str(raised.value)
    asked = [r for r in world.vendor.requests() if AGGS in r.path]
    assert len(asked) == 1, "a terminal answer is never asked for again"


def test_page_loops_and_foreign_hosts_end_with_the_range(world: World) -> None:
    """A page limit under the range makes pages, of which the links then go astray, again and again."""
    days = {KEY: day_range("2024-03-04", "2024-03-15")}
    for kind in ("page_loop", "foreign_next_url"):
        world.vendor.clear_faults()
        world.vendor.add_fault(kind, path=AGGS)
        small = World(
            world.settings.model_copy(
                update={"vendor": world.settings.vendor.model_copy(update={"page_limit": 1000, "max_attempts": 2})}
            ),
            world.nats,
            world.clickhouse,
            world.vendor,
        )
        with pytest.raises(RangeNotLoaded, match=r"GBP/USD.*2024-03-04"):
            small.load(days)
    world.vendor.clear_faults()
    small.load(days)
    assert_bars_equal(world.bars(KEY, "1m"), truth(TICKER, days[KEY]), "after the loops")


def test_rows_that_are_no_bars_are_dead_lettered_alone(world: World) -> None:
    world.vendor.add_fault("wrong_types", path=AGGS, times=1)
    report = world.load(DAYS)
    expected = truth(TICKER, DAYS[KEY]).height
    rejected = report.counts.rejected
    assert 0 < rejected < 50
    assert world.bars(KEY, "1m").height == expected - rejected
    # asked again without the fault, the rows land
    world.load(DAYS)
    assert_loaded(world)


@pytest.mark.parametrize("kind", ["high_below_low", "negative_price"])
def test_an_implausible_bar_is_stored_for_the_checks_to_flag(world: World, kind: str) -> None:
    world.vendor.add_fault(kind, path=AGGS, times=1)
    world.load(DAYS)
    ours = world.bars(KEY, "1m")
    assert ours.height == truth(TICKER, DAYS[KEY]).height
    assert ours.filter((ours["high"] < ours["low"]) | (ours["low"] <= 0)).height > 0
    # the vendor mends it: the next load restates exactly those bars
    report = world.load(DAYS)
    assert 0 < report.counts.restated == report.counts.written < 50
    assert_loaded(world)


@pytest.mark.parametrize(
    ("fault", "changes"),
    [
        ({"kind": "slow", "times": 1, "delay": 2.5}, {"timeout_s": 1.0}),
        ({"kind": "slow", "times": 1, "delay": 2.5, "trickle": True}, {"timeout_s": 1.0}),
        ({"kind": "limit_reached_without_next_url", "times": 1}, {"page_limit": 1000}),
    ],
    ids=["slow", "slow-body", "cut-at-the-limit"],
)
def test_a_slow_or_silently_cut_answer_is_recovered_from(
    world: World, fault: dict[str, Any], changes: dict[str, Any]
) -> None:
    world.vendor.add_fault(path=AGGS, **fault)
    changed = world.settings.vendor.model_copy(update=changes)
    world.settings = world.settings.model_copy(update={"vendor": changed})
    world.load(DAYS)
    assert sum(f["used"] for f in world.vendor.faults()) == 1, "the fault must have struck"
    assert_loaded(world)


def test_a_retry_of_the_run_asks_only_for_what_has_not_landed(world: World) -> None:
    days = {KEY: day_range("2023-01-01", "2023-06-30")}
    world.vendor.add_fault("server_error", path=AGGS, skip=3)
    with pytest.raises(RangeNotLoaded) as raised:
        world.load(days, run_id="a", root="a")
    landed = len(world.query("SELECT * FROM vendor_requests FINAL WHERE outcome = 'ok'"))
    assert 1 <= landed <= 3
    assert raised.value.missing
    world.vendor.clear_faults()
    world.vendor.clear_requests()
    report = world.load(days, run_id="b", root="a")
    asked = {r.path for r in world.vendor.requests() if AGGS in r.path}
    total = 6  # 181 days in requests of up to 34 days
    assert len(asked) == total - landed
    assert report.symbols[KEY].requests == total - landed
    assert_bars_equal(world.bars(KEY, "1m"), truth(TICKER, days[KEY]), "after the retry")


def test_nats_may_lose_its_store_while_the_vendor_is_probed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two steps of the opening, a moment that a test can only make: the streams are created once more."""
    probe, lost = PolygonClient.probe, []

    async def losing(self: PolygonClient) -> float:
        seconds = await probe(self)
        async with open_bus(world.settings.nats, "test") as bus:
            await bus.ensure_streams()  # those of earlier runs
            lost.append(await bus.js.delete_stream(HISTORY))
        return seconds

    monkeypatch.setattr(PolygonClient, "probe", losing)
    world.load(DAYS)
    assert lost == [True]
    assert_loaded(world)
