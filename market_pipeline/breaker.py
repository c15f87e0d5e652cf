"""The circuit breaker of an edge: after too many failures a server is left alone for a while, then tried carefully.

    closed ──(failures in a row, or their share in the window)──► open ──(open_s)──► half-open
       ▲                                                           ▲                   │
       └───────────────────────(a trial is answered)───────────────┴──(a trial fails)──┘

Of the libraries at hand none counts failures in a row AND their share in a rolling window of time, limits the trials
that run at once, and leaves a call that began before a change of state out of what it decides after it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum, auto
from typing import Literal, TypeVar

import structlog

from market_pipeline.errors import BreakerOpen, Terminal, Transient
from market_pipeline.settings import BreakerSettings

log = structlog.get_logger(__name__)

BUCKETS = 30
"""Parts of the rolling window that are forgotten as a whole: memory does not grow with the rate of calls."""

BreakerState = Literal["closed", "open", "half_open"]
T = TypeVar("T")


class _Verdict(Enum):
    ANSWERED = auto()
    FAILED = auto()
    NOTHING = auto()


@dataclass(frozen=True, slots=True)
class BreakerSnapshot:
    """The state of a breaker.

    failures_in_a_row, window_calls, window_failures: what would open it, while it is closed. trial_in_s: seconds until
    a trial is allowed; 0 unless it is open. opened, rejected: how often it opened, and calls it refused, since the
    start. last_error: the failure that it saw last, empty if none.
    """

    name: str
    state: BreakerState
    failures_in_a_row: int
    window_calls: int
    window_failures: int
    trial_in_s: float
    opened: int
    rejected: int
    last_error: str


class Breaker:
    """Guard the calls to one server; for the tasks of one event loop.

    Only a Transient error is a failure. A Terminal one is an answer, as a result is: a server that refuses a query is
    not away. So are errors of the kinds in `answers` (a full stream). Anything else that ends a call (its cancellation,
    a fault of ours, an error that is not of the kinds in `of`: that of another server) says nothing about the server.
    Every error passes through untouched.
    """

    def __init__(
        self,
        name: str,
        settings: BreakerSettings | None = None,
        *,
        answers: tuple[type[Exception], ...] = (),
        of: tuple[type[Exception], ...] = (Exception,),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare a closed breaker; `clock` gives seconds that never go back."""
        self.name = name
        self._settings = settings or BreakerSettings()
        self._answers, self._of = answers, of
        self._clock = clock
        self._state: BreakerState = "closed"
        self._term = 0  # counts the changes of state: a call that began in an earlier one decides nothing any more
        self._trial_at = 0.0
        self._trials = 0
        self._in_a_row = 0
        self._window = _Window(self._settings.window_s)
        self._opened = self._rejected = 0
        self._last_error = ""

    @property
    def state(self) -> BreakerState:
        """The state of now: an open breaker becomes half-open by the passing of time."""
        if self._state == "open" and self._clock() >= self._trial_at:
            return "half_open"
        return self._state

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Let the block try, and judge by how it ends. The block may await.

        Raises:
            BreakerOpen: the block does not run.
        """
        term = self._begin()
        try:
            yield
        except BaseException as error:
            self._end(term, self._judge(error), error)
            raise
        self._end(term, _Verdict.ANSWERED)

    async def call(self, work: Callable[[], Awaitable[T]]) -> T:
        """Await what `work` returns, and judge by how it ends.

        Raises:
            BreakerOpen: `work` is not called.
        """
        with self.attempt():
            return await work()

    def try_now(self) -> None:
        """Allow trials at once, on a sign from elsewhere that the server is back (a connection made again)."""
        if self._state == "open":
            self._trial_at = min(self._trial_at, self._clock())

    def snapshot(self) -> BreakerSnapshot:
        """Return the state of now."""
        now = self._clock()
        calls, failures = self._window.counts(now)
        return BreakerSnapshot(
            name=self.name,
            state=self.state,
            failures_in_a_row=self._in_a_row,
            window_calls=calls,
            window_failures=failures,
            trial_in_s=max(0.0, self._trial_at - now) if self._state == "open" else 0.0,
            opened=self._opened,
            rejected=self._rejected,
            last_error=self._last_error,
        )

    def _begin(self) -> int:
        state = self.state
        if state == "open" or (state == "half_open" and self._trials >= self._settings.trials):
            self._rejected += 1
            wait_s = self._trial_at - self._clock() if state == "open" else 0.0
            raise BreakerOpen(self.name, wait_s, self._last_error)
        if state == "half_open":
            if self._state == "open":
                self._turn("half_open")
            self._trials += 1
        return self._term

    def _judge(self, error: BaseException) -> _Verdict:
        if not isinstance(error, self._of):
            return _Verdict.NOTHING
        if isinstance(error, (Terminal, *self._answers)):
            return _Verdict.ANSWERED
        # The breaker of an inner edge that is open already is no news of this one.
        if isinstance(error, Transient) and not isinstance(error, BreakerOpen):
            return _Verdict.FAILED
        return _Verdict.NOTHING

    def _end(self, term: int, verdict: _Verdict, error: BaseException | None = None) -> None:
        if verdict is _Verdict.FAILED:
            self._last_error = str(error)
        if term != self._term:
            return
        if self._state == "half_open":
            self._trials -= 1
            if verdict is not _Verdict.NOTHING:
                self._turn("open" if verdict is _Verdict.FAILED else "closed")
            return
        if verdict is _Verdict.NOTHING:
            return
        failed = verdict is _Verdict.FAILED
        now = self._clock()
        self._window.add(now, failed)
        self._in_a_row = self._in_a_row + 1 if failed else 0
        if failed and self._too_many(now):
            self._turn("open")

    def _too_many(self, now: float) -> bool:
        settings = self._settings
        if self._in_a_row >= settings.failures:
            return True
        calls, failures = self._window.counts(now)
        return calls >= settings.min_calls and failures >= settings.failure_rate * calls

    def _turn(self, state: BreakerState) -> None:
        before, self._state = self._state, state
        self._term += 1
        self._trials = self._in_a_row = 0
        self._window.clear()
        if state == "open":
            self._trial_at = self._clock() + self._settings.open_s
            if before == "closed":  # a trial that failed is not another outage
                self._opened += 1
                log.warning("breaker_opened", breaker=self.name, error=self._last_error)
        elif state == "closed":
            log.info("breaker_closed", breaker=self.name)


class Breakers:
    """Keep the breakers of one service or run by name, for its health."""

    def __init__(self, settings: BreakerSettings | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings or BreakerSettings()
        self._clock = clock
        self._breakers: dict[str, Breaker] = {}

    def of(
        self,
        name: str,
        *,
        answers: tuple[type[Exception], ...] = (),
        of: tuple[type[Exception], ...] = (Exception,),
    ) -> Breaker:
        """Return the breaker of an edge, the same one each time; `answers` and `of` are those of the first call."""
        if name not in self._breakers:
            self._breakers[name] = Breaker(name, self._settings, answers=answers, of=of, clock=self._clock)
        return self._breakers[name]

    def snapshots(self) -> tuple[BreakerSnapshot, ...]:
        """Return the state of each."""
        return tuple(each.snapshot() for each in self._breakers.values())

    def facts(self) -> dict[str, int | float | str]:
        """Return flat facts for a ServiceHealth: state, times opened and calls rejected of each."""
        facts: dict[str, int | float | str] = {}
        for each in self.snapshots():
            facts[f"breaker_{each.name}"] = each.state
            facts[f"breaker_{each.name}_opened"] = each.opened
            facts[f"breaker_{each.name}_rejected"] = each.rejected
        return facts

    def problems(self) -> list[str]:
        """Return a sentence for each breaker that is not closed."""
        return [
            f"{each.name} is away ({each.last_error}): tried again in {each.trial_in_s:.0f} s at most"
            for each in self.snapshots()
            if each.state != "closed"
        ]


class _Window:
    """Count calls and failures of the last `seconds`, to a 30th of them."""

    def __init__(self, seconds: float) -> None:
        self._width = seconds / BUCKETS
        self._buckets: deque[list[int]] = deque()  # [number of the bucket, calls, failures]

    def add(self, now: float, failed: bool) -> None:
        number = int(now // self._width)
        if not self._buckets or self._buckets[-1][0] != number:
            self._buckets.append([number, 0, 0])
        self._buckets[-1][1] += 1
        self._buckets[-1][2] += failed

    def counts(self, now: float) -> tuple[int, int]:
        oldest = int(now // self._width) - BUCKETS
        while self._buckets and self._buckets[0][0] <= oldest:
            self._buckets.popleft()
        return sum(each[1] for each in self._buckets), sum(each[2] for each in self._buckets)

    def clear(self) -> None:
        self._buckets.clear()
