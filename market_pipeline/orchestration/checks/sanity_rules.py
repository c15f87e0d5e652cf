"""OHLC sanity: bars that are well-formed, and yet cannot be true of a market."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from market_pipeline.orchestration.checks.verdict import Verdict


def judge_sanity(bad: pl.DataFrame, *, checked: str, partitions: Mapping[str, str]) -> Verdict:
    """Judge implausible bars: symbol, ts, reason, with the prices; `checked` says what was looked at."""
    if bad.height == 0:
        return Verdict("pass", f"every bar is plausible ({checked})", {"implausible bars": 0})
    located = bad.with_columns(
        partition=pl.col("ts").dt.strftime("%Y-%m-%d")
        + "|"
        + pl.col("symbol").replace_strict(dict(partitions), default=pl.col("symbol"), return_dtype=pl.String),
    )
    columns = ("partition", "symbol", "ts", "open", "high", "low", "close", "volume", "reason")
    table = located.sort("symbol", "ts").select(columns)
    first = table.row(0, named=True)
    sentence = (
        f"{bad.height:,} bars cannot be true of a market, such as {first['symbol']} at {first['ts']:%Y-%m-%d %H:%M} "
        f"UTC: {first['reason']}. They are stored as the vendor gave them; ask for them again or exclude them"
    )
    numbers: dict[str, int | float | str] = {
        "implausible bars": bad.height,
        "partitions with implausible bars": table["partition"].n_unique(),
    }
    return Verdict("error", sentence, numbers, table)
