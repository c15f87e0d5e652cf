"""From reports of the history room to metadata of materializations: numbers a partition, one summary a symbol.

A ranged run writes one event a partition, up to thousands; what describes the whole run (tables, the picture, rates) is
therefore attached only to the last partition of each symbol, and to the one that the asset's page shows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import dagster as dg
import polars as pl

from market_pipeline.market.instruments import Instruments
from market_pipeline.market.timeframes import midnight
from market_pipeline.orchestration.partitions import split_key
from market_pipeline.orchestration.pictures import coverage_strip, sparkline

if TYPE_CHECKING:
    from market_pipeline.history.reports import DeriveReport, LoadReport, SeriesCounts

Metadata = dict[str, Any]

MOST_TABLE_ROWS = 50
_GAP_COLUMNS = ("symbol", "start", "end", "minutes", "cause", "state", "attempts")
PARTIAL = "partial"
"""True where the day or week was still running, or not yet settled, when it was loaded."""


def minutes_metadata(
    keys: Sequence[str], report: LoadReport, instruments: Instruments, *, shown: str | None = None
) -> dict[str, Metadata]:
    """Return metadata by daily partition key for minutes that were loaded; `shown` is the asset page's key."""
    days = {symbol: _by_date(load.days) for symbol, load in report.symbols.items()}
    out: dict[str, Metadata] = {}
    for key in keys:
        day, partition = split_key(key)
        rows = [days[s][day] for s in _symbols(partition, instruments) if day in days.get(s, {})]
        expected, missing = sum(r["expected"] for r in rows), sum(r["missing"] for r in rows)
        count = sum(r["rows"] for r in rows)
        out[str(key)] = {
            "dagster/partition_row_count": count,
            "expected minutes": expected,
            "missing minutes": missing,
            "coverage": 1.0 if expected == 0 else 1.0 - missing / expected,
            PARTIAL: any(r["partial"] for r in rows),
        }
    for partition, last in _summary_keys(keys, shown):
        out[last].update(_load_summary(report, _symbols(partition, instruments)))
    return out


def derived_metadata(
    keys: Sequence[str],
    timeframe: str,
    report: DeriveReport,
    instruments: Instruments,
    *,
    now: datetime,
    settle: timedelta,
    shown: str | None = None,
) -> dict[str, Metadata]:
    """Return metadata by partition key (daily, or weekly for 1w) for one derived timeframe.

    A partition is partial until it is over and settled at `now` (UTC): what its last windows will hold is not known.
    """
    length = timedelta(days=7 if timeframe == "1w" else 1)
    days = {symbol: _by_date(frame) for (symbol, code), frame in report.days.items() if code == timeframe}
    out: dict[str, Metadata] = {}
    for key in keys:
        day, partition = split_key(key)
        rows = [days[s][day] for s in _symbols(partition, instruments) if day in days.get(s, {})]
        count = sum(r["rows"] for r in rows)
        out[str(key)] = {
            "dagster/partition_row_count": count,
            "complete bars": sum(r["complete"] for r in rows),
            PARTIAL: midnight(day) + length > now - settle,
        }
    for partition, last in _summary_keys(keys, shown):
        symbols = _symbols(partition, instruments)
        counts = [report.by_symbol[(s, timeframe)] for s in symbols if (s, timeframe) in report.by_symbol]
        picture = sparkline([r["rows"] for s in symbols for r in days.get(s, {}).values()])
        out[last].update(
            {
                **({"picture": dg.MetadataValue.md(picture)} if picture else {}),
                **_counts(counts),
                "minutes read by the run": report.minutes_read,
                "seconds of the run": round(report.seconds, 3),
            }
        )
    return out


