"""What is wrong with batches that nobody else will verify, before their bytes are moved.

A run verifies by value what it published. A batch without a run (of live bars, of a foreign producer, a replayed one)
has nobody to do so: its digest and its rows are looked at here, many batches at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from market_pipeline.bus.envelope import BatchHeaders, decode
from market_pipeline.errors import UnreadableBatch
from market_pipeline.market.bars import split_valid


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong with one batch: an error of the whole, or malformed rows (`bad`, with `reason`) beside good."""

    good: pl.DataFrame
    bad: pl.DataFrame
    error: UnreadableBatch | None = None


def inspect(batches: Sequence[tuple[bytes, BatchHeaders]]) -> list[Finding | None]:
    """Decode the batches and judge their rows; None for a batch with which nothing is wrong. CPU-bound, thread-safe.

    The batches must not overlap: a bar that comes twice is a malformed row.
    """
    findings: list[Finding | None] = [None] * len(batches)
    frames: list[pl.DataFrame] = []
    for place, (payload, headers) in enumerate(batches):
        try:
            frames.append(decode(payload, headers).with_columns(pl.lit(place, pl.UInt32).alias("place")))
        except UnreadableBatch as error:
            findings[place] = Finding(pl.DataFrame(), pl.DataFrame(), error)
    if not frames:
        return findings
    good, bad = split_valid(pl.concat(frames))
    for place in bad["place"].unique().to_list():
        mine = pl.col("place") == place
        findings[place] = Finding(good.filter(mine).drop("place"), bad.filter(mine).drop("place"))
    return findings
