"""The bar store away for minutes under live load: `python -m market_pipeline_tests.chaos.outage --seconds 300`.

Says how much memory the live process took meanwhile, how long the catching up took, and whether every tick and every
bar of the time is there: bars are compared with the ticks stored in PostgreSQL, folded by SQL.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import psutil
import psycopg

from market_pipeline.stores.clickhouse import connect
from market_pipeline_tests.chaos.world import SYMBOLS, ChaosWorld
from market_pipeline_tests.waiting import until

WARM_S = 20.0
_TICKS = """
SELECT symbol, date_trunc('minute', ts) AS minute, count(*) AS ticks FROM market_ticks
WHERE kind = %(kind)s AND symbol = ANY(%(symbols)s) GROUP BY 1, 2
"""
_BARS = (
    "SELECT symbol, ts, trades FROM bars FINAL WHERE timeframe = '1m' AND source = 'live_aggregated' AND complete "
    "ORDER BY symbol, ts"
)


def main() -> None:
    """Run, print, and fail where something is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--rate", type=int, default=3000, help="ticks a second over three symbols")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="outage-") as folder,
        ChaosWorld(Path(folder), datetime.now(UTC).replace(microsecond=0), speed=1.0) as world,
    ):
        world.go_live()
        until(lambda: sum(map(len, world.vendor.stream_stats()["subscriptions"].values())) >= len(SYMBOLS), "not live")
        world.vendor.load(list(SYMBOLS.values()), options.rate // len(SYMBOLS))
        time.sleep(WARM_S)
        process = psutil.Process(world.live[0].process.pid)
        print(f"live at {options.rate:,} ticks/s with {_mib(process):,.0f} MiB; ClickHouse goes away", flush=True)
        world.kill_clickhouse()
        most = 0.0
        ends = time.monotonic() + options.seconds
        while time.monotonic() < ends:
            time.sleep(1.0)
            most = max(most, _mib(process))
        print(f"ClickHouse was away for {options.seconds:.0f} s: at most {most:,.0f} MiB; it comes back", flush=True)
        back = time.monotonic()
        world.start_clickhouse()
        time.sleep(5.0)
        world.vendor.load([], 0)
        ended = datetime.now(UTC).replace(second=0, microsecond=0)
        seconds = until(lambda: not wrong_minutes(world, ended), "minutes are missing", 300.0)
        dead = _dead_letters(world)
        print(f"everything was there {time.monotonic() - back:.0f} s after its return ({seconds:.0f} s of waiting)")
        print(f"dead letters: {dead}; minutes compared: {len(minutes_of_ticks(world, ended))}, each equal to its ticks")
        sys.exit(bool(dead))


def wrong_minutes(world: ChaosWorld, end: datetime) -> list[tuple[str, datetime]]:
    """Return the whole minutes whose live bar is not the one of the ticks stored."""
    client = connect(world.settings.clickhouse)
    try:
        bars = {(row[0], row[1]): row[2] for row in client.frame(_BARS).iter_rows()}
    finally:
        client.close()
    return [key for key, ticks in minutes_of_ticks(world, end).items() if bars.get(key) != ticks]


def minutes_of_ticks(world: ChaosWorld, end: datetime) -> dict[tuple[str, datetime], int]:
    """Return the ticks of each minute that live time saw whole, by symbol and minute."""
    where = world.settings.postgres
    found: dict[tuple[str, datetime], int] = {}
    with psycopg.connect(
        host=where.host,
        port=where.port,
        user=where.user,
        password=where.password.get_secret_value(),
        dbname=where.database,
    ) as connection:
        for kind, symbols in (("q", ["EURUSD"]), ("t", ["BTCUSD", "ETHUSD"])):
            rows = connection.execute(_TICKS, {"kind": kind, "symbols": symbols}).fetchall()
            frame = pl.DataFrame(rows, schema=["symbol", "minute", "ticks"], orient="row")
            first = frame.group_by("symbol").agg(pl.col("minute").min().alias("first"))
            whole = frame.join(first, on="symbol").filter(
                (pl.col("minute") > pl.col("first")) & (pl.col("minute") < end)
            )
            found |= {(row["symbol"], row["minute"].astimezone(UTC)): row["ticks"] for row in whole.to_dicts()}
    return found


def _dead_letters(world: ChaosWorld) -> int:
    import asyncio

    from market_pipeline.bus.dead_letters import count_dead_letters
    from market_pipeline.bus.session import open_bus

    async def ask() -> int:
        async with open_bus(world.settings.nats, "outage") as bus:
            return sum((await count_dead_letters(bus.js)).values())

    return asyncio.run(ask())


def _mib(process: psutil.Process) -> float:
    return float(process.memory_info().rss / 2**20)


if __name__ == "__main__":
    main()
