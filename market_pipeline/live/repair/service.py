"""The repair of live time as a service: every so often it looks for minutes that have no complete bar."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from datetime import datetime

import polars as pl
import structlog

from market_pipeline.breaker import Breakers
from market_pipeline.errors import (
    BusAuthError,
    InputError,
    MarketPipelineError,
    RangeNotLoaded,
    SettingsError,
    StoreAuthError,
    VendorAuthError,
)
from market_pipeline.history.coverage import due_until
from market_pipeline.history.runtime import Clock, Runtime, open_runtime, utc_now
from market_pipeline.live.repair.losses import KnownLosses, lost_minutes
from market_pipeline.live.repair.mending import Mender
from market_pipeline.live.repair.search import asks_apart, end_of_history, search, settled
from market_pipeline.live.service import Fact, ServiceHealth
from market_pipeline.market.instruments import Instrument
from market_pipeline.market.timeframes import floor, midnight
from market_pipeline.settings import Settings
from market_pipeline.stores.gap_merge import OPEN
from market_pipeline.stores.vendor_requests import Interval
from market_pipeline.tasks import end_tasks, pause
from market_pipeline.vendors.polygon import BREAKER

log = structlog.get_logger(__name__)

AGAIN_S = 5.0
STOP_S = 15.0
"""A look that is under way gets so long to end; what it has published by then is stored by whoever drains the bus."""


class RepairService:
    """Find minutes that live time lacks, ask the vendor for them, and derive again what they touch.

    A look covers the last `live.look_back`, and what is older and still open; the first begins where history ends. What
    lacks a complete bar goes to the gap ledger at once, the seam between history and live time at the first look, and
    is asked for when settle and lateness have passed, until it comes or the vendor is confirmed not to have it. Bars
    have the source `live_gap_filled`. While the vendor, NATS or ClickHouse is away it waits, and says so; without the
    tick store it goes on with the losses that the collector recorded.
    """

    def __init__(
        self, settings: Settings, instruments: Sequence[Instrument], *, run_id: str = "", clock: Clock = utc_now
    ) -> None:
        """Prepare; nothing is asked yet.

        Args:
            instruments: that are streamed.
            run_id: in the headers of every batch, for the ledger; default: one of its own.
        """
        self._settings, self._instruments, self._clock = settings, tuple(instruments), clock
        self._run_id = run_id or f"repair-{secrets.token_hex(6)}"
        self._losses = KnownLosses(settings.postgres)
        self._state = "stopped"
        self._away = ""
        # They outlive a runtime: each failure opens another.
        self._breakers = Breakers(settings.breaker)
        self._mender = Mender(self._run_id, clock)
        self._since: dict[str, datetime] = {}
        self._looks = self._losses_settled = 0
        self._open = pl.DataFrame()
        self._looked_at: datetime | None = None
        self._lost = 0
        self._vendor_away = False

    @property
    def name(self) -> str:
        """The name under which it is run, shown and counted."""
        return "repair"

    async def probe(self) -> dict[str, float]:
        """Prove that vendor, NATS and ClickHouse do their work; return the milliseconds that each took.

        Raises:
            MarketPipelineError: the typed error of the part that cannot do its work.
        """
        async with open_runtime(self._settings, run_id=self._run_id, root_run_id=self._run_id, clock=self._clock) as rt:
            return rt.probes_ms

    async def run(self, stop: asyncio.Event) -> None:
        """Repair until `stop` is set.

        Raises:
            SettingsError, InputError, VendorAuthError, BusAuthError, StoreAuthError: only a person can mend it.
        """
        self._state = "starting"
        try:
            while not stop.is_set():
                try:
                    # The vendor may be away: the gaps are found all the same.
                    async with open_runtime(
                        self._settings,
                        run_id=self._run_id,
                        root_run_id=self._run_id,
                        probe_vendor=False,
                        clock=self._clock,
                        breakers=self._breakers,
                    ) as rt:
                        await _bounded(self._work(rt, stop), stop)
                except (SettingsError, InputError, VendorAuthError, BusAuthError, StoreAuthError):
                    self._state = "failed"
                    raise
                except MarketPipelineError as error:
                    if self._state != "waiting":
                        log.warning("live_repair_waits", error=str(error))
                    self._state, self._away = "waiting", str(error)
                    await pause(stop, min(AGAIN_S, self._settings.live.repair_every_s))
        finally:
            if self._state != "failed":
                self._state = "stopped"
            await self._losses.close()

    def health(self) -> ServiceHealth:
        """Return the state of now."""
        problems: list[str] = []
        if self._state == "waiting":
            problems.append(f"waits: {self._away}")
        elif self._state not in ("starting", "running"):
            problems.append("not running")
        problems += [f"{symbol}: {error}" for symbol, error in sorted(self._mender.failing.items())]
        problems += self._breakers.problems()
        if self._losses.away:
            problems.append(f"losses that the tick store recorded are {self._losses.tick_store}")
        oldest = self._open["start_ts"].min() if self._open.height else None
        age_s = (self._clock() - oldest).total_seconds() if isinstance(oldest, datetime) else 0.0
        facts: dict[str, Fact] = {
            "symbols": len(self._instruments),
            "looks": self._looks,
            "last_look": self._looked_at.isoformat() if self._looked_at else "",
            "open_gaps": self._open.height,
            "open_minutes": int(self._open["minutes"].sum()) if self._open.height else 0,
            "oldest_open_gap_s": round(age_s, 1),
            "minutes_repaired": self._mender.minutes_repaired,
            "minutes_confirmed": self._mender.minutes_confirmed,
            "requests": self._mender.requests,
            "losses_waiting": self._lost,
            "losses_settled": self._losses_settled,
            "windows_written": self._mender.windows_written,
            "windows_waiting": self._mender.windows_waiting,
            "tick_store_losses": self._losses.tick_store,
        }
        return ServiceHealth(self.name, self._state, tuple(problems), facts | self._breakers.facts())

    async def _work(self, rt: Runtime, stop: asyncio.Event) -> None:
        while not stop.is_set():
            await self._look(rt)
            if self._vendor_away:
                self._state, self._away = "waiting", "the vendor is away"
            else:
                if self._state == "waiting":
                    log.info("live_repair_goes_on")
                self._state, self._away = "running", ""
            await pause(stop, self._settings.live.repair_every_s)

    async def _look(self, rt: Runtime) -> None:
        """Look at every symbol, then repair, that with the oldest gap first."""
        now = self._clock()
        due = due_until(now, self._settings.history)
        keys = [each.key for each in self._instruments]
        if self._looked_at is None:
            back = now - self._settings.live.look_back
            for each in self._instruments:
                self._since[each.key] = await asyncio.to_thread(end_of_history, rt, each, back)
        recorded = await self._losses.in_bucket(rt.bus, keys)
        self._lost = len(recorded)
        spans = {
            each.key: self._span(each, [r.start for r in recorded if r.symbol == each.key], now)
            for each in self._instruments
        }
        stored = await self._losses.in_tick_store(spans)

        todo: list[tuple[Instrument, list[Interval]]] = []
        lacking: dict[str, list[Interval]] = {}
        apart, vendor = asks_apart(self._settings, len(self._instruments)), self._breakers.of(BREAKER)
        for each in self._instruments:
            own = [loss for loss in recorded if loss.symbol == each.key]
            if self._looked_at is None and spans[each.key][0] < due:
                # A crash between a repair and its derivation leaves no trace: all it may have touched is derived again.
                self._mender.leave_to_derive(each.key, [(spans[each.key][0], due)])
            await self._mender.demote(rt, each, own)
            lost = lost_minutes(own, stored.get(each.key, []))
            lacking[each.key] = wanted = await asyncio.to_thread(search, rt, each, spans[each.key], lost, now)
            # A thin market lacks a minute every few minutes: they are asked for together.
            asks = vendor.state != "open" and self._mender.may_ask(each.key, now, apart)
            todo.append((each, wanted if asks else []))
        await self._note(rt, spans, due)
        self._looked_at = now
        # While it is open the failures of before stand; nothing is asked, and the look goes on.
        self._vendor_away = vendor.state == "open"

        todo.sort(key=lambda one: one[1][0] if one[1] else (now, now))
        slots = asyncio.Semaphore(self._settings.history.symbols_at_once)
        work = [self._mender.mend(rt, each, wanted, lacking[each.key], slots) for each, wanted in todo]
        failures = [error for error in await asyncio.gather(*work, return_exceptions=True) if error is not None]
        still_open = await self._note(rt, spans, due)
        gone = settled(recorded, still_open, due)
        await self._losses.forget(rt.bus, gone)
        self._lost -= len(gone)
        self._losses_settled += len(gone)
        self._looks += 1
        for error in sorted(failures, key=lambda one: isinstance(one, RangeNotLoaded)):
            raise error

    def _span(self, instrument: Instrument, lost: Sequence[datetime], now: datetime) -> Interval:
        """Return what is looked at: at first up to now, so that the seam shows; later where live bars had time."""
        live = self._settings.live
        end = now if self._looked_at is None else now - live.lateness
        first = min([now - live.look_back, self._since.get(instrument.key, now), *lost])
        start = max(midnight(instrument.history_start), floor(first, "1m"))
        return start, max(start, floor(end, "1m"))

    async def _note(self, rt: Runtime, spans: dict[str, Interval], due: datetime) -> pl.DataFrame:
        """Keep what is open now, for health; and where the next looks have to begin, so as not to pass over it."""
        table = await asyncio.to_thread(rt.gaps.table, list(spans), states=(OPEN,))
        self._open = table
        self._since = {}
        for key, (start, _) in spans.items():
            standing = table.filter((pl.col("symbol") == key) & (pl.col("end_ts") > start) & (pl.col("start_ts") < due))
            first = standing["start_ts"].min()
            if isinstance(first, datetime):
                self._since[key] = max(first, start)
        return table


async def _bounded(work: object, stop: asyncio.Event) -> None:
    """Do the work; once `stop` is set it has STOP_S to end."""
    task = asyncio.ensure_future(work)  # type: ignore[call-overload]
    stopped = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((task, stopped), return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait((task,), timeout=STOP_S)
        if task.done():
            task.result()
        else:
            log.warning("live_repair_left_in_the_middle")
    finally:
        await end_tasks((task, stopped))
