"""The drain beside a disk that fails, and a drain that is ended: it goes on, and keeps no lock it has no use for."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path
from typing import Any

import pytest
from nats.js import JetStreamContext

from market_pipeline.bus.spooling import Spooled
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
