"""How the live run's work appears on the assets: today's partitions, at a sane cadence, with rates and latency."""
# no `from __future__ import annotations`: Dagster reads the annotations of what it is given

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

import dagster as dg
import polars as pl

from market_pipeline.errors import StoreError
from market_pipeline.live.service import ServiceHealth
from market_pipeline.market.instruments import Instrument
from market_pipeline.market.sessions import calendar
from market_pipeline.market.timeframes import DERIVED, midnight
from market_pipeline.orchestration.assets.derived import WEEKLY, bars_key
from market_pipeline.orchestration.assets.minutes import MINUTES
from market_pipeline.orchestration.assets.ticks import TICKS
from market_pipeline.orchestration.event_metadata import PARTIAL, Metadata, frame_table
from market_pipeline.orchestration.live.judge import live_evaluations
from market_pipeline.orchestration.partitions import BarPartitions, materialization, partition_key, sunday_of
from market_pipeline.orchestration.quiet_log import QuietLog
from market_pipeline.orchestration.resources import BusResource, StoresResource
from market_pipeline.settings import Settings

SAY_EVERY_S = 60.0
LOOK_EVERY_S = 10.0
"""Until the first live minute is stored, so that a stranger need not wait a quarter of an hour to see it."""
JUDGE_AGAIN_S = 60.0
"""While a check fails: repair works on it, and nobody should look at yesterday's red."""
_SHOWN_FACTS = 40
_HEADLINES = {
    "collector": ("ticks", "dropped", "losses"),
    "aggregator": ("bars", "revisions", "behind_s"),
    "ticks": ("ticks", "ticks_per_s", "store_latency_p99_ms"),
    "bridge": ("live_rows", "live_oldest_s", "history_oldest_s"),
    "repair": ("minutes_repaired", "open_minutes"),
    "throttle": ("limiting",),
}


