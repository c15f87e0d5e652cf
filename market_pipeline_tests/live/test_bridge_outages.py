"""The bridge through outages: servers that start later, are killed under load, or close the connection for good."""

from __future__ import annotations

import asyncio
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from market_pipeline.bus.envelope import now_ms
from market_pipeline.bus.spool import Spool, SpoolRecord, spool_root, spool_status
from market_pipeline.bus.subjects import market_subject
from market_pipeline.errors import BusError
from market_pipeline.live.bridge_service import BridgeService
from market_pipeline_tests.integration.world import write_home
from market_pipeline_tests.live.bridging import (
    ClickHouse,
    bridge,
    eventually,
    flush,
    minute_before,
    open_desk,
    settings_of,
)
from market_pipeline_tests.servers import NatsProcess, die_with_parent

BRIDGE = """
import asyncio, sys
from market_pipeline.live.bridge_service import BridgeService
from market_pipeline.settings import load_settings
asyncio.run(BridgeService(load_settings(sys.argv[1])).run(asyncio.Event()))
"""
STORED = "SELECT count() AS n FROM bars_1s_final"


@pytest.fixture
def clickhouse(tmp_path: Path) -> Iterator[ClickHouse]:
    server = ClickHouse(tmp_path / "clickhouse")
    yield server
    server.stop()


@pytest.fixture
def nats(tmp_path: Path) -> Iterator[NatsProcess]:
    with NatsProcess() as server:
        yield server


