"""Work that one process does at a time: stand by for a lease, work a term, stand by again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Literal

from market_pipeline.bus.lease import Lease
from market_pipeline.live.loss_recorder import LossRecorder
from market_pipeline.tasks import end_tasks, unless

DRAIN_S = 5.0


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
