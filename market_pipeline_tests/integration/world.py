"""A small world for end-to-end tests: real NATS, ClickHouse and vendor on loopback, and an independent truth."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
from pydantic import SecretStr

from market_pipeline.history import DeriveReport, LoadReport, derive_bars, load_minutes
from market_pipeline.history.runtime import utc_now
from market_pipeline.local.clickhouse.process import ServerProcess
from market_pipeline.market.timeframes import DERIVED
from market_pipeline.settings import Settings, VendorSettings
from market_pipeline.simulator.server import SimulatorProcess
from market_pipeline.simulator.truth import minutes as truth_minutes
from market_pipeline.stores.clickhouse import connect
from market_pipeline_tests.servers import NatsProcess, new_database

Days = list[tuple[date, date]]


@dataclass
class World:
    """The servers of one test and short ways to use them."""

    settings: Settings
    nats: NatsProcess
    clickhouse: ServerProcess
    vendor: SimulatorProcess

    def load(
        self, wanted: dict[str, Days], *, run_id: str | None = None, root: str | None = None, **kw: Any
    ) -> LoadReport:
        """Load minutes as a run of its own unless told otherwise."""
        run_id = run_id or secrets.token_hex(6)
        return load_minutes(self.settings, wanted, run_id=run_id, root_run_id=root or run_id, **kw)

    def derive(self, wanted: dict[str, Days], timeframes: tuple[str, ...] = DERIVED, **kw: Any) -> DeriveReport:
        """Derive the timeframes."""
        return derive_bars(self.settings, wanted, timeframes, run_id=secrets.token_hex(6), **kw)

    def query(self, sql: str, **parameters: Any) -> pl.DataFrame:
        """Run a query as a user of SQL would."""
        client = connect(self.settings.clickhouse)
        try:
            return client.frame(sql, parameters)
        finally:
            client.close()

    def command(self, sql: str) -> None:
        """Run a statement that breaks something on purpose."""
        client = connect(self.settings.clickhouse)
        try:
            client.command(sql)
        finally:
            client.close()

    def count(self, table: str = "bars") -> int:
        """Count the raw rows of a table, superseded ones included."""
        return int(self.query(f"SELECT count() AS n FROM {table}")["n"][0])

    def bars(self, key: str, timeframe: str) -> pl.DataFrame:
        """Return the winning bars of a symbol, sorted."""
        frame = self.query(
            "SELECT * FROM bars_final WHERE symbol = {s:String} AND timeframe = {t:String} ORDER BY ts",
            s=key,
            t=timeframe,
        )
        return frame.with_columns(pl.col("ts").cast(pl.Datetime("ms", "UTC")))


def make_settings(
    home: Path, nats: NatsProcess, clickhouse: ServerProcess, vendor: SimulatorProcess, **vendor_settings: Any
) -> Settings:
    """Return the settings of a world with a database of its own, and write them to its home as the stack does."""
    settings = Settings(
        home=home,
        nats=nats.settings,
        clickhouse=new_database(clickhouse),
        vendor=VendorSettings(
            base_url=vendor.base_url,
            api_key=SecretStr(vendor.api_key),
            plan="paid",
            backoff_initial_s=0.02,
            backoff_max_s=0.2,
            timeout_s=5,
            **vendor_settings,
        ),
    )
    write_home(settings)
    return settings


def write_home(settings: Settings) -> None:
    """Write settings.json for processes that find the world by its home."""

    def plain(value: Any) -> Any:
        if isinstance(value, SecretStr):
            return value.get_secret_value()
        if isinstance(value, timedelta):
            return value.total_seconds()
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        if isinstance(value, tuple):
            return list(value)
        return value

    tree = plain(settings.model_dump(include={"nats", "clickhouse", "vendor", "history"}))
    if settings.instruments_file:
        tree["instruments_file"] = str(settings.instruments_file)
    file = settings.home / "settings.json"
    settings.home.mkdir(parents=True, exist_ok=True)
    file.touch(mode=0o600)
    file.write_text(json.dumps(tree))


def utc(text: str) -> datetime:
    """Read an ISO time as UTC."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def day_range(first: str, last: str) -> Days:
    """Return the range from the first to the last day, the last included."""
    return [(date.fromisoformat(first), date.fromisoformat(last) + timedelta(days=1))]


def fold_independently(minutes: pl.DataFrame, timeframe: str) -> pl.DataFrame:
    """Fold minutes with DuckDB's SQL: what our own aggregation is held against."""
    bucket = {
        "1w": "time_bucket(INTERVAL '7 days', ts, TIMESTAMP '1970-01-04')",
        "1d": "time_bucket(INTERVAL '1 day', ts)",
    }.get(
        timeframe
    ) or f"time_bucket(INTERVAL '{int(timeframe[:-1])} {'minutes' if timeframe[-1] == 'm' else 'hours'}', ts)"
    source = minutes.with_columns(pl.col("ts").dt.replace_time_zone(None))  # noqa: F841 — DuckDB reads it by name
    folded = duckdb.sql(
        f"SELECT {bucket} AS ts, arg_min(open, ts) AS open, max(high) AS high, min(low) AS low, "
        "arg_max(close, ts) AS close, sum(volume) AS volume, "
        "CAST(sum(trades) AS BIGINT) AS trades, count(*) AS minutes "
        f"FROM source GROUP BY {bucket} ORDER BY 1"
    ).pl()
    return folded.with_columns(pl.col("ts").dt.replace_time_zone("UTC").cast(pl.Datetime("ms", "UTC")))


def assert_bars_equal(ours: pl.DataFrame, truth: pl.DataFrame, what: str = "") -> None:
    """Compare ts, OHLC and trades exactly, volume to the last bits that the order of a sum may move."""
    left = ours.sort("ts").select("ts", "open", "high", "low", "close", pl.col("trades").cast(pl.Int64))
    right = truth.sort("ts").select("ts", "open", "high", "low", "close", pl.col("trades").cast(pl.Int64))
    assert left.height == right.height, f"{what}: {left.height} bars, the truth has {right.height}"
    differing = left.with_row_index().filter(pl.Series(left.hash_rows() != right.hash_rows()))
    assert differing.height == 0, f"{what}: {differing.height} bars differ, first {differing.head(2).rows()}"
    volume = (ours.sort("ts")["volume"] - truth.sort("ts")["volume"]).abs().max()
    assert volume is None or volume < 1e-6 * max(1.0, float(truth["volume"].max() or 1)), f"{what}: volumes differ"


def truth(ticker: str, days: Days) -> pl.DataFrame:
    """Return the simulator's own minutes of the days: never through our client."""
    parts = [
        truth_minutes(
            ticker, datetime.combine(a, datetime.min.time(), UTC), datetime.combine(b, datetime.min.time(), UTC)
        )
        for a, b in days
    ]
    return pl.concat(parts)


__all__ = ["World", "assert_bars_equal", "day_range", "fold_independently", "make_settings", "truth", "utc", "utc_now"]
