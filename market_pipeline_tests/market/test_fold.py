from __future__ import annotations

import math
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market_pipeline.errors import BadRange, UnknownTimeframe
from market_pipeline.market.aggregation import fold
from market_pipeline.market.aggregation.reduce import sums, volume_sums
from market_pipeline.market.bars import TS, empty_bars
from market_pipeline.market.timeframes import DERIVED, TIMEFRAMES, timeframe
from market_pipeline_tests.market.frames import START, minute_bars, utc
from market_pipeline_tests.market.real import OHLC, OHLCV, key, side

EXACT = ["symbol", "ts", *OHLCV, "trades", "minutes"]
OFFSETS = st.lists(st.integers(0, 20_000), min_size=1, max_size=300, unique=True).map(sorted)
LADDER = ["5m", "15m", "30m", "1h", "4h", "1d", "1w"]


def test_one_window_by_hand() -> None:
    bars = pl.DataFrame(
        {
            "symbol": ["A"] * 4,
            "ts": [utc(2024, 1, 8, 10, 1), utc(2024, 1, 8, 10, 2), utc(2024, 1, 8, 10, 4), utc(2024, 1, 8, 10, 5)],
            "open": [10.0, 11.0, 12.0, 13.0],
            "high": [14.0, 19.0, 13.0, 13.5],
            "low": [9.5, 10.5, 8.0, 12.5],
            "close": [11.0, 12.0, 9.0, 13.2],
            "volume": [1.0, 0.0, 3.0, 5.0],
            "vwap": [10.0, None, 12.0, None],
            "trades": [1, 0, 3, 5],
        }
    ).with_columns(pl.col("ts").cast(TS))
    assert fold(bars, "5m").rows() == [
        # the bar without a volume needs no vwap
        ("A", utc(2024, 1, 8, 10), 10.0, 19.0, 8.0, 9.0, 4.0, 11.5, 4, 3),
        # the bar with a volume and no vwap leaves the window without one
        ("A", utc(2024, 1, 8, 10, 5), 13.0, 13.5, 12.5, 13.2, 5.0, None, 5, 1),
    ]


def test_nothing_folds_to_nothing_of_the_same_columns() -> None:
    assert fold(empty_bars(), "5m").schema == fold(minute_bars(), "5m").schema
    assert fold(empty_bars(), "5m").is_empty()
    assert fold(fold(empty_bars(), "5m"), "1d", day_zone="America/New_York").is_empty()


def test_vwap_and_trades_may_lack() -> None:
    folded = fold(minute_bars().drop("symbol", "vwap", "trades"), "5m")
    assert folded.columns == [name for name in fold(minute_bars(), "5m").columns if name != "symbol"]
    assert folded["vwap"].null_count() == folded.height == 2
    assert folded["trades"].sum() == 0


@pytest.mark.parametrize("path", [LADDER[: n + 1] for n in range(1, len(LADDER))], ids=lambda path: path[-1])
@settings(max_examples=25)
@given(offsets=OFFSETS, seed=st.integers(0, 2**32 - 1))
def test_fold_of_fold_is_fold(path: list[str], offsets: list[int], seed: int) -> None:
    bars = minute_bars(offsets=offsets, seed=seed)
    steps = bars
    for code in path:
        if code != "4h":  # a day is not made of 4h bars, but of 1h
            steps = fold(steps, code)
    direct = fold(bars, path[-1]) if path[-1] != "4h" else fold(bars, "1h")
    assert steps.select(EXACT).equals(direct.select(EXACT))  # bit for bit, volumes too
    assert steps["vwap"].to_list() == pytest.approx(direct["vwap"].to_list(), rel=1e-14)


@settings(max_examples=60)
@given(offsets=OFFSETS, seed=st.integers(0, 2**32 - 1), code=st.sampled_from(DERIVED), data=st.data())
def test_pieces_cut_at_windows_fold_as_the_whole(offsets: list[int], seed: int, code: str, data: st.DataObject) -> None:
    bars = minute_bars(offsets=offsets, seed=seed, no_vwap=[0])
    whole = fold(bars, code)
    cut = data.draw(st.sampled_from([*whole["ts"].to_list(), utc(2030, 1, 1)]))
    before, after = bars.filter(pl.col("ts") < cut), bars.filter(pl.col("ts") >= cut)
    assert pl.concat([fold(before, code), fold(after, code)]).equals(whole)


@given(offsets=OFFSETS, seed=st.integers(0, 2**32 - 1), code=st.sampled_from(DERIVED))
def test_the_order_of_rows_does_not_matter_and_symbols_do_not_mix(offsets: list[int], seed: int, code: str) -> None:
    euro = minute_bars(offsets=offsets, seed=seed)
    pound = minute_bars(offsets=offsets[::2], seed=seed + 1, symbol="GBPUSD")
    wanted = pl.concat([fold(euro, code), fold(pound, code)])
    both = pl.concat([pound, euro])
    assert fold(both, code).equals(wanted)
    assert fold(both.sample(fraction=1, shuffle=True, seed=seed), code).equals(wanted)


