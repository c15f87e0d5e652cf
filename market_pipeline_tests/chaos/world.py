"""A whole live world on a fast clock, every part of which can be killed, frozen, wiped and started again."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
from pydantic import SecretStr

import market_pipeline
from market_pipeline.bus.dead_letters import list_dead_letters
from market_pipeline.bus.session import open_bus
from market_pipeline.local import locks
from market_pipeline.local.clickhouse import process as clickhouse_process
from market_pipeline.local.stack import Stack
from market_pipeline.settings import ClickHouseSettings, Settings, load_settings
from market_pipeline.simulator import server as simulator
from market_pipeline.stores.clickhouse import connect
from market_pipeline_tests.bus.bars import bars
from market_pipeline_tests.chaos.clock import FastClock
from market_pipeline_tests.poison import KINDS, REFUSED_VOLUME, poison
from market_pipeline_tests.servers import NatsProcess, die_with_parent

SYMBOLS = {"EURUSD": "C:EURUSD", "BTCUSD": "X:BTCUSD", "ETHUSD": "X:ETHUSD"}
INSTRUMENTS = """
instruments:
  - {symbol: EUR/USD, asset_class: forex, vendor_ticker: "C:EURUSD", calendar: forex, history_start: 2024-01-01,
     price_basis: bid}
  - {symbol: BTC/USD, asset_class: crypto, vendor_ticker: "X:BTCUSD", calendar: crypto, history_start: 2024-01-01}
  - {symbol: ETH/USD, asset_class: crypto, vendor_ticker: "X:ETHUSD", calendar: crypto, history_start: 2024-01-01}
