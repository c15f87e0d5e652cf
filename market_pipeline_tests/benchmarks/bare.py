"""The bare script: download, parse, insert, aggregate, insert. No bus, no ledger, no verification, no retry."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import clickhouse_connect
import httpx
import msgspec
import polars as pl
import pyarrow as pa

from market_pipeline.settings import Settings

FOLDS = (("5m", "5m", "1m"), ("15m", "15m", "5m"), ("30m", "30m", "15m"), ("1h", "1h", "30m"), ("4h", "4h", "1h"))
FOLDS += (("1d", "1d", "1h"), ("1w", "1w", "1d"))


class Row(msgspec.Struct):
    """One bar of the vendor's answer."""

    t: int
    o: float
    h: float
    l: float  # noqa: E741
    c: float
    v: float
    vw: float | None = None
    n: int = 0


class Answer(msgspec.Struct):
    """The vendor's answer."""

    results: list[Row] = []


def run(settings: Settings, tickers: dict[str, str], first: date, end: date, table: str) -> int:
    """Load and aggregate; return the rows written."""
    store = clickhouse_connect.get_client(
        host=settings.clickhouse.host,
        port=settings.clickhouse.port,
        username=settings.clickhouse.user,
        password=settings.clickhouse.password.get_secret_value(),
        compress=False,
    )
    store.command(
        f"CREATE OR REPLACE TABLE {table} (symbol LowCardinality(String), timeframe LowCardinality(String), "
        "ts DateTime64(3,'UTC'), open Float64, high Float64, low Float64, close Float64, volume Float64, "
        "vwap Nullable(Float64), trades UInt32) ENGINE = MergeTree ORDER BY (symbol, timeframe, ts) "
        "PARTITION BY toYYYYMM(ts) SETTINGS fsync_after_insert = 1, fsync_part_directory = 1"
    )
    decoder = msgspec.json.Decoder(Answer)
    written = 0

    def insert(frame: pl.DataFrame) -> None:
        nonlocal written
        store.insert_arrow(
            table,
            pa.table(frame.to_arrow(compat_level=pl.CompatLevel.oldest())),
            settings={"max_partitions_per_insert_block": 1000, "async_insert": 0},
        )
        written += frame.height

    headers = {"Authorization": f"Bearer {settings.vendor.api_key.get_secret_value()}"}
    with httpx.Client(base_url=settings.vendor.base_url, headers=headers, timeout=60) as http:
        for symbol, ticker in tickers.items():
            parts: list[pl.DataFrame] = []
            start = datetime.combine(first, datetime.min.time(), UTC)
            stop = datetime.combine(end, datetime.min.time(), UTC)
            while start < stop:
                until = min(stop, start + timedelta(minutes=50_000))
                path = f"/v2/aggs/ticker/{ticker}/range/1/minute/{_ms(start)}/{_ms(until) - 1}"
                body = http.get(path, params={"limit": 50_000, "adjusted": "true", "sort": "asc"}).content
                rows = decoder.decode(body).results
                frame = pl.DataFrame(
                    {
                        "ts": [r.t for r in rows],
                        "open": [r.o for r in rows],
                        "high": [r.h for r in rows],
                        "low": [r.l for r in rows],
                        "close": [r.c for r in rows],
                        "volume": [r.v for r in rows],
                        "vwap": [r.vw for r in rows],
                        "trades": [r.n for r in rows],
                    },
                    schema_overrides={"trades": pl.UInt32, "vwap": pl.Float64},
                ).select(
                    pl.lit(symbol).alias("symbol"),
                    pl.lit("1m").alias("timeframe"),
                    pl.col("ts").cast(pl.Datetime("ms", "UTC")),
                    pl.exclude("ts"),
                )
                insert(frame)
                parts.append(frame)
                start = until
            frames = {"1m": pl.concat(parts)}
            for code, every, parent in FOLDS:
                frames[code] = _fold(frames[parent], code, every)
            insert(pl.concat([frames[code] for code, _, _ in FOLDS]))
    store.close()
    return written


def _fold(frame: pl.DataFrame, code: str, every: str) -> pl.DataFrame:
    return (
        frame.group_by_dynamic("ts", every=every)
        .agg(
            pl.col("symbol").first(),
            pl.lit(code).alias("timeframe"),
            pl.col("open").first(),
            pl.col("high").max(),
            pl.col("low").min(),
            pl.col("close").last(),
            vwap=(pl.col("vwap") * pl.col("volume")).sum() / pl.col("volume").sum(),
            volume=pl.col("volume").sum(),
            trades=pl.col("trades").sum(),
        )
        .select(frame.columns)
    )


def _ms(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)
