"""Ask the vendor for a symbol's gaps, and write to the ledger what became of the questions that failed.

A question that failed is an attempt, unless the vendor, NATS or ClickHouse was away: after `gap_failures` attempts, or
at once when the plan does not include its minutes, a gap is given up, so that no gap is asked for without end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta

import structlog

from market_pipeline.errors import (
    MarketPipelineError,
    RangeNotLoaded,
    VendorBadAnswer,
    VendorNotEntitled,
    VendorNotFound,
    VendorRequestRejected,
    VendorUnavailable,
    VerificationFailed,
)
from market_pipeline.history.coverage import account_days
from market_pipeline.history.load import FAILURES_BEFORE_STOP, load_symbol
from market_pipeline.history.progress import Meter
from market_pipeline.history.reports import FailedRequest, SymbolLoad
from market_pipeline.history.runtime import Runtime
from market_pipeline.history.wanted import Interval
from market_pipeline.market.instruments import Instrument

log = structlog.get_logger(__name__)

REQUEST_SPAN = timedelta(minutes=50_000)
"""One vendor request covers this much at most: gaps that fit into one are asked for together."""
_OF_THE_RANGE = (VendorNotFound, VendorRequestRejected, VendorBadAnswer, VerificationFailed)
"""Failures that say nothing of whether anything is away."""


@dataclass
class GapQuestions:
    """Ask for gaps of one symbol. failure: the first that another run may mend; refusals are none, they are final."""

    rt: Runtime
    instrument: Instrument
    load: SymbolLoad
    meter: Meter
    failure: RangeNotLoaded | None = field(default=None, init=False)

    async def ask(self, gaps: Sequence[Interval]) -> None:
        """Ask once for each gap, oldest first; many together, and apart where the plan does not include all of them.

        Raises:
            Terminal errors of the vendor that concern more than a range, at once.
        """
        ranges = request_ranges(gaps)
        await self._settle(await self._put(ranges), gaps)
        # Once for all of them: what was refused together has been asked for more than once.
        self.load.account(*await asyncio.to_thread(account_days, self.rt, self.instrument, [], ranges))

    async def _put(self, ranges: Sequence[Interval]) -> list[FailedRequest]:
        """Ask for ranges; return those that the plan does not include."""
        part, failure = SymbolLoad(self.instrument.key), None
        try:
            await load_symbol(self.rt, self.instrument, ranges, part, self.meter, past_refusals=True)
        except RangeNotLoaded as error:
            failure = error
        finally:
            self.load.add(part)
        refused = [one for one in part.failed if isinstance(one.error, VendorNotEntitled)]
        others = [one for one in part.failed if one not in refused]
        for one in others:
            if await self._is_attempt(one.error, len(others)):
                await self._note(one, final=False)
        if others:
            self.failure = self.failure or failure
        return refused

    async def _settle(self, refused: Sequence[FailedRequest], gaps: Sequence[Interval]) -> None:
        """Give up what the plan does not include, and ask for what was refused only for its company.

        A plan includes one stretch of time: if it includes neither the oldest nor the newest of the gaps that were
        asked for together, it includes none of them.
        """
        for one in refused:
            together = [gap for gap in gaps if gap[0] < one.end and gap[1] > one.start]
            if len(together) < 2:
                await self._note(one, final=True)
                continue
            ends = await self._put([together[0], together[-1]])
            if len(ends) == 2:
                await self._note(one, final=True)
                continue
            await self._settle(ends, together)
            inner = together[1:-1]
            halves = [half for half in (inner[: len(inner) // 2], inner[len(inner) // 2 :]) if half]
            if halves:
                await self._settle(await self._put([(half[0][0], half[-1][1]) for half in halves]), inner)

    async def _is_attempt(self, error: MarketPipelineError, failed: int) -> bool:
        """Tell whether a failure is one of its range, and not of a vendor, NATS or ClickHouse that is away."""
        if isinstance(error, VendorUnavailable) and failed < FAILURES_BEFORE_STOP:
            assert self.rt.vendor is not None
            try:
                await self.rt.vendor.probe()
            except MarketPipelineError:
                return False
            return True
        return isinstance(error, _OF_THE_RANGE)

    async def _note(self, failed: FailedRequest, *, final: bool) -> None:
        given_up = await asyncio.to_thread(
            self.rt.gaps.fail,
            self.instrument.key,
            failed.start,
            failed.end,
            str(failed.error),
            most=1 if final else self.rt.settings.history.gap_failures,
            now=self.rt.clock(),
        )
        for gap in given_up:
            log.warning(
                "gap_given_up",
                symbol=self.instrument.symbol,
                start=gap.start.isoformat(),
                minutes=gap.minutes,
                failures=gap.failures,
                error=gap.note,
            )


def request_ranges(gaps: Sequence[Interval]) -> list[Interval]:
    """Join gaps, oldest first, into the ranges that one request each can cover."""
    out: list[Interval] = []
    for start, end in sorted(gaps):
        if out and end - out[-1][0] <= REQUEST_SPAN:
            out[-1] = (out[-1][0], max(end, out[-1][1]))
        else:
            out.append((start, end))
    return out
