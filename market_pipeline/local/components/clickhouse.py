"""ClickHouse: the chDB engine as a server process on the HTTP protocol (market_pipeline.local.clickhouse)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from market_pipeline.local import passwords
from market_pipeline.local.components.base import Component, ProbeFailed
from market_pipeline.local.ports import LOOPBACK
from market_pipeline.local.processes import Launch, plain_environment

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

USER = "default"
_PROBE_TABLE = (
    "CREATE TABLE IF NOT EXISTS stack_probe.beats (at DateTime64(3, 'UTC')) "
    "ENGINE = MergeTree ORDER BY at TTL toDateTime(at) + INTERVAL 1 HOUR"
)
PROBE_TIMEOUT_S = 5


class ClickHouse(Component):
    """Run the one process that owns the chDB engine."""

    name: ClassVar[str] = "clickhouse"
    packages: ClassVar[tuple[str, ...]] = ("chdb", "uvicorn")
    port_names: ClassVar[tuple[str, ...]] = ("clickhouse",)
    ready_timeout_s: ClassVar[float] = 60.0
    stop_timeout_s: ClassVar[float] = 20.0

    @property
    def address(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    @property
    def ready_file(self) -> Path:
        return self.home.run / "clickhouse.ready"

    def prepare(self) -> None:
        self.ready_file.unlink(missing_ok=True)

    def launch(self) -> Launch:
        arguments = ["--path", self.home.data("clickhouse"), "--port", self.port]
        arguments += ["--password-file", self.home.secrets / passwords.CLICKHOUSE, "--ready-file", self.ready_file]
        return Launch(
            argv=[sys.executable, "-m", "market_pipeline.local.clickhouse", *map(str, arguments)],
            cwd=self.home.data("clickhouse"),
            env=plain_environment(),
        )

    def bootstrap(self) -> None:
        """Create the pipeline's database with its schema, and the database that probes write into."""
        if not self.ready_file.exists():  # the engine is still opening its folder
            raise ProbeFailed("the engine is opening its folder")
        client = self._connect()
        try:
            client.command("CREATE DATABASE IF NOT EXISTS stack_probe")
            client.command(_PROBE_TABLE)
        finally:
            client.close()
        self._apply_schema()

    def _apply_schema(self) -> None:
        # imported here: the supervisor starts the other components before it needs polars
        from market_pipeline.stores import prepare
        from market_pipeline.stores.clickhouse import connect

        store = connect(self.context.settings.clickhouse)
        try:
            prepare(store, self.context.settings)
        finally:
            store.close()

    def probe(self, *, deep: bool) -> None:
        """Let the engine compute; `deep` also inserts a row and reads it back."""
        client = self._connect()
        try:
            if client.command("SELECT sum(number) FROM numbers(10)") != 45:
                raise ProbeFailed("the engine calculates wrong")
            if deep:
                client.command("INSERT INTO stack_probe.beats VALUES (now64(3))")
                if not client.command("SELECT count() FROM stack_probe.beats"):
                    raise ProbeFailed("the engine took a row and lost it")
        finally:
            client.close()

    def _connect(self) -> Client:
        import clickhouse_connect
        from clickhouse_connect.driver.httputil import default_pool_manager

        return clickhouse_connect.get_client(
            host=LOOPBACK,
            port=self.port,
            username=USER,
            password=self.context.passwords[passwords.CLICKHOUSE],
            connect_timeout=2,
            send_receive_timeout=PROBE_TIMEOUT_S,
            query_retries=0,
            autogenerate_session_id=False,
            # Without a pool given the driver would ask a proxy of the environment, and tell it the password.
            pool_mgr=default_pool_manager(),
        )
