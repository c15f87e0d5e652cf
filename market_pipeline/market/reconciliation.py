"""Live minutes against the vendor's settled minutes of one symbol: where they agree, and where and by how much not.

Pure: frames in, frames out. What is compared is what a bar of either source claims: open, high, low, close, volume and
trades. The vwap is not: many feeds give none.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import polars as pl

from market_pipeline.market.bars import PRICES, TS

EQUAL, DIFFERS, ONLY_LIVE, ONLY_VENDOR = "equal", "differs", "only live", "only vendor"
LIVE_INCOMPLETE, UNSETTLED = "live incomplete", "unsettled"
STATES: tuple[str, ...] = (EQUAL, DIFFERS, ONLY_LIVE, ONLY_VENDOR, LIVE_INCOMPLETE, UNSETTLED)
COMPARED: tuple[str, ...] = (*PRICES, "volume", "trades")

RECONCILED_SCHEMA = pl.Schema(
    {
        "symbol": pl.String(),
        "ts": TS,
        "state": pl.Enum(STATES),
        "columns": pl.List(pl.String()),  # those that differ beyond their tolerance, in the order of COMPARED
        "difference": pl.Float64(),  # the largest relative difference of any column, tolerated or not; null: no pair
        **{f"{side}_{name}": pl.Float64() for side in ("live", "vendor") for name in COMPARED},
    }
)
"""One row a minute that either side has."""

DIFFERENCE_SCHEMA = pl.Schema(
    {
        "symbol": pl.String(),
        "ts": TS,
        "column": pl.String(),
        "live": pl.Float64(),
        "vendor": pl.Float64(),
        "difference": pl.Float64(),
    }
)
"""One row a column of a minute that differs beyond its tolerance; `difference` is relative to the vendor's value."""

LAST_BITS = 1e-12
"""Relative: two ways to compute one value may differ in the last bits of a float, whatever the tolerance."""


@dataclass
class Counts:
    """How many minutes are in which state; `largest` is the largest relative difference of any compared minute."""

    equal: int = 0
    differ: int = 0
    only_live: int = 0
    only_vendor: int = 0
    live_incomplete: int = 0
    unsettled: int = 0
    largest: float = 0.0

    @property
    def compared(self) -> int:
        """Minutes that both sides have complete."""
        return self.equal + self.differ

    @property
    def live(self) -> int:
        """Minutes that live time made, complete or not; of unsettled ones it is not asked."""
        return self.compared + self.only_live + self.live_incomplete

    def add(self, other: Counts) -> None:
        """Add the counts of `other` to these; of the largest differences the larger one stays."""
        largest = max(self.largest, other.largest)
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))
        self.largest = largest


