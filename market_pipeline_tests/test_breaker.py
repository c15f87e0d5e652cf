"""The breaker against a model that keeps every outcome and counts anew each time."""

from __future__ import annotations

import asyncio
from contextlib import AbstractContextManager

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from market_pipeline.breaker import BUCKETS, Breaker, Breakers
from market_pipeline.errors import BreakerOpen, BusUnreachable, StoreQueryError, StoreUnreachable, StreamFull
from market_pipeline.settings import BreakerSettings


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


ENDS: dict[str, BaseException | None] = {
    "result": None,
    "refusal": StoreQueryError("no such column"),
    "full": StreamFull("full"),
    "failure": BusUnreachable("away"),
    "cancelled": asyncio.CancelledError(),
    "bug": KeyError("ours"),
    "inner": BreakerOpen("inner", 1.0, "away"),
}


class BreakerModel(RuleBasedStateMachine):
    """The model knows the state, who may still speak, and (time, failed) of all answers since it closed."""

    @initialize(
        failures=st.integers(1, 6),
        rate=st.sampled_from([0.3, 0.5, 1.0]),
        min_calls=st.integers(1, 8),
        trials=st.integers(1, 3),
    )
    def begin(self, failures: int, rate: float, min_calls: int, trials: int) -> None:
        self.clock = Clock()
        self.rules = BreakerSettings(
            failures=failures, failure_rate=rate, min_calls=min_calls, window_s=60, open_s=30, trials=trials
        )
        self.breaker = Breaker("edge", self.rules, answers=(StreamFull,), clock=self.clock)
        self.state = "closed"
        self.opened_at = 0.0
        self.outcomes: list[tuple[float, bool]] = []
        self.running: list[tuple[AbstractContextManager[None], object]] = []
        self.era = object()  # of the state of now

    def now_state(self) -> str:
        if self.state == "open" and self.clock.now >= self.opened_at + self.rules.open_s:
            return "half_open"
        return self.state

    def turn(self, state: str) -> None:
        self.state, self.era, self.outcomes = state, object(), []
        if state == "open":
            self.opened_at = self.clock.now

    @precondition(lambda self: len(self.running) < 12)
    @rule()
    def call(self) -> None:
        state = self.now_state()
        trying = sum(era is self.era for _, era in self.running) if self.state == "half_open" else 0
        attempt = self.breaker.attempt()
        if state == "open" or (state == "half_open" and trying >= self.rules.trials):
            with pytest.raises(BreakerOpen) as refused:
                attempt.__enter__()
            assert 0 <= refused.value.retry_after <= self.rules.open_s
            return
        attempt.__enter__()
        if state == "half_open" and self.state == "open":
            self.turn("half_open")
        self.running.append((attempt, self.era))

    @precondition(lambda self: self.running)
    @rule(data=st.data(), how=st.sampled_from(sorted(ENDS)))
    def end(self, data: st.DataObject, how: str) -> None:
        attempt, era = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        error = ENDS[how]
        if error is None:
            attempt.__exit__(None, None, None)
        else:
            assert not attempt.__exit__(type(error), error, None), "errors pass through"
        if era is not self.era or how in ("cancelled", "bug", "inner"):
            return
        failed = how == "failure"
        if self.state == "half_open":
            self.turn("open" if failed else "closed")
            return
        self.outcomes.append((self.clock.now, failed))
        if failed and self.should_open():
            self.turn("open")

    def should_open(self) -> bool:
        last = [failed for _, failed in self.outcomes][-self.rules.failures :]
        if len(last) == self.rules.failures and all(last):
            return True
        width = self.rules.window_s / BUCKETS
        begin = self.clock.now // width - BUCKETS
        recent = [failed for at, failed in self.outcomes if at // width > begin]
        return len(recent) >= self.rules.min_calls and sum(recent) >= self.rules.failure_rate * len(recent)

    @rule(seconds=st.sampled_from([0.1, 1.0, 7.0, 29.0, 31.0, 61.0]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule()
    def sign_of_life(self) -> None:
        self.breaker.try_now()
        if self.state == "open":
            self.opened_at = min(self.opened_at, self.clock.now - self.rules.open_s)

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "breaker"):
            return
        seen = self.breaker.snapshot()
        assert (seen.state, self.breaker.state) == (self.now_state(), self.now_state())
        assert (seen.trial_in_s > 0) == (self.now_state() == "open")


BreakerModel.TestCase.settings = hypothesis_settings(max_examples=150, stateful_step_count=60, deadline=None)
test_the_breaker_does_what_its_model_does = BreakerModel.TestCase


async def test_calls_pass_results_and_errors_and_an_open_breaker_sends_nothing() -> None:
    clock = Clock()
    breakers = Breakers(BreakerSettings(failures=2, open_s=10), clock=clock)
    breaker = breakers.of("insert")
    assert breakers.of("insert") is breaker
    asked = 0

    async def ask(error: Exception | None = None) -> int:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0)
        if error is not None:
            raise error
        return asked

    assert await breaker.call(ask) == 1
    for _ in range(2):
        with pytest.raises(StoreUnreachable):
            await breaker.call(lambda: ask(StoreUnreachable("gone")))
    with pytest.raises(BreakerOpen, match=r"insert: not tried for 10\.0 s more.*gone"):
        await breaker.call(ask)
    assert asked == 3
    assert breakers.facts() == {"breaker_insert": "open", "breaker_insert_opened": 1, "breaker_insert_rejected": 1}
    assert breakers.problems() == ["insert is away (gone): tried again in 10 s at most"]
    clock.now += 10
    trial = asyncio.create_task(breaker.call(ask))
    await asyncio.sleep(0)
    with pytest.raises(BreakerOpen):  # one trial at a time
        await breaker.call(ask)
    assert await trial == 4
    assert breaker.state == "closed"
    assert breakers.problems() == []


async def test_a_cancelled_trial_leaves_its_place_to_the_next() -> None:
    clock = Clock()
    breaker = Breaker("edge", BreakerSettings(failures=1, open_s=10), clock=clock)
    with pytest.raises(BusUnreachable), breaker.attempt():
        raise BusUnreachable("away")
    clock.now += 10
    hanging = asyncio.create_task(breaker.call(asyncio.Event().wait))
    await asyncio.sleep(0)
    hanging.cancel()
    await asyncio.gather(hanging, return_exceptions=True)
    assert breaker.state == "half_open"
    await breaker.call(lambda: asyncio.sleep(0))
    assert breaker.state == "closed"
