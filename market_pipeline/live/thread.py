"""The live services in a thread with an event loop of its own, so that who owns them may block."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import structlog

from market_pipeline.live.service import LiveService, ServiceHealth
from market_pipeline.live.supervisor import LiveSupervisor
from market_pipeline.settings import Settings

log = structlog.get_logger(__name__)

STOP_S = 30.0


class LiveThread:
    """Run a LiveSupervisor beside the caller's thread: whatever the caller waits for, ingestion goes on.

        with LiveThread(settings, services) as live:
            while not live.wait(5):
                ...

    Leaving the block stops the services and raises what ended them, if that was an error.
    """

    def __init__(self, settings: Settings, services: Sequence[LiveService], *, run_id: str = "") -> None:
        self._supervisor = LiveSupervisor(settings, services, run_id=run_id)
        self._thread = threading.Thread(target=self._main, name="live services", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._begun = threading.Event()
        self._ended = threading.Event()
        self._error: BaseException | None = None

    def __enter__(self) -> LiveThread:
        self._thread.start()
        self._begun.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        if self._error is not None:
            raise self._error

    def wait(self, seconds: float) -> bool:
        """Wait for the end of the services, at most so long; return whether they have ended."""
        return self._ended.wait(seconds)

    def stop(self) -> None:
        """Tell the services to finish what is under way, and wait for them, 30 s at most."""
        loop, stop = self._loop, self._stop
        if loop is not None and stop is not None and not self._ended.is_set():
            loop.call_soon_threadsafe(stop.set)
        if not self._ended.wait(STOP_S):
            log.error("live_services_do_not_end", seconds=STOP_S)

    def health(self) -> list[ServiceHealth]:
        """Return the state of every service; a reading from another thread, good enough to be shown."""
        return self._supervisor.health()

    def _main(self) -> None:
        try:
            asyncio.run(self._run())
        except BaseException as error:
            self._error = error
        finally:
            self._begun.set()
            self._ended.set()

    async def _run(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._begun.set()
        await self._supervisor.run(self._stop)