def frame_table(frame: pl.DataFrame, *, most: int = MOST_TABLE_ROWS) -> dg.TableMetadataValue:
    """Return the first `most` rows of a frame as a table; times as UTC text to the second."""
    shown = frame.head(most).with_columns(
        pl.col(pl.Datetime).dt.strftime("%Y-%m-%d %H:%M:%S"), pl.col(pl.Date).dt.strftime("%Y-%m-%d")
    )
    return dg.MetadataValue.table(
        records=[dg.TableRecord(row) for row in shown.iter_rows(named=True)],
        schema=dg.TableSchema([dg.TableColumn(name, _column_type(dtype)) for name, dtype in shown.schema.items()]),
    )


def _load_summary(report: LoadReport, symbols: Iterable[str]) -> Metadata:
    loads = [report.symbols[s] for s in symbols if s in report.symbols]
    summary: Metadata = _range_summary([load.days for load in loads if load.days.height])
    summary.update(_counts([load.counts for load in loads]))
    summary["vendor requests"] = sum(load.requests for load in loads)
    summary["requests skipped (checkpoint)"] = sum(load.skipped_requests for load in loads)
    summary["empty answers"] = sum(load.empty_answers for load in loads)
    summary["retries of the run"] = sum(report.retries.values())
    summary["rows per second of the run"] = round(report.rows_per_second, 1)
    summary["seconds of the run"] = round(report.seconds, 3)
    if report.seconds_throttled:
        summary["seconds throttled"] = round(report.seconds_throttled, 1)
    gaps = [load.gaps for load in loads if load.gaps.height]
    if gaps:
        table = pl.concat(gaps, how="diagonal_relaxed").sort("minutes", descending=True)
        summary["gaps in all"] = table.height
        summary["gaps"] = frame_table(table.rename({"start_ts": "start", "end_ts": "end"}).select(_GAP_COLUMNS))
    if report.latency_ms:
        summary["latency (ms)"] = dg.MetadataValue.json({name: round(ms, 1) for name, ms in report.latency_ms.items()})
    return summary


def _range_summary(frames: Sequence[pl.DataFrame]) -> Metadata:
    if not frames:
        return {}
    days = pl.concat(frames).group_by("date").agg(pl.col("rows", "expected", "missing").sum()).sort("date")
    expected, missing = int(days["expected"].sum()), int(days["missing"].sum())
    open_days = days.filter(pl.col("expected") > 0)
    picture = coverage_strip((1.0 - open_days["missing"] / open_days["expected"]).to_list())
    return {
        **({"picture": dg.MetadataValue.md(picture)} if picture else {}),
        "range": f"{days['date'][0]} to {days['date'][-1]}",
        "coverage of the range": 1.0 if expected == 0 else 1.0 - missing / expected,
        "missing minutes of the range": missing,
    }


def _counts(parts: Iterable[SeriesCounts]) -> Metadata:
    total: dict[str, int] = defaultdict(int)
    for counts in parts:
        for field in fields(counts):
            total[field.name] += getattr(counts, field.name)
    names = ("new", "restated", "unchanged", "withdrawn", "superseded", "rejected", "batches", "republished")
    return {"dagster/row_count": total["rows"], **{name: total[name] for name in names}}


def _symbols(partition: str, instruments: Instruments) -> list[str]:
    return [instrument.key for instrument in instruments.of_partition(partition)]


def _by_date(frame: pl.DataFrame) -> Mapping[date, dict[str, Any]]:
    return {row["date"]: row for row in frame.iter_rows(named=True)}


def _summary_keys(keys: Sequence[str], shown: str | None) -> set[tuple[str, str]]:
    """Return (instrument partition, key) of the keys that carry the summary of their symbol."""
    last: dict[str, tuple[date, str]] = {}
    for key in keys:
        day, partition = split_key(key)
        if partition not in last or last[partition][0] < day:
            last[partition] = (day, str(key))
    summaries = {(partition, key) for partition, (_, key) in last.items()}
    return summaries if shown is None else summaries | {(split_key(shown)[1], str(shown))}


def _column_type(dtype: pl.DataType) -> str:
    if dtype == pl.Boolean:
        return "bool"
    if dtype.is_integer():
        return "int"
    return "float" if dtype.is_float() else "string"
