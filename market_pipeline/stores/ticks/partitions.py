"""Daily partitions of market_ticks, where TimescaleDB is not there to keep them.

There is no default partition: ticks of a day without a partition are refused, never put where no one looks for them.
A partition is created as a table of its own and then attached, which other writers and readers don't wait for.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta

import structlog
from psycopg import sql

from market_pipeline.errors import StoreUnreachable
from market_pipeline.market.timeframes import midnight
from market_pipeline.stores.ticks.connection import AsyncConnection, rows
from market_pipeline.stores.ticks.sql_files import load_sql

log = structlog.get_logger(__name__)

AHEAD = timedelta(days=2)
_PREFIX = "market_ticks_"


class Partitions:
    """Know the partitions that are there, and create those that are missing."""

    def __init__(self) -> None:
        self._known: set[date] = set()

    def forget(self) -> None:
        """Look again the next time: another process dropped a partition."""
        self._known.clear()

    async def ensure(self, connection: AsyncConnection, days: Iterable[date]) -> None:
        """Create the partitions of the UTC days, of today and of the days ahead, unless they are there.

        Raises:
            StoreUnreachable: one of them is just being dropped.
        """
        today = datetime.now(UTC).date()
        ahead = {today + timedelta(days=n) for n in range(AHEAD.days + 1)}
        missing = ({*days} | ahead) - self._known
        if not missing:
            return
        async with connection.transaction():
            await connection.execute(load_sql("schema_lock"))
            tables = await listed(connection)
            if going := sorted(missing & {day for day, _, detaching in tables if detaching}):
                raise StoreUnreachable(f"the ticks of {going[0]} are being dropped: what came late can be stored after")
            attached = {day for day, is_attached, _ in tables if is_attached}
            for day in sorted(missing - attached):
                await _create(connection, day)
        self._known |= attached | missing


async def listed(connection: AsyncConnection) -> list[tuple[date, bool, bool]]:
    """Return (UTC day, attached, in the middle of being detached) of every table of a day, oldest first."""
    return [
        (datetime.strptime(name.removeprefix(_PREFIX), "%Y%m%d").replace(tzinfo=UTC).date(), attached, detaching)
        for name, attached, detaching in await rows(connection, "partitions")
    ]


async def drop_before(connection: AsyncConnection, cutoff: date) -> int:
    """Drop the partitions of the UTC days before `cutoff`, and return their number.

    Writers and readers don't wait: a partition leaves the table only when no open transaction uses it. What an earlier
    call left half done is finished. The connection must be in autocommit, and be closed afterwards: until then no other
    process drops partitions.
    """
    await connection.execute(load_sql("retention_lock"))
    # before anything else: PostgreSQL detaches no other partition while one is on its way
    for day, _, detaching in await listed(connection):
        if detaching:
            await connection.execute(sql.SQL(load_sql("partition_detach_finalize")).format(partition=_name(day)))
    dropped = 0
    for day, attached, _ in await listed(connection):
        if day >= cutoff:
            break
        if attached:
            await connection.execute(sql.SQL(load_sql("partition_detach")).format(partition=_name(day)))
        async with connection.transaction():
            await connection.execute(load_sql("schema_lock"))
            # a late tick may have brought the day back
            if (day, False, False) in await listed(connection):
                await connection.execute(sql.SQL(load_sql("partition_drop")).format(partition=_name(day)))
                log.info("tick_partition_dropped", day=day.isoformat())
                dropped += 1
    return dropped


async def _create(connection: AsyncConnection, day: date) -> None:
    start = midnight(day)
    await connection.execute(sql.SQL(load_sql("partition_create")).format(partition=_name(day)))
    await connection.execute(
        sql.SQL(load_sql("partition_attach")).format(
            partition=_name(day),
            start=sql.Literal(start.isoformat()),
            end=sql.Literal((start + timedelta(days=1)).isoformat()),
        )
    )


def _name(day: date) -> sql.Identifier:
    return sql.Identifier(f"{_PREFIX}{day:%Y%m%d}")
