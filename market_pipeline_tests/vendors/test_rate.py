"""The rate rule never lets more through than the plan, and not much less."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market_pipeline.vendors.rate import LOGGED_REQUESTS, RateRule


def most_in_a_window(times: list[float], window: float) -> int:
    """Count the most times that any half-open window holds."""
    most = first = 0
    for last, at in enumerate(times):
        while times[first] <= at - window:
            first += 1
        most = max(most, last - first + 1)
    return most


def run(rule: RateRule, pauses: list[float]) -> list[float]:
    """Take a grant after each pause, waiting as told."""
    now, state, granted = 1000.0, [], []
    for pause in pauses:
        now += pause
        while True:
            state, wait = rule.take(state, now)
            if not wait:
                break
            now += wait
        granted.append(now)
    return granted


@settings(deadline=None)
@given(
    st.sampled_from([1, 5, LOGGED_REQUESTS, LOGGED_REQUESTS + 1, 300]),
    st.sampled_from([1.0, 60.0]),
    st.lists(st.one_of(st.just(0.0), st.floats(0, 20)), min_size=1, max_size=700),
)
def test_no_window_holds_more_than_the_plan(requests: int, window: float, pauses: list[float]) -> None:
    granted = run(RateRule(requests, window), pauses)
    assert most_in_a_window(granted, window) <= requests


@pytest.mark.parametrize("requests", [5, 60, 100, 6000])
def test_the_plan_is_used(requests: int) -> None:
    rule = RateRule(requests, 60.0)
    granted = run(rule, [0.0] * (3 * requests))
    assert most_in_a_window(granted, 60.0) >= 0.85 * requests
    assert granted[-1] - granted[0] <= 3 * rule.window * 1.15


def test_a_paid_plan_stays_under_100_a_second() -> None:
    granted = run(RateRule(6000, 60.0), [0.0] * 8000)
    assert most_in_a_window(granted, 1.0) <= 100


@pytest.mark.parametrize("requests", [5, 6000])
def test_times_of_a_clock_that_ran_wild_are_forgotten(requests: int) -> None:
    rule = RateRule(requests, 60.0)
    assert rule.take([10_000_000.0] * min(requests, 5), 1000.0)[1] == 0.0


def test_a_late_request_counts_from_its_answer_on() -> None:
    rule = RateRule(2, 60.0)
    assert rule.delayed([100.0, 110.0, 120.0], 125.0, 15.0) == [100.0, 120.0, 125.0]
    assert rule.delayed([100.0], 101.0, 1.0) == [100.0]
    assert rule.delayed([], 101.0, 30.0) == [101.0]
    assert RateRule(6000, 60.0).delayed([100.0], 130.0, 30.0) == [100.0]