@given(offsets=OFFSETS, seed=st.integers(0, 2**32 - 1), code=st.sampled_from(DERIVED))
def test_nothing_is_lost_and_prices_hold(offsets: list[int], seed: int, code: str) -> None:
    bars = minute_bars(offsets=offsets, seed=seed)
    folded = fold(bars, code)
    assert folded["minutes"].sum() == bars.height
    assert folded["trades"].sum() == bars["trades"].sum()
    assert folded["volume"].sum() == pytest.approx(bars["volume"].sum())
    assert (folded["open"][0], folded["close"][-1]) == (bars["open"][0], bars["close"][-1])
    assert (folded["high"].max(), folded["low"].min()) == (bars["high"].max(), bars["low"].min())
    inside = folded.filter(pl.col("vwap").is_between(pl.col("low"), pl.col("high")))
    assert inside.height == folded.height
    step = timeframe(code).milliseconds
    assert folded["ts"].is_sorted()
    assert folded["ts"].n_unique() == folded.height
    if code != "1w":
        assert (folded["ts"].dt.epoch("ms") % step == 0).all()


@given(st.lists(st.floats(0, 1e12), min_size=1, max_size=200), st.lists(st.integers(1, 199), max_size=10))
def test_sums_are_rounded_once_and_volumes_hardly_move(values: list[float], cuts: list[int]) -> None:
    starts = np.array(sorted({0, *(cut for cut in cuts if cut < len(values))}))
    pieces = np.split(np.array(values), starts[1:])
    exact = [math.fsum(piece) for piece in pieces]
    assert sums(np.array(values), starts).tolist() == pytest.approx(exact, rel=2.3e-16, abs=1e-300)
    assert volume_sums(np.array(values), starts).tolist() == pytest.approx(exact, rel=6e-16, abs=1e-300)


def test_sums_carry_their_rounding_errors_along() -> None:
    values = np.random.default_rng(5).random(2_000 * 60) * 1e3
    exact = np.array([math.fsum(run) for run in values.reshape(-1, 60)])
    made = sums(values, np.arange(0, len(values), 60))
    assert (np.abs(made - exact) <= np.spacing(exact)).all()
    assert (made == exact).mean() > 0.999  # adding one after the other gets one in five right


@given(st.lists(st.integers(0, 10**11), min_size=2, max_size=150), st.integers(0, 8))
def test_sums_of_decimals_are_the_decimal_sums(units: list[int], places: int) -> None:
    volumes = np.array([unit / 10**places for unit in units])
    assert volume_sums(volumes, np.array([0])).tolist() == [sum(units) / 10**places]


@pytest.mark.parametrize("code", DERIVED)
@pytest.mark.parametrize("source", ["btcusd_coinbase_1m", "eurusd_oanda_1m"])
def test_real_minutes_fold_as_duckdb_folds_them(source: str, code: str) -> None:
    minutes = key(source) if source.startswith("btc") else side(key(source), "bid")
    # not ours in any part: bucket, order and aggregates are DuckDB's
    origin = "1970-01-04" if code == "1w" else "1970-01-01"
    wanted = duckdb.sql(
        f"""
        SELECT time_bucket(INTERVAL {TIMEFRAMES[code].seconds} SECOND, ts AT TIME ZONE 'UTC', TIMESTAMP '{origin}')
                   AT TIME ZONE 'UTC' AS ts,
               arg_min(open, minutes.ts) AS open, max(high) AS high, min(low) AS low,
               arg_max(close, minutes.ts) AS close, fsum(volume) AS volume, count(*) AS minutes
        FROM minutes GROUP BY 1 ORDER BY 1
        """
    ).pl()
    made = fold(minutes, code)
    assert made["ts"].to_list() == wanted["ts"].dt.convert_time_zone("UTC").to_list()
    for name in (*OHLC, "minutes"):
        assert made[name].to_list() == wanted[name].to_list()
    assert made["volume"].to_list() == pytest.approx(wanted["volume"].to_list(), rel=1e-14)


HOURS = [utc(2024, 3, 8) + timedelta(hours=hour) for hour in range(24 * 6)]


def hourly(hours: list[datetime]) -> pl.DataFrame:
    n = len(hours)
    prices = {name: [1.0] * n for name in OHLC}
    return pl.DataFrame({"ts": pl.Series(hours).cast(TS), **prices, "volume": [1.0] * n})


