"""The one truth of the simulated vendor: what every minute of every ticker holds, and the ticks it is made of.

Everything that the simulator serves, over REST or streamed, is derived from here, so a test that computes an answer
from `minutes` (or `ticks`) computes it independently of the product. The value of a minute depends on seed, ticker and
minute alone: it is the same in every process and however a period is cut.
"""

from __future__ import annotations

from datetime import datetime

import polars as pl

from market_pipeline.simulator import sample_data
from market_pipeline.simulator.bars import Bars
from market_pipeline.simulator.generate import generated
from market_pipeline.simulator.ticks import Ticks, ticks_of


def minutes(ticker: str, start: datetime, end: datetime, seed: int = 0) -> pl.DataFrame:
    """Return the vendor's minute bars that open in [start, end).

    Columns: ts Datetime('ms', 'UTC') (the open of the minute), open, high, low, close, volume, vwap Float64, trades
    Int64; in time order. `start` and `end` are aware datetimes.

    Minutes outside the market's sessions have no bar, and neither have the ticker's thin minutes (`tickers.profile`).
    For forex, volume and trades are the number of quotes and prices are bids. Within a real sample (`sample_data`) the
    sample is returned instead of generated history, whatever the seed: for C:EURUSD in May 2014 the BID bars.
    Raises KeyError for an unknown ticker.
    """
    return minute_bars(ticker, to_ms(start), to_ms(end), seed).to_frame()


def ticks(ticker: str, start: datetime, end: datetime, seed: int = 0) -> pl.DataFrame:
    """Return the quotes (forex) or trades (crypto, stocks) of [start, end), in time order.

    Columns: ts Datetime('ms', 'UTC'), bid, ask, price, size Float64 (bid and ask null for trades, price and size null
    for quotes). Each minute's bids or prices fold exactly into its bar's open, high, low, close and trades, sizes into
    its volume (to eight decimals); `vwap` is not theirs to prove. Raises KeyError for an unknown ticker.
    """
    return tick_bundle(ticker, to_ms(start), to_ms(end), seed).to_frame()


def minute_bars(ticker: str, start_ms: int, end_ms: int, seed: int = 0) -> Bars:
    """Return `minutes` as columns of numpy, for bounds in epoch milliseconds."""
    parts: list[Bars] = []
    at = start_ms
    for segment in sample_data.segments(ticker):
        if segment.end <= at or segment.start >= end_ms:
            continue
        parts.append(generated(ticker, at, segment.start, seed))
        parts.append(segment.bars.between(at, end_ms))
        at = segment.end
    parts.append(generated(ticker, at, end_ms, seed))
    return Bars.concat(parts)


def tick_bundle(ticker: str, start_ms: int, end_ms: int, seed: int = 0) -> Ticks:
    """Return `ticks` as columns of numpy, for bounds in epoch milliseconds."""
    first = start_ms // 60_000 * 60_000
    return ticks_of(ticker, minute_bars(ticker, first, end_ms, seed), seed).between(start_ms, end_ms)


def to_ms(at: datetime) -> int:
    """Return epoch milliseconds of an aware datetime. Raises ValueError for a naive one."""
    if at.tzinfo is None:
        raise ValueError("an aware datetime is needed")
    return round(at.timestamp() * 1000)
