"""Bars of 5m and more in live time: the windows that live minutes touch, derived by the same function as history's."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

from market_pipeline.bus.envelope import EncodedBatch
from market_pipeline.errors import BusAuthError, MarketPipelineError, SettingsError, StoreAuthError
from market_pipeline.history.derive import derive_symbol
from market_pipeline.history.progress import Meter
from market_pipeline.history.reports import DeriveReport
from market_pipeline.history.runtime import Runtime, open_runtime, utc_now
from market_pipeline.live.aggregator.touched import Touched, Window, intervals
from market_pipeline.live.aggregator.unstored import ASKED_AT_ONCE, Unstored
from market_pipeline.market.instruments import Instrument
from market_pipeline.market.timeframes import DERIVED, MINUTE
from market_pipeline.settings import Settings
from market_pipeline.stores.vendor_requests import merged
from market_pipeline.tasks import pause, unless

log = structlog.get_logger(__name__)

EVERY_S = 1.0
WAIT = timedelta(seconds=3)
LOOK_BACK = timedelta(days=2)
AGAIN_S = 5.0
STUCK_AFTER_S = 60.0
# After so long the windows of a flush that is not stored are made of what is there, and again once it is.
LATE_AFTER_S = 600.0
# Spans of published minutes that are remembered one by one: about 50 MB, two days of a hundred symbols.
MOST_UNSTORED = 300_000


@dataclass(frozen=True, slots=True)
class DeriverHealth:
    """The state of a deriver.

    problems: why it is not healthy, in words. unstored: flushes of which the store has not settled every minute yet.
    due: windows that could be derived now; derived, written: windows derived so far, and bars that this changed.
    """

    problems: tuple[str, ...]
    unstored: int
    due: int
    derived: int
    written: int

    @property
    def healthy(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


class LiveDeriver:
    """Derive the windows that published minutes touch, once the bridge has stored these minutes.

    It reads the winning minutes from the store and publishes under the source `derived`, as a historical run does, but
    to LIVE, where no backfill stands before it; every bar is verified. The bridge that stores the minutes stores them,
    too: while it, NATS or ClickHouse is away the windows wait.
    """

    def __init__(
        self,
        settings: Settings,
        instruments: Sequence[Instrument],
        *,
        run_id: str,
        wait: timedelta = WAIT,
        look_back: timedelta = LOOK_BACK,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        """Prepare.

        Args:
            run_id: in the headers of every batch, for the ledger.
            wait: how long after its end a window is derived, so that its last minute is there.
            look_back: at the start the windows of so much time are derived again: a restart forgets what was touched.
        """
        self._settings, self._instruments, self._run_id = settings, tuple(instruments), run_id
        self._clock, self._look_back = clock, look_back
        self._touched = Touched(wait)
        forget_s = max(look_back, LOOK_BACK).total_seconds()
        self._unstored = Unstored(late_s=LATE_AFTER_S, forget_s=forget_s, most=MOST_UNSTORED)
        self._error = ""
        self._failing_since: float | None = None
        self._running = False
        self.derived = self.written = 0

    def published(self, batches: Iterable[EncodedBatch]) -> None:
        """Hear of batches that the aggregator has published: its `on_published`."""
        for batch in batches:
            if batch.headers.timeframe == "1m":
                head = batch.headers
                span = (head.symbol, head.start_ts, head.end_ts + MINUTE)
                self._unstored.add(head.batch_id, head.rows, span, time.monotonic())

    async def run(self, stop: asyncio.Event) -> None:
        """Derive until `stop` is set.

        Raises:
            SettingsError, StoreAuthError, BusAuthError: only a person can mend it.
        """
        now = self._clock()
        for each in self._instruments:
            self._touched.range(each.key, now - self._look_back, now)
        self._running = True
        try:
            while not stop.is_set():
                try:
                    async with open_runtime(
                        self._settings,
                        run_id=self._run_id,
                        root_run_id=self._run_id,
                        vendor=False,
                        live=True,
                        clock=self._clock,
                    ) as rt:
                        await self._work(rt, stop)
                except (SettingsError, StoreAuthError, BusAuthError):
                    raise
                except MarketPipelineError as error:
                    if self._failing_since is None:
                        self._failing_since = time.monotonic()
                        log.warning("live_derivation_waits", error=str(error))
                    self._error = str(error)
                    await pause(stop, AGAIN_S)
        finally:
            self._running = False

    def health(self) -> DeriverHealth:
        """Return the state of now."""
        due, waited_s = self._touched.waiting(self._clock())
        problems = [] if self._running else ["not running"]
        if self._failing_since is not None and time.monotonic() - self._failing_since > STUCK_AFTER_S:
            problems.append(f"{due} windows wait, the oldest for {waited_s:.0f} s: {self._error}")
        return DeriverHealth(tuple(problems), len(self._unstored), due, self.derived, self.written)

    async def _work(self, rt: Runtime, stop: asyncio.Event) -> None:
        slots = asyncio.Semaphore(rt.settings.history.symbols_at_once)
        while not stop.is_set():
            await self._look(rt)
            # Told to stop, it does not wait for a bridge that may be gone: the next start derives these windows again.
            if not await unless(stop, self._derive_due(rt, slots)):
                return
            if self._failing_since is not None:
                self._failing_since = None
                log.info("live_derivation_goes_on")
            await pause(stop, EVERY_S)

    async def _derive_due(self, rt: Runtime, slots: asyncio.Semaphore) -> None:
        now = self._clock()
        work = [
            self._derive(rt, each, windows, slots)
            for each in self._instruments
            if (windows := self._touched.take(each.key, now))
        ]
        failures = [one for one in await asyncio.gather(*work, return_exceptions=True) if one is not None]
        if failures:
            raise failures[0]

    async def _look(self, rt: Runtime) -> None:
        """Touch the windows of the minutes that are settled meanwhile; those of a flush once all of them are."""
        asked = self._unstored.ids()
        settled: dict[int, int] = {}
        for begin in range(0, len(asked), ASKED_AT_ONCE):
            part = asked[begin : begin + ASKED_AT_ONCE]
            settled |= await asyncio.to_thread(rt.ingest.rows_settled, part, "1m")
        for symbol, start, end in self._unstored.take(settled, time.monotonic()):
            self._touched.range(symbol, start, end)

    async def _derive(
        self, rt: Runtime, instrument: Instrument, windows: Sequence[Window], slots: asyncio.Semaphore
    ) -> None:
        codes = {code for code, _ in windows}
        report = DeriveReport()
        try:
            async with slots:
                await derive_symbol(
                    rt,
                    instrument,
                    merged(intervals(windows)),
                    [code for code in DERIVED if code in codes],
                    report,
                    Meter("deriving", 0, None),
                )
        except BaseException:
            self._touched.put_back(instrument.key, windows)
            raise
        self.derived += len(windows)
        self.written += sum(counts.written for counts in report.timeframes.values())
