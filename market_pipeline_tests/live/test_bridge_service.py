"""The bridge service: live flushes, history and external observations land; what is poison goes, an outage waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import polars as pl
import pytest
from pydantic import SecretStr
from typer.testing import CliRunner

from market_pipeline.bus.consumer import Lag
from market_pipeline.bus.dead_letter_box import DeadLetterBox
from market_pipeline.bus.dead_letters import Reason, Selection, list_dead_letters
from market_pipeline.bus.envelope import encode_batches, now_ms
from market_pipeline.bus.external_envelope import encode_external, publish_external
from market_pipeline.bus.subjects import history_subject, market_subject
from market_pipeline.cli import build_app
from market_pipeline.errors import StoreAuthError
from market_pipeline.live import burial, external_bridge
from market_pipeline.live.bridge_lane import Waiting
from market_pipeline.live.bridge_service import BridgeService
from market_pipeline.market.bars import TS
from market_pipeline.market.external import OBSERVATION_SCHEMA
from market_pipeline.market.timeframes import from_ms
from market_pipeline.stores.external import ExternalStore
from market_pipeline.stores.ledgers import IngestLedger
from market_pipeline_tests.live.bridging import (
    BACKLOG,
    SYMBOLS,
    ClickHouse,
    Desk,
    bridge,
    eventually,
    flush,
    live_batch,
    minute_before,
    open_desk,
    settings_of,
)
from market_pipeline_tests.servers import NatsProcess
from market_pipeline_tests.stores.frames import bar, minutes

LIVE_ROWS = "SELECT toInt64((SELECT count() FROM bars_1s) + (SELECT count() FROM bars WHERE timeframe = '1m')) AS n"


@pytest.fixture(scope="module")
def clickhouse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClickHouse]:
    server = ClickHouse(tmp_path_factory.mktemp("clickhouse"))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def nats() -> Iterator[NatsProcess]:
    with NatsProcess() as server:
        yield server


@pytest.fixture
async def desk(tmp_path: Path, clickhouse: ClickHouse, nats: NatsProcess) -> AsyncIterator[Desk]:
    async with open_desk(settings_of(tmp_path, nats.settings, clickhouse.settings())) as opened:
        yield opened


async def test_a_live_flush_lands_once_with_one_line_a_timeframe(desk: Desk) -> None:
    end = minute_before(now_ms())
    sent = flush(end, codes=("1s", "1m"))
    async with bridge(desk.settings) as service:
        await desk.publish(sent)
        await desk.drained("LIVE")
        assert await desk.number(LIVE_ROWS) == 40
        lines = await desk.query("SELECT symbol, timeframe, subject, sum(rows) AS rows, sum(new_rows) AS new "
                                 "FROM ingest_batches GROUP BY ALL ORDER BY timeframe")  # fmt: skip
        assert lines.rows() == [("*", "1m", "market.*.1m", 20, 20), ("*", "1s", "market.*.1s", 20, 20)]
        ledger = IngestLedger(desk.client)
        for code, length in (("1s", 1000), ("1m", 60_000)):
            traced = ledger.trace_bar("SYM07", code, from_ms(end - length))
            assert {(line.batch_id, line.timeframe) for line in traced} == {(sent[0].headers.batch_id, code)}
            assert ledger.rows_settled([sent[0].headers.batch_id, 5], code) == {sent[0].headers.batch_id: 20}

        await desk.publish(flush(end, codes=("1s", "1m")))  # the same values again, as after a restart
        await desk.drained("LIVE")
        assert await desk.number(LIVE_ROWS) == 40, "equal bars write nothing"
        facts = service.health().facts
        assert (facts["live_new"], facts["live_unchanged"], facts["live_dead_letters"]) == (40, 40, 0)

        await desk.publish(flush(end, SYMBOLS[:3], close=1.5, high=1.5, revision=1_800_000_000_000))
        await desk.drained("LIVE")
        assert await desk.number("SELECT count() AS n FROM bars_1s_final WHERE close = 1.5") == 3
        assert service.health().facts["live_restated"] == 3
        assert (service.health().state, service.health().problems) == ("running", ())

    found = ledger.live_latency(from_ms(now_ms()) - timedelta(minutes=1))
    assert 0 < found["received_to_inserted_p50"] <= found["received_to_inserted_p99"] < 20_000
    assert found["window_end_to_inserted_p50"] >= found["received_to_inserted_p50"]
    assert found["rows_per_minute"] == pytest.approx(43, abs=0.1)
    assert ledger.live_latency(from_ms(now_ms()) + timedelta(days=1), from_ms(now_ms()) + timedelta(days=2)) == {}


async def test_the_command_line_traces_a_live_bar_to_its_flush(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in desk.settings.clickhouse.model_dump().items():
        text = value.get_secret_value() if isinstance(value, SecretStr) else str(value)
        monkeypatch.setenv(f"MARKET_PIPELINE_CLICKHOUSE__{name.upper()}", text)
    monkeypatch.setenv("COLUMNS", "200")
    end = minute_before(now_ms())
    sent = flush(end, codes=("1s", "1m"))
    async with bridge(desk.settings):
        await desk.publish(sent)
        await desk.drained("LIVE")
    for code, length in (("1s", 1000), ("1m", 60_000)):
        arguments = ["trace", "EUR/USD", code, from_ms(end - length).isoformat(), "--home", str(desk.settings.home)]
        shown = await asyncio.to_thread(CliRunner().invoke, build_app(), arguments, catch_exceptions=False)
        assert shown.exit_code == 0, shown.output
        assert f"batch {sent[0].headers.batch_id}" in shown.output
        assert f"market.*.{code}" in shown.output
        assert "inserted_at" in shown.output


async def test_what_is_poison_is_buried_alone(desk: Desk) -> None:
    end = minute_before(now_ms())
    sent = flush(end, SYMBOLS[:6])
    garbage = replace(sent[0], payload=b"no arrow at all")
    two = pl.concat([bar(from_ms(end - 2000)), bar(from_ms(end - 1000))]).with_columns(
        pl.lit("SYM01").alias("symbol"), pl.lit("1s").alias("timeframe"), pl.lit("live_aggregated").alias("source")
    )
    half = live_batch(two, 77)
    broken = half.frame_slice.with_columns(
        open=pl.when(pl.col("ts") == from_ms(end - 1000)).then(float("nan")).otherwise("open")
    )
    # stored first, so that the next word on the same bars is compared row by row
    async with bridge(desk.settings) as service:
        await desk.publish([half])
        await desk.drained("LIVE")
    await desk.bus.js.publish(market_subject("EURUSD", "1s"), b"??", headers={"Batch-Id": "x"})
    await desk.publish(
        [
            garbage,
            live_batch(broken.with_columns(close=9.0, revision=pl.lit(1_800_000_000_000, pl.UInt64)), 78),
            *sent[2:],
            *flush(end, ["NOBODY"]),
        ]
    )
    async with bridge(desk.settings) as service:
        await desk.drained("LIVE")
        assert await desk.number("SELECT count() AS n FROM bars_1s_final WHERE symbol >= 'SYM02'") == 4
        assert await desk.number("SELECT count() AS n FROM bars_1s_final WHERE symbol = 'SYM01' AND close = 9") == 1
        assert service.health().facts["live_rejected_rows"] == 1
    letters = [await desk.bus.js.get_msg("DEAD_LETTERS", seq) for seq in range(1, 1 + await desk.letters())]
    assert sorted(letter.subject for letter in letters) == [
        "dlq.LIVE.malformed_row",
        "dlq.LIVE.unknown_symbol",
        "dlq.LIVE.unreadable_envelope",
        "dlq.LIVE.unreadable_payload",
    ]
    assert await desk.number("SELECT count() AS n FROM bars_1s WHERE symbol = 'NOBODY'") == 0


async def test_full_dead_letters_hold_up_nothing_that_is_good(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(burial, "UNBURIED_S", 1.0)
    js, end = desk.bus.js, minute_before(now_ms())
    dead = (await js.stream_info("DEAD_LETTERS")).config
    await js.update_stream(dead.evolve(max_msgs=1))
    await js.publish("dlq.x", b"full now")
    two = pl.concat([bar(from_ms(end - 2000)), bar(from_ms(end - 1000))]).with_columns(
        timeframe=pl.lit("1s"), source=pl.lit("live_aggregated"), open=pl.Series([1.15, float("nan")])
    )
    garbage = replace(flush(end, ["SYM01"])[0], payload=b"no arrow at all")
    await js.publish(market_subject("EURUSD", "1s"), b"??", headers={"Batch-Id": "x"})
    await desk.publish([live_batch(two, 77), garbage, *flush(end, ["NOBODY"]), *flush(end, SYMBOLS[2:])])
    await send_external(desk, "fred", observations("U6", [("2027-01-01", 7.0)]), drained=False)
    bad = observations("UNRATE", [("2027-01-01", float("inf")), ("2027-02-01", 7.0)])
    await send_external(desk, "fred", bad, drained=False)
    async with bridge(desk.settings) as service:
        await desk.until("SELECT count() AS n FROM bars_1s_final", 19)  # of the two rows the good one
        await desk.until("SELECT count() AS n FROM external_observations", 2)
        await eventually(lambda: service.health().facts["live_given_back"] >= 8)
        assert (await js.stream_info("LIVE")).state.messages == 4
        assert (await js.stream_info("EXTERNAL")).state.messages == 1
        await js.update_stream(dead)  # a person made room
        await desk.drained("LIVE")
        await desk.drained("EXTERNAL")
    assert await desk.letters() == 1 + 5
    assert await desk.number("SELECT count() AS n FROM bars_1s") == 19


@pytest.mark.parametrize("run_id", ["", "a-run"])
async def test_a_batch_cannot_replace_bars_outside_the_range_that_it_names(desk: Desk, run_id: str) -> None:
    """Where nothing is stored a batch is moved unseen; it must not reach where something is."""
    end = minute_before(now_ms())
    async with bridge(desk.settings):
        await desk.publish(flush(end, ["EURUSD"], ("1m",)))
        await desk.drained("LIVE")
        (other,) = flush(end, ["EURUSD"], ("1m",), close=9.0, revision=2_000_000_000_000)
        other = live_batch(other.frame_slice, 78, run_id=run_id)
        empty = from_ms(end - 600_000)
        await desk.publish([replace(other, headers=replace(other.headers, start_ts=empty, end_ts=empty))])
        await desk.drained("LIVE")
    assert await desk.number("SELECT count() AS n FROM bars FINAL WHERE close = 9") == 0
    letter = await desk.bus.js.get_msg("DEAD_LETTERS", 1)
    assert letter.subject == "dlq.LIVE.unreadable_payload"


async def test_history_that_nobody_drains_is_drained_and_live_does_not_wait_for_it(desk: Desk) -> None:
    """A backlog of 1.2 million rows lies there; flush after flush is stored before it is worked off."""
    frames = [minutes(17_000, seed=number, symbol=symbol) for number, symbol in enumerate(BACKLOG)]
    backlog = [batch for frame in frames for batch in encode_batches(frame.drop("batch_id"), correlation_id="old")]
    for batch in backlog:
        await desk.publish([batch], history_subject(batch.headers.symbol, "1m"))
    end, flushes, ahead = minute_before(now_ms()), 0, 0
    async with bridge(desk.settings) as service:
        while (await desk.bus.js.stream_info("HISTORY")).state.messages:
            await desk.publish(flush(end + flushes * 1000))
            flushes += 1
            await desk.drained("LIVE")
            ahead += (await desk.bus.js.stream_info("HISTORY")).state.messages > 0
        facts = service.health().facts
    assert ahead >= 2, f"{ahead} of {flushes} flushes were stored before the backlog"
    assert (facts["history_new"], facts["live_new"]) == (1_190_000, 20 * flushes)


async def test_two_bridges_at_once_store_nothing_twice(desk: Desk) -> None:
    end = minute_before(now_ms())
    async with bridge(desk.settings) as one, bridge(desk.settings) as other:
        for number in range(20):
            await desk.publish(flush(end + number * 1000, codes=("1s", "1m") if number == 0 else ("1s",)))
        await desk.drained("LIVE")
        both = [service.health().facts for service in (one, other)]
    assert await desk.number(LIVE_ROWS) == 420
    assert sum(facts["live_new"] for facts in both) == 420
    assert min(facts["live_batches"] for facts in both) > 0, "both must have worked"


async def test_a_wrong_password_ends_it_and_says_so(desk: Desk, tmp_path: Path) -> None:
    wrong = desk.settings.clickhouse.model_copy(update={"password": desk.settings.nats.password})
    service = BridgeService(desk.settings.model_copy(update={"clickhouse": wrong}))
    with pytest.raises(StoreAuthError):
        await service.probe()
    with pytest.raises(StoreAuthError):
        await asyncio.wait_for(service.run(asyncio.Event()), 20)
    health = service.health()
    assert health.state == "failed"
    assert "clickhouse.password" in health.problems[0]
    assert desk.settings.nats.password.get_secret_value() not in str(health)


async def test_probe_does_the_work(desk: Desk) -> None:
    assert set(await BridgeService(desk.settings).probe()) == {"clickhouse", "schema", "nats"}
    assert await desk.number("SELECT count() AS n FROM bars") == 0


# -------------------------------------------------------------------------------------------------- external

FOLDER = Path(__file__).resolve().parents[3] / "shared" / "data" / "external"


def observations(series: str, rows: list[tuple[str, float]], revision: int = 1) -> pl.DataFrame:
    return pl.DataFrame(
        {"series": series, "ts": [row[0] for row in rows], "value": [row[1] for row in rows]},
    ).with_columns(
        pl.col("ts").str.to_datetime("%Y-%m-%d", time_zone="UTC").cast(TS),
        pl.col("value").cast(pl.Float64),
        revision=pl.lit(revision, pl.UInt64),
        is_deleted=pl.lit(0, pl.UInt8),
    ).select(list(OBSERVATION_SCHEMA))  # fmt: skip


async def send_external(desk: Desk, dataset: str, frame: pl.DataFrame, *, drained: bool = True) -> None:
    publisher = desk.bus.publisher()
    for batch in encode_external(dataset, frame, correlation_id="c", run_id="r"):
        await publish_external(publisher, batch)
    if drained:
        await desk.drained("EXTERNAL")


async def test_external_observations_are_written_once_corrected_and_withdrawn(desk: Desk) -> None:
    raw = "SELECT count() AS n FROM external_observations"
    store = ExternalStore(desk.client)
    first = observations("UNRATE", [("1948-01-01", 3.4), ("1948-02-01", 3.8), ("2026-10-01", 4.1)], 10)
    async with bridge(desk.settings) as service:
        await send_external(desk, "fred", first)
        await send_external(desk, "fred", first.with_columns(revision=pl.lit(11, pl.UInt64)))
        assert await desk.number(raw) == 3, "equal values write nothing"
        await send_external(desk, "fred", observations("UNRATE", [("1948-02-01", 3.9)], 12))
        await send_external(desk, "fred", observations("UNRATE", [("1948-02-01", 3.5)], 9))
        gone = observations("UNRATE", [("2026-10-01", 0.0)], 13).with_columns(is_deleted=pl.lit(1, pl.UInt8))
        await send_external(desk, "fred", gone)
        await send_external(desk, "fred", gone)
        found = store.read("fred", "UNRATE")
        assert found["value"].to_list() == [3.4, 3.9]
        assert await desk.number(raw) == 5
        bad = pl.concat(
            [observations("UNRATE", [("2027-01-01", float("inf"))], 20), observations("U6", [("2027-01-01", 7)], 20)]
        )
        await send_external(desk, "fred", bad)
        assert store.read("fred", "U6")["value"].to_list() == [7.0]
        await desk.bus.js.publish("external.fred", b"no arrow", headers={"Batch-Id": "1"})
        await desk.drained("EXTERNAL")
        facts = service.health().facts
    assert await desk.letters() == 2
    assert (facts["external_new"], facts["external_unchanged"], facts["external_restated"]) == (4, 4, 1)
    assert (facts["external_withdrawn"], facts["external_superseded"], facts["external_rejected_rows"]) == (1, 1, 1)
    lines = await desk.query(
        "SELECT source, symbol, outcome FROM ingest_batches WHERE stream = 'EXTERNAL' ORDER BY stream_seq LIMIT 1"
    )
    assert lines.rows() == [("fred", "UNRATE", "stored")]


async def test_observations_that_the_store_refuses_hold_up_no_others(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(external_bridge, "MAX_REFUSALS", 2)  # each costs a second of waiting
    store = ExternalStore(desk.client)
    async with bridge(desk.settings):
        desk.client.command("ALTER TABLE external_observations ADD CONSTRAINT poison CHECK value != 666")
        poison, *good = (
            encode_external("fred", observations("UNRATE", [(day, value)]), correlation_id="c")[0]
            for day, value in (("1948-01-01", 666.0), ("1948-02-01", 3.8), ("1948-03-01", 4.0))
        )
        for batch in (poison, *good):
            await publish_external(desk.bus.publisher(), batch)
        await desk.drained("EXTERNAL")
        assert store.read("fred", "UNRATE")["value"].to_list() == [3.8, 4.0]
        [letter] = await list_dead_letters(desk.bus.js)
        assert (letter.reason, letter.payload, letter.attempts) == (Reason.INSERT_FAILED, poison.payload, 2)
        assert "poison" in letter.last_error
        outcomes = await desk.query("SELECT outcome, sum(rejected_rows) FROM ingest_batches GROUP BY ALL ORDER BY ALL")
        assert outcomes.rows() == [("rejected", 1), ("stored", 0)]
        # the cause is mended
        desk.client.command("ALTER TABLE external_observations DROP CONSTRAINT poison")
        assert (await DeadLetterBox(desk.bus).replay_all(Selection())).replayed == 1
        await desk.drained("EXTERNAL")
        assert store.read("fred", "UNRATE")["value"].to_list() == [666.0, 3.8, 4.0]


@pytest.mark.skipif(not (FOLDER / "DGS10.csv").exists(), reason="the real FRED and Fear & Greed files are not here")
async def test_real_datasets_come_back_as_they_are(desk: Desk) -> None:
    rates = pl.read_csv(FOLDER / "DGS10.csv", null_values=["", "."]).drop_nulls()
    greed = pl.read_csv(FOLDER / "fear_greed_data.csv", has_header=False)
    at, value = greed.get_columns()[:2]
    greed_days = pl.from_epoch(at, time_unit="s").dt.strftime("%Y-%m-%d")
    ten_years = observations("DGS10", list(rates.iter_rows()))
    mood = observations("fear_greed", list(zip(greed_days, value, strict=True))).unique(["series", "ts"])
    async with bridge(desk.settings):
        for _ in range(2):
            await send_external(desk, "fred", ten_years)
            await send_external(desk, "sentiment", mood)
    store = ExternalStore(desk.client)
    assert store.read("fred").select("ts", "value").equals(ten_years.sort("ts").select("ts", "value"))
    assert store.read("sentiment").select("ts", "value").equals(mood.sort("ts").select("ts", "value"))
    assert await desk.number("SELECT count() AS n FROM external_observations") == ten_years.height + mood.height


# ---------------------------------------------------------------------------------------------------- health


def test_input_without_output_is_stuck_and_any_progress_ends_it() -> None:
    waiting = Waiting()
    waiting.look(Lag(0, 0, 0.0), 100.0)
    assert waiting.stuck_s(None, 200.0) == 0.0, "nothing waits"
    waiting.look(Lag(5, 0, 1.0), 200.0)
    waiting.look(Lag(5, 3, 31.0), 230.0)
    assert waiting.stuck_s(None, 231.0) == 31.0
    assert waiting.stuck_s(230.0, 231.0) == 1.0, "a batch was settled here"
    waiting.look(Lag(9, 3, 2.0), 240.0)
    assert waiting.stuck_s(None, 241.0) == 1.0, "the oldest went on: another process works"
    waiting.look(Lag(0, 0, 0.0), 250.0)
    assert waiting.stuck_s(None, 900.0) == 0.0
