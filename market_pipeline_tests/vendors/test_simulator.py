"""The client against the simulated vendor: what it gives is the vendor's truth, whatever goes wrong once on the way."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest
from pydantic import SecretStr

from market_pipeline.errors import ClockWrong, VendorAuthError, VendorBadAnswer, VendorNotEntitled, VendorNotFound
from market_pipeline.settings import VendorSettings
from market_pipeline.simulator import server, truth
from market_pipeline.simulator.server import SimulatorThread
from market_pipeline.vendors.base import MINUTE_SCHEMA, MinutePage
from market_pipeline.vendors.polygon import PolygonClient
from market_pipeline_tests.vendors.conftest import CountingGate, Pair

START, END = datetime(2024, 1, 3, tzinfo=UTC), datetime(2024, 1, 12, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def running() -> Iterator[SimulatorThread]:
    with server.start_in_thread(seed=7) as simulator:
        yield simulator


@pytest.fixture
def simulator(running: SimulatorThread) -> SimulatorThread:
    running.reset()
    return running


@pytest.fixture(scope="module")
def expected() -> pl.DataFrame:
    frame = truth.minutes("C:EURUSD", START, END, seed=7)
    return frame.select(pl.col(name).cast(dtype) for name, dtype in MINUTE_SCHEMA.items())


def client_of(simulator: SimulatorThread, **settings: Any) -> PolygonClient:
    given = {"base_url": simulator.base_url, "api_key": SecretStr(simulator.api_key), "backoff_initial_s": 0.002}
    return PolygonClient(VendorSettings(**{**given, "timeout_s": 5.0, **settings}), CountingGate())


async def load(client: PolygonClient) -> tuple[pl.DataFrame, list[MinutePage]]:
    async with client:
        pages = [page async for page in client.minutes(Pair(), START, END)]
    return pl.concat([page.frame for page in pages]), pages


@pytest.mark.parametrize("page_limit", [50_000, 5000, 777])
async def test_every_minute_exactly_once(simulator: SimulatorThread, expected: pl.DataFrame, page_limit: int) -> None:
    frame, pages = await load(client_of(simulator, page_limit=page_limit))
    assert frame.equals(expected)
    assert [page.last for page in pages] == [False] * (len(pages) - 1) + [True]
    assert [page.page_no for page in pages] == list(range(1, len(pages) + 1))


PASSING = [
    {"kind": "rate_limited"},
    {"kind": "rate_limited", "body": False, "retry_after": 0},
    {"kind": "server_error", "status": 504},
    {"kind": "drop_connection"},
    {"kind": "slow", "delay": 1.5},
    {"kind": "slow", "delay": 1.0, "trickle": True},
    {"kind": "null_results"},
    {"kind": "null_results", "absent": True},
    {"kind": "page_loop"},
    {"kind": "page_loop", "cycle": True},
    {"kind": "limit_reached_without_next_url"},
    {"kind": "duplicate_rows"},
    {"kind": "unsorted_rows"},
    {"kind": "invalid_json"},
    {"kind": "cut_body"},
]


@pytest.mark.parametrize("fault", PASSING, ids=str)
async def test_one_fault_on_the_way_changes_nothing(
    simulator: SimulatorThread, expected: pl.DataFrame, fault: dict[str, Any]
) -> None:
    number = simulator.add_fault(**fault, times=1, skip=1)
    frame, _ = await load(client_of(simulator, page_limit=4000, timeout_s=0.7))
    assert frame.equals(expected)
    assert [f["used"] for f in simulator.faults() if f["id"] == number] == [1]


async def test_missing_members_are_no_fault(simulator: SimulatorThread, expected: pl.DataFrame) -> None:
    simulator.add_fault("missing_fields", fields=["vw", "n"])
    frame, pages = await load(client_of(simulator))
    assert frame.equals(expected.with_columns(vwap=pl.lit(None, pl.Float64), trades=pl.lit(0, pl.UInt32)))
    assert not pages[0].bad_rows


async def test_implausible_bars_pass_and_malformed_rows_are_set_apart(
    simulator: SimulatorThread, expected: pl.DataFrame
) -> None:
    for kind in ("negative_price", "high_below_low"):
        simulator.add_fault(kind, times=1)
        frame, pages = await load(client_of(simulator))
        assert frame["ts"].equals(expected["ts"])
        assert not pages[0].bad_rows
    simulator.add_fault("wrong_types", times=1)
    frame, pages = await load(client_of(simulator))
    assert len(pages[0].bad_rows) == 1
    assert frame.height == expected.height - 1


async def test_foreign_links_end_the_load(simulator: SimulatorThread) -> None:
    simulator.add_fault("foreign_next_url")
    with pytest.raises(VendorBadAnswer, match=r"attacker\.invalid"):
        await load(client_of(simulator, page_limit=4000))


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ({"kind": "unauthorized"}, VendorAuthError),
        ({"kind": "forbidden"}, VendorNotEntitled),
        ({"kind": "forbidden", "legacy": True}, VendorNotEntitled),
        ({"kind": "not_found"}, VendorNotFound),
        ({"kind": "not_found", "plain": False}, VendorNotFound),
    ],
)
async def test_terminal_refusals_are_not_retried(
    simulator: SimulatorThread, fault: dict[str, Any], kind: type[Exception]
) -> None:
    simulator.add_fault(**fault)
    with pytest.raises(kind):
        await load(client_of(simulator))
    assert len(simulator.requests()) == 1


async def test_probe_and_reference_routes(simulator: SimulatorThread) -> None:
    async with client_of(simulator) as client:
        assert await client.probe() > 0
        assert {"fx", "crypto"} <= (await client.market_status()).currencies.keys()
    async with client_of(simulator, api_key=SecretStr("wrong")) as client:
        with pytest.raises(VendorAuthError, match="POLYGON_API_KEY"):
            await client.probe()


@pytest.mark.parametrize(("multiplier", "timespan"), [(5, "minute"), (1, "hour"), (1, "day")])
async def test_coarser_aggregates(simulator: SimulatorThread, multiplier: int, timespan: str) -> None:
    async with client_of(simulator) as client:
        bars = await client.aggregates("C:EURUSD", multiplier, timespan, START, END)
    assert bars.height > 5
    assert bars["ts"].is_sorted()
    assert bars["ts"].is_unique().all()


async def test_answers_are_refused_while_our_clock_is_ahead_of_the_vendors(simulator: SimulatorThread) -> None:
    """Whether a bar has settled is told by our clock: ten minutes ahead, a bar under way would be its last word."""
    now = datetime(2024, 1, 15, 12, tzinfo=UTC)
    simulator.set_now(now - timedelta(minutes=10))
    client = PolygonClient(client_of(simulator)._settings, CountingGate(), clock=lambda: now)
    with pytest.raises(ClockWrong, match=r"2024-01-15 12:00:00 UTC\) is 599 s ahead of the vendor's.*NTP"):
        await load(client)
    assert len(simulator.requests()) == 1, "asking again does not set a clock"
    for behind in (timedelta(0), timedelta(seconds=9), -timedelta(days=1)):
        simulator.set_now(now - behind)
        client = PolygonClient(client_of(simulator)._settings, CountingGate(), clock=lambda: now)
        frame, _ = await load(client)
        assert frame.height
