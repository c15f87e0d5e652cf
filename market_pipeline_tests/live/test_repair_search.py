"""What live repair asks for, and how often: pure rules."""

from __future__ import annotations

from datetime import datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from market_pipeline.live.repair.search import asks_apart, worth_asking
from market_pipeline.settings import Settings, VendorSettings
from market_pipeline.stores.vendor_requests import Interval, merged
from market_pipeline_tests.integration.world import utc

MINUTE, SETTLE = timedelta(minutes=1), timedelta(minutes=5)
NOON = utc("2024-03-12T12:00")


def spans(*bounds: tuple[int, int]) -> list[Interval]:
    return [(NOON + a * MINUTE, NOON + b * MINUTE) for a, b in bounds]


def at(minute: int) -> datetime:
    return NOON + minute * MINUTE


def test_a_gap_that_grows_waits_for_a_settle_of_it_and_a_whole_one_does_not() -> None:
    seam = spans((0, 12))
    asked = []
    begin = 0
    for due in range(1, 15):
        wanted = [(at(begin), min(at(due), seam[0][1]))] if begin < min(due, 12) else []
        if found := worth_asking(wanted, seam, at(due), SETTLE):
            asked += found
            begin = due
    assert asked == spans((0, 5), (5, 10), (10, 12))
    # what is whole does not wait for what grows behind it
    assert worth_asking(spans((0, 2), (4, 6)), spans((0, 2), (4, 9)), at(6), SETTLE) == spans((0, 2))
    # what was asked for a moment ago is not among the wanted: it does not count for the growing one's age
    assert worth_asking(spans((8, 9)), spans((0, 12)), at(9), SETTLE) == []


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 9)), max_size=6), st.integers(1, 60))
def test_only_the_last_gap_ever_waits_and_never_longer_than_a_settle(parts: list[tuple[int, int]], due: int) -> None:
    gaps = merged(spans(*((a, a + length) for a, length in parts)))
    wanted = [(start, min(end, at(due))) for start, end in gaps if start < at(due)]
    found = worth_asking(wanted, gaps, at(due), SETTLE)
    left = [one for one in wanted if one not in found]
    assert len(left) <= 1
    for start, end in left:
        assert end == at(due)
        assert end - start < SETTLE


def test_all_symbols_together_take_half_of_the_plans_rate() -> None:
    free = Settings(vendor=VendorSettings(plan="free"))
    assert asks_apart(free, 8) == SETTLE
    assert asks_apart(free, 50) == timedelta(minutes=20)
    assert asks_apart(Settings(vendor=VendorSettings(plan="paid")), 50) == SETTLE
