from __future__ import annotations

from datetime import timedelta

import duckdb
import polars as pl
import pytest

from market_pipeline.errors import InvalidBars, UnknownTimeframe
from market_pipeline.market.aggregation import bars_from_quotes, bars_from_trades, fold
from market_pipeline_tests.market.frames import START, times
from market_pipeline_tests.market.real import OHLC, full, key, needs_full_data


def quotes(offsets: list[int], bid: list[float], ask: list[float]) -> pl.DataFrame:
    return pl.DataFrame({"ts": times(START, offsets, unit_ms=1), "bid": bid, "ask": ask})


@pytest.mark.parametrize(
    ("basis", "prices"),
    [("bid", (1.0, 3.0, 1.0, 2.0)), ("ask", (5.0, 5.0, 1.5, 4.0)), ("mid", (3.0, 3.0, 2.25, 3.0))],
)
def test_the_basis_is_taken_quote_by_quote(basis: str, prices: tuple[float, ...]) -> None:
    made = bars_from_quotes(quotes([0, 500, 59_999], [1.0, 3.0, 2.0], [5.0, 1.5, 4.0]), "1m", basis)
    assert made.select(OHLC).rows() == [prices]
    assert made.row(0, named=True) | {"volume": 3.0, "vwap": None, "trades": 3, "crossed": 1} == made.row(0, named=True)


def test_quotes_of_one_ts_keep_their_order_and_repeats_count() -> None:
    made = bars_from_quotes(quotes([10, 10, 10, 10], [3.0, 1.0, 1.0, 2.0], [3.0, 1.0, 1.0, 2.0]), "1s")
    assert made.select(*OHLC, "trades").rows() == [(3.0, 3.0, 1.0, 2.0, 4)]
    late = bars_from_quotes(quotes([20, 10, 20, 10], [3.0, 1.0, 4.0, 2.0], [3.0, 1.0, 4.0, 2.0]), "1s")
    assert late.select(*OHLC).rows() == [(1.0, 4.0, 1.0, 4.0)]


def test_the_edges_of_a_window() -> None:
    made = bars_from_quotes(
        quotes([0, 999, 1000, 1999, 5000], [1.0, 2.0, 3.0, 4.0, 5.0], [1.0, 2.0, 3.0, 4.0, 5.0]), "1s"
    )
    assert made["ts"].to_list() == [START, START + timedelta(seconds=1), START + timedelta(seconds=5)]
    assert made["trades"].to_list() == [2, 2, 1]  # no bar where there was no quote


MID_SOURCES = [
    *[pytest.param(key(f"eurusd_{vendor}_quotes"), id=f"{vendor}-cut") for vendor in ("oanda", "fxcm")],
    pytest.param("oanda", marks=needs_full_data, id="oanda-full"),
    pytest.param("fxcm", marks=needs_full_data, id="fxcm-full"),
]


@pytest.mark.parametrize("source", MID_SOURCES)
@pytest.mark.parametrize("code", ["1s", "1m"])
def test_mid_prices_of_real_quotes_are_as_duckdb_makes_them(source: pl.DataFrame | str, code: str) -> None:
    ticks = full(f"eurusd_{source}_quotes_2014") if isinstance(source, str) else source
    numbered = ticks.with_row_index("place")  # noqa: F841 (DuckDB reads it by its name)
    wanted = duckdb.sql(
        f"""
        SELECT date_trunc('{"second" if code == "1s" else "minute"}', ts) AS ts,
               arg_min((bid + ask) / 2, place) AS open, max((bid + ask) / 2) AS high, min((bid + ask) / 2) AS low,
               arg_max((bid + ask) / 2, place) AS close, count(*) AS trades,
               count(*) FILTER (bid > ask) AS crossed
        FROM numbered GROUP BY 1 ORDER BY 1
        """
    ).pl()
    made = bars_from_quotes(ticks, code)
    assert made["ts"].to_list() == wanted["ts"].dt.convert_time_zone("UTC").to_list()
    for name in (*OHLC, "trades", "crossed"):
        assert made[name].to_list() == wanted[name].to_list()


def test_the_mean_of_bid_and_ask_bars_is_not_the_mid_bar() -> None:
    ticks = key("eurusd_oanda_quotes")
    mid, bid, ask = (bars_from_quotes(ticks, "1m", basis) for basis in ("mid", "bid", "ask"))
    assert (mid["high"] != (bid["high"] + ask["high"]) / 2).sum() > 100


def test_seconds_fold_into_the_minutes_that_the_quotes_make() -> None:
    ticks = key("eurusd_oanda_quotes")
    columns = ["ts", *OHLC, "volume", "trades"]
    assert (
        fold(bars_from_quotes(ticks, "1s"), "1m").select(columns).equals(bars_from_quotes(ticks, "1m").select(columns))
    )


def test_symbols_mixed_in_time_are_kept_apart() -> None:
    one = quotes([0, 10, 70_000], [1.0, 2.0, 3.0], [1.0, 2.0, 3.0]).with_columns(symbol=pl.lit("A"))
    other = quotes([5, 6], [7.0, 8.0], [7.0, 8.0]).with_columns(symbol=pl.lit("B"))
    made = bars_from_quotes(pl.concat([one, other]).sort("ts"), "1m")
    assert made.select("symbol", "open", "close", "trades").rows() == [
        ("A", 1.0, 2.0, 2),
        ("A", 3.0, 3.0, 1),
        ("B", 7.0, 8.0, 2),
    ]


def test_trades() -> None:
    trades = pl.DataFrame(
        {
            "ts": times(START, [0, 10, 20, 61_000, 125_000], unit_ms=1),
            "price": [10.0, 12.0, 11.0, 9.0, 8.0],
            "size": [0.1, 0.2, 0.7, 0.0, 2.0],
        }
    )
    made = bars_from_trades(trades, "1m")
    assert made.drop("ts").rows() == [
        (10.0, 12.0, 10.0, 11.0, 1.0, pytest.approx(11.1), 3),
        (9.0, 9.0, 9.0, 9.0, 0.0, None, 1),
        (8.0, 8.0, 8.0, 8.0, 2.0, 8.0, 1),
    ]


def test_no_ticks_make_no_bars() -> None:
    nothing = quotes([], [], []).with_columns(pl.col("bid", "ask").cast(pl.Float64), symbol=pl.lit("A"))
    made = bars_from_quotes(nothing.clear(), "1m")
    assert made.is_empty()
    some = bars_from_quotes(quotes([0], [1.0], [1.0]).with_columns(symbol=pl.lit("A")), "1m")
    assert made.schema == some.schema
    assert bars_from_trades(
        pl.DataFrame(schema={"ts": pl.Datetime("ms", "UTC"), "price": pl.Float64, "size": pl.Float64}), "1m"
    ).is_empty()


@pytest.mark.parametrize("wrong", [None, float("nan"), float("inf")])
def test_a_price_that_is_none_is_named(wrong: float | None) -> None:
    broken = quotes([0, 1], [1.0, 1.0], [1.0, 1.0]).with_columns(ask=pl.Series([1.0, wrong], dtype=pl.Float64))
    with pytest.raises(InvalidBars, match=r"ask: .* at ts 2024-01-08T00:00:00.001000\+00:00"):
        bars_from_quotes(broken, "1m")


def test_an_unknown_timeframe_is_refused() -> None:
    with pytest.raises(UnknownTimeframe):
        bars_from_quotes(quotes([0], [1.0], [1.0]), "10s")
