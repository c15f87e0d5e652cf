"""What a published series changes in what is stored of the same source: new, restated, withdrawn, unchanged.

A source corrects only its own bars, and only by a later revision; a row equal to the stored one is not written again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import polars as pl

VALUES = ("open", "high", "low", "close", "volume", "vwap", "trades", "complete", "origin")
"""Columns that make a bar what it is; two rows that agree on them are the same bar, whatever their revisions."""


@dataclass(frozen=True)
class Changes:
    """The outcome of a comparison: counts, the rows to write with the revision they must carry, and what they replace.

    `replaced` has the columns of the stored rows; a tombstone that is lifted is among them.
    """

    write: pl.DataFrame
    new: int
    restated: int
    withdrawn: int
    unchanged: int
    superseded: int
    replaced: pl.DataFrame = field(default_factory=pl.DataFrame)


def compare(published: pl.DataFrame, stored: pl.DataFrame) -> Changes:
    """Compare the published rows of ONE series (symbol, timeframe, source) with the final stored rows.

    A row that differs is written when its revision is at least the stored one (an equal revision is raised by one,
    since the later writer has the last word); a smaller revision was fetched earlier than what is stored, and loses.

    Args:
        published: BAR_SCHEMA and any further columns, `ts` unique.
        stored: at least `ts`, the VALUES, `revision` and `is_deleted`; tombstones included.

    Returns:
        Changes, whose `write` has the columns of `published` and `replaced` those of `stored`, both sorted by ts.
    """
    found = compare_rows(published, stored, key=("ts",), values=VALUES)
    return replace(found, write=found.write.sort("ts"), replaced=found.replaced.sort("ts"))


def compare_rows(
    published: pl.DataFrame, stored: pl.DataFrame, *, key: Sequence[str], values: Sequence[str]
) -> Changes:
    """Compare published rows with the final stored ones by the rule of `compare`; both keep their order.

    Args:
        published: `key` (unique), `values`, `revision` (UInt64), `is_deleted` and any further columns.
        stored: at least `key`, `values`, `revision` and `is_deleted`; tombstones included.
        key: columns that say which row is meant.
        values: columns on which two rows agree that are the same, whatever their revisions.
    """
    kept = stored.select(*key, *values, "revision", "is_deleted")
    joined = published.join(kept, on=key, how="left", suffix="_stored", maintain_order="left")
    known = pl.col("revision_stored").is_not_null()
    gone, was_gone = pl.col("is_deleted") == 1, pl.col("is_deleted_stored") == 1
    same_values = pl.all_horizontal(pl.col(name).eq_missing(pl.col(f"{name}_stored")) for name in values)
    same = (gone & (~known | was_gone)) | (known & ~gone & ~was_gone & same_values)
    older = known & (pl.col("revision") < pl.col("revision_stored"))
    judged = joined.with_columns(
        outcome=pl.when(same)
        .then(pl.lit("unchanged"))
        .when(older)
        .then(pl.lit("superseded"))
        .when(gone)
        .then(pl.lit("withdrawn"))
        .when(known & ~was_gone)
        .then(pl.lit("restated"))
        .otherwise(pl.lit("new"))
    )
    counts = dict(judged["outcome"].value_counts().iter_rows())
    write = (
        judged.filter(pl.col("outcome").is_in(["new", "restated", "withdrawn"]))
        .with_columns(
            revision=pl.when(known & (pl.col("revision") == pl.col("revision_stored")))
            .then(pl.col("revision") + 1)
            .otherwise(pl.col("revision"))
            .cast(pl.UInt64)
        )
        .select(published.columns)
    )
    new, restated, withdrawn, unchanged, superseded = (
        counts.get(k, 0) for k in ("new", "restated", "withdrawn", "unchanged", "superseded")
    )
    replaced = stored.join(write.select(key), on=key, how="semi", maintain_order="left")
    return Changes(write, new, restated, withdrawn, unchanged, superseded, replaced)


def unproven(published: pl.DataFrame, stored: pl.DataFrame) -> pl.DataFrame:
    """Return the published rows that the stored final rows do not prove: neither equal nor beaten by a later revision.

    Both frames are as in `compare`. An empty answer is the proof that the publication took effect.
    """
    changes = compare(published, stored)
    return changes.write
