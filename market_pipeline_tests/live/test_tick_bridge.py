"""Each tick once in the tick store, whatever dies in between: real NATS, real PostgreSQL."""

from __future__ import annotations

import asyncio
import json
import secrets
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from pydantic import SecretStr

from market_pipeline.bus.dead_letter_box import DeadLetterBox
from market_pipeline.bus.dead_letters import DeadLetter, Reason, Selection, list_dead_letters, publish_letter
from market_pipeline.bus.latest import LatestValues
from market_pipeline.bus.session import BusSession, open_bus
from market_pipeline.bus.streams import TICKS
from market_pipeline.bus.tick_envelope import LATE, LOSS_MARGIN, EncodedTicks
from market_pipeline.live import burial
from market_pipeline.local.stack import Stack
from market_pipeline.settings import Settings
from market_pipeline.stores.ticks import TickReader, TickStore
from market_pipeline_tests.live.tick_bridging import (
    bridging,
    drained,
    encoded,
    lost,
    publish,
    settings_of,
    stored,
    until,
)
from market_pipeline_tests.servers import NatsProcess
from market_pipeline_tests.stores.ticks.conftest import MakeDatabase, make_database, postgres_stack  # noqa: F401
from market_pipeline_tests.stores.ticks.frames import FULL, START, batch, completed, quotes, real_quotes, values

SCALE = 1 / 64


@pytest.fixture(scope="module")
def nats() -> Iterator[NatsProcess]:
    with NatsProcess() as server:
        yield server


@pytest.fixture
async def bus(nats: NatsProcess) -> AsyncIterator[BusSession]:
    async with open_bus(nats.settings, "test") as session:
        for stream in await session.js.streams_info():
            await session.js.delete_stream(stream.config.name or "")
        await session.ensure_streams(scale=SCALE)
        yield session


@pytest.fixture
def settings(nats: NatsProcess, make_database: MakeDatabase) -> Settings:  # noqa: F811
    return settings_of(nats.settings, make_database())


@pytest.fixture
def reader(settings: Settings) -> Iterator[TickReader]:
    with TickReader(settings.postgres) as each:
        yield each


def run_of(symbol: str, rows: int, size: int, *, epoch: int = 1, start_ms: int = 0) -> tuple[pl.DataFrame, list[Any]]:
    """Return quotes of 10 ms apart, and their batches."""
    frame = quotes(symbol, *((start_ms + 10 * n, n + 0.25, n + 0.5) for n in range(rows)))
    return frame, [encoded(part, epoch=epoch) for part in frame.iter_slices(size)]


