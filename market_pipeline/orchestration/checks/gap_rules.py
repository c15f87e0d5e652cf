"""Gaps: what is missing, and how bad that is."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import polars as pl

from market_pipeline.market.gaps import runs
from market_pipeline.orchestration.checks.verdict import Verdict

UNEXPLAINED, OPEN, CONFIRMED, GIVEN_UP = "unexplained", "open", "confirmed", "given_up"
"""States of a gap: found in the store and unknown to the ledger; to be asked for; the vendor has no bar; it refuses, or
the requests failed too often."""

GAP_SCHEMA = pl.Schema(
    {
        "symbol": pl.String(),
        "start": pl.Datetime("ms", "UTC"),
        "end": pl.Datetime("ms", "UTC"),  # exclusive
        "minutes": pl.UInt32(),
        "cause": pl.String(),
        "state": pl.String(),
        "attempts": pl.UInt16(),
        "note": pl.String(),
    }
)

_ORDER = {"error": 0, "given_up": 1, "warn": 2}


def unexplained_runs(symbol: str, missing: pl.Series, known: pl.DataFrame) -> pl.DataFrame:
    """Return the runs (GAP_SCHEMA) of missing minutes that no standing gap of the ledger covers.

    `missing`: sorted minutes (Datetime ms UTC). `known`: the symbol's standing gaps, with start and end (exclusive).
    """
    ms = missing.dt.epoch("ms").to_numpy()
    inside = np.zeros(len(ms), dtype=bool)
    bounds = known.select(pl.col("start", "end").dt.epoch("ms"))
    for start, end in bounds.iter_rows():
        first, last = np.searchsorted(ms, [start, end])
        inside[first:last] = True
    found = runs(missing.filter(pl.Series(~inside, dtype=pl.Boolean)))
    return found.select(
        symbol=pl.lit(symbol),
        start="start",
        end="end",
        minutes="minutes",
        cause=pl.lit("not_loaded"),
        state=pl.lit(UNEXPLAINED),
        attempts=pl.lit(0, pl.UInt16),
        note=pl.lit(""),
    ).cast(GAP_SCHEMA)


def judge_gaps(gaps: pl.DataFrame, thin_runs: Mapping[str, int], partitions: Mapping[str, str]) -> Verdict:
    """Judge gaps (GAP_SCHEMA), all of them due: none younger than settle and lateness.

    An error: minutes that are missing and that the vendor was not asked for since (unexplained, or open without an
    attempt), or that nobody will ask for because they were given up. A warning: the vendor gave nothing for a run
    longer than the instrument's usual thin run, whether that is confirmed by a second request or not. Shorter runs are
    a thin market, and are only counted.
    `thin_runs` and `partitions` go by symbol key.
    """
    thin = pl.col("symbol").replace_strict(dict(thin_runs), default=0, return_dtype=pl.UInt32)
    judged = gaps.with_columns(
        level=pl.when((pl.col("state") == UNEXPLAINED) | ((pl.col("state") == OPEN) & (pl.col("attempts") == 0)))
        .then(pl.lit("error"))
        .when(pl.col("state") == GIVEN_UP)
        .then(pl.lit("given_up"))
        .when(pl.col("minutes") > thin)
        .then(pl.lit("warn"))
        .otherwise(pl.lit("thin"))
    ).with_columns(
        partition=pl.col("start").dt.strftime("%Y-%m-%d")
        + "|"
        + pl.col("symbol").replace_strict(dict(partitions), default=pl.col("symbol"), return_dtype=pl.String)
    )
    minutes = {
        level: int(judged.filter(pl.col("level") == level)["minutes"].sum())
        for level in ("error", "given_up", "warn", "thin")
    }
    bad = (
        judged.filter(pl.col("level") != "thin")
        .sort(pl.col("level").replace_strict(_ORDER), pl.col("minutes"), descending=[False, True])
        .select("partition", "symbol", "start", "end", "minutes", "cause", "state", "attempts", "level", "note")
        .with_columns(pl.col("level").replace("given_up", "error"))
    )
    numbers: dict[str, int | float | str] = {
        "minutes missing, not explained": minutes["error"],
        "minutes missing, given up": minutes["given_up"],
        "minutes missing at the vendor, unusual": minutes["warn"],
        "minutes missing at the vendor, usual": minutes["thin"],
        "partitions with gaps": bad["partition"].n_unique(),
    }
    if minutes["error"]:
        where = bad.row(0, named=True)
        sentence = (
            f"{minutes['error']:,} expected minutes are missing and the vendor has not been asked for them again, such "
            f"as {where['minutes']:,} of {where['symbol']} from {where['start']:%Y-%m-%d %H:%M} UTC: run repair_gaps"
        )
        return Verdict("error", sentence, numbers, bad)
    if minutes["given_up"]:
        where = bad.row(0, named=True)
        sentence = (
            f"{minutes['given_up']:,} expected minutes are missing and no longer asked for, such as "
            f"{where['minutes']:,} of {where['symbol']} from {where['start']:%Y-%m-%d %H:%M} UTC ({where['note']}): "
            "mend that, then run repair_gaps with retry_given_up"
        )
        return Verdict("error", sentence, numbers, bad)
    if minutes["warn"]:
        sentence = f"the vendor has no bars for {minutes['warn']:,} expected minutes, in runs longer than is usual"
        return Verdict("warn", sentence, numbers, bad)
    sentence = "no expected minute is missing"
    if minutes["thin"]:
        sentence = f"only short runs of a thin market are without a bar: {minutes['thin']:,} minutes"
    return Verdict("pass", sentence, numbers)