class LiveReporter:
    """Tell Dagster what the services did. Everything here blocks, and nothing here may end the run."""

    def __init__(
        self,
        context: dg.OpExecutionContext,
        settings: Settings,
        instruments: Sequence[Instrument],
        partitions: BarPartitions,
        *,
        stores: StoresResource,
        bus: BusResource,
    ) -> None:
        self._stores, self._bus = stores, bus
        self.instruments = list(instruments)
        self._context, self._settings, self._partitions = context, settings, partitions
        self._log = QuietLog(context.log)
        self._health: list[ServiceHealth] = []
        self._day = datetime.now(UTC).date()
        self._reported_at: float | None = None
        self._looked_at = self._said_at = 0.0
        self._problems = ""
        self._failing: set[tuple[dg.AssetKey, str]] = set()
        self._judged_at = 0.0

    def look(self, health: Sequence[ServiceHealth]) -> None:
        """Say how the services are, and report partitions when it is time."""
        self._health = list(health)
        now = time.monotonic()
        try:
            self._say(now)
            today = datetime.now(UTC).date()
            closed = self._settings.history.settle + self._settings.history.lateness
            if today != self._day and datetime.now(UTC) > midnight(today) + closed:
                self._report(self._day)
                self._day, self._reported_at = today, now
            elif self._is_time(now):
                self._looked_at = now
                if self._report(today):
                    self._reported_at = now
            elif self._failing and now - self._judged_at >= JUDGE_AGAIN_S:
                self._judge(today, everything=False)
        except StoreError as error:  # shown by the services' own health as well
            self._log.warning(f"today's partitions are not reported: {error}")
        except Exception as error:  # Dagster's storage may be away: its errors are its own
            self._log.warning(f"not reported: {type(error).__name__}: {error}")

    def close(self) -> None:
        """Report once more at the end."""
        self._reported_at, self._looked_at = None, 0.0
        self.look(self._health)

    def _is_time(self, now: float) -> bool:
        if self._reported_at is None:
            return now - self._looked_at >= LOOK_EVERY_S
        return now - self._reported_at >= self._settings.live.report_every_s

    def _say(self, now: float) -> None:
        problems = "; ".join(f"{each.name}: {text}" for each in self._health for text in each.problems)
        if problems != self._problems and now - self._said_at > 5:
            self._problems = problems
            self._log.warning(problems) if problems else self._log.info("every service is healthy")
        if now - self._said_at >= SAY_EVERY_S:
            self._said_at = now
            self._log.info(
                "; ".join(_headline(each) for each in self._health if each.facts) or "the services are starting"
            )

    def _report(self, day: date) -> bool:
        """Materialize the day's partitions; False while no live minute is stored."""
        from market_pipeline.stores.bar_facts import BarFacts
        from market_pipeline.stores.clickhouse import connect
        from market_pipeline.stores.ledgers import IngestLedger

        now = datetime.now(UTC)
        start, week = midnight(day), midnight(sunday_of(day))
        due = min(now - self._settings.history.settle - self._settings.history.lateness, start + timedelta(days=1))
        keys = [each.key for each in self.instruments]
        client = connect(self._settings.clickhouse)
        try:
            facts = BarFacts(client)
            daily = facts.live_day(keys, start, start + timedelta(days=1), due)
            weekly = facts.live_day(keys, week, week + timedelta(days=7), due).filter(pl.col("timeframe") == WEEKLY)
            latency = IngestLedger(client).live_latency(now - timedelta(minutes=15))
        finally:
            client.close()
        counts = pl.concat([daily.filter(pl.col("timeframe") != WEEKLY), weekly])
        if not counts.filter(pl.col("live_rows") > 0).height:
            return False
        partial = now < start + timedelta(days=1) + self._settings.history.settle
        shared: Metadata = {PARTIAL: partial, "by": "live_ingestion"}
        for partition in dict.fromkeys(each.partition for each in self.instruments):
            members = [each for each in self.instruments if each.partition == partition]
            self._materialize(day, partition, members, counts, due, shared, latency)
        self._judge(day, everything=True)
        return True

    def _judge(self, day: date, *, everything: bool) -> None:
        """Evaluate the checks; unless `everything`, tell only what has changed since."""
        failing: set[tuple[dg.AssetKey, str]] = set()
        for evaluation in live_evaluations(
            self._context.instance, self._settings, self._partitions, self._stores, self._bus, day
        ):
            key = (evaluation.asset_key, evaluation.check_name)
            if not evaluation.passed:
                failing.add(key)
            if everything or evaluation.passed == (key in self._failing):
                # log_event takes evaluations too; its annotation does not say so
                self._context.log_event(evaluation)  # type: ignore[arg-type]
        self._failing, self._judged_at = failing, time.monotonic()

    def _materialize(
        self,
        day: date,
        partition: str,
        members: Sequence[Instrument],
        counts: pl.DataFrame,
        due: datetime,
        shared: Metadata,
        latency: Mapping[str, float],
    ) -> None:
        own = counts.filter(pl.col("symbol").is_in([each.key for each in members]))
        minutes = own.filter(pl.col("timeframe") == "1m")
        if not int(minutes["live_rows"].sum()):
            return
        start = midnight(day)
        expected = sum(len(calendar(i.calendar).expected_minutes(start, max(start, due))) for i in members)
        missing = max(0, expected - int(minutes["due_rows"].sum()))
        key = partition_key(day, partition)
        self._event(TICKS, key, {**self._tick_facts(minutes), **shared})
        self._event(
            MINUTES,
            key,
            {
                **_row_facts(minutes),
                "expected minutes so far": expected,
                "missing minutes": missing,
                "coverage": 1.0 if expected == 0 else 1.0 - missing / expected,
                **({"live latency (ms)": dg.MetadataValue.json(dict(latency))} if latency else {}),
                **shared,
            },
        )
        for code in DERIVED:
            rows = own.filter(pl.col("timeframe") == code)
            if rows.height:
                at = partition_key(sunday_of(day), partition) if code == WEEKLY else key
                self._event(bars_key(code), at, {**_row_facts(rows), **shared})

    def _tick_facts(self, minutes: pl.DataFrame) -> Metadata:
        services = pl.DataFrame(
            [(each.name, each.state, "; ".join(each.problems), _line(each.facts)) for each in self._health],
            schema=["service", "state", "problems", "facts"],
            orient="row",
        )
        facts = {each.name: each.facts for each in self._health}.get("ticks", {})
        numbers = {name: value for name, value in facts.items() if isinstance(value, int | float) and value}
        return {
            "ticks in the day's live minutes": int(minutes["live_ticks"].sum()),
            **{f"tick store: {name}": value for name, value in list(numbers.items())[:_SHOWN_FACTS]},
            "services": frame_table(services),
        }

    def _event(self, asset: dg.AssetKey, key: str, metadata: Mapping[str, Any]) -> None:
        self._context.log_event(materialization(asset, key, metadata))


def _row_facts(rows: pl.DataFrame) -> Metadata:
    last = rows["last_ts"].max()
    return {
        "dagster/partition_row_count": int(rows["rows"].sum()),
        "complete bars": int(rows["complete_rows"].sum()),
        "live bars": int(rows["live_rows"].sum()),
        "last bar (UTC)": f"{last:%Y-%m-%d %H:%M}" if isinstance(last, datetime) else "",
    }


def _headline(health: ServiceHealth) -> str:
    """Return a service's state and its few numbers that a person follows; `market-pipeline services` has them all."""
    shown = {name: health.facts[name] for name in _HEADLINES.get(health.name, ()) if name in health.facts}
    return f"{health.name} {health.state}" + "".join(f", {name} {_text(value)}" for name, value in shown.items())


def _line(facts: Mapping[str, object]) -> str:
    """Return the facts that say something: no zeros, no closed breakers, and not the run's own id."""
    telling = [(name, value) for name, value in facts.items() if value not in (0, "", "closed") and name != "run_id"]
    return ", ".join(f"{name} {_text(value)}" for name, value in telling[:_SHOWN_FACTS])


def _text(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.3g}" if isinstance(value, float) else str(value)
