"""The truth: the same for every cut, in the market's hours, sound as prices, and real where the samples are."""

from __future__ import annotations

import itertools
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from importlib.resources import files

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market_pipeline.simulator import sample_data, truth
from market_pipeline.simulator.sessions import expected_minutes
from market_pipeline.simulator.tickers import profile

TICKERS = ["C:GBPUSD", "C:EURUSD", "X:ETHUSD", "X:BTCUSD", "AAPL", "SPY", "C:USDJPY"]
# Periods that hold the samples' edges, changes of the clock and year ends, as well as nothing in particular.
ANCHORS = [
    datetime(2014, 4, 30, 22, tzinfo=UTC),
    datetime(2014, 5, 15, 23, tzinfo=UTC),
    datetime(2016, 10, 6, 20, tzinfo=UTC),
    datetime(2013, 10, 4, tzinfo=UTC),
    datetime(2024, 3, 8, 20, tzinfo=UTC),
    datetime(2024, 11, 1, tzinfo=UTC),
    datetime(2019, 12, 31, 12, tzinfo=UTC),
    datetime(1999, 6, 1, tzinfo=UTC),
]


def day(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)


@settings(max_examples=60, deadline=None)
@given(
    ticker=st.sampled_from(TICKERS),
    anchor=st.sampled_from(ANCHORS),
    offset=st.integers(0, 3 * 24 * 60),
    lengths=st.lists(st.integers(1, 2_000), min_size=1, max_size=5),
    seed=st.integers(0, 3),
)
def test_a_period_is_the_sum_of_its_parts(
    ticker: str, anchor: datetime, offset: int, lengths: list[int], seed: int
) -> None:
    edges = [anchor + timedelta(minutes=offset)]
    for length in lengths:
        edges.append(edges[-1] + timedelta(minutes=length))
    whole = truth.minutes(ticker, edges[0], edges[-1], seed)
    parts = [truth.minutes(ticker, a, b, seed) for a, b in itertools.pairwise(edges)]
    assert whole.equals(pl.concat(parts))


def test_a_minute_has_the_same_value_in_a_long_period() -> None:
    long = truth.minutes("C:GBPUSD", day(2021, 1, 1), day(2022, 1, 1))
    at = day(2021, 7, 14, 10, 30)
    one = truth.minutes("C:GBPUSD", at, at + timedelta(minutes=1))
    assert one.height == 1
    assert one.equals(long.filter(pl.col("ts") == at))


