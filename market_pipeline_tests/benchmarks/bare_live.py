"""The bare live script: one WebSocket, ticks by COPY and bars of 1s by insert, once a second.

No bus, no lease, no proof of completeness, no late ticks, no restart: what is lost is lost. Run as a process of its
own: `python -m market_pipeline_tests.benchmarks.bare_live HOME SYMBOL…` (symbols as the vendor streams them).
"""

from __future__ import annotations

import asyncio
import sys
from datetime import UTC, datetime
from pathlib import Path

import clickhouse_connect
import msgspec
import polars as pl
import psycopg
import pyarrow as pa
from websockets.asyncio.client import connect

from market_pipeline.settings import Settings, load_settings

EVERY_S = 1.0


class Quote(msgspec.Struct):
    """One event of the vendor: statuses lack all but `ev`."""

    ev: str
    p: str = ""
    b: float = 0.0
    a: float = 0.0
    t: int = 0


def stores(settings: Settings) -> tuple[clickhouse_connect.driver.client.Client, psycopg.Connection]:
    """Open both stores and make the script's tables."""
    house = clickhouse_connect.get_client(
        host=settings.clickhouse.host,
        port=settings.clickhouse.port,
        username=settings.clickhouse.user,
        password=settings.clickhouse.password.get_secret_value(),
        compress=False,
    )
    house.command(
        "CREATE OR REPLACE TABLE bare_1s (symbol LowCardinality(String), ts DateTime64(3,'UTC'), open Float64, "
        "high Float64, low Float64, close Float64, trades UInt32) ENGINE = MergeTree ORDER BY (symbol, ts) "
        "SETTINGS fsync_after_insert = 1, fsync_part_directory = 1"
    )
    post = psycopg.connect(
        host=settings.postgres.host,
        port=settings.postgres.port,
        user=settings.postgres.user,
        password=settings.postgres.password.get_secret_value(),
        dbname=settings.postgres.database,
        autocommit=True,
    )
    post.execute("DROP TABLE IF EXISTS bare_ticks")
    post.execute(
        "CREATE TABLE bare_ticks (ts timestamptz(3), received_at timestamptz(3), symbol text, bid float8, ask float8)"
    )
    post.execute("CREATE INDEX ON bare_ticks (symbol, ts)")
    return house, post


async def run(settings: Settings, pairs: list[str]) -> None:
    """Collect until killed."""
    house, post = await asyncio.to_thread(stores, settings)
    events: list[Quote] = []

    async def flush() -> None:
        while True:
            await asyncio.sleep(EVERY_S)
            taken = events.copy()
            events.clear()
            if taken:
                await asyncio.to_thread(write, house, post, taken)

    decoder = msgspec.json.Decoder(list[Quote])
    url = settings.vendor.base_url.replace("http", "ws", 1) + "/forex"
    async with connect(url, max_size=None, compression=None) as socket:
        await socket.send(
            msgspec.json.encode({"action": "auth", "params": settings.vendor.api_key.get_secret_value()}).decode()
        )
        await socket.send(
            msgspec.json.encode({"action": "subscribe", "params": ",".join(f"C.{p}" for p in pairs)}).decode()
        )
        flushing = asyncio.create_task(flush())
        async for frame in socket:
            events += [event for event in decoder.decode(frame) if event.ev == "C"]
        await flushing


def write(house: clickhouse_connect.driver.client.Client, post: psycopg.Connection, events: list[Quote]) -> None:
    """COPY the ticks and insert their bars."""
    now = datetime.now(UTC)
    frame = pl.DataFrame(
        {
            "symbol": [e.p for e in events],
            "ts": [e.t for e in events],
            "bid": [e.b for e in events],
            "ask": [e.a for e in events],
        }
    ).with_columns(pl.col("ts").cast(pl.Datetime("ms", "UTC")))
    with post.cursor() as cursor, cursor.copy("COPY bare_ticks FROM STDIN (FORMAT BINARY)") as copy:
        copy.set_types(["timestamptz", "timestamptz", "text", "float8", "float8"])
        for symbol, ts, bid, ask in frame.iter_rows():
            copy.write_row((ts, now, symbol, bid, ask))
    bars = (
        frame.sort("symbol", "ts")
        .group_by_dynamic("ts", every="1s", group_by="symbol")
        .agg(
            open=pl.col("bid").first(),
            high=pl.col("bid").max(),
            low=pl.col("bid").min(),
            close=pl.col("bid").last(),
            trades=pl.len().cast(pl.UInt32),
        )
        .select("symbol", "ts", "open", "high", "low", "close", "trades")
    )
    house.insert_arrow("bare_1s", pa.table(bars.to_arrow(compat_level=pl.CompatLevel.oldest())))


if __name__ == "__main__":
    asyncio.run(run(load_settings(Path(sys.argv[1])), sys.argv[2:]))
