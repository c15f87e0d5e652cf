"""The hub's throttle: slows historical loads down while the bridge lags, so that live bars keep their share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

import structlog

from market_pipeline.bus.session import BusSession, open_bus
from market_pipeline.bus.streams import HISTORY, LIVE
from market_pipeline.bus.throttle import HISTORY_SERVICE, Throttle
from market_pipeline.errors import BusError, BusUnreachable
from market_pipeline.live.service import UNHEALTHY_AFTER_S, ServiceHealth
from market_pipeline.settings import Settings, ThrottleSettings
from market_pipeline.tasks import pause

log = structlog.get_logger(__name__)

STREAMS = (HISTORY, LIVE)
RECONNECT_S = 1.0


class Governor:
    """Decide between two thresholds whether there is a limit: set above `lag_s`, lifted at `release_s` and below."""

    def __init__(self, settings: ThrottleSettings) -> None:
        self._set_s, self._lift_s = settings.lag_s, min(settings.release_s, settings.lag_s)
        self.limiting = False

    def judge(self, lag_s: float) -> bool:
        """Take the lag of now (s) and return whether there is a limit."""
        if lag_s > self._set_s:
            self.limiting = True
        elif lag_s <= self._lift_s:
            self.limiting = False
        return self.limiting


class ThrottleService:
    """Watch how far the bridge is behind on HISTORY and LIVE; while it lags, limit every historical load.

    A limit is renewed at every look, well before it lapses; its end is said once. When this service is gone the limit
    lapses, and two of them do no harm: they see and say the same.
    """

    name = "throttle"

    def __init__(self, settings: Settings) -> None:
        self._settings, self._throttle = settings, settings.throttle
        self._governor = Governor(settings.throttle)
        self._lags: dict[str, float] = {}
        self._state = "stopped"
        self._error = ""
        self._looked_at = time.monotonic()
        self._looks = self._limits = self._releases = 0

    async def probe(self) -> dict[str, float]:
        """Prove that NATS answers, by asking what the service asks; return the milliseconds.

        Raises:
            BusUnreachable, BusAuthError, SettingsError.
        """
        async with open_bus(self._settings.nats, "hub throttle probe") as bus:
            started = time.perf_counter()
            await bus.ensure_streams()
            for stream in STREAMS:
                await bus.lag(stream)
            return {"nats": (time.perf_counter() - started) * 1000}

    async def run(self, stop: asyncio.Event) -> None:
        """Look every `throttle.every_s` seconds until `stop` is set; a limit that holds then lapses by itself.

        Raises:
            BusAuthError, SettingsError: only a person can mend it.
        """
        self._state, self._looked_at = "starting", time.monotonic()
        try:
            while not stop.is_set():
                try:
                    async with open_bus(self._settings.nats, "hub throttle") as bus:
                        await self._watch(bus, stop)
                except BusUnreachable as error:  # at the start, or closed for good
                    self._away(error)
                    await pause(stop, RECONNECT_S)
        finally:
            self._state = "stopped"

    def health(self) -> ServiceHealth:
        """Return the state of now."""
        blind_s = time.monotonic() - self._looked_at
        problems = []
        if self._state != "stopped" and blind_s > UNHEALTHY_AFTER_S:
            problems.append(f"the bridge's lag is not known for {blind_s:.0f} s: {self._error or 'no answer'}")
        facts: dict[str, int | float | str] = {
            **{f"lag_{stream.lower()}_s": round(lag, 3) for stream, lag in self._lags.items()},
            "limiting": int(self._governor.limiting),
            "looks": self._looks,
            "limits": self._limits,
            "releases": self._releases,
        }
        return ServiceHealth(self.name, self._state, tuple(problems), facts)

    async def _watch(self, bus: BusSession, stop: asyncio.Event) -> None:
        while not stop.is_set():
            try:
                await self._look(bus)
                self._state, self._error, self._looked_at = "running", "", time.monotonic()
            except BusError as error:  # the client comes back by itself; a limit lapses meanwhile
                self._away(error)
            await pause(stop, self._throttle.every_s)

    async def _look(self, bus: BusSession) -> None:
        self._lags = {stream: (await bus.lag(stream)).oldest_age_s for stream in STREAMS}
        was = self._governor.limiting
        limiting = self._governor.judge(max(self._lags.values()))
        self._looks += 1
        if not limiting and not was:
            return
        reason = _reason(self._lags)
        limit = Throttle(self._throttle.batches_per_s if limiting else None, self._throttle.expiry_s, reason)
        try:
            await bus.send_throttle(HISTORY_SERVICE, limit)
        except BusError:
            self._governor.limiting = was  # not said: the next look says it
            raise
        if limiting != was:
            self._limits += limiting
            self._releases += not limiting
            log.warning("history_throttled" if limiting else "history_released", reason=reason)

    def _away(self, error: BusError) -> None:
        if self._state != "waiting":
            log.warning("throttle_waits_for_bus", error=str(error))
        self._state, self._error = "waiting", str(error)


def _reason(lags: Mapping[str, float]) -> str:
    stream = max(lags, key=lags.__getitem__)
    return f"the oldest message of {stream} waits for the bridge since {lags[stream]:.1f} s"
