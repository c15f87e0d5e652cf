"""The aggregator as a live service: bars of 1s and 1m from ticks, and with them the coarser bars that they touch."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from market_pipeline.bus.session import BusSession, open_bus
from market_pipeline.errors import SettingsError
from market_pipeline.history.runtime import Clock, utc_now
from market_pipeline.live.aggregator import Aggregator, AggregatorHealth, LiveDeriver
from market_pipeline.live.aggregator.deriver import DeriverHealth
from market_pipeline.live.aggregator.rules import live_rules
from market_pipeline.live.connected import Connected
from market_pipeline.live.service import Fact, ServiceHealth
from market_pipeline.market.instruments import Instrument
from market_pipeline.market.timeframes import to_ms
from market_pipeline.settings import Settings
from market_pipeline.stores.clickhouse import connect as connect_store
from market_pipeline.stores.clickhouse import probe as probe_store
from market_pipeline.tasks import end_tasks

_NO_FACT = frozenset({"state", "problems", "name", "losses"})


class AggregatorService:
    """Make the live bars of some instruments for as long as it runs (a `LiveService`).

    The seconds and minutes need NATS alone. The windows of 5m and more are derived from what ClickHouse holds: while it
    is away they wait, and the seconds and minutes go on.
    """

    def __init__(
        self, settings: Settings, instruments: Sequence[Instrument], *, run_id: str = "", clock: Clock = utc_now
    ) -> None:
        """Prepare; nothing is opened yet.

        Args:
            run_id: in the headers of every batch, for the ledger.
            clock: the vendor's; another than the wall's only where a replay has one.

        Raises:
            SettingsError: there are no instruments, or the rules of settings.live contradict each other.
        """
        if not instruments:
            raise SettingsError("an aggregator needs at least one instrument")
        self._settings, self._instruments, self._run_id = settings, tuple(instruments), run_id
        self._rules = live_rules(settings.live)
        self._connected = Connected(settings.nats, f"aggregator {run_id}".strip())
        self._deriver = LiveDeriver(
            settings,
            self._instruments,
            run_id=run_id or "live",
            wait=settings.live.derive_wait,
            look_back=settings.live.look_back,
            clock=clock,
        )
        self._clock = clock
        self._aggregator: Aggregator | None = None
        self._running = self._failed = False

    @property
    def name(self) -> str:
        """The name of the service."""
        return "aggregator"

    async def probe(self) -> dict[str, float]:
        """Prove that JetStream and ClickHouse write and read.

        Raises:
            BusError, StoreError, SettingsError: of the part that cannot do its work.
        """
        began = time.perf_counter()
        async with open_bus(self._settings.nats, "aggregator probe") as bus:
            await bus.probe()
            await bus.ensure_streams()
        nats_ms = (time.perf_counter() - began) * 1000
        client = await asyncio.to_thread(connect_store, self._settings.clickhouse)
        try:
            began = time.perf_counter()
            await asyncio.to_thread(probe_store, client)
            return {"nats": round(nats_ms, 1), "clickhouse": round((time.perf_counter() - began) * 1000, 1)}
        finally:
            client.close()

    async def run(self, stop: asyncio.Event) -> None:
        """Make bars until `stop` is set; then publish what is due and keep the checkpoint. What is away is waited for.

        Raises:
            BusAuthError, StoreAuthError, SettingsError: only a person can mend it.
        """
        self._running, self._failed, ended = True, False, asyncio.Event()

        async def aggregate(bus: BusSession) -> None:
            self._aggregator = self._new_aggregator(bus)
            await self._aggregator.run(ended)

        work = (
            asyncio.create_task(self._connected.run(ended, aggregate), name="aggregator"),
            asyncio.create_task(self._deriver.run(ended), name="deriver"),
        )
        stopped = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({*work, stopped}, return_when=asyncio.FIRST_COMPLETED)
            ended.set()
            for result in await asyncio.gather(*work, return_exceptions=True):
                if isinstance(result, BaseException):
                    self._failed = True
                    raise result
        finally:
            self._running = False
            await end_tasks((*work, stopped))

    def health(self) -> ServiceHealth:
        """Return the state of now.

        Facts: those of `AggregatorHealth` under their names (behind_s and checkpoint_age_s once they are known), set
        (live.name), lost_{cause}, connections (to NATS, so far), and of the coarser windows derived, written,
        windows_due and flushes_unstored. Counters begin anew with a term of the lease.
        """
        known = self._aggregator.health() if self._aggregator is not None else None
        derived = self._deriver.health()
        waits_for = self._connected.waits_for if self._running else ""
        facts: dict[str, Fact] = {"connections": self._connected.opened}
        if self._run_id:
            facts["run_id"] = self._run_id
        if known is not None:
            facts |= aggregator_facts(known)
        facts |= deriver_facts(derived)
        if self._failed or not self._running:
            problem = "ended by an error that a person has to mend" if self._failed else "not running"
            return ServiceHealth(self.name, "failed" if self._failed else "stopped", (problem,), facts)
        problems = tuple(f"derived bars: {problem}" for problem in derived.problems)
        if waits_for:
            return ServiceHealth(self.name, "waiting", (waits_for, *problems), facts)
        if known is None:
            return ServiceHealth(self.name, "starting", (), facts)
        return ServiceHealth(self.name, known.state, (*known.problems, *problems), facts)

    def _new_aggregator(self, bus: BusSession) -> Aggregator:
        live = self._settings.live
        return Aggregator(
            bus,
            self._instruments,
            name=live.name,
            rules=self._rules,
            run_id=self._run_id,
            on_published=self._deriver.published,
            lease_ttl_s=self._settings.stream.lease_ttl_s,
            silent_ms=round(live.silent_s * 1000),
            unhealthy_after_s=live.unhealthy_after_s,
            clock=lambda: to_ms(self._clock()),
        )


def aggregator_facts(health: AggregatorHealth) -> dict[str, Fact]:
    """Return the health of an aggregator as flat facts."""
    values = {name: getattr(health, name) for name in AggregatorHealth.__dataclass_fields__ if name not in _NO_FACT}
    facts: dict[str, Fact] = {name: value for name, value in values.items() if value is not None}
    facts["set"] = health.name
    facts["losses"] = sum(health.losses.values())
    return facts | {f"lost_{cause}": count for cause, count in health.losses.items()}


def deriver_facts(health: DeriverHealth) -> dict[str, Fact]:
    """Return the health of a deriver as flat facts."""
    return {
        "derived": health.derived,
        "written": health.written,
        "windows_due": health.due,
        "flushes_unstored": health.unstored,
    }
