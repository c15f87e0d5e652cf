"""The drain beside a disk that fails, and a drain that is ended: it goes on, and keeps no lock it has no use for."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from nats.js import JetStreamContext

from market_pipeline.bus.spool import Spool, SpoolFolder, SpoolRecord, spool_status
from market_pipeline.bus.spooling import Spooled
from market_pipeline.settings import SpoolSettings
from market_pipeline_tests.bus.test_spooling import SUBJECT, publishing, stored, until
from market_pipeline_tests.servers import NatsProcess


async def test_the_drain_outlives_a_disk_that_fails_for_a_while(
    server: NatsProcess, js: JetStreamContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "spool"
    scandir = os.scandir
    asked = 0

    def fails(where: Any = ".") -> Any:
        nonlocal asked
        if str(where) == str(root):
            asked += 1
            raise OSError(errno.EIO, "Input/output error")
        return scandir(where)

    async with publishing(server, tmp_path) as (publisher, _):
        with monkeypatch.context() as patch:
            patch.setattr(os, "scandir", fails)
            publisher.start()
            await until(lambda: asked, "it looks for what others left")
            assert not await publisher.settle(0.3), "what cannot be read may be there"
        assert isinstance(await publisher.spool_message(SUBJECT, b"x", {}), Spooled)
        async with asyncio.timeout(20):
            assert await publisher.wait_drained(20)
        assert publisher.problems() == []
    assert await stored(js) == {SUBJECT: [b"x"]}


async def test_a_drain_that_is_ended_while_it_adopts_gives_up_what_it_finds_then(
    server: NatsProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "spool"
    for number in range(2):
        dead = Spool(root, f"dead {number}", SpoolSettings(min_free_bytes=0))
        await dead.append(SpoolRecord(SUBJECT, f"dead-{number}", {}, b"x", 1))
        await dead.close()
    adopting, go_on = threading.Event(), threading.Event()
    adopt = SpoolFolder.adopt

    def slowly(path: Path) -> SpoolFolder | None:
        adopting.set()
        assert go_on.wait(20)
        return adopt(path)

    monkeypatch.setattr(SpoolFolder, "adopt", slowly)
    async with publishing(server, tmp_path) as (publisher, _):
        publisher.start()
        await until(adopting.is_set, "it looks for what others left")
    go_on.set()
    # The test's process lives on, and so would its locks.
    await until(lambda: len([each for each in spool_status(root) if each.adopted]) == 1, "the thread goes on")
    await until(lambda: all(each.adoptable for each in spool_status(root)), "all of it is there for the next one")
    assert sum(each.records for each in spool_status(root)) == 2
