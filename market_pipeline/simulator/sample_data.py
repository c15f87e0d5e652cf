"""The real samples that ship with the simulator, and the periods in which they take the place of generated history.

Sources (see NOTICE): QuantConnect LEAN sample data. The forex bars are the BID bars of OANDA's quotes, for a vendor's
forex aggregates are made of one side of the book, and averaging the highs of bid and ask is not the high of the mid.
Their counts and average prices are those of the real quotes. The other samples have no counts: `trades` is drawn
(at most the volume for stocks) and `vwap` is drawn between low and high; both are the same in every process.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import numpy as np
import polars as pl

from market_pipeline.simulator.bars import Bars
from market_pipeline.simulator.hashing import FloatArray, Int64Array, key, uniform
from market_pipeline.simulator.sessions import MINUTE_MS
from market_pipeline.simulator.tickers import market_of

_MINUTE_FILES = {
    "C:EURUSD": "eurusd_oanda_1m_2014",
    "X:BTCUSD": "btcusd_coinbase_1m",
    "SPY": "spy_1m_2013",
    "IBM": "ibm_1m_2013",
}
_QUOTE_FILES = {"C:EURUSD": "eurusd_oanda_quotes_2014"}
# A hole longer than any weekend with holidays ends a sample's segment: the Bitcoin file holds days months apart.
_SEGMENT_HOLE_MS = 4 * 24 * 60 * MINUTE_MS


@dataclass(frozen=True, slots=True)
class Segment:
    """Hold an unbroken part of a sample: its bars stand for everything in [start, end), epoch ms."""

    start: int
    end: int
    bars: Bars


@dataclass(frozen=True, slots=True)
class QuoteSample:
    """Hold real quotes in time order: `ts` in epoch ms, and both sides of the book. They cover whole UTC days."""

    ts: Int64Array
    bid: FloatArray
    ask: FloatArray


@cache
def segments(ticker: str) -> tuple[Segment, ...]:
    """Return the ticker's real minutes as segments in time order; empty for a ticker without a sample."""
    name = _MINUTE_FILES.get(ticker)
    if name is None:
        return ()
    bars = _forex_bars(_read(name)) if market_of(ticker) == "forex" else _trade_bars(ticker, _read(name))
    edges = np.flatnonzero(np.diff(bars.ts) > _SEGMENT_HOLE_MS) + 1
    parts = [bars.take(part) for part in np.split(np.arange(len(bars)), edges)]
    return tuple(Segment(int(part.ts[0]), int(part.ts[-1]) + MINUTE_MS, part) for part in parts)


@cache
def quotes(ticker: str) -> QuoteSample | None:
    """Return the ticker's real quotes, or None. They fold exactly into the sample's bid bars of the same days."""
    name = _QUOTE_FILES.get(ticker)
    if name is None:
        return None
    frame = _read(name)
    return QuoteSample(frame["ts"].dt.epoch("ms").to_numpy(), frame["bid"].to_numpy(), frame["ask"].to_numpy())


def _read(name: str) -> pl.DataFrame:
    return pl.read_parquet((files("market_pipeline.simulator") / "samples" / f"{name}.parquet").read_bytes())


def _forex_bars(frame: pl.DataFrame) -> Bars:
    return Bars.from_frame(
        frame.select(
            "ts",
            open="bid_open",
            high="bid_high",
            low="bid_low",
            close="bid_close",
            volume=pl.col("quotes").cast(pl.Float64),
            vwap="bid_mean",
            trades=pl.col("quotes").cast(pl.Int64),
        )
    )


def _trade_bars(ticker: str, frame: pl.DataFrame) -> Bars:
    minutes = frame["ts"].dt.epoch("ms").to_numpy() // MINUTE_MS
    low, high, volume = (frame[name].to_numpy() for name in ("low", "high", "volume"))
    trades = 4 + np.floor(uniform(key("sample trades", ticker), minutes) * 60).astype(np.int64)
    if market_of(ticker) == "stocks":
        trades = np.minimum(trades, volume.astype(np.int64))
    vwap = (low + (high - low) * uniform(key("sample vwap", ticker), minutes)).round(4).clip(low, high)
    return Bars.from_frame(frame.with_columns(vwap=vwap, trades=trades))