def bridge_process(home: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", BRIDGE, str(home)], preexec_fn=die_with_parent)


async def test_started_before_its_servers_it_waits_says_so_and_begins(
    tmp_path: Path, clickhouse: ClickHouse, nats: NatsProcess
) -> None:
    settings = settings_of(tmp_path, nats.settings, clickhouse.settings(), unhealthy_after_s=0.5)
    clickhouse.kill()
    nats.kill()
    async with bridge(settings, running=False) as service:
        await eventually(lambda: any("waiting for" in text for text in service.health().problems))
        health = service.health()
        assert health.state == "waiting"
        assert str(clickhouse.port) in str(health.facts["waits_for"])
        await asyncio.to_thread(clickhouse.start)
        await eventually(lambda: str(nats.port) in str(service.health().facts.get("waits_for")))
        nats.start()
        await eventually(lambda: service.health().state == "running")
        async with open_desk(settings) as desk:  # deletes the streams under the bridge, and creates them anew
            await desk.publish(flush(minute_before(now_ms())))
            await desk.until(STORED, 20)
            await desk.drained("LIVE")
        await eventually(lambda: service.health().healthy)


async def test_clickhouse_killed_under_load_loses_nothing_and_buries_nothing(
    tmp_path: Path, clickhouse: ClickHouse, nats: NatsProcess
) -> None:
    settings = settings_of(tmp_path, nats.settings, clickhouse.settings(), unhealthy_after_s=3.0)
    end = minute_before(now_ms())
    async with open_desk(settings) as desk, bridge(settings) as service:
        sent, held = 0, 0

        async def load(flushes: int) -> None:
            nonlocal sent
            for _ in range(flushes):
                await desk.publish(flush(end + sent * 1000))
                sent += 1
                await asyncio.sleep(0.02)

        loading = asyncio.create_task(load(40))
        await eventually(lambda: service.health().facts["live_batches"] >= 200)
        await asyncio.to_thread(clickhouse.kill)
        await loading
        assert service.health().facts["live_batches"] < sent * 20, "it must have died under load"
        await load(20)
        await eventually(lambda: any("none was stored" in text for text in service.health().problems))
        await eventually(lambda: service.health().facts["breaker_insert_live"] == "open")
        health = service.health()
        assert health.state == "waiting"
        assert any("insert_live is away" in text and str(clickhouse.port) in text for text in health.problems)
        assert health.facts["breaker_insert_history"] == "closed", "nothing was asked of ClickHouse there"
        held = int(health.facts["live_unacknowledged"])
        assert held <= 256, "what is held in memory is bounded; the rest stays in the stream"
        tried = health.facts["live_outages"]
        await load(5)
        assert service.health().facts["live_outages"] <= int(tried) + 3, "no group is fetched while it is open"
        await asyncio.to_thread(clickhouse.start)
        # a probe closes it: live bars do not wait for the trial after open_s
        assert settings.breaker.open_s == 60
        await desk.until(STORED, 1300, 25)
        await desk.drained("LIVE")
        assert service.health().facts["breaker_insert_live"] == "closed"
        assert service.health().facts["breaker_insert_live_opened"] == 1
        await eventually(lambda: service.health().healthy and service.health().state == "running")
        assert await desk.letters() == 0
        assert await desk.number("SELECT toInt64(sum(new_rows)) AS n FROM ingest_batches") <= 1300
        assert service.health().facts["live_outages"] > 0


async def test_a_bridge_killed_under_load_is_followed_by_another_that_loses_and_doubles_nothing(
    tmp_path: Path, clickhouse: ClickHouse, nats: NatsProcess
) -> None:
    """What the dead one held comes again after the server's patience (15 s); until then it is nobody's."""
    settings = settings_of(tmp_path, nats.settings, clickhouse.settings())
    write_home(settings)
    end, flushes = minute_before(now_ms()), 0
    child = bridge_process(tmp_path)
    try:
        async with open_desk(settings) as desk:
            while await desk.number(STORED) < 100:
                await desk.publish(flush(end + flushes * 1000))
                flushes += 1
            child.kill()
            await desk.publish(flush(end + flushes * 1000))
            flushes += 1
            async with bridge(settings):
                await desk.until(STORED, 20 * flushes)
                await desk.drained("LIVE", 60)
            rows = "SELECT count() AS n FROM (SELECT symbol, ts FROM bars_1s GROUP BY ALL HAVING count() > 1)"
            assert await desk.number(rows) == 0, "not even rows that reading would merge"
            assert await desk.number("SELECT toInt64(uniqExact(batch_id)) AS n FROM ingest_batches") == flushes
            assert await desk.letters() == 0
    finally:
        child.kill()
        child.wait()


async def test_nats_restarted_and_connections_closed_for_good_are_survived(
    tmp_path: Path, clickhouse: ClickHouse, nats: NatsProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(tmp_path, nats.settings, clickhouse.settings())
    opened = []
    from market_pipeline.live import bridge_lane

    original = bridge_lane.open_bus

    def remember(*args: object) -> object:
        context = original(*args)  # type: ignore[arg-type]
        enter = context.__aenter__

        class Remembering:
            async def __aenter__(self) -> object:
                opened.append(await enter())
                return opened[-1]

            async def __aexit__(self, *error: object) -> object:
                return await context.__aexit__(*error)  # type: ignore[arg-type]

        return Remembering()

    monkeypatch.setattr(bridge_lane, "open_bus", remember)
    end = minute_before(now_ms())
    async with open_desk(settings) as desk, bridge(settings) as service:
        await desk.publish(flush(end))
        await desk.until(STORED, 20)
        await asyncio.to_thread(nats.restart)
        for _ in range(100):
            with suppress(BusError):
                await desk.publish(flush(end + 1000))
                break
        await desk.until(STORED, 40)
        for session in list(opened):  # as a payload over the server's limit would do it
            await session.nc.close()
        await desk.publish(flush(end + 2000))
        await desk.until(STORED, 60)
        await eventually(lambda: all(service.health().facts[f"{each}_reopened"] == 1 for each in ("live", "history")))
        await eventually(lambda: service.health().state == "running")
        assert await desk.letters() == 0


async def test_a_stopped_bridge_is_not_healthy(tmp_path: Path, clickhouse: ClickHouse, nats: NatsProcess) -> None:
    service = BridgeService(settings_of(tmp_path, nats.settings, clickhouse.settings()))
    assert (service.health().state, service.health().problems) == ("stopped", ("not running",))


async def test_what_a_dead_process_left_in_the_spool_is_published_and_stored(
    tmp_path: Path, clickhouse: ClickHouse, nats: NatsProcess
) -> None:
    settings = settings_of(tmp_path, nats.settings, clickhouse.settings())
    write_home(settings)
    nats.kill()
    async with bridge(settings, running=False) as service:  # NATS may be away for its whole life
        await eventually(lambda: "waiting" in service.health().state)
    nats.start()
    async with open_desk(settings) as desk:
        sent = flush(minute_before(now_ms()))
        spool = Spool(spool_root(settings), "the dead one", settings.spool)
        for each in sent:
            subject = market_subject(each.headers.symbol, "1s")
            await spool.append(
                SpoolRecord(subject, secrets.token_hex(8), each.headers.to_nats(), each.payload, now_ms())
            )
        await spool.close()  # the lock is free now, as when the process is gone
        async with bridge(settings) as service:
            await desk.until(STORED, 20)
            await desk.drained("LIVE")
            await eventually(lambda: spool_status(spool_root(settings)) == [])
            facts = service.health().facts
        assert (facts["spool_adopted"], facts["spool_drained"], facts["spool_waiting"]) == (1, 20, 0)
        assert facts["breaker_publish"] == "closed"