def reconcile(
    live: pl.DataFrame, vendor: pl.DataFrame, *, price_tolerance: float = 0.0, volume_tolerance: float = 0.0
) -> pl.DataFrame:
    """Compare two sources' minutes of the same range, minute by minute.

    A minute `differs` if open, high, low or close is further from the vendor's than `price_tolerance`, or volume or
    trades further than `volume_tolerance`; both are relative to the vendor's value, and where that is 0 any other value
    is a difference of 1. Trades of 0 beside a volume mean that the vendor counted none, and are not compared.

    An incomplete live minute claims nothing (`live incomplete`, with or without the vendor's); neither does an
    incomplete one of the vendor, which has not settled (`unsettled`, unless live is incomplete).

    Args:
        live, vendor: symbol, ts, complete and the columns of COMPARED; each symbol and ts once, no tombstones.

    Returns:
        RECONCILED_SCHEMA, a row for each minute that either has, sorted by symbol and ts.
    """
    both = _side(live, "live").join(_side(vendor, "vendor"), on=["symbol", "ts"], how="full", coalesce=True)
    tolerances = {name: price_tolerance if name in PRICES else volume_tolerance for name in COMPARED}
    measured = both.with_columns(**{f"d_{name}": _relative(name) for name in COMPARED})
    pair = pl.col("live_complete").fill_null(False) & pl.col("vendor_complete").fill_null(False)
    beyond = [
        pl.when(pair & (pl.col(f"d_{name}") > max(tolerance, LAST_BITS))).then(pl.lit(name))
        for name, tolerance in tolerances.items()
    ]
    return (
        measured.with_columns(
            columns=pl.concat_list(beyond).list.drop_nulls(),
            difference=pl.when(pair).then(pl.max_horizontal(f"d_{name}" for name in COMPARED)),
        )
        .with_columns(
            state=pl.when(pl.col("live_complete") == False)  # noqa: E712 — null is a third answer
            .then(pl.lit(LIVE_INCOMPLETE))
            .when(pl.col("vendor_complete") == False)  # noqa: E712
            .then(pl.lit(UNSETTLED))
            .when(pl.col("vendor_complete").is_null())
            .then(pl.lit(ONLY_LIVE))
            .when(pl.col("live_complete").is_null())
            .then(pl.lit(ONLY_VENDOR))
            .when(pl.col("columns").list.len() > 0)
            .then(pl.lit(DIFFERS))
            .otherwise(pl.lit(EQUAL))
        )
        .select(pl.col(name).cast(dtype) for name, dtype in RECONCILED_SCHEMA.items())
        .sort("symbol", "ts")
    )


def differences(reconciled: pl.DataFrame) -> pl.DataFrame:
    """Return each column of each minute that differs beyond its tolerance (DIFFERENCE_SCHEMA), the largest first."""
    each = reconciled.filter(pl.col("state") == DIFFERS).explode("columns").rename({"columns": "column"})
    picked = {
        side: pl.coalesce(pl.when(pl.col("column") == name).then(pl.col(f"{side}_{name}")) for name in COMPARED)
        for side in ("live", "vendor")
    }
    return (
        each.with_columns(**picked)
        .with_columns(difference=_distance(pl.col("live"), pl.col("vendor")))
        .select(pl.col(name).cast(dtype) for name, dtype in DIFFERENCE_SCHEMA.items())
        .sort("difference", "symbol", "ts", "column", descending=[True, False, False, False])
    )


def count(reconciled: pl.DataFrame) -> Counts:
    """Count the minutes of each state."""
    found = dict(reconciled["state"].cast(pl.String).value_counts().iter_rows())
    largest = reconciled["difference"].max()
    return Counts(
        equal=found.get(EQUAL, 0),
        differ=found.get(DIFFERS, 0),
        only_live=found.get(ONLY_LIVE, 0),
        only_vendor=found.get(ONLY_VENDOR, 0),
        live_incomplete=found.get(LIVE_INCOMPLETE, 0),
        unsettled=found.get(UNSETTLED, 0),
        largest=float(largest) if isinstance(largest, float) else 0.0,
    )


def _side(bars: pl.DataFrame, side: str) -> pl.DataFrame:
    values = [pl.col(name).cast(pl.Float64).alias(f"{side}_{name}") for name in COMPARED]
    return bars.select("symbol", "ts", pl.col("complete").alias(f"{side}_complete"), *values)


def _relative(name: str) -> pl.Expr:
    """Return how far live's value is from the vendor's; null where one is missing or the vendor counted no trades."""
    distance = _distance(pl.col(f"live_{name}"), pl.col(f"vendor_{name}"))
    if name != "trades":
        return distance
    uncounted = (pl.col("vendor_trades") == 0) & (pl.col("vendor_volume") > 0)
    return pl.when(~uncounted).then(distance)


def _distance(ours: pl.Expr, theirs: pl.Expr) -> pl.Expr:
    apart = (ours - theirs).abs()
    return pl.when(theirs == 0).then((ours != 0).cast(pl.Float64)).otherwise(apart / theirs.abs())
