"""The plan's rate as a pure rule; `bus.rate` holds it across processes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

# Up to this many requests a window every grant is remembered, and all of them may come at once; above it the grants
# are spread evenly, so that the state stays one number and a vendor with a limit a second sees no burst.
LOGGED_REQUESTS = 60
# The vendor counts when requests arrive, the rule when they leave: connections that take unequally long to open move
# two requests closer together, so the rule's window is longer than the vendor's.
MARGIN_SHARE = 0.03
MARGIN_S = 0.25
# 6,000 a minute come in bursts of 3, so that no second sees more than 100, which the vendor asks of paid plans.
CELLS_A_BURST = 2000


@dataclass(frozen=True)
class RateRule:
    """Allow at most `requests` in any `per_seconds`.

    A state is a list of times in seconds: the grants of the last window, or, above `LOGGED_REQUESTS`, one theoretical
    arrival time of the generic cell rate algorithm (ITU-T I.371).
    """

    requests: int
    per_seconds: float

    @cached_property
    def window(self) -> float:
        """The vendor's window and the margin, in seconds."""
        return self.per_seconds + self.margin

    @property
    def margin(self) -> float:
        """How much longer the rule's window is, in seconds."""
        return self.per_seconds * MARGIN_SHARE + MARGIN_S

    @property
    def logged(self) -> bool:
        """Whether every grant is remembered."""
        return self.requests <= LOGGED_REQUESTS

    def take(self, state: list[float], now: float) -> tuple[list[float], float]:
        """Try to take one grant at `now`.

        Returns:
            The new state and 0.0 if granted; the same state and the seconds to wait, above 0, if not.
        """
        return self._from_log(state, now) if self.logged else self._from_cells(state, now)

    def delayed(self, state: list[float], now: float, seconds: float) -> list[float]:
        """Move the grant of `seconds` ago to `now`, when the vendor may have counted it; the same state if no need.

        Within the margin there is none, and single cells of a large plan weigh nothing.
        """
        if not self.logged or seconds <= self.margin:
            return state
        nearest = min(state, key=lambda at: abs(at - (now - seconds)), default=now)
        return sorted([*(at for at in state if at != nearest), now])

    def _from_log(self, state: list[float], now: float) -> tuple[list[float], float]:
        # A time further ahead than a window comes from a clock that was wrong, and would close the gate for good.
        live = sorted(at for at in state if now - self.window < at <= now + self.window)
        if len(live) < self.requests:
            return [*live, now], 0.0
        return state, max(live[-self.requests] + self.window - now, 0.001)

    def _from_cells(self, state: list[float], now: float) -> tuple[list[float], float]:
        burst = max(1, self.requests // CELLS_A_BURST)
        interval = self.window / (self.requests - burst)
        arrival = state[0] if state and state[0] <= now + self.window + burst * interval else now
        arrival = max(arrival, now) + interval
        ahead = arrival - now - burst * interval
        if ahead <= 1e-9:
            return [arrival], 0.0
        return state, max(ahead, 0.001)
