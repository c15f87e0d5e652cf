"""What becomes bars, when and from what."""

from __future__ import annotations

from datetime import timedelta

from pydantic import Field, field_validator

from market_pipeline.settings.section import Section

# market.bars.MINUTE_SOURCES, highest first: not imported, since who only reads settings should not wait for polars
PRECEDENCE = ("live_aggregated", "live_gap_filled", "historical_aggregated", "vendor_historical")


class HistorySettings(Section):
    """How history is loaded, settled and repaired, and which source of a minute wins.

    gap_attempts: so often the vendor must have answered without a bar before a gap is confirmed.
    gap_failures: so often in a row a gap's question may fail before it is given up; an outage is no failure of it.
    precedence: the four sources of minutes, highest first: of complete bars of one minute the first of them wins. The
    views of the store follow it at once, without a row being written; bars of 5m and more follow when they are
    materialized again. Every process of a stack must have the same: the last one to start decides.
    """

    settle: timedelta = timedelta(minutes=5)
    lateness: timedelta = timedelta(minutes=10)
    max_unresolved_batches: int = Field(default=64, ge=1, le=1024)
    symbols_at_once: int = Field(default=2, ge=1, le=64)
    drain_timeout_s: float = Field(default=120.0, gt=0)
    gap_attempts: int = Field(default=2, ge=1)
    gap_failures: int = Field(default=10, ge=1)
    precedence: tuple[str, ...] = PRECEDENCE

    @field_validator("precedence")
    @classmethod
    def _precedence(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if sorted(value) != sorted(PRECEDENCE):
            wrong = {
                "missing": [name for name in PRECEDENCE if name not in value],
                "unknown": sorted({name for name in value if name not in PRECEDENCE}),
                "named twice": [name for name in PRECEDENCE if value.count(name) > 1],
            }
            said = "; ".join(f"{what}: {', '.join(names)}" for what, names in wrong.items() if names)
            raise ValueError(f"name each of {', '.join(PRECEDENCE)} once, the highest first ({said})")
        return value


class LiveSettings(Section):
    """How live ticks become bars, and how live time is joined to history.

    symbols: of the instruments that are streamed, in any form; empty: all.
    name: of this set of symbols. Of the processes with one name one collects, and one makes bars; the others stand by.
        So processes with other symbols need another name (letters, digits, - and _), and no symbol belongs in two
        sets. A vendor's key has one connection a market, whatever the name.
    delay: a window closes when everything up to so long after its end has come.
    lateness: so long after its end a window takes late ticks, each of which reissues its bars.
    ahead: ticks whose time lies so far ahead of their arrival make no bar.
    silent_s: without a batch of a symbol for so long, its bars under way come out unproven.
    derive_wait: so long after its end a window of 5m and more is derived.
    look_back: at the start so much time is derived, and searched for gaps, again.
    repair_every_s: pause between two looks for minutes that live time lacks.
    report_every_s: pause between two materializations of the running day.
    ticks_kept_days: days of ticks in the tick store; None: all.
    unhealthy_after_s: input that waits for so long without output makes a service unhealthy.
    price_tolerance, volume_tolerance: relative differences from the vendor's minute that reconciliation lets pass.
    """

    symbols: tuple[str, ...] = ()
    name: str = Field(default="default", pattern=r"^[A-Za-z0-9_-]+$", max_length=64)
    delay: timedelta = timedelta(0)
    lateness: timedelta = timedelta(minutes=2)
    ahead: timedelta = timedelta(minutes=1)
    silent_s: float = Field(default=15.0, gt=0)
    derive_wait: timedelta = timedelta(seconds=3)
    look_back: timedelta = timedelta(days=2)
    repair_every_s: float = Field(default=30.0, gt=0)
    report_every_s: float = Field(default=900.0, ge=5)
    ticks_kept_days: int | None = Field(default=30, ge=3)
    unhealthy_after_s: float = Field(default=30.0, gt=0)
    price_tolerance: float = Field(default=0.0, ge=0)
    volume_tolerance: float = Field(default=0.0, ge=0)