def test_another_process_has_the_same_truth() -> None:
    code = (
        "from datetime import *; from market_pipeline.simulator import truth;"
        "f = truth.minutes('X:SOLUSD', datetime(2022,1,1,tzinfo=UTC), datetime(2022,1,3,tzinfo=UTC), 5);"
        "print(f.hash_rows().sum())"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    here = truth.minutes("X:SOLUSD", day(2022, 1, 1), day(2022, 1, 3), 5)
    assert int(said) == here.hash_rows().sum()


def test_seed_and_ticker_make_other_histories() -> None:
    first, other, ticker = (
        truth.minutes(t, day(2022, 1, 3), day(2022, 1, 4), s)["close"].to_list()
        for t, s in (("C:GBPUSD", 0), ("C:GBPUSD", 1), ("C:AUDUSD", 0))
    )
    assert first != other
    assert first != ticker


def test_columns_are_those_promised() -> None:
    frame = truth.minutes("AAPL", day(2024, 1, 2), day(2024, 1, 3))
    value = pl.Float64()
    assert dict(frame.schema) == {
        "ts": pl.Datetime("ms", "UTC"),
        **dict.fromkeys(("open", "high", "low", "close", "volume", "vwap"), value),
        "trades": pl.Int64(),
    }
    assert truth.minutes("AAPL", day(2024, 1, 6), day(2024, 1, 7)).schema == frame.schema


@pytest.mark.parametrize("ticker", ["C:GBPUSD", "X:ETHUSD", "AAPL", "C:USDJPY", "X:ADAUSD", "TSLA"])
def test_bars_are_sound(ticker: str) -> None:
    of = profile(ticker)
    bars = truth.minute_bars(ticker, truth.to_ms(day(2022, 1, 1)), truth.to_ms(day(2022, 7, 1)))
    assert (bars.high >= np.maximum(bars.open, bars.close)).all()
    assert (bars.low <= np.minimum(bars.open, bars.close)).all()
    assert (bars.low > 0).all()
    assert (bars.vwap >= bars.low).all()
    assert (bars.vwap <= bars.high).all()
    assert (bars.volume > 0).all()
    assert (bars.trades >= 4).all()
    assert (np.diff(bars.ts) > 0).all()
    for column in (bars.open, bars.high, bars.low, bars.close):
        assert np.array_equal(column, column.round(of.decimals))
    follows = np.diff(bars.ts) == 60_000
    jump = np.abs(bars.open[1:] - bars.close[:-1])[follows]
    assert jump.max() <= 2.01 * 10**-of.decimals
    assert bars.high.max() / bars.low.min() > 1.01
    if of.market == "forex":
        assert np.array_equal(bars.volume, bars.trades)


@pytest.mark.parametrize(
    ("friday", "close", "sunday", "open_"),
    [
        (day(2024, 3, 8), 22, day(2024, 3, 10), 21),  # the clock goes forward on this Sunday
        (day(2024, 11, 1), 21, day(2024, 11, 3), 22),  # and back on this one
        (day(2024, 7, 5), 21, day(2024, 7, 7), 21),
        (day(2024, 1, 12), 22, day(2024, 1, 14), 22),
    ],
)
def test_the_forex_week_ends_and_begins_at_17_new_york(
    friday: datetime, close: int, sunday: datetime, open_: int
) -> None:
    frame = truth.minutes("C:USDCHF", friday, sunday + timedelta(days=1))
    closed = frame.filter(pl.col("ts").diff() > timedelta(hours=24))
    assert closed["ts"].to_list() == [sunday + timedelta(hours=open_)]
    assert frame.filter(pl.col("ts") < closed["ts"][0])["ts"].max() == friday + timedelta(hours=close, minutes=-1)
    assert frame.height == close * 60 + (24 - open_) * 60


@pytest.mark.parametrize(
    ("date", "first", "minutes"),
    [
        (day(2024, 7, 2), (13, 30), 390),  # daylight saving time
        (day(2024, 1, 3), (14, 30), 390),
        (day(2024, 11, 29), (14, 30), 210),  # the early close after Thanksgiving
        (day(2024, 11, 28), None, 0),  # Thanksgiving
        (day(2024, 7, 4), None, 0),
        (day(2025, 1, 9), None, 0),  # a day of mourning, known to no rule
        (day(2024, 7, 6), None, 0),
    ],
)
def test_stocks_trade_in_new_yorks_regular_hours(date: datetime, first: tuple[int, int] | None, minutes: int) -> None:
    expected = expected_minutes("stocks", truth.to_ms(date), truth.to_ms(date + timedelta(days=1)))
    assert len(expected) == minutes
    bars = truth.minutes("AAPL", date, date + timedelta(days=1))
    assert set(bars["ts"].dt.epoch("ms")) <= set(expected.tolist())
    if first:
        assert expected[0] == truth.to_ms(date + timedelta(hours=first[0], minutes=first[1]))
        assert bars.height > minutes * 0.9


def test_crypto_never_sleeps_and_some_tickers_lack_nothing() -> None:
    assert truth.minutes("X:ETHUSD", day(2024, 1, 1), day(2024, 1, 15)).height == 14 * 1440
    year = expected_minutes("forex", truth.to_ms(day(2023, 1, 1)), truth.to_ms(day(2024, 1, 1)))
    assert truth.minutes("C:USDCHF", day(2023, 1, 1), day(2024, 1, 1))["ts"].dt.epoch("ms").to_list() == year.tolist()


@pytest.mark.parametrize(("ticker", "share"), [("C:GBPUSD", 0.002), ("X:SOLUSD", 0.0005), ("AAPL", 0.002)])
def test_thin_minutes_are_as_many_as_said_and_some_come_in_runs(ticker: str, share: float) -> None:
    of = profile(ticker)
    assert of.thin_share == share
    start, end = (truth.to_ms(day(year, 1, 1)) for year in (2020, 2023))
    expected = expected_minutes(of.market, start, end)
    lacking = expected[~np.isin(expected, truth.minute_bars(ticker, start, end).ts, assume_unique=True)]
    assert 0.7 * share < len(lacking) / len(expected) < 1.3 * share
    runs = np.diff(np.flatnonzero(np.diff(lacking, prepend=0) != 60_000), append=len(lacking))
    assert 3 <= runs.max() <= 12
    assert (runs == 1).sum() > len(runs) / 2


@pytest.mark.parametrize("ticker", ["C:ZZZUSD", "eurusd", "C:EUR-USD", "", "TOOLONG", "Q:EURUSD"])
def test_an_unknown_ticker_is_refused(ticker: str) -> None:
    with pytest.raises(KeyError):
        truth.minutes(ticker, day(2024, 1, 1), day(2024, 1, 2))


def test_a_naive_time_is_refused() -> None:
    with pytest.raises(ValueError, match="aware"):
        truth.minutes("AAPL", datetime(2024, 1, 1), datetime(2024, 1, 2))


def test_the_forex_sample_is_served_as_its_bid_bars() -> None:
    file = pl.read_parquet((files("market_pipeline.simulator") / "samples/eurusd_oanda_1m_2014.parquet").read_bytes())
    served = truth.minutes("C:EURUSD", day(2014, 5, 1), day(2014, 5, 16), seed=9)
    for column in ("open", "high", "low", "close"):
        assert served[column].to_list() == file[f"bid_{column}"].to_list()
    assert served["ts"].to_list() == file["ts"].to_list()
    assert served["volume"].to_list() == file["quotes"].to_list() == served["trades"].to_list()
    assert truth.minutes("C:EURUSD", day(2014, 4, 30), day(2014, 5, 1)).height > 1_400


@pytest.mark.parametrize(
    ("ticker", "name"), [("X:BTCUSD", "btcusd_coinbase_1m"), ("SPY", "spy_1m_2013"), ("IBM", "ibm_1m_2013")]
)
def test_the_other_samples_are_served_exactly(ticker: str, name: str) -> None:
    file = pl.read_parquet((files("market_pipeline.simulator") / f"samples/{name}.parquet").read_bytes())
    minute = timedelta(minutes=1)
    served = pl.concat(
        truth.minutes(ticker, *(datetime.fromtimestamp(edge / 1000, UTC) for edge in (part.start, part.end)))
        for part in sample_data.segments(ticker)
    )
    assert served.select(file.columns).equals(file)
    assert ((served["vwap"] >= served["low"]) & (served["vwap"] <= served["high"])).all()
    after = file["ts"].max() + minute  # type: ignore[operator]
    assert truth.minutes(ticker, after, after + timedelta(days=5)).height > 100


@pytest.mark.parametrize(
    ("ticker", "start"),
    [
        ("C:EURUSD", day(2014, 5, 6, 20)),  # real quotes, and the first day that has none
        ("C:GBPUSD", day(2020, 2, 3)),
        ("X:BTCUSD", day(2016, 10, 7)),
        ("X:ADAUSD", day(2021, 2, 3)),
        ("IBM", day(2013, 10, 8)),
        ("AAPL", day(2022, 2, 3)),
    ],
)
def test_ticks_fold_into_their_minutes(ticker: str, start: datetime) -> None:
    end = start + timedelta(hours=22)
    minutes, ticks = truth.minutes(ticker, start, end), truth.ticks(ticker, start, end)
    price = pl.coalesce("bid", "price")
    folded = ticks.group_by(pl.col("ts").dt.truncate("1m"), maintain_order=True).agg(
        open=price.first(),
        high=price.max(),
        low=price.min(),
        close=price.last(),
        volume=pl.col("size").sum() if ":" not in ticker or ticker[0] == "X" else pl.len().cast(pl.Float64),
        trades=pl.len().cast(pl.Int64),
    )
    exact = ["ts", "open", "high", "low", "close", "trades"]
    assert folded.select(exact).equals(minutes.select(exact))
    assert (folded["volume"] - minutes["volume"]).abs().max() < 1e-6  # type: ignore[operator]
    assert ticks["ts"].is_sorted()
    if ticker[0] == "C":
        assert ticks["price"].null_count() == ticks.height
    else:
        assert (ticks["size"] > 0).all()


def test_real_quotes_are_served_on_their_days() -> None:
    file = pl.read_parquet(
        (files("market_pipeline.simulator") / "samples/eurusd_oanda_quotes_2014.parquet").read_bytes()
    )
    served = truth.ticks("C:EURUSD", day(2014, 5, 5), day(2014, 5, 7))
    assert served.select("ts", "bid", "ask").equals(file)
