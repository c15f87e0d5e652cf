"""The collector as a live service: its own connection, its probe, its health."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

from market_pipeline.bus.session import BusSession, open_bus
from market_pipeline.errors import SettingsError
from market_pipeline.history.runtime import Clock, utc_now
from market_pipeline.live.collector import Collector, CollectorHealth
from market_pipeline.live.connected import Connected
from market_pipeline.live.service import Fact, ServiceHealth
from market_pipeline.market.instruments import Instrument
from market_pipeline.market.timeframes import to_ms
from market_pipeline.settings import Settings
from market_pipeline.vendors.polygon.auth import BearerKey
from market_pipeline.vendors.polygon.stream import MARKETS, stream_url

MOST_NAMES = 20


class CollectorService:
    """Collect live ticks of some instruments into TICKS for as long as it runs (a `LiveService`)."""

    def __init__(
        self,
        settings: Settings,
        instruments: Sequence[Instrument],
        *,
        run_id: str = "",
        clock: Clock = utc_now,
        replayed: bool = False,
    ) -> None:
        """Prepare; nothing is opened yet.

        Args:
            run_id: shown in the connection's name and the facts.
            clock: the machine's.
            replayed: the clock is that of a replay, which may stand still and leap with its readers.

        Raises:
            SettingsError: there are no instruments.
        """
        if not instruments:
            raise SettingsError("a collector needs at least one instrument")
        self._settings, self._instruments, self._run_id = settings, tuple(instruments), run_id
        self._clock, self._replayed = clock, replayed
        self._connected = Connected(settings.nats, f"collector {run_id}".strip())
        self._collector: Collector | None = None
        self._running = self._failed = False

    @property
    def name(self) -> str:
        """The name of the service."""
        return "collector"

    async def probe(self) -> dict[str, float]:
        """Prove that JetStream stores and returns, and that there are a key and an address for every market.

        The vendor is not connected to: a key has one connection, and a second would end the first.

        Raises:
            VendorAuthError: there is no key, or it cannot be one. SettingsError: an address is wrong.
            BusError: of what NATS cannot do.
        """
        BearerKey(self._settings.vendor.api_key)
        for market in dict.fromkeys(MARKETS[each.asset_class] for each in self._instruments):
            _check_address(stream_url(self._settings.stream, self._settings.vendor, market))
        began = time.perf_counter()
        async with open_bus(self._settings.nats, "collector probe") as bus:
            await bus.probe()
            await bus.ensure_streams()
        return {"nats": round((time.perf_counter() - began) * 1000, 1)}

    async def run(self, stop: asyncio.Event) -> None:
        """Collect until `stop` is set; then publish what waits and give up the lease. What is away is waited for.

        Raises:
            VendorAuthError: the vendor refuses the key. BusAuthError, SettingsError: a person has to mend it, too.
        """

        async def collect(bus: BusSession) -> None:
            self._collector = Collector(
                bus,
                self._settings,
                self._instruments,
                name=self._settings.live.name,
                clock=lambda: to_ms(self._clock()),
                replayed=self._replayed,
            )
            await self._collector.run(stop)

        self._running, self._failed = True, False
        try:
            await self._connected.run(stop, collect)
        except Exception:
            self._failed = True
            raise
        finally:
            self._running = False

    def health(self) -> ServiceHealth:
        """Return the state of now.

        Facts: ticks, batches, heartbeats, queue, queue_limit, dropped, stuck_s, losses, losses_waiting, lost_{cause},
        gaps (symbols whose events are being lost), mute (the names of symbols of which nothing comes, 20 at most), set
        (live.name), epoch, collector_id, connections (to NATS, so far) and of each market {market}_connected, _frames,
        _ticks, _connects, _unreadable_frames, _bad_events and _frame_age_s.
        Those of the spool are named spool_… and breaker_publish…. Counters begin anew with a term of the lease.
        """
        known = self._collector.health() if self._collector is not None else None
        waits_for = self._connected.waits_for if self._running else ""
        facts: dict[str, Fact] = {"connections": self._connected.opened}
        if self._run_id:
            facts["run_id"] = self._run_id
        if known is not None:
            facts |= collector_facts(known)
        if waits_for:
            return ServiceHealth(self.name, "waiting", (waits_for,), facts)
        if self._failed or not self._running:
            problem = "ended by an error that a person has to mend" if self._failed else "not running"
            return ServiceHealth(self.name, "failed" if self._failed else "stopped", (problem,), facts)
        if known is None:
            return ServiceHealth(self.name, "starting", (), facts)
        return ServiceHealth(self.name, known.state, known.problems, facts)


def collector_facts(health: CollectorHealth) -> dict[str, Fact]:
    """Return the health of a collector as flat facts."""
    facts: dict[str, Fact] = {
        name: getattr(health, name)
        for name in (
            *("collector_id", "epoch", "ticks", "batches", "heartbeats", "queue", "queue_limit"),
            *("stuck_s", "dropped", "losses_waiting"),
        )
    }
    facts["set"] = health.name
    facts |= health.spool
    facts["gaps"] = len(health.gaps)
    if mute := [symbol for stream in health.streams for symbol in stream.mute]:
        facts["mute"] = ", ".join(mute[:MOST_NAMES])
    facts["losses"] = sum(health.losses.values())
    facts |= {f"lost_{cause}": count for cause, count in health.losses.items()}
    for stream in health.streams:
        facts |= {
            f"{stream.market}_{name}": int(value) if isinstance(value, bool) else value
            for name, value in (
                ("connected", stream.connected),
                ("market_open", stream.market_open),
                ("frames", stream.frames),
                ("ticks", stream.ticks),
                ("connects", stream.connects),
                ("unreadable_frames", stream.unreadable_frames),
                ("bad_events", stream.bad_events),
                ("frame_age_s", stream.frame_age_s),
            )
        }
    return facts


def _check_address(url: str) -> None:
    try:
        parts = urlsplit(url)
        wrong = parts.scheme not in {"ws", "wss"} or not parts.hostname or parts.port == 0
    except ValueError:
        wrong = True
    if wrong:
        raise SettingsError(f"{url!r} is no address of a stream: mend stream.url (MARKET_PIPELINE_STREAM__URL)")
