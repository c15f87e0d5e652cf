"""Ordinary clients of a running stack, as a user would write them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import clickhouse_connect
import nats
import psycopg
from clickhouse_connect.driver.client import Client

from market_pipeline.settings import Settings

STREAM = "STACK_TEST"


def clickhouse(settings: Settings) -> Client:
    """Connect to ClickHouse with the settings of the stack."""
    at = settings.clickhouse
    return clickhouse_connect.get_client(
        host=at.host, port=at.port, username=at.user, password=at.password.get_secret_value(), database=at.database
    )


def postgres(settings: Settings) -> psycopg.Connection:
    """Connect to PostgreSQL with the settings of the stack."""
    at = settings.postgres
    return psycopg.connect(
        host=at.host,
        port=at.port,
        user=at.user,
        dbname=at.database,
        password=at.password.get_secret_value(),
        autocommit=True,
    )


def publish(settings: Settings, payload: bytes) -> int:
    """Publish one message to a JetStream stream and return its sequence."""

    async def run() -> int:
        connection = await _nats(settings)
        try:
            stream = connection.jetstream()
            await stream.add_stream(name=STREAM, subjects=["stack.test"])
            return (await stream.publish("stack.test", payload)).seq
        finally:
            await connection.close()

    return asyncio.run(run())


def message(settings: Settings, sequence: int) -> bytes | None:
    """Read one stored message back."""

    async def run() -> bytes | None:
        connection = await _nats(settings)
        try:
            return (await connection.jetstream().get_msg(STREAM, sequence)).data
        finally:
            await connection.close()

    return asyncio.run(run())


def write_everywhere(settings: Settings, number: int) -> int:
    """Leave `number` in PostgreSQL, ClickHouse and JetStream; return the sequence of the message."""
    with postgres(settings) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS kept (n int PRIMARY KEY)")
        connection.execute("INSERT INTO kept VALUES (%s)", (number,))
    client = clickhouse(settings)
    client.command("CREATE TABLE IF NOT EXISTS kept (n UInt32) ENGINE = MergeTree ORDER BY n")
    client.insert("kept", [[number]], column_names=["n"])
    client.close()
    return publish(settings, str(number).encode())


def read_everywhere(settings: Settings, sequence: int) -> tuple[list[int], list[int], bytes | None]:
    """Return what PostgreSQL, ClickHouse and JetStream hold."""
    with postgres(settings) as connection:
        in_postgres = [row[0] for row in connection.execute("SELECT n FROM kept ORDER BY n").fetchall()]
    client = clickhouse(settings)
    in_clickhouse = [row[0] for row in client.query("SELECT n FROM kept ORDER BY n").result_rows]
    client.close()
    return in_postgres, in_clickhouse, message(settings, sequence)


def modes(folder: Path) -> dict[str, str]:
    """Return the permissions of every file in a folder, in octal."""
    return {path.name: oct(path.stat().st_mode & 0o777) for path in folder.iterdir()}


async def _nats(settings: Settings) -> nats.aio.client.Client:
    at = settings.nats
    return await nats.connect(at.url, user=at.user, password=at.password.get_secret_value(), allow_reconnect=False)