@pytest.mark.skipif(not FULL.is_file(), reason="the full file of real quotes is not beside the project")
async def test_real_quotes_once_each_with_two_bridges_and_repeats(
    bus: BusSession, settings: Settings, reader: TickReader
) -> None:
    """Real repeats stay, batches published twice do not, and of two bridges one works and the other follows it."""
    every = real_quotes().with_row_index("at")
    repeated = every.filter(pl.struct("ts", "bid", "ask").is_duplicated())
    assert repeated.height - repeated.unique(["ts", "bid", "ask"]).height == 12
    # around each repeat a few hundred quotes, in order
    near = pl.concat([repeated["at"].cast(pl.Int64) + offset for offset in range(-300, 300)]).unique().sort()
    frame = completed(every.filter(pl.col("at").cast(pl.Int64).is_in(near.implode())).drop("at"), "EURUSD")
    batches = [encoded(part) for part in frame.iter_slices(37)]
    async with bridging(settings) as second:
        async with bridging(settings) as first:
            await until(lambda: "running" in (first.health().state, second.health().state))
            assert {first.health().state, second.health().state} == {"running", "standby"}
            await publish(bus, batches[: len(batches) // 2])
            await publish(bus, batches[:5])  # the collector did not hear that they had arrived
            await drained(bus)
        await publish(bus, batches[len(batches) // 2 :])
        await drained(bus)
        await until(lambda: second.health().state == "running")
        assert second.health().healthy, second.health().problems
    assert values(stored(reader, "EURUSD")) == values(frame)
    assert lost(reader, "EURUSD") == []


async def test_killed_between_commit_and_acknowledgement(
    bus: BusSession, settings: Settings, reader: TickReader
) -> None:
    """What was stored and not acknowledged comes again, is a duplicate, and comes before what is newer."""
    frame, batches = run_of("EURUSD", 1000, 10)
    await publish(bus, batches[:50])
    given = {
        "nats": _plain(settings.nats.model_dump()),
        "postgres": _plain(settings.postgres.model_dump()),
    }
    killed = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "market_pipeline_tests.live.tick_bridge_killed"],
        input=json.dumps(given).encode(),
        timeout=120,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    info = await bus.js.consumer_info(TICKS, "ticks")
    assert info.num_ack_pending
    assert info.ack_floor
    assert info.ack_floor.stream_seq == 0
    assert stored(reader, "EURUSD").height > 0
    # of a later epoch: were they stored first, the rest of the older ones would be fenced
    later, more = run_of("EURUSD", 100, 10, epoch=2, start_ms=20_000)
    await publish(bus, [*batches[50:], *more])
    async with bridging(settings) as service:
        await until(lambda: service.health().facts["batches"] != 0)
        await drained(bus)
        facts = service.health().facts
    assert facts["duplicates"]
    assert facts["fenced"] == 0
    assert facts["dead_letters"] == 0
    assert values(stored(reader, "EURUSD")) == values(pl.concat([frame, later]))
    assert lost(reader, "EURUSD") == []


def _plain(dumped: dict[str, Any]) -> dict[str, Any]:
    return {name: each.get_secret_value() if isinstance(each, SecretStr) else each for name, each in dumped.items()}


async def test_postgres_away_under_load(nats: NatsProcess, bus: BusSession, tmp_path: Path) -> None:
    """Ticks wait in the stream, memory stays bounded, and afterwards all are there, none in dead letters."""
    with Stack(tmp_path / "home", components=("postgres",), die_with_parent=True) as stack:
        settings = settings_of(nats.settings, stack.settings.postgres)
        live = settings.live.model_copy(update={"unhealthy_after_s": 0.5})
        settings = settings.model_copy(update={"live": live})
        frame, batches = run_of("EURUSD", 40_000, 10)
        async with bridging(settings) as service:
            await publish(bus, batches[:1000])
            await until(lambda: service.health().facts["ticks"] != 0)
            await asyncio.to_thread(stack.stop)
            await publish(bus, batches[1000:])
            await until(lambda: service.health().facts["postgres"] == "away")
            assert service.health().state == "waiting"
            assert any("tick store" in problem for problem in service.health().problems)
            await until(lambda: any("none was stored" in problem for problem in service.health().problems))
            held = (await bus.js.consumer_info(TICKS, "ticks")).num_ack_pending or 0
            assert held <= 4 * 512
            await until(lambda: service.health().facts["breaker_tick_write"] == "open")
            # what was held is given back with the lease: whoever stands by may try
            await until(lambda: service.health().state == "waiting" and not service.health().healthy)
            assert any("tick_write is away" in problem for problem in service.health().problems)
            await asyncio.to_thread(stack.start)
            await drained(bus)
            await until(lambda: service.health().healthy)
            facts = service.health().facts
        assert (facts["breaker_tick_write"], facts["breaker_tick_write_opened"]) == ("closed", 1)
        with TickReader(settings.postgres) as reader:
            assert values(stored(reader, "EURUSD")) == values(frame)
            assert lost(reader, "EURUSD") == []
    assert facts["outages"] == 1
    assert facts["dead_letters"] == 0
    assert (await bus.js.stream_info("DEAD_LETTERS")).state.messages == 0


async def test_what_cannot_be_stored_goes_to_dead_letters_and_the_rest_lands(
    bus: BusSession, settings: Settings, reader: TickReader
) -> None:
    frame, batches = run_of("EURUSD", 100, 10)
    endless = secrets.token_hex(5000)  # longer than PostgreSQL's index takes
    refused = encoded(quotes(endless, (0, 1.0, 2.0)))
    malformed = encoded(quotes("EURUSD", (5, 1.0, 2.0)).with_columns(bid=pl.lit(None, pl.Float64)))
    await publish(bus, batches[:3])
    await bus.js.publish("market.EURUSD.tick", b"no ticks")
    await bus.js.publish("market.EURUSD.tick", b"no Arrow", headers=batches[3].headers.to_nats())
    await publish(bus, [malformed])
    async with bridging(settings) as service:
        await until(lambda: service.health().facts["batches"] == 3)
        await bus.nc.publish("market.EURUSD.tick", refused.payload, headers=refused.headers.to_nats())
        await publish(bus, batches[3:])
        await drained(bus)
        assert service.health().facts["dead_letters"] == 4
    assert values(stored(reader, "EURUSD")) == values(frame)
    reasons = sorted(str(letter.reason) for letter in await list_dead_letters(bus.js))
    assert reasons == ["insert_failed", "malformed_row", "unreadable_envelope", "unreadable_payload"]


async def test_a_heartbeat_whose_loss_is_refused_goes_to_dead_letters_and_the_rest_lands(
    bus: BusSession, settings: Settings, reader: TickReader
) -> None:
    """It has no rows, so that nothing of it is judged before its loss is recorded."""
    frame, batches = run_of("EURUSD", 40, 10)
    alive = frame["ts"][20]
    began = {"session_started": alive, "lost_from": alive - timedelta(seconds=5)}
    endless = secrets.token_hex(5000)  # longer than PostgreSQL's index takes

    def beat(symbol: str, **said: Any) -> EncodedTicks:
        heartbeat = encoded(frame.clear(), symbol=symbol, alive_at=alive, number=1)
        return replace(heartbeat, headers=replace(heartbeat.headers, **said))

    poison = [
        beat(endless, **began),
        beat("EURUSD", session_id="nul\0", **began),
        beat("EURUSD", session_id="half \udc80", **began),
    ]
    async with bridging(settings) as service:
        for each in poison:
            await bus.nc.publish("market.EURUSD.tick", b"", headers=each.headers.to_nats())
        await publish(bus, [*batches[:2], beat("EURUSD", session_id="good", **began), *batches[2:]])
        await drained(bus)
        await until(lambda: service.health().facts["dead_letters"] == 3)
        assert service.health().healthy, service.health().problems
    assert values(stored(reader, "EURUSD")) == values(frame)
    assert lost(reader, "EURUSD") == [(alive - timedelta(seconds=5), alive, "session")]
    letters = {letter.stream_seq: letter for letter in await list_dead_letters(bus.js)}
    assert [str(letters[seq].reason) for seq in sorted(letters)] == ["insert_failed", *["unreadable_envelope"] * 2]
    assert "index row" in letters[1].last_error
    assert "NUL" in letters[2].last_error


async def test_full_dead_letters_hold_up_no_ticks(
    bus: BusSession, settings: Settings, reader: TickReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(burial, "UNBURIED_S", 1.0)
    dead = (await bus.js.stream_info("DEAD_LETTERS")).config
    await bus.js.update_stream(dead.evolve(max_msgs=1))
    await bus.js.publish("dlq.x", b"full now")
    frame, batches = run_of("EURUSD", 100, 10)
    await publish(bus, batches[:3])
    await bus.js.publish("market.EURUSD.tick", b"no ticks")
    await publish(bus, batches[3:])
    async with bridging(settings) as service:
        await until(lambda: service.health().facts["ticks"] == 100)
        for _ in range(40):
            await asyncio.sleep(0.1)
            held = (await bus.js.consumer_info(TICKS, "ticks")).num_ack_pending
            if held == 1:
                break
        assert held == 1, "only what should go to dead letters"
        await bus.js.update_stream(dead)  # a person made room
        await drained(bus)
        assert service.health().facts["dead_letters"] == 1
        assert service.health().facts["duplicates"] == 0
    assert values(stored(reader, "EURUSD")) == values(frame)


async def test_messages_that_expired_unstored_are_a_recorded_loss(
    bus: BusSession, settings: Settings, reader: TickReader
) -> None:
    """While no bridge ran: symbol by symbol, up to its first batch after the hole; a second start records no more."""
    frame, batches = run_of("EURUSD", 300, 10)
    quiet, quiet_batches = run_of("QUIET", 10, 10)
    async with bridging(settings):
        await publish(bus, [*quiet_batches, *batches[:10]])
        await drained(bus)
    last = await publish(bus, batches[10:20])
    await bus.js.purge_stream(TICKS, seq=last + 1)  # as by age or size
    async with bridging(settings) as service:
        await until(lambda: service.health().state == "running")
        await publish(bus, batches[20:])
        await drained(bus)
        assert service.health().facts["expired_losses"] == 1
        assert service.health().facts["missed_symbols"] == 1  # the quiet one: up to when, nobody knows yet
    end = frame["ts"][200] + LATE
    assert lost(reader, "EURUSD") == [(frame["ts"][99], end, "expired")]
    async with bridging(settings) as service:
        await until(lambda: service.health().state == "running")
        alive = START + timedelta(minutes=5)
        await publish(bus, [encoded(frame.clear(), symbol="QUIET", alive_at=alive)])
        await until(lambda: service.health().facts["expired_losses"] == 1)
        await drained(bus)
    assert lost(reader, "QUIET") == [(quiet["ts"][-1], alive + LATE, "expired")]
    assert lost(reader, "EURUSD") == [(frame["ts"][99], end, "expired")]
    assert values(stored(reader, "EURUSD")) == values(pl.concat([frame[:100], frame[200:]]))


async def test_messages_that_lack_in_between_are_asked_for_or_a_recorded_loss(
    bus: BusSession, settings: Settings, reader: TickReader
) -> None:
    """What was sent and got lost on the way comes again, in order; what the stream does not hold any more is a loss."""
    frame, batches = run_of("EURUSD", 300, 10)
    async with bridging(settings) as service:
        await until(lambda: service.health().state == "running")
        await publish(bus, batches[:5])
        await drained(bus)
        # requests of an inbox that nobody reads take most of what comes, as those of a connection that broke
        thief = await bus.nc.subscribe("_INBOX.thief")
        for _ in range(20):
            ask = b'{"batch": 1, "expires": 500000000}'
            await bus.nc.publish("$JS.API.CONSUMER.MSG.NEXT.TICKS.ticks", ask, "_INBOX.thief")
        await publish(bus, batches[5:30])
        await drained(bus)
        assert (await thief.next_msg(5)).subject == "market.EURUSD.tick"
        await thief.unsubscribe()
        assert service.health().facts["holes"] == 0
    assert values(stored(reader, "EURUSD")) == values(frame)
    # two that are gone between others, as of a stream that was mended by hand
    after, more = run_of("EURUSD", 100, 10, start_ms=10_000)
    last = await publish(bus, more)
    await bus.js.delete_msg(TICKS, last - 4)
    await bus.js.delete_msg(TICKS, last - 5)
    async with bridging(settings) as service:
        await drained(bus)
        assert service.health().facts["expired_losses"] == 1
    assert lost(reader, "EURUSD") == [(after["ts"][39], after["ts"][60] + LATE, "expired")]
    assert values(stored(reader, "EURUSD")) == values(pl.concat([frame, after[:40], after[60:]]))


async def test_batches_that_never_came_are_a_recorded_loss(
    bus: BusSession, settings: Settings, reader: TickReader
) -> None:
    """Their numbers lack, across a restart too; what comes twice, and heartbeats, are no loss."""
    frame, _ = run_of("EURUSD", 100, 10)
    parts = list(frame.iter_slices(10))
    batches = [encoded(part, number=2 * place + 1) for place, part in enumerate(parts)]
    quiet = [
        encoded(frame.clear(), symbol="EURUSD", alive_at=part["ts"][-1], number=2 * place + 2)
        for place, part in enumerate(parts)
    ]
    sent = [batch for pair in zip(batches, quiet, strict=True) for batch in pair]
    async with bridging(settings):
        await publish(bus, [*sent[:4], *sent[5:10]])  # the third part never comes
        await drained(bus)
    first = (frame["ts"][19] - LOSS_MARGIN, frame["ts"][29] + LOSS_MARGIN, "missing")
    assert lost(reader, "EURUSD") == [first]
    async with bridging(settings):
        await publish(bus, [*sent[7:10], *sent[10:12], sent[14]])  # nor the seventh
        await drained(bus)
    second = (frame["ts"][59] - LOSS_MARGIN, frame["ts"][70] + LOSS_MARGIN, "missing")
    assert lost(reader, "EURUSD") == [first, second]
    async with bridging(settings):
        await publish(bus, sent[15:])
        await drained(bus)
    assert lost(reader, "EURUSD") == [first, second]
    assert values(stored(reader, "EURUSD")) == values(pl.concat([frame[:20], frame[30:60], frame[70:]]))


async def test_old_days_are_dropped(bus: BusSession, settings: Settings, reader: TickReader) -> None:
    frame = quotes("EURUSD", (0, 1.0, 2.0), start=datetime.now(UTC) - timedelta(days=10))
    fresh = quotes("EURUSD", (0, 1.0, 2.0), start=datetime.now(UTC) - timedelta(days=1))
    async with TickStore(settings.postgres) as store:
        await store.store([batch(frame), batch(fresh)])
    kept = settings.model_copy(update={"live": settings.live.model_copy(update={"ticks_kept_days": 3})})
    async with bridging(kept):
        await until(lambda: stored(reader, "EURUSD").height == 1)
    assert values(stored(reader, "EURUSD")) == values(fresh)


async def test_goes_on_by_itself_after_nats_lost_everything(
    make_database: MakeDatabase,  # noqa: F811
    tmp_path: Path,
) -> None:
    frame, batches = run_of("EURUSD", 300, 10)
    with NatsProcess(home=tmp_path / "nats") as server:
        settings = settings_of(server.settings, make_database())
        async with bridging(settings) as service:
            async with open_bus(server.settings, "test") as bus:
                await until(lambda: service.health().state == "running")
                await publish(bus, batches[:10])
                await drained(bus)
            server.kill()
            (tmp_path / "nats" / "store").rename(tmp_path / "gone")
            server.start()
            await until(lambda: service.health().facts["holes"] != 0)
            await until(lambda: service.health().state == "running")
            async with open_bus(server.settings, "test") as bus:
                await publish(bus, batches[20:])
                await drained(bus)
        with TickReader(settings.postgres) as reader:
            assert values(stored(reader, "EURUSD")) == values(pl.concat([frame[:100], frame[200:]]))
            assert lost(reader, "EURUSD") == [(frame["ts"][99], frame["ts"][200] + LATE, "expired")]


async def test_a_collector_that_lost_its_lease_is_fenced(
    bus: BusSession, settings: Settings, reader: TickReader
) -> None:
    new, of_new = run_of("EURUSD", 20, 10, epoch=7, start_ms=1000)
    _, of_old = run_of("EURUSD", 10, 10, epoch=6)
    async with bridging(settings) as service:
        await until(lambda: service.health().state == "running")
        await publish(bus, [*of_new, *of_old])
        await drained(bus)
        assert service.health().facts["fenced"] == 1
    assert values(stored(reader, "EURUSD")) == values(new)
    assert [cause for _, _, cause in lost(reader, "EURUSD")] == ["lease"]


async def test_a_dead_letter_of_a_collector_that_is_gone_is_stored_when_it_is_replayed(
    bus: BusSession, settings: Settings, reader: TickReader
) -> None:
    """Exactly once, and beside the ticks of who came after it; what both saw stays once."""
    frame, [before, refused] = run_of("EURUSD", 20, 10, epoch=6)
    both = encoded(frame[15:16], epoch=7)  # the successor had this one too
    later, after = run_of("EURUSD", 10, 10, epoch=7, start_ms=1000)
    subject, headers = "market.EURUSD.tick", refused.headers.to_nats()
    letter = DeadLetter(Reason.INSERT_FAILED, TICKS, subject, 2, "c", refused.payload, "no", headers=headers)
    malformed = replace(letter, reason=Reason.MALFORMED_ROW, stream_seq=3)
    box = DeadLetterBox(bus)
    async with bridging(settings) as service:
        await publish(bus, [before, both, *after])
        await drained(bus)
        await publish_letter(bus.js, letter)
        await publish_letter(bus.js, malformed)
        assert (await box.replay_all(Selection())).replayed == 2
        await drained(bus)
        await until(lambda: service.health().facts["duplicates"] == 1)
        facts = service.health().facts
        assert (facts["fenced"], facts["superseded"], facts["dead_letters"]) == (0, 1, 0)
        # it reigns no more than before: what it sends without being asked is fenced
        await publish(bus, [encoded(frame[:1], epoch=6)])
        await drained(bus)
        assert service.health().facts["fenced"] == 1
        await asyncio.sleep(0.5)
        latest = await LatestValues(bus).get(["EURUSD"])
        assert latest["EURUSD"].bid == later["bid"][-1], "an old tick is no latest value"
    assert values(stored(reader, "EURUSD")) == values(pl.concat([frame, later]))
    assert (await box.unread()).total == 0


async def test_probe_health_and_latest_values(bus: BusSession, settings: Settings) -> None:
    frame, batches = run_of("EURUSD", 100, 10)
    trade = frame[-1:].with_columns(
        pl.lit("trade").alias("kind"), pl.lit(None, pl.Float64).alias("bid"), pl.lit(None, pl.Float64).alias("ask"),
        pl.lit(9.5).alias("price"), pl.lit(3.0).alias("size"),
    )  # fmt: skip
    async with bridging(settings) as service:
        assert set(await service.probe()) == {"nats", "tick_store"}
        await publish(bus, [*batches, encoded(trade)])
        values_of = LatestValues(bus)
        for _ in range(1000):
            found = await values_of.get(["EURUSD", "NONE"])
            if found and found["EURUSD"].price:
                break
            await asyncio.sleep(0.02)
        last = found["EURUSD"]
        assert (last.bid, last.ask, last.price, last.size) == (99.25, 99.5, 9.5, 3.0)
        await drained(bus)
        await until(lambda: service.health().facts.get("pending") == 0)
        health = service.health()
    assert health.healthy
    assert health.state == "running"
    assert health.facts["ticks"] == 101
    assert health.facts["layout"] in ("partitions", "hypertable")
    assert 0 < float(health.facts["store_latency_p50_ms"]) <= float(health.facts["store_latency_p99_ms"])
    assert service.health().state == "stopped"


async def test_last_times_are_of_stored_batches(settings: Settings) -> None:
    frame = quotes("A", (0, 1, 2), (50, 1, 2), (20, 1, 2))
    async with TickStore(settings.postgres) as store:
        assert await store.last_times() == {}
        await store.store([batch(frame)])
        assert await store.last_times() == {"A": frame["ts"][1]}
