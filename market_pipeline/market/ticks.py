"""The tick: one quote or one trade as the vendor sent it, and what makes a frame of ticks valid.

A tick has no identity of its own: two quotes of one symbol with the same time and the same prices are two quotes, and
real markets send them. So no column or set of columns is a key, and rows keep the order in which they arrived.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import polars as pl

from market_pipeline.errors import MarketPipelineError, Terminal

QUOTE = "quote"
TRADE = "trade"
KINDS: tuple[str, ...] = (QUOTE, TRADE)

_TS = pl.Datetime("ms", "UTC")

TICK_SCHEMA = pl.Schema(
    {
        "symbol": pl.String(),  # the key: EURUSD
        "ts": _TS,  # the vendor's time of the event
        "kind": pl.String(),  # quote or trade
        "bid": pl.Float64(),  # of quotes
        "ask": pl.Float64(),  # of quotes
        "price": pl.Float64(),  # of trades
        "size": pl.Float64(),  # of trades
        "exchange": pl.String(),  # the vendor's number or code, null where it gives none
        "conditions": pl.String(),  # of trades: the vendor's codes, joined by commas
        "received_at": _TS,  # when the collector had it
    }
)
# In a batch and in the store: which batch brought the tick, and its place in that batch, from 0.
STORED_TICK_SCHEMA = pl.Schema({**TICK_SCHEMA, "batch_id": pl.UInt64(), "n": pl.UInt32()})
OPTIONAL: tuple[str, ...] = ("bid", "ask", "price", "size", "exchange", "conditions")

_OF_KIND = {QUOTE: ("bid", "ask"), TRADE: ("price", "size")}
_NUMBERS: tuple[str, ...] = ("bid", "ask", "price", "size")
_TEXTS: tuple[str, ...] = ("symbol", "exchange", "conditions")


class InvalidTicks(MarketPipelineError, Terminal):
    """A frame that is not ticks; the message names column, ts and value."""


def empty_ticks() -> pl.DataFrame:
    """Return a ticks frame without rows."""
    return pl.DataFrame(schema=TICK_SCHEMA)


def check_tick_columns(frame: pl.DataFrame, schema: pl.Schema = TICK_SCHEMA, *, where: str) -> pl.DataFrame:
    """Return the frame with exactly the columns of `schema` in order; missing columns of OPTIONAL are filled with null.

    Raises:
        InvalidTicks: names every other column that lacks and every column of another dtype.
    """
    if frame.schema == schema:
        return frame
    absent = [name for name in schema if name not in frame.columns]
    wrong = [f"no column {name}" for name in absent if name not in OPTIONAL]
    wrong += [
        f"{name}: is {frame.schema[name]}, not {dtype}"
        for name, dtype in schema.items()
        # a column of nothing but nulls is often built without a dtype
        if name in frame.columns and frame.schema[name] not in ((dtype, pl.Null()) if name in OPTIONAL else (dtype,))
    ]
    if wrong:
        raise InvalidTicks(f"{where}: {'; '.join(wrong)}")
    filled = [pl.lit(None, schema[name]).alias(name) for name in absent]
    return frame.with_columns(filled).select(pl.col(name).cast(dtype) for name, dtype in schema.items())


def validate_ticks(frame: pl.DataFrame, *, where: str) -> pl.DataFrame:
    """Return the frame, with the columns of TICK_SCHEMA in order, if every row is a well-formed tick.

    A quote needs bid and ask, a trade price and size, all finite; size must not be negative. A crossed quote, a price
    of zero or below is what the vendor says: it is well-formed.

    Raises:
        InvalidTicks: names the column, and for a wrong value the ts and the value of the first wrong row.
    """
    frame = check_tick_columns(frame, where=where)
    reasons = _reasons(frame)
    if reasons is None:
        return frame
    wrong = frame.with_columns(reasons).filter(pl.col("reason").is_not_null())
    first = wrong.row(0, named=True)
    column = first["reason"].partition(":")[0]
    raise InvalidTicks(
        f"{where}: {first['reason']}: {_shown(first[column])} at ts {_shown(first['ts'])} of {first['symbol']} "
        f"({wrong.height} of {frame.height} rows are malformed)"
    )


def split_valid_ticks(frame: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Split a frame with the columns of TICK_SCHEMA into its well-formed rows and the malformed ones.

    Returns (good, bad): `bad` has one more column `reason` (String, "column: what is wrong with it"). The order of
    rows is kept, and repeats stay.

    Raises:
        InvalidTicks: a column is missing or of another dtype.
    """
    frame = check_tick_columns(frame, where="ticks")
    reasons = _reasons(frame)
    if reasons is None:
        return frame, frame.clear().with_columns(pl.lit(None, pl.String).alias("reason"))
    judged = frame.with_columns(reasons)
    return judged.filter(pl.col("reason").is_null()).drop("reason"), judged.filter(pl.col("reason").is_not_null())


def quotes_of(frame: pl.DataFrame) -> pl.DataFrame:
    """Return the quotes of a ticks frame: symbol, ts, bid, ask, in their order."""
    return frame.filter(pl.col("kind") == QUOTE).select("symbol", "ts", "bid", "ask")


def trades_of(frame: pl.DataFrame) -> pl.DataFrame:
    """Return the trades of a ticks frame: symbol, ts, price, size, exchange, conditions, in their order."""
    return frame.filter(pl.col("kind") == TRADE).select("symbol", "ts", "price", "size", "exchange", "conditions")


def _reasons(frame: pl.DataFrame) -> pl.Series | None:
    """Return why each row is malformed (null where it is well-formed), or None if none is."""
    rules = _rules()
    if not frame.lazy().select(pl.any_horizontal([broken for broken, _ in rules]).any()).collect().item():
        return None
    found = pl.coalesce([pl.when(broken).then(pl.lit(text)) for broken, text in rules])
    return frame.select(found.alias("reason")).to_series()


def _rules() -> Sequence[tuple[pl.Expr, str]]:
    """Return (row is wrong, reason) pairs; a reason begins with its column. No expression yields null."""
    rules = [(pl.col(name).is_null(), f"{name}: null") for name in TICK_SCHEMA if name not in OPTIONAL]
    rules += [
        ((pl.col("symbol") == "").fill_null(False), "symbol: empty"),
        (~pl.col("kind").is_in(list(KINDS)).fill_null(True), "kind: neither quote nor trade"),
    ]
    for kind, names in _OF_KIND.items():
        rules += [
            ((pl.col("kind") == kind).fill_null(False) & pl.col(name).is_null(), f"{name}: null") for name in names
        ]
    rules += [(~pl.col(name).is_finite().fill_null(True), f"{name}: not a finite number") for name in _NUMBERS]
    rules.append(((pl.col("size") < 0).fill_null(False), "size: negative"))
    # PostgreSQL has no text with a NUL in it
    rules += [
        (pl.col(name).str.contains("\0", literal=True).fill_null(False), f"{name}: holds a NUL") for name in _TEXTS
    ]
    return rules


def _shown(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else repr(value)
