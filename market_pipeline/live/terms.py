"""Work that one process does at a time: stand by for a lease, work a term, stand by again."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Iterable
from typing import Literal

from market_pipeline.bus.lease import Lease
from market_pipeline.live.loss_recorder import LossRecorder
from market_pipeline.market.instruments import Instrument
from market_pipeline.tasks import end_tasks, unless

DRAIN_S = 5.0


def work_on(instruments: Iterable[Instrument]) -> str:
    """Return what tells the work on one set of symbols from that on another, in short."""
    keys = sorted(each.key for each in instruments)
    return hashlib.sha256(" ".join(keys).encode()).hexdigest()[:16]


def standby_problems(state: str, name: str, lease: Lease) -> list[str]:
    """Say that whoever holds the lease works on other symbols: then nobody works on ours."""
    if state != "standby" or not lease.other_work:
        return []
    return [
        f"{lease.other_work} works on other symbols under the name {name!r}, and nobody on these: give this set a name "
        "of its own (live.name, MARKET_PIPELINE_LIVE__NAME), or both the same symbols"
    ]


async def work_in_terms(
    stop: asyncio.Event,
    lease: Lease,
    recorder: LossRecorder,
    term: Callable[[asyncio.Event], Awaitable[None]],
    enter: Callable[[Literal["standby", "stopped"]], None],
) -> None:
    """Work `term` whenever the lease is held, until `stop` is set; then keep what the recorder knows, within DRAIN_S.

    `term` returns when the lease is lost or `stop` is set; `enter` is told what is done outside it.
    """
    recording = asyncio.create_task(recorder.run(), name="losses")
    try:
        while not stop.is_set():
            enter("standby")
            if not await unless(stop, lease.acquire()):
                break
            try:
                await term(stop)
            finally:
                enter("stopped")
                await lease.release()
        await recorder.drain(DRAIN_S)
    finally:
        enter("stopped")
        await lease.release()
        await end_tasks([recording])