@pytest.mark.parametrize(
    ("zone", "offset", "opens"),
    [
        # New York: the day that the clocks go forward has 23 hours, the day that they go back 25
        ("America/New_York", 0, [utc(2024, 3, 9, 5), utc(2024, 3, 10, 5), utc(2024, 3, 11, 4), utc(2024, 3, 12, 4)]),
        ("America/New_York", 0, [utc(2024, 11, 2, 4), utc(2024, 11, 3, 4), utc(2024, 11, 4, 5), utc(2024, 11, 5, 5)]),
        # fixed UTC-5, in both ways of saying it
        ("Etc/GMT+5", 0, [utc(2024, 3, 9, 5), utc(2024, 3, 10, 5), utc(2024, 3, 11, 5)]),
        ("UTC", 5, [utc(2024, 3, 9, 5), utc(2024, 3, 10, 5), utc(2024, 3, 11, 5)]),
        # the day of forex, from 17:00 to 17:00 in New York, in both ways of saying it
        (
            "America/New_York",
            17,
            [utc(2024, 3, 8, 22), utc(2024, 3, 9, 22), utc(2024, 3, 10, 21), utc(2024, 3, 11, 21)],
        ),
        (
            "America/New_York",
            -7,
            [utc(2024, 3, 8, 22), utc(2024, 3, 9, 22), utc(2024, 3, 10, 21), utc(2024, 3, 11, 21)],
        ),
        # São Paulo's clocks skipped midnight: that day began at 01:00
        ("America/Sao_Paulo", 0, [utc(2018, 11, 3, 3), utc(2018, 11, 4, 3), utc(2018, 11, 5, 2), utc(2018, 11, 6, 2)]),
        # Havana's repeat it: that day began with the first of the two
        ("America/Havana", 0, [utc(2024, 11, 2, 4), utc(2024, 11, 3, 4), utc(2024, 11, 4, 5), utc(2024, 11, 5, 5)]),
        # Samoa crossed the date line and left 30 December out
        (
            "Pacific/Apia",
            0,
            [utc(2011, 12, 28, 10), utc(2011, 12, 29, 10), utc(2011, 12, 30, 10), utc(2011, 12, 31, 10)],
        ),
    ],
)
def test_days_of_a_zone(zone: str, offset: int, opens: list[datetime]) -> None:
    lengths = [(end - start) // timedelta(hours=1) for start, end in pairwise(opens)]
    hours = [opens[0] + timedelta(hours=hour) for hour in range(sum(lengths))]
    folded = fold(hourly(hours), "1d", day_zone=zone, offset=timedelta(hours=offset))
    assert folded["ts"].to_list() == opens[:-1]
    assert folded["minutes"].to_list() == lengths


@pytest.mark.parametrize(
    ("options", "opens"),
    [
        ({}, [utc(2024, 3, 3), utc(2024, 3, 10)]),
        ({"week_start": "monday"}, [utc(2024, 3, 4), utc(2024, 3, 11)]),
        ({"day_zone": "America/New_York"}, [utc(2024, 3, 3, 5), utc(2024, 3, 10, 5)]),
        ({"day_zone": "America/New_York", "week_start": "monday"}, [utc(2024, 3, 4, 5), utc(2024, 3, 11, 4)]),
        ({"day_zone": "America/New_York", "offset": timedelta(hours=17)}, [utc(2024, 3, 3, 22), utc(2024, 3, 10, 21)]),
    ],
)
def test_weeks(options: dict[str, Any], opens: list[datetime]) -> None:
    folded = fold(hourly(HOURS), "1w", **options)
    assert folded["ts"].to_list() == opens
    assert folded["minutes"].sum() == len(HOURS)


@pytest.mark.parametrize("code", ["5m", "1h", "4h"])
def test_windows_of_hours_stay_on_utc_whatever_the_zone(code: str) -> None:
    bars = minute_bars(utc(2024, 3, 10), range(1440))
    local = fold(bars, code, day_zone="America/New_York", offset=timedelta(hours=17))
    assert local.equals(fold(bars, code))


@pytest.mark.parametrize("midnight", [utc(2024, 1, 1), utc(2024, 3, 1), utc(2023, 3, 1), utc(2025, 1, 1)])
def test_windows_end_with_the_month_and_the_year(midnight: datetime) -> None:
    bars = minute_bars(midnight - timedelta(minutes=2), range(4))
    for code in ("5m", "1h", "4h", "1d"):
        folded = fold(bars, code)
        assert folded["minutes"].to_list() == [2, 2]
        assert folded["ts"][1] == midnight


def test_what_cannot_be_folded_is_refused() -> None:
    with pytest.raises(UnknownTimeframe):
        fold(minute_bars(), "2h")
    with pytest.raises(BadRange, match="no time zone 'Mars/Base'"):
        fold(minute_bars(), "1d", day_zone="Mars/Base")
    with pytest.raises(BadRange, match="sunday or monday"):
        fold(minute_bars(), "1w", week_start="friday")  # type: ignore[arg-type]


def test_the_frame_given_stays_as_it_was() -> None:
    bars = minute_bars(START, range(50))
    before = bars.clone()
    fold(bars, "1h")
    assert bars.equals(before)
