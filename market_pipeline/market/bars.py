"""The bar: its columns, its sources, and what makes a frame of bars valid.

One row is one bar of one symbol, timeframe, ts and source. Two kinds of bad rows are kept apart: a MALFORMED row is
not a bar at all (no price, no time, a ts that opens no window) and is refused; an IMPLAUSIBLE one is a bar that cannot
be true of a market (high below low), but it is what the vendor says: it is stored, and flagged by the checks.
"""

from __future__ import annotations

from datetime import datetime, timedelta

import polars as pl

from market_pipeline.errors import InvalidBars
from market_pipeline.market.timeframes import TIMEFRAMES, WeekStart, origin_ms

VENDOR_HISTORICAL = "vendor_historical"
HISTORICAL_AGGREGATED = "historical_aggregated"
LIVE_GAP_FILLED = "live_gap_filled"
LIVE_AGGREGATED = "live_aggregated"
DERIVED = "derived"
# Sources of minutes; every bar of 5m and more has the source `derived`.
MINUTE_SOURCES: tuple[str, ...] = (VENDOR_HISTORICAL, HISTORICAL_AGGREGATED, LIVE_GAP_FILLED, LIVE_AGGREGATED)
SOURCES: tuple[str, ...] = (*MINUTE_SOURCES, DERIVED)

TS = pl.Datetime("ms", "UTC")

BAR_SCHEMA = pl.Schema(
    {
        "symbol": pl.String(),  # the key: EURUSD
        "timeframe": pl.String(),
        "ts": TS,  # the open of the window
        "source": pl.String(),
        "origin": pl.String(),  # of derived bars the weakest parent's source, else ""
        "open": pl.Float64(),
        "high": pl.Float64(),
        "low": pl.Float64(),
        "close": pl.Float64(),
        "volume": pl.Float64(),
        "vwap": pl.Float64(),  # null where the vendor gives none
        "trades": pl.UInt32(),
        "complete": pl.Boolean(),
        "revision": pl.UInt64(),
        "is_deleted": pl.UInt8(),  # 1 is a tombstone: prices 0
    }
)
STORED_SCHEMA = pl.Schema({**BAR_SCHEMA, "batch_id": pl.UInt64(), "ingested_at": TS})

PRICES: tuple[str, ...] = ("open", "high", "low", "close")
_NUMBERS: tuple[str, ...] = (*PRICES, "volume", "vwap")
_KEY: tuple[str, ...] = ("symbol", "timeframe", "source", "ts")
_DUPLICATE = "ts: a second bar of the same symbol, timeframe and source"


def empty_bars() -> pl.DataFrame:
    """Return a bars frame without rows."""
    return pl.DataFrame(schema=BAR_SCHEMA)


def validate_bars(frame: pl.DataFrame, *, where: str, week_start: WeekStart = "sunday") -> pl.DataFrame:
    """Return the frame if every row is a well-formed bar: columns and dtypes by pandera, values in one polars pass.

    `where` (a vendor page, a batch) begins the message. Columns that only STORED_SCHEMA has are allowed.

    Raises:
        InvalidBars: names the column, and for a wrong value the ts and the value of the first wrong row.
    """
    # pandera brings pandas, seconds of import that readers of bars should not wait for
    from market_pipeline.market.bar_frame import check_columns

    check_columns(frame, where)
    reasons = _reasons(frame, week_start)
    if reasons is None:
        return frame
    wrong = frame.with_columns(reasons).filter(pl.col("reason").is_not_null())
    first = wrong.row(0, named=True)
    column = first["reason"].partition(":")[0]
    raise InvalidBars(
        f"{where}: {first['reason']}: {_shown(first[column])} at ts {_shown(first['ts'])} of {first['symbol']} "
        f"{first['timeframe']} ({wrong.height} of {frame.height} rows are malformed)"
    )


def split_valid(frame: pl.DataFrame, *, week_start: WeekStart = "sunday") -> tuple[pl.DataFrame, pl.DataFrame]:
    """Split a frame with the columns of BAR_SCHEMA into its well-formed rows and the malformed ones.

    Returns (good, bad): `bad` has one more column `reason` (String, "column: what is wrong with it"). Of several bars
    of one symbol, timeframe, source and ts the first is good. The order of rows is kept.
    """
    reasons = _reasons(frame, week_start)
    if reasons is None:
        return frame, frame.clear().with_columns(pl.lit(None, pl.String).alias("reason"))
    judged = frame.with_columns(reasons)
    return judged.filter(pl.col("reason").is_null()).drop("reason"), judged.filter(pl.col("reason").is_not_null())


