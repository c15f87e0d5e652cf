"""A live run's tie to Dagster: it beats by a run tag, and learns there that it shall end."""

from __future__ import annotations

import threading
import time
from typing import Any

import dagster as dg

from market_pipeline.orchestration.live.rules import BEAT_EVERY_S, BEAT_TAG


class RunWatch:
    """Beat, and look whether the run is still STARTED, in a thread of its own: whatever else the run is busy with.

    `over` is set once the run shall end. A storage that does not answer is no reason to end: ingestion goes on, and is
    said to be unwatched. A context manager.
    """

    def __init__(self, instance: dg.DagsterInstance, run_id: str, log: Any) -> None:
        self._instance, self._run_id, self._log = instance, run_id, log
        self._away = False
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
        while self.beat():
            if self._left.wait(BEAT_EVERY_S):
                return
        self.over.set()

    def beat(self) -> bool:
        """Beat once; return whether the run shall go on."""
        try:
            run = self._instance.get_run_by_id(self._run_id)
            if run is not None and run.status == dg.DagsterRunStatus.STARTED:
                self._instance.add_run_tags(self._run_id, {BEAT_TAG: f"{time.time():.0f}"})
        except Exception as error:  # every storage has errors of its own, and each means: not reachable now
            self.missed += 1
            if not self._away:
                _quietly(self._log, f"Dagster's storage does not answer; ingestion goes on: {_first_line(error)}")
            self._away = True
            return True
        if self._away:
            self._away = False
            self._log.info("Dagster's storage answers again")
        if run is None or run.status != dg.DagsterRunStatus.STARTED:
            status = "gone" if run is None else run.status.value
            self._log.warning(f"this run is {status} in Dagster's storage: the services end")
            return False
        return True


def _quietly(log: Any, text: str) -> None:
    """Say it where that can be: the log is in the storage that is away."""
    try:
        log.warning(text)
    except Exception:
        return


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__
