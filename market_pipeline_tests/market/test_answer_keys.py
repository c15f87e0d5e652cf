"""Real answer keys: coarser bars that the same source published must come out of its finer data bit for bit."""

from __future__ import annotations

from collections.abc import Callable

import polars as pl
import pytest

from market_pipeline.market.aggregation import bars_from_quotes, fold
from market_pipeline_tests.market.real import (
    OHLC,
    OHLCV,
    assert_equal_bars,
    full,
    key,
    needs_full_data,
    side,
    whole_windows,
)

Read = Callable[[str], pl.DataFrame]

# the cuts always; the full files where they are
QUOTES = [
    pytest.param(key, "eurusd_oanda_quotes", "eurusd_oanda_1m", 1_400, id="oanda-cut"),
    pytest.param(key, "eurusd_fxcm_quotes", "eurusd_fxcm_1m", 360, id="fxcm-cut"),
    pytest.param(
        full, "eurusd_oanda_quotes_2014", "eurusd_oanda_1m_2014", 15_364, id="oanda-full", marks=needs_full_data
    ),
    pytest.param(full, "eurusd_fxcm_quotes_2014", "eurusd_fxcm_1m_2014", 7_204, id="fxcm-full", marks=needs_full_data),
]
FOREX_DAYS = [
    pytest.param(key, "oanda", "UTC", 42, id="oanda-cut"),
    pytest.param(key, "fxcm", "Etc/GMT+5", 42, id="fxcm-cut"),
    pytest.param(full, "oanda", "UTC", 3_738, id="oanda-full", marks=needs_full_data),
    pytest.param(full, "fxcm", "Etc/GMT+5", 3_487, id="fxcm-full", marks=needs_full_data),
]
STOCK_DAYS = [
    pytest.param(key, 115, id="cut"),
    pytest.param(full, 5_848, id="full", marks=needs_full_data),
]


@pytest.mark.parametrize("basis", ["bid", "ask"])
@pytest.mark.parametrize(("read", "quotes", "minutes", "at_least"), QUOTES)
def test_quotes_make_the_minutes(read: Read, quotes: str, minutes: str, at_least: int, basis: str) -> None:
    made = bars_from_quotes(read(quotes), "1m", basis)
    assert_equal_bars(made, side(read(minutes), basis), OHLC, at_least)


def test_quotes_are_all_counted() -> None:
    quotes = key("eurusd_fxcm_quotes")
    made = bars_from_quotes(quotes, "1m")
    assert made["trades"].sum() == made["volume"].sum() == quotes.height == 39_168
    assert made["crossed"].sum() == 4_674


@pytest.mark.parametrize("basis", ["bid", "ask"])
@pytest.mark.parametrize(("read", "vendor", "zone", "at_least"), FOREX_DAYS)
def test_forex_hours_make_the_days(read: Read, vendor: str, zone: str, at_least: int, basis: str) -> None:
    made = fold(side(read(f"eurusd_{vendor}_1h"), basis), "1d", day_zone=zone)
    assert_equal_bars(made, side(read(f"eurusd_{vendor}_1d"), basis), OHLC, at_least)


@pytest.mark.parametrize("symbol", ["spy", "ibm"])
@pytest.mark.parametrize(("read", "at_least"), STOCK_DAYS)
def test_stock_hours_make_the_days_of_new_york(read: Read, at_least: int, symbol: str) -> None:
    made = fold(read(f"{symbol}_1h"), "1d", day_zone="America/New_York")
    wanted = read(f"{symbol}_1d")
    if read is full:  # of the last day alone the two files hold one price with another last bit
        assert made.tail(1).select(OHLCV).row(0) == pytest.approx(wanted.tail(1).select(OHLCV).row(0), rel=1e-15)
        made = made.head(-1)
    assert_equal_bars(made, wanted, OHLCV, at_least)
    assert made["ts"].dt.convert_time_zone("America/New_York").dt.hour().unique().to_list() == [0]
    assert sorted(made["ts"].dt.hour().unique().to_list()) == [4, 5]  # summer and winter


@pytest.mark.parametrize(
    ("read", "at_least"),
    [pytest.param(key, 1_419, id="cut"), pytest.param(full, 4_216, marks=needs_full_data, id="full")],
)
def test_seconds_make_the_minutes(read: Read, at_least: int) -> None:
    assert_equal_bars(fold(read("btcusd_coinbase_1s"), "1m"), read("btcusd_coinbase_1m"), OHLCV, at_least)


@pytest.mark.parametrize(
    ("read", "at_least"), [pytest.param(key, 2, id="cut"), pytest.param(full, 8, marks=needs_full_data, id="full")]
)
def test_crypto_minutes_make_the_days(read: Read, at_least: int) -> None:
    made = fold(read("btcusd_coinbase_1m"), "1d")
    wanted = read("btcusd_coinbase_1d")
    assert_equal_bars(made, wanted.filter(pl.col("ts").is_in(made["ts"].implode())), OHLCV, at_least)


@needs_full_data
@pytest.mark.parametrize(
    ("source", "year", "length", "at_least"),
    [
        *[
            (symbol, 2023, length, at_least)
            for symbol in ("btcusdt_binance", "adausdt_binance")
            for length, at_least in (("5m", 13_215), ("15m", 2_877), ("30m", 1_437), ("1h", 717))
        ],
        ("btcusdt_binance", 2025, "5m", 26_139),
        ("btcusdt_binance", 2025, "15m", 8_711),
        *[
            ("eurusd_metatrader", None, length, at_least)
            for length, at_least in (
                ("5m", 10_073), ("15m", 3_358), ("30m", 1_678), ("1h", 838), ("4h", 216), ("1d", 41),
            )
        ],
    ],
)  # fmt: skip
def test_minutes_make_the_ladder(source: str, year: int | None, length: str, at_least: int) -> None:
    suffix = f"_{year}" if year else ""
    minutes, wanted = full(f"{source}_1m{suffix}"), full(f"{source}_{length}{suffix}")
    made = whole_windows(fold(minutes, length), minutes, length)
    made = made.filter(pl.col("ts").is_between(wanted["ts"].min(), wanted["ts"].max()))
    assert_equal_bars(made, wanted, OHLCV, at_least)


@needs_full_data
@pytest.mark.parametrize("source", ["btcusdt_binance", "adausdt_binance"])
def test_the_ladder_climbed_step_by_step_makes_the_same_bars(source: str) -> None:
    folded = full(f"{source}_1m_2023")
    for length in ("5m", "15m", "30m", "1h"):
        folded = fold(folded, length)
    wanted = full(f"{source}_1h_2023")
    made = folded.filter(pl.col("ts").is_between(wanted["ts"].min(), wanted["ts"].max()))
    assert_equal_bars(made, wanted, OHLCV, 717)
