"""Real servers for tests: each on a free loopback port, with a password of its own, gone when the test ends."""

from __future__ import annotations

import ctypes
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from types import TracebackType

from pydantic import SecretStr

from market_pipeline.local.clickhouse.process import ServerProcess
from market_pipeline.settings import ClickHouseSettings, NatsSettings

START_TIMEOUT_S = 15.0
PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Ask the kernel to end this child when the test process dies, even by SIGKILL (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def new_database(server: ServerProcess) -> ClickHouseSettings:
    """Return settings that reach a ClickHouse server and name a database that does not exist yet."""
    return ClickHouseSettings(
        host=server.host,
        port=server.port,
        user=server.user,
        password=SecretStr(server.password),
        database=f"test_{secrets.token_hex(6)}",
    )


class NatsProcess:
    """Run nats-server with JetStream: `with NatsProcess() as server: await connect(server.settings, "test")`.

    The first start takes a free port from the kernel; every later start uses the same port and store folder,
    so a test can `kill()` (SIGKILL, as a power failure of the process) or `stop()` it and `start()` it again.
    """

    def __init__(
        self, *, max_file_store: str = "8GB", max_payload: str = "4MB", jetstream: bool = True, home: Path | None = None
    ) -> None:
        self.user = "market"
        self.password = secrets.token_urlsafe(18)
        self.port = -1
        self._max_file_store = max_file_store
        self._max_payload = max_payload
        self._jetstream = jetstream
        self._given_home = home
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> NatsProcess:
        self.home = self._given_home or Path(tempfile.mkdtemp(prefix="nats-test-"))
        self.home.mkdir(parents=True, exist_ok=True)
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.kill()
        if self._given_home is None:
            shutil.rmtree(self.home, ignore_errors=True)

    @property
    def url(self) -> str:
        """The address without user and password."""
        return f"nats://127.0.0.1:{self.port}"

    @property
    def settings(self) -> NatsSettings:
        """Settings that reach this server."""
        return NatsSettings(url=self.url, user=self.user, password=SecretStr(self.password))

    @property
    def pid(self) -> int:
        """The id of the running server."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start the server and wait until it takes connections."""
        assert self._process is None
        ports = self.home / "ports"
        shutil.rmtree(ports, ignore_errors=True)
        ports.mkdir()
        config = self.home / "nats.conf"
        config.touch(mode=0o600)
        config.write_text(self._config(ports))
        binary = Path(sysconfig.get_path("scripts")) / "nats-server"
        with (self.home / "nats.log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(binary), "-c", str(config)], stdout=log, stderr=log, preexec_fn=die_with_parent
            )
        until = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < until:
            if self._process.poll() is not None:
                break
            if self._find_port(ports) and self._answers():
                return
            time.sleep(0.01)
        self.kill()
        raise RuntimeError(f"nats-server did not start: {(self.home / 'nats.log').read_text()[-2000:]}")

    def stop(self) -> None:
        """End the server politely."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End the server with SIGKILL."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Freeze the server: connections stay open and nothing answers, once this returns."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        os.waitpid(self._process.pid, os.WUNTRACED)  # each of its threads stands still

    def resume(self) -> None:
        """Let a frozen server go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def restart(self) -> None:
        """Kill and start again on the same port and folder."""
        self.kill()
        self.start()

    def _end(self, how: signal.Signals) -> None:
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(how)
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(10)
        self._process = None

    def _config(self, ports: Path) -> str:
        lines = [
            f'listen: "127.0.0.1:{self.port}"',
            f'ports_file_dir: "{ports}"',
            f"max_payload: {self._max_payload}",
            f'authorization {{ user: "{self.user}", password: "{self.password}" }}',
        ]
        if self._jetstream:
            lines.append(
                f'jetstream {{ store_dir: "{self.home / "store"}", sync_interval: always, '
                f"max_file_store: {self._max_file_store}, max_memory_store: 256MB }}"
            )
        return "\n".join(lines) + "\n"

    def _find_port(self, ports: Path) -> bool:
        for file in ports.iterdir():
            try:
                self.port = int(json.loads(file.read_text())["nats"][0].rsplit(":", 1)[1])
            except (ValueError, LookupError):
                return False  # still being written
            return True
        return False

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as sock:
                return sock.recv(4) == b"INFO"
        except OSError:
            return False
