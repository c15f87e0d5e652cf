"""Ask the vendor for the minutes of a symbol that live time lacks, and derive what they touch."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import structlog

from market_pipeline.bus.losses import LossInterval
from market_pipeline.errors import MarketPipelineError, RangeNotLoaded, VendorAuthError, VendorError, VendorUnavailable
from market_pipeline.history.asking import request_ranges
from market_pipeline.history.derive import derive_symbol
from market_pipeline.history.load import REFUSALS, load_symbol
from market_pipeline.history.progress import Meter
from market_pipeline.history.repair import minutes_left
from market_pipeline.history.reports import DeriveReport, SymbolLoad
from market_pipeline.history.runtime import Clock, Runtime
from market_pipeline.history.wanted import minutes_of
from market_pipeline.live.repair.demote import complete_though_late, demote
from market_pipeline.market.bars import LIVE_GAP_FILLED
from market_pipeline.market.instruments import Instrument
from market_pipeline.market.timeframes import DERIVED, MINUTE
from market_pipeline.stores.vendor_requests import Interval, merged

log = structlog.get_logger(__name__)


class Mender:
    """Mend symbols, one question at a time each, and remember what is still to derive; it outlives a runtime.

    failing: why the last question of a symbol failed, by symbol key. The counters begin with the process.
    """

    def __init__(self, run_id: str, clock: Clock) -> None:
        self._run_id, self._clock = run_id, clock
        self._asked: dict[str, datetime] = {}
        self._refused: set[str] = set()
        self._underived: dict[str, list[Interval]] = {}
        self._landing: dict[str, list[Interval]] = {}
        self.failing: dict[str, str] = {}
        self.requests = self.minutes_repaired = self.minutes_confirmed = self.windows_written = 0

    @property
    def windows_waiting(self) -> int:
        """Ranges that are still to derive."""
        return sum(len(spans) for spans in self._underived.values())

    def may_ask(self, key: str, now: datetime, apart: timedelta) -> bool:
        """Tell whether a symbol may be asked for: not refused for good, and the last time is `apart` ago."""
        asked = self._asked.get(key)
        return key not in self._refused and (asked is None or now - asked >= apart)

    def leave_to_derive(self, key: str, spans: Sequence[Interval]) -> None:
        """Note ranges of a symbol before their minutes change: they are derived at the next `mend`, come what may."""
        self._underived[key] = merged([*self._underived.get(key, []), *spans])

    async def demote(self, rt: Runtime, instrument: Instrument, losses: Sequence[LossInterval]) -> None:
        """Let bars that a tick came too late for be incomplete, so that they are found and asked for."""
        bars = await asyncio.to_thread(complete_though_late, rt, instrument, losses)
        if bars.height:
            # Noted first: what has landed must be derived, whatever becomes of the rest.
            spans = [(opened, opened + MINUTE) for opened in bars["ts"].to_list()]
            self.leave_to_derive(instrument.key, spans)
            await demote(rt, instrument, bars)

    async def mend(
        self,
        rt: Runtime,
        instrument: Instrument,
        wanted: list[Interval],
        lacking: list[Interval],
        slots: asyncio.Semaphore,
    ) -> None:
        """Ask for the minutes of one symbol and derive what they touch, and what an earlier look left to derive.

        What may still land, from the spool, is derived again at each look until it is no longer `lacking`.

        Raises:
            RangeNotLoaded, BusError, StoreError, HistoryError: to be tried again.
        """
        key = instrument.key
        async with slots:
            failure: MarketPipelineError | None = None
            if wanted:
                before = list(self._underived.get(key, []))
                # Noted first: what has landed must be derived, whatever becomes of the rest.
                self._underived[key] = merged([*before, *wanted])
                try:
                    if not await self._ask(rt, instrument, wanted):
                        self._underived[key] = before
                    self.failing.pop(key, None)
                except VendorAuthError:
                    raise
                except (RangeNotLoaded, VendorError) as error:
                    self.failing[key] = str(error)
                    failure = error
                    if isinstance(error, REFUSALS):
                        self._refused.add(key)
                        self.failing[key] += "; it is not asked again before a restart"
                        log.warning("live_repair_refused", symbol=instrument.symbol, error=str(error))
            landing = self._landing.get(key, [])
            if windows := merged([*self._underived.get(key, []), *landing]):
                report = DeriveReport()
                await derive_symbol(rt, instrument, windows, DERIVED, report, Meter("deriving", 0, None))
                self.windows_written += sum(counts.written for counts in report.timeframes.values())
                self._underived[key] = []
            self._landing[key] = [
                (start, end) for start, end in landing if any(start < to and end > since for since, to in lacking)
            ]
            if isinstance(failure, RangeNotLoaded):
                self._landing[key] = merged([*self._landing[key], *wanted])
                raise failure

    async def _ask(self, rt: Runtime, instrument: Instrument, wanted: list[Interval]) -> bool:
        """Ask the vendor for the minutes; return whether that changed the store."""
        load, began = SymbolLoad(instrument.key), self._clock()
        # Another root each time: what an earlier look has asked for is asked for again.
        again = replace(rt, root_run_id=f"{self._run_id}-{secrets.token_hex(4)}")
        try:
            await load_symbol(
                again,
                instrument,
                request_ranges(wanted),
                load,
                Meter("repairing", 0, None),
                source=LIVE_GAP_FILLED,
                only=wanted,
            )
        finally:
            self.requests += load.requests
            # Of a vendor that does not answer the breaker says when it is asked again.
            if load.requests > sum(isinstance(one.error, VendorUnavailable) for one in load.failed):
                # When it was asked, however long its answer took to land, and whatever it was.
                self._asked[instrument.key] = began
        left = await asyncio.to_thread(minutes_left, rt, instrument, wanted)
        repaired = minutes_of(wanted) - sum(left)
        self.minutes_repaired += repaired
        self.minutes_confirmed += left.confirmed
        log.info("live_repaired", symbol=instrument.symbol, minutes=repaired, **left._asdict())
        return load.counts.written > 0