def implausible(frame: pl.DataFrame) -> pl.DataFrame:
    """Return the well-formed bars that cannot be true of a market, with a column `reason` (String).

    Tombstones are left out. A vwap outside [low, high] is none of the reasons: trades that may not move the high or
    the low (odd lots, late reports) still count in a vendor's vwap.
    """
    low_body, high_body = pl.min_horizontal("open", "close"), pl.max_horizontal("open", "close")
    reason = (
        pl.when(pl.min_horizontal(PRICES) <= 0)
        .then(pl.lit("a price is not above 0"))
        .when(pl.col("high") < pl.col("low"))
        .then(pl.lit("high is below low"))
        .when((pl.col("high") < high_body) | (pl.col("low") > low_body))
        .then(pl.lit("open or close is outside [low, high]"))
        .when(pl.col("vwap") <= 0)
        .then(pl.lit("vwap is not above 0"))
    )
    return (
        frame.lazy()
        .filter(pl.col("is_deleted") == 0)
        .with_columns(reason.alias("reason"))
        .filter(pl.col("reason").is_not_null())
        .collect()
    )


def _reasons(frame: pl.DataFrame, week_start: WeekStart) -> pl.Series | None:
    """Return why each row is malformed (null where it is well-formed), or None if none is."""
    rules = [*_value_rules(), _alignment_rule(frame, week_start)]
    any_wrong = frame.lazy().select(pl.any_horizontal([broken for broken, _ in rules]).any()).collect().item()
    if not any_wrong:
        later = _duplicates(frame)
        return None if later is None else pl.select(pl.when(later).then(pl.lit(_DUPLICATE)).alias("reason")).to_series()
    found = pl.coalesce([pl.when(broken).then(pl.lit(text)) for broken, text in rules])
    reasons = frame.select(found.alias("reason")).to_series()
    # only a well-formed bar can be the first of two: a malformed one must not push out the good one after it
    well_formed = reasons.is_null()
    later = _duplicates(frame.filter(well_formed))
    if later is not None:
        reasons = reasons.scatter(well_formed.arg_true().filter(later), _DUPLICATE)
    return reasons


def _value_rules() -> list[tuple[pl.Expr, str]]:
    """Return (row is wrong, reason) pairs; a reason begins with its column. No expression yields null."""
    rules = [(pl.col(name).is_null(), f"{name}: null") for name in BAR_SCHEMA if name != "vwap"]
    rules += [(~pl.col(name).is_finite().fill_null(True), f"{name}: not a finite number") for name in _NUMBERS]
    rules += [
        ((pl.col("volume") < 0).fill_null(False), "volume: negative"),
        ((pl.col("symbol") == "").fill_null(False), "symbol: empty"),
        ((pl.col("is_deleted") > 1).fill_null(False), "is_deleted: neither 0 nor 1"),
        (~pl.col("timeframe").is_in(list(TIMEFRAMES)).fill_null(True), "timeframe: unknown"),
        (~pl.col("source").is_in(list(SOURCES)).fill_null(True), "source: unknown"),
        (_origin_is_wrong().fill_null(False), "origin: must be a source of minutes for derived bars, else empty"),
    ]
    return rules


def _origin_is_wrong() -> pl.Expr:
    derived = pl.col("source") == DERIVED
    allowed = pl.when(derived).then(pl.col("origin").is_in(list(MINUTE_SOURCES))).otherwise(pl.col("origin") == "")
    # a window whose minutes are all withdrawn has no parent left to name
    return ~(allowed | (derived & (pl.col("is_deleted") == 1) & (pl.col("origin") == "")))


def _alignment_rule(frame: pl.DataFrame, week_start: WeekStart) -> tuple[pl.Expr, str]:
    epoch = pl.col("ts").dt.epoch("ms")
    present = frame.get_column("timeframe").unique().drop_nulls().to_list()
    off = pl.lit(False)
    for code in (code for code in present if code in TIMEFRAMES):
        tf = TIMEFRAMES[code]
        misplaced = (epoch - origin_ms(tf, week_start)) % tf.milliseconds != 0
        off = off | (misplaced if len(present) == 1 else (pl.col("timeframe") == code) & misplaced)
    return off.fill_null(False), "ts: opens no window of its timeframe"


def _duplicates(frame: pl.DataFrame) -> pl.Series | None:
    """Mark every bar after the first of one symbol, timeframe, source and ts; None if there is none. No nulls."""
    series = list(_KEY[:-1])
    begins = pl.any_horizontal(pl.col(name).ne_missing(pl.col(name).shift()) for name in series)
    marked = frame.lazy().select(*series, begins.alias("begins"), (pl.col("ts").diff() > timedelta(0)).alias("rises"))
    judged = marked.filter(pl.col("begins") | ~pl.col("rises")).collect()
    # almost every frame is a few series one after the other, each of strictly rising ts
    if judged.get_column("begins").all() and not judged.select(series).is_duplicated().any():
        return None
    later = ~frame.select(pl.struct(_KEY).is_first_distinct()).to_series()
    return later if later.any() else None


def _shown(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else repr(value)
