"""A live run's tie to Dagster: it beats by a run tag, and learns there that it shall end."""

from __future__ import annotations

import threading
import time
from typing import Any

import dagster as dg
import structlog

from market_pipeline.orchestration.live.rules import BEAT_EVERY_S, BEAT_TAG
from market_pipeline.orchestration.quiet_log import QuietLog

log = structlog.get_logger(__name__)

AGAIN_S = 1.0
"""After a beat that failed: the storage took its time to say so, and the sensor counts from when it is back."""


class RunWatch:
    """Beat, and look whether the run is still STARTED, in a thread of its own: whatever else the run is busy with.

    `over` is set once the run shall end. A storage that does not answer is no reason to end: ingestion goes on, and is
    said to be unwatched; meanwhile `away` is true, and whoever writes to it would only wait. A context manager.
    """

    def __init__(self, instance: dg.DagsterInstance, run_id: str, log: Any) -> None:
        self._instance, self._run_id, self._log = instance, run_id, QuietLog(log)
        self.away = False
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._run, name="beat", daemon=True)
        self.over = threading.Event()
        self.missed = 0

    def __enter__(self) -> RunWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        self._thread.join(BEAT_EVERY_S)

    def _run(self) -> None:
        try:
            while self.beat():
                if self._left.wait(AGAIN_S if self.away else BEAT_EVERY_S):
                    return
        finally:
            self.over.set()  # whatever ended it: a run that nobody watches must not go on

    def beat(self) -> bool:
        """Beat once; return whether the run shall go on."""
        try:
            run = self._instance.get_run_by_id(self._run_id)
            if run is not None and run.status == dg.DagsterRunStatus.STARTED:
                self._instance.add_run_tags(self._run_id, {BEAT_TAG: f"{time.time():.0f}"})
        except Exception as error:  # every storage has errors of its own, and each means: not reachable now
            self.missed += 1
            if not self.away:
                self.away = True
                # Not to the run's log, which is in that storage: this waits in memory until it is back.
                log.warning("dagster_storage_away_ingestion_goes_on", error=_first_line(error))
            return True
        if self.away:
            self.away = False
            log.info("dagster_storage_answers_again")
        if run is None or run.status != dg.DagsterRunStatus.STARTED:
            status = "gone" if run is None else run.status.value
            self._log.warning(f"this run is {status} in Dagster's storage: the services end")
            return False
        return True


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__
