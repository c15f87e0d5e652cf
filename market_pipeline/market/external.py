"""Observations of external datasets (interest rates, unemployment, sentiment): one value of a series at a time."""

from __future__ import annotations

import polars as pl

from market_pipeline.errors import InputError
from market_pipeline.market.bars import TS
from market_pipeline.market.restatement import Changes, compare_rows

OBSERVATION_SCHEMA = pl.Schema(
    {
        "series": pl.String(),  # DGS10
        "ts": TS,  # what the value is of: the day or the begin of the period, UTC
        "value": pl.Float64(),
        "revision": pl.UInt64(),  # epoch ms of the fetch: a source corrects itself by a later one
        "is_deleted": pl.UInt8(),  # 1: the source no longer has it; its value is then 0
    }
)
_KEY = ("series", "ts")


def check_observations(frame: pl.DataFrame) -> pl.DataFrame:
    """Return the columns of OBSERVATION_SCHEMA in order.

    Raises:
        InputError: a column is missing or of another dtype.
    """
    for name, dtype in OBSERVATION_SCHEMA.items():
        if name not in frame.columns:
            raise InputError(f"{name}: the column is missing")
        if frame.schema[name] != dtype:
            raise InputError(f"{name}: is {frame.schema[name]}, must be {dtype}")
    return frame.select(list(OBSERVATION_SCHEMA))


def split_valid_observations(frame: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Split a frame of OBSERVATION_SCHEMA into its well-formed rows and the malformed ones.

    Returns (good, bad): `bad` has one more column `reason` (String). Of several rows of one series and ts the first is
    good.
    """
    rules = [(pl.col(name).is_null(), f"{name}: null") for name in OBSERVATION_SCHEMA]
    rules += [
        ((pl.col("series") == "").fill_null(False), "series: empty"),
        (~pl.col("value").is_finite().fill_null(True), "value: not a finite number"),
        ((pl.col("is_deleted") > 1).fill_null(False), "is_deleted: neither 0 nor 1"),
    ]
    judged = frame.with_columns(
        pl.coalesce([pl.when(broken).then(pl.lit(text)) for broken, text in rules]).alias("reason")
    )
    good = judged.filter(pl.col("reason").is_null())
    twice = good.filter(~pl.struct(_KEY).is_first_distinct()).with_columns(
        pl.lit("ts: a second value of the same series").alias("reason")
    )
    bad = pl.concat([judged.filter(pl.col("reason").is_not_null()), twice])
    return good.filter(pl.struct(_KEY).is_first_distinct()).drop("reason"), bad


def compare_observations(published: pl.DataFrame, stored: pl.DataFrame) -> Changes:
    """Compare published observations of one dataset with its final stored rows, tombstones included.

    As `restatement.compare` does with bars: an equal value is not written again, one that differs is written when its
    revision is at least the stored one (raised by one where they are equal), a smaller revision loses.

    Args:
        published: OBSERVATION_SCHEMA and any further columns, (series, ts) unique.
        stored: at least series, ts, value, revision and is_deleted.
    """
    return compare_rows(published, stored, key=_KEY, values=("value",))