"""
ALL = "all"
READY_S = 60.0


@dataclass
class LiveProcess:
    """A process of live services."""

    names: tuple[str, ...]
    process: subprocess.Popen[bytes]

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self.process.poll() is None


@dataclass
class ChaosWorld:
    """The servers and live processes of one chaos run; a context manager.

    speed: how much faster than the wall's the vendor's clock runs. start: its first moment (UTC).
    """

    folder: Path
    start: datetime
    speed: float = 30.0
    layout: tuple[tuple[str, ...], ...] = ((ALL,),)
    live: list[LiveProcess] = field(default_factory=list)
    poison: dict[str, str] = field(default_factory=dict)
    """The reason for which each poison message has to be found among the dead letters, by its correlation id."""
    losing: list[tuple[datetime, datetime]] = field(default_factory=list)
    """When something was under way that can lose ticks (vendor's time)."""
    live_since: datetime = field(init=False)
    """From when on every tick is sent to a collector, or lost (vendor's time)."""

    def __enter__(self) -> ChaosWorld:
        self.home = self.folder / "home"
        self.home.mkdir(parents=True, exist_ok=True)
        (self.folder / "instruments.yaml").write_text(INSTRUMENTS)
        self.nats = NatsProcess(home=self.folder / "nats")
        self.nats.__enter__()
        self.postgres = Stack(self.folder / "postgres", components=("postgres",), die_with_parent=True)
        self.postgres.start()
        self.clickhouse = clickhouse_process.start(self.folder / "clickhouse")
        self.vendor = simulator.start(directory=self.folder / "vendor")
        # Small frames often: at this speed ten milliseconds of the wall are a third of a second of the vendor's.
        self.vendor.stream_settings(interval=0.002, connections_per_key=1, ping_interval=5.0, ping_timeout=5.0)
        self.write_settings()
        self.clock = FastClock(time.time(), self.start.timestamp(), self.speed)
        self.vendor.set_now(self.start, running=True, speed=self.speed)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for each in self.live:
            each.process.kill()
            each.process.wait()
        self.vendor.stop()
        self.clickhouse.kill()
        self.postgres.stop()
        self.nats.__exit__(None, None, None)

    @property
    def settings(self) -> Settings:
        """The settings of all processes of this world."""
        return load_settings(self.home)

    # live processes

    def go_live(self) -> None:
        """Start the live processes of the layout."""
        for names in self.layout:
            self.start_live(names)

    def start_live(self, names: tuple[str, ...]) -> LiveProcess:
        """Start one live process."""
        arguments = [] if names == (ALL,) else list(names)
        command = [
            *(sys.executable, "-m", "market_pipeline_tests.chaos.live_process", str(self.home), self.clock.text()),
            *arguments,
        ]
        root = str(Path(market_pipeline.__file__).parents[1])
        with (self.folder / "live.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))},
                preexec_fn=die_with_parent,
            )
        started = LiveProcess(names, process)
        self.live.append(started)
        return started

    def kill_live(self, one: LiveProcess) -> None:
        """Kill a live process and start it again."""
        one.process.kill()
        one.process.wait()
        self.live.remove(one)
        self.start_live(one.names)

    def restart_live(self) -> None:
        """Kill all live processes and start them again."""
        for each in list(self.live):
            self.kill_live(each)

    def keep_live(self) -> None:
        """Start again what ended by itself, as a supervisor would, and say so."""
        for each in [each for each in self.live if not each.alive]:
            if each.process.returncode != -signal.SIGKILL:
                said = (self.folder / "live.log").read_text(errors="replace").splitlines()[-30:]
                print("  a live process ended by itself:", *said, sep="\n    ", flush=True)
            self.live.remove(each)
            self.start_live(each.names)
            self.losing.append((self.clock.now(), self.clock.now()))

    # servers

    def kill_postgres(self) -> None:
        """Kill the postmaster; its supervisor starts it again."""
        for process in self._postmaster():
            process.kill()

    def freeze_postgres(self, frozen: bool) -> None:
        """Stop or continue every process of PostgreSQL: connections stay open, and nothing answers."""
        number = signal.SIGSTOP if frozen else signal.SIGCONT
        for process in self._postmaster():
            for each in (*process.children(recursive=True), process):
                each.send_signal(number)

    def stop_postgres(self) -> None:
        """Stop PostgreSQL."""
        self.postgres.stop()

    def start_postgres(self) -> None:
        """Start PostgreSQL again."""
        self.postgres.start()

    def kill_clickhouse(self) -> None:
        """Kill ClickHouse."""
        self.clickhouse.kill()

    def start_clickhouse(self) -> None:
        """Start ClickHouse again, on the same port and folder."""
        self.clickhouse = clickhouse_process.start(self.clickhouse.path, port=self.clickhouse.port)

    def freeze_clickhouse(self, frozen: bool) -> None:
        """Stop or continue ClickHouse."""
        self.clickhouse.process.send_signal(signal.SIGSTOP if frozen else signal.SIGCONT)

    def refuse_poison(self) -> None:
        """Let the bar store refuse the rows of one kind of poison, always."""
        self._command(f"ALTER TABLE bars ADD CONSTRAINT poison CHECK volume != {REFUSED_VOLUME}")

    def refuse_rows(self, refused: bool) -> None:
        """Let every table of the bar store refuse every row, or take them again."""
        change = "ADD CONSTRAINT chaos CHECK 0" if refused else "DROP CONSTRAINT IF EXISTS chaos"
        for table in self._tables():
            self._command(f"ALTER TABLE {table} {change}")

    def publish_poison(self, rng: random.Random) -> None:
        """Publish one message of poison of each kind, in any order; `poison` keeps what has to become of them."""
        sent = []
        for kind in rng.sample(KINDS, len(KINDS)):
            name = f"poison-{len(self.poison)}-{rng.getrandbits(32):08x}"
            subject, payload, headers = poison(kind, bars(2, seed=rng.getrandbits(32)), name)
            self.poison[name] = str(kind)
            sent.append((subject, payload, headers))

        async def run() -> None:
            async with open_bus(self.settings.nats, "poisoner") as bus:
                for subject, payload, headers in sent:
                    await bus.publisher().publish_message(subject, payload, headers)

        asyncio.run(run())

    def dead_letters(self) -> dict[str, str]:
        """Return the reason of every dead letter by its correlation id."""

        async def run() -> dict[str, str]:
            async with open_bus(self.settings.nats, "oracle") as bus:
                letters = await list_dead_letters(bus.js, limit=1_000_000)
                return {letter.correlation_id: str(letter.reason) for letter in letters}

        return asyncio.run(run())

    def wipe_nats(self) -> None:
        """Start NATS with an empty store: a lost disk."""
        self.nats.kill()
        self.poison.clear()
        shutil.rmtree(self.nats.home / "store", ignore_errors=True)
        self.nats.start()

    def _command(self, statement: str) -> None:
        with closing(connect(self.settings.clickhouse)) as client:
            client.command(statement)

    def _tables(self) -> list[str]:
        with closing(connect(self.settings.clickhouse)) as client:
            rows = client.rows(
                "SELECT name FROM system.tables WHERE database = currentDatabase() AND engine LIKE '%MergeTree'"
            )
        return [str(row[0]) for row in rows]

    def _postmaster(self) -> list[psutil.Process]:
        state = self.postgres.state()
        component = state.component("postgres") if state else None
        if component is None or component.pid is None:
            return locks.holders(self.postgres.home.lock("postgres"))
        return [psutil.Process(component.pid)] if psutil.pid_exists(component.pid) else []

    def write_settings(self, **sections: object) -> None:
        """Write the settings, with these sections more; processes read them when they start."""
        postgres = self.postgres.settings.postgres
        house = self.clickhouse

        def section(value: Any) -> Any:
            return json.loads(json.dumps(value.model_dump(), default=_plain))

        tree = {
            "instruments_file": str(self.folder / "instruments.yaml"),
            "nats": section(self.nats.settings),
            "postgres": section(postgres),
            "clickhouse": section(
                ClickHouseSettings(
                    host=house.host,
                    port=house.port,
                    password=SecretStr(house.password),
                    connect_timeout=2.0,
                    request_timeout=10.0,
                )
            ),
            "vendor": {
                "base_url": self.vendor.base_url,
                "api_key": self.vendor.api_key,
                "plan": "paid",
                "backoff_initial_s": 0.05,
                "backoff_max_s": 0.5,
                "timeout_s": 5,
            },
            # on the vendor's clock
            "history": {"settle": 30, "lateness": 30, "drain_timeout_s": 60},
            "live": {
                "lateness": 120,
                "repair_every_s": 2,
                "silent_s": 60,
                "derive_wait": 3,
                "look_back": 86_400,
            },
            # on the wall's
            "stream": {
                "silence_s": 5,
                "cooldown_s": 0.5,
                "stable_s": 1,
                "handshake_timeout_s": 3,
                "ack_timeout_s": 3,
                "backoff_initial_s": 0.05,
                "backoff_max_s": 0.5,
                "heartbeat_s": 0.1,
                "lease_ttl_s": 3,
            },
            "breaker": {"open_s": 1},
            **sections,
        }
        file = self.home / "settings.json"
        file.touch(mode=0o600)
        file.write_text(json.dumps(tree))


def _plain(value: Any) -> Any:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    return str(value)
