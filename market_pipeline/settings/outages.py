"""What happens while a server is away or behind."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from market_pipeline.settings.section import Section


class BreakerSettings(Section):
    """When an edge (publish, insert, tick write, vendor) stops asking a server that is away.

    failures: so many in a row open the breaker; so does a share of `failure_rate` among at least `min_calls` calls of
    the last `window_s`. open_s: it stays open; then `trials` calls at once may try.
    """

    failures: int = Field(default=5, ge=1)
    failure_rate: float = Field(default=0.5, gt=0, le=1)
    min_calls: int = Field(default=20, ge=1)
    window_s: float = Field(default=60.0, gt=0)
    open_s: float = Field(default=60.0, gt=0)
    trials: int = Field(default=1, ge=1)


class SpoolSettings(Section):
    """Where batches wait on disk while NATS is unreachable.

    folder: default `<home>/spool`. max_bytes: of all folders together. min_free_bytes: of the disk, left to others.
    full: `stop` makes the producer wait with a clear error; `oldest` gives up the oldest batches of live ticks, counts
    them and records their time as lost. wait_s: a historical run waits so long for its spool to drain, then fails.
    """

    folder: Path | None = None
    max_bytes: int = Field(default=5 * 1024**3, ge=1024**2)
    min_free_bytes: int = Field(default=512 * 1024**2, ge=0)
    segment_bytes: int = Field(default=16 * 1024**2, ge=64 * 1024)
    full: Literal["stop", "oldest"] = "stop"
    wait_s: float = Field(default=120.0, gt=0)


class ThrottleSettings(Section):
    """When historical loads are slowed down for the bridge's sake.

    lag_s: age of the oldest unacknowledged message at which a limit is set; release_s: at which it is lifted.
    batches_per_s: the limit. expiry_s: it lapses after so long without being renewed. every_s: between two looks.
    """

    lag_s: float = Field(default=30.0, gt=0)
    release_s: float = Field(default=10.0, ge=0)
    batches_per_s: float = Field(default=2.0, gt=0)
    expiry_s: float = Field(default=15.0, gt=0)
    every_s: float = Field(default=2.0, gt=0)
