"""Agreement of derived bars with their parent: the fold of the parent's stored bars is the child."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import polars as pl

from market_pipeline.market.aggregation import fold
from market_pipeline.market.timeframes import TIMEFRAMES
from market_pipeline.orchestration.checks.verdict import Verdict

_EXACT = ("open", "high", "low", "close", "trades")
_SUMS = ("volume",)
_TOLERANCE = 1e-9
"""Relative; sums of floats may differ in their last bits."""

DIFFERENCE_SCHEMA = pl.Schema(
    {
        "symbol": pl.String(),
        "ts": pl.Datetime("ms", "UTC"),
        "difference": pl.String(),
        "parent": pl.Float64(),
        "child": pl.Float64(),
    }
)


def differences(parent: pl.DataFrame, child: pl.DataFrame, timeframe: str, closed_at: datetime) -> pl.DataFrame:
    """Compare the fold of parent bars with child bars of the same whole windows (DIFFERENCE_SCHEMA).

    Both frames: winning bars with symbol, ts, open, high, low, close, volume, trades. Windows that end after
    `closed_at` (UTC) are left out: they may not have been derived yet.
    """
    columns = ["symbol", "ts", *_EXACT, *_SUMS]
    folded = fold(parent, timeframe).select(columns)
    both = folded.join(child.select(columns), on=["symbol", "ts"], how="full", coalesce=True, suffix="_child").filter(
        pl.col("ts") + TIMEFRAMES[timeframe].length <= closed_at
    )
    wrong = [(name, *_difference(name)) for name in (*_EXACT, *_SUMS)]
    reason = pl.coalesce(
        pl.when(pl.col("close_child").is_null()).then(pl.lit("not derived")),
        pl.when(pl.col("close").is_null()).then(pl.lit("has no parent")),
        *(pl.when(differs).then(pl.lit(name)) for name, differs, _, _ in wrong),
    )
    before = pl.coalesce(*(pl.when(differs).then(ours) for _, differs, ours, _ in wrong))
    after = pl.coalesce(*(pl.when(differs).then(theirs) for _, differs, _, theirs in wrong))
    return (
        both.select("symbol", "ts", difference=reason, parent=before, child=after)
        .filter(pl.col("difference").is_not_null())
        .cast(DIFFERENCE_SCHEMA)
    )


def _difference(name: str) -> tuple[pl.Expr, pl.Expr, pl.Expr]:
    """Return (they differ, the fold's value, the child's); a missing bar differs in nothing."""
    ours, theirs = pl.col(name).cast(pl.Float64), pl.col(f"{name}_child").cast(pl.Float64)
    tolerance = _TOLERANCE * ours.abs() if name in _SUMS else pl.lit(0.0)
    return ((ours - theirs).abs() > tolerance).fill_null(False), ours, theirs


def judge_agreement(timeframe: str, found: Sequence[pl.DataFrame], windows: int, checked: str) -> Verdict:
    """Judge the differences found (DIFFERENCE_SCHEMA) among `windows` windows; `checked` says what was looked at."""
    parent = TIMEFRAMES[timeframe].parent_code
    table = pl.concat([pl.DataFrame(schema=DIFFERENCE_SCHEMA), *found]).sort("symbol", "ts")
    numbers: dict[str, int | float | str] = {"windows compared": windows, "windows that differ": table.height}
    if table.height == 0:
        return Verdict("pass", f"{windows:,} windows equal the fold of their {parent} bars ({checked})", numbers)
    first = table.row(0, named=True)
    sentence = (
        f"{table.height:,} of {windows:,} windows differ from the fold of their {parent} bars, such as "
        f"{first['symbol']} at {first['ts']:%Y-%m-%d %H:%M} UTC ({first['difference']}): "
        f"materialize bars_{timeframe} of these days again"
    )
    return Verdict("error", sentence, numbers, table, "windows that differ")
