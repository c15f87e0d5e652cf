"""Start a server in the order in which failures are cheap and clear, and stop it within seconds."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import structlog
import uvicorn

from market_pipeline.errors import LocalStackError
from market_pipeline.local.clickhouse.app import App
from market_pipeline.local.clickhouse.engine import Engine, ignore_signals
from market_pipeline.local.clickhouse.errors import ClickHouseError
from market_pipeline.local.clickhouse.lock import FolderLock
from market_pipeline.local.clickhouse.options import Options, listen, prepare_folder
from market_pipeline.local.clickhouse.parent import die_with_parent
from market_pipeline.local.clickhouse.password import read_or_create
from market_pipeline.local.clickhouse.protocol import Credentials

log = structlog.get_logger(__name__)

GRACE = 2.0
"""Seconds that running statements get to end by themselves when the server stops."""

LAST_RESORT = 8.0
"""Seconds after which a stopping server ends whatever still runs; what it has acknowledged is on disk."""


def serve(options: Options, *, parent: int) -> None:
    """Run a server until SIGTERM or SIGINT; `parent` is the pid that started this process.

    Raises LocalStackError, with what to do about it, for everything that keeps it from starting; nothing stays locked
    or bound then.
    """
    if options.die_with_parent:
        die_with_parent(parent)
    ready_file = options.ready_file.absolute() if options.ready_file else None
    try:
        password = read_or_create(options.password_file)
        bound = listen(options.host, options.port)
        folder = prepare_folder(options.path, options.min_free)
        lock = FolderLock(folder, inherited=options.lock_fd)
        if ready_file:
            ready_file.unlink(missing_ok=True)
    except OSError as error:
        raise _disk_error(options.path, error) from None
    try:
        _run(options, folder, bound, password, ready_file)
    finally:
        bound.close()
        if ready_file:
            ready_file.unlink(missing_ok=True)
        with suppress(OSError):
            lock.release()


def _run(options: Options, folder: Path, bound: socket.socket, password: str, ready_file: Path | None) -> None:
    engine = _open(folder, options)
    app = App(engine, Credentials(options.user, password), options.limits, compress=options.compress)
    host, port = bound.getsockname()[:2]

    def announce() -> None:
        if ready_file:
            _write(ready_file, json.dumps({"port": port, "pid": os.getpid()}) + "\n")
        place = f"[{host}]" if ":" in host else host
        print(f"ClickHouse {engine.version} serves {folder} on http://{place}:{port} (pid {os.getpid()})", flush=True)

    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,  # URLs may carry a password
        http="httptools",
        loop="uvloop",
        lifespan="on",
        timeout_keep_alive=60,
    )
    # uvicorn raises the signal again after it has stopped: with these handlers the process still ends with status 0.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    _Server(config, app, announce).run(sockets=[bound])


def _open(folder: Path, options: Options) -> Engine:
    os.chdir(folder)  # chDB reads a config.xml in its working folder; ours has none
    ignore_signals()
    try:
        return Engine(
            folder,
            max_memory=options.max_memory,
            defaults={"max_execution_time": str(options.max_execution_time)},
        )
    except ClickHouseError as error:
        if "No space left" in error.text or "NOT_ENOUGH_SPACE" in error.text:
            raise LocalStackError(f"the disk of {folder} is full: free some space first ({error.text})") from None
        raise LocalStackError(f"the engine cannot open {folder}: {error.text}") from None


class _Server(uvicorn.Server):
    """Tell when the server is ready, and bound the time that it takes to stop."""

    def __init__(self, config: uvicorn.Config, app: App, announce: Callable[[], None]) -> None:
        super().__init__(config)
        self._app, self._announce = app, announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._announce()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        last_resort = threading.Timer(LAST_RESORT, _give_up)
        last_resort.daemon = True
        last_resort.start()
        killer = asyncio.create_task(self._kill_late())
        try:
            await super().shutdown(sockets)
        finally:
            killer.cancel()
            last_resort.cancel()

    async def _kill_late(self) -> None:
        await asyncio.sleep(GRACE)
        await self._app.kill_all()


def _give_up() -> None:
    log.error("requests did not end: stopping without them", seconds=LAST_RESORT)
    sys.stderr.flush()
    os._exit(1)


def _write(file: Path, content: str) -> None:
    """Write a file that its readers see whole or not at all."""
    new = file.with_name(file.name + ".new")
    new.write_text(content, encoding="utf-8")
    new.replace(file)


def _disk_error(path: Path, error: OSError) -> LocalStackError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return LocalStackError(f"the disk of {path} is full: free some space first")
    return LocalStackError(f"cannot start in {path}: {error}")
