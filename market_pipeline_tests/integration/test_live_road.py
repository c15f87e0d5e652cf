"""The live road against answer keys: real quotes in, and the bars and ticks that others made of them.

Vendor → WebSocket → collector → NATS → aggregator, bridge and tick bridge → ClickHouse and the tick store, all of them
the real ones. With ../shared/data two weeks of EUR/USD are replayed, without it the three days that ship with the
tests. MARKET_PIPELINE_FULL_ROAD=1 replays the two weeks three times over (bid, ask, mid) and all crossed quotes of the
other source, both sides: 2.7 million quotes, some minutes; `-s` shows the figures.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import polars as pl
import pytest

from market_pipeline.bus.dead_letters import count_dead_letters
from market_pipeline.bus.losses import LossBucket, LossInterval
from market_pipeline.bus.session import open_bus
from market_pipeline.live.build import build_services
from market_pipeline.live.thread import LiveThread
from market_pipeline.market.timeframes import DERIVED, TIMEFRAMES
from market_pipeline.settings import LiveSettings, PostgresSettings, Settings, StreamSettings
from market_pipeline.stores import open_stores
from market_pipeline.stores.ticks import TickReader
from market_pipeline_tests.integration.road import Replay, Replayed, fact, wait_for
from market_pipeline_tests.integration.world import World, assert_bars_equal, fold_independently
from market_pipeline_tests.market.real import FULL, KEYS, OHLC, needs_full_data
from market_pipeline_tests.stores.ticks.conftest import MakeDatabase

FULL_ROAD = "MARKET_PIPELINE_FULL_ROAD"
SERVICES = ("collector", "aggregator", "ticks", "bridge")


def oanda(symbol: str, basis: str, *, full: bool) -> Replayed:
    name = ("eurusd_oanda_quotes_2014", "eurusd_oanda_1m_2014") if full else ("eurusd_oanda_quotes", "eurusd_oanda_1m")
    return _replayed(symbol, basis, name, full=full)


def fxcm(symbol: str, basis: str, *, full: bool) -> Replayed:
    name = ("eurusd_fxcm_quotes_2014", "eurusd_fxcm_1m_2014") if full else ("eurusd_fxcm_quotes", "eurusd_fxcm_1m")
    return _replayed(symbol, basis, name, full=full)


def _replayed(symbol: str, basis: str, name: tuple[str, str], *, full: bool) -> Replayed:
    quotes, minutes = ((FULL if full else KEYS) / f"{each}.parquet" for each in name)
    return Replayed(symbol, basis, quotes, minutes)


# Other names than real ones, so that nothing takes their prices for another pair's.
ROADS = [
    pytest.param(
        [
            oanda("EUR/USD", "bid", full=FULL.is_dir()),
            fxcm("EUR/ASK", "ask", full=False),
            oanda("EUR/MID", "mid", full=False),
        ],
        12 if FULL.is_dir() else 4,
        id="two-weeks" if FULL.is_dir() else "cuts",
    ),
    pytest.param(
        [
            oanda("EUR/USD", "bid", full=True),
            oanda("EUR/ASK", "ask", full=True),
            oanda("EUR/MID", "mid", full=True),
            fxcm("FXC/BID", "bid", full=True),
            fxcm("FXC/ASK", "ask", full=True),
        ],
        12,
        id="full",
        marks=[
            needs_full_data,
            pytest.mark.timeout(1800),
            pytest.mark.skipif(not os.environ.get(FULL_ROAD), reason=f"takes minutes: set {FULL_ROAD}=1"),
        ],
    ),
]


def road_settings(world: World, folder: Path, database: PostgresSettings, recordings: Sequence[Replayed]) -> Settings:
    file = folder / "instruments.yaml"
    file.write_text("instruments:\n" + "".join(each.yaml for each in recordings))
    return world.settings.model_copy(
        update={
            "instruments_file": file,
            "postgres": database,
            # The replay's clock leaps by hours: what counts time on it must not take that for silence or a wrong clock.
            "live": LiveSettings(ahead=timedelta(days=7), silent_s=1e7, ticks_kept_days=None),
            "stream": StreamSettings(silence_s=120, lease_ttl_s=30),
        }
    )


@pytest.mark.parametrize(("recordings", "repeats"), ROADS)
def test_real_quotes_become_the_bars_of_the_answer_key_and_are_kept_each_once(
    recordings: list[Replayed], repeats: int, world: World, tmp_path: Path, make_database: MakeDatabase
) -> None:
    world.settings = settings = road_settings(world, tmp_path, make_database(), recordings)
    with open_stores(settings):
        pass
    # Seconds of 2014 are older than the table keeps them: the next merge would drop them.
    world.command("SYSTEM STOP TTL MERGES bars_1s")
    replay = Replay(world.vendor, recordings)
    replay.prepare()
    truth = {(each.name, code): each.fold(length) for each in recordings for code, length in _LENGTHS.items()}

    with LiveThread(settings, build_services(settings, SERVICES, clock=replay.clock, replayed=True)) as live:
        wait_for(lambda: fact(live, "collector", "forex_connected") == 1, live, "a connection to the vendor")
        started = time.monotonic()
        replay.run(live)
        sent = time.monotonic()
        wait_for(lambda: fact(live, "ticks", "ticks") == replay.total, live, "every tick stored")
        ticks_stored = time.monotonic()
        bars = sum(frame.height for frame in truth.values())
        wait_for(lambda: fact(live, "aggregator", "bars") == bars, live, f"{bars} bars published")
        wait_for(lambda: world.count("bars_1s_final") + _minutes(world) == bars, live, "every bar stored", 0.2)
        bars_stored = time.monotonic()
        wait_for(lambda: _derived(world, replay, recordings), live, "every closed window derived", 0.5)
        derived = time.monotonic()
        health = live.health()
    print(
        f"\n{replay.total:,} quotes of {len(recordings)} symbols in {sent - started:.1f} s from the vendor into NATS: "
        f"{replay.total / (sent - started):,.0f} ticks/s; after the last one: ticks stored in "
        f"{ticks_stored - sent:.1f} s, {bars:,} bars of 1s and 1m in {bars_stored - sent:.1f} s "
        f"({replay.total / (bars_stored - started):,.0f} ticks/s over all), all windows in {derived - sent:.1f} s"
    )

    for each in recordings:
        _check_bars(world, replay, each, truth)
        _check_ticks(settings, replay, each)
    first = recordings[0].quotes
    assert first.height - first.unique().height == repeats, "the repeats that ticks are kept in spite of are there"

    of = {each.name: each.facts for each in health}
    assert {each.name: each.problems for each in health if not each.healthy} == {}
    crossed = sum(int((each.quotes["bid"] > each.quotes["ask"]).sum()) for each in recordings)
    assert crossed > 0
    assert of["aggregator"]["crossed"] == crossed
    assert {name: of["collector"][name] for name in ("ticks", "dropped", "losses", "gaps", "forex_connects")} == {
        "ticks": replay.total,
        "dropped": 0,
        "losses": 0,
        "gaps": 0,
        "forex_connects": 1,
    }
    refused = (
        "late_dropped",
        "ahead",
        "malformed",
        "duplicates",
        "fenced",
        "unreadable",
        "superseded",
        "losses_waiting",
    )
    assert {name: of["aggregator"][name] for name in refused} == dict.fromkeys(refused, 0)
    assert (of["aggregator"]["ticks"], of["ticks"]["superseded"]) == (replay.total, 0)
    assert asyncio.run(_left_behind(settings)) == ({}, [])


_LENGTHS = {"1s": "1 second", "1m": "1 minute"}


def _minutes(world: World) -> int:
    return int(world.query("SELECT count() AS n FROM bars_final WHERE timeframe = '1m' AND complete")["n"][0])


def _closed(frame: pl.DataFrame, replay: Replay, code: str) -> pl.DataFrame:
    """Leave out the windows that are not over when the replay is."""
    return frame.filter(pl.col("ts") + TIMEFRAMES[code].length <= replay.end - timedelta(minutes=1))


def _derived(world: World, replay: Replay, recordings: Sequence[Replayed]) -> bool:
    """Whether each closed window is made of all of its minutes."""
    for each in recordings:
        minutes = world.bars(each.name, "1m")
        for code in DERIVED:
            ours = _closed(world.bars(each.name, code), replay, code).select("ts", "trades")
            folded = _closed(fold_independently(minutes, code), replay, code)
            if ours.rows() != folded.select("ts", "trades").rows():
                return False
    return True


def _check_bars(world: World, replay: Replay, one: Replayed, truth: dict[tuple[str, str], pl.DataFrame]) -> None:
    minutes = world.bars(one.name, "1m")
    assert minutes["source"].unique().to_list() == ["live_aggregated"]
    assert minutes["complete"].all()
    if one.basis != "mid":
        key = one.answer_key()
        assert key.height >= min(minutes.height - 2, 15_364)
        ours = minutes.join(key.select("ts"), on="ts", how="semi").select("ts", *OHLC)
        differing = ours.join(key, on=["ts", *OHLC], how="anti")
        assert (ours.height, differing.rows()) == (key.height, []), f"{one.name} against the answer key"
    assert_bars_equal(minutes, truth[one.name, "1m"], f"{one.name} 1m")
    seconds = world.query("SELECT * FROM bars_1s_final WHERE symbol = {s:String} ORDER BY ts", s=one.name)
    assert seconds["complete"].all()
    assert_bars_equal(
        seconds.with_columns(pl.col("ts").cast(pl.Datetime("ms", "UTC"))), truth[one.name, "1s"], f"{one.name} 1s"
    )
    for code in DERIVED:
        folded = _closed(fold_independently(truth[one.name, "1m"], code), replay, code)
        assert_bars_equal(_closed(world.bars(one.name, code), replay, code), folded, f"{one.name} {code}")
        assert folded.height or code == "1w"


def _check_ticks(settings: Settings, replay: Replay, one: Replayed) -> None:
    """Each quote is kept once, repeats as often as they came, and those of one millisecond in their order."""
    day = timedelta(days=1)
    with TickReader(settings.postgres) as reader:
        kept = reader.ticks(one.name, replay.start - day, replay.end + day)
        assert reader.losses(one.name, replay.start - day, replay.end + day).is_empty()
    assert kept.height == one.quotes.height
    assert kept["kind"].unique().to_list() == ["quote"]
    assert kept.select("ts", "bid", "ask").equals(one.quotes)


async def _left_behind(settings: Settings) -> tuple[dict[tuple[str, str], int], list[LossInterval]]:
    async with open_bus(settings.nats, "test") as bus:
        return await count_dead_letters(bus.js), await LossBucket(bus).all()
