"""ClickHouse: bars and ledgers. The only room with SQL.

`open_stores(settings)` gives a run everything it needs over one client.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from market_pipeline.settings import Settings
from market_pipeline.stores import migrations
from market_pipeline.stores.bars import BarStore
from market_pipeline.stores.clickhouse import Client, connect
from market_pipeline.stores.ledgers import GapLedger, IngestLedger, VendorRequestLedger
from market_pipeline.stores.precedence import follow
from market_pipeline.stores.restatements import Restatements

__all__ = ["Stores", "open_stores", "prepare"]


@dataclass(frozen=True)
class Stores:
    """The stores over one client; every part is thread-safe."""

    client: Client
    bars: BarStore
    ingest: IngestLedger
    requests: VendorRequestLedger
    gaps: GapLedger
    restatements: Restatements

    @classmethod
    def over(cls, client: Client) -> Stores:
        """Make the stores that share a client."""
        return cls(
            client,
            BarStore(client),
            IngestLedger(client),
            VendorRequestLedger(client),
            GapLedger(client),
            Restatements(client),
        )


def prepare(client: Client, settings: Settings) -> None:
    """Bring the schema up to date and let its views follow the settings' precedence. Cheap when both are so already.

    Raises:
        StoreUnreachable, StoreQueryError: as `migrations.apply` and `precedence.follow`.
    """
    migrations.apply(client)
    follow(client, settings.history.precedence)


@contextmanager
def open_stores(settings: Settings, *, migrate: bool = True) -> Iterator[Stores]:
    """Connect, bring the schema up to date, and close the connections at the end.

    Raises:
        StoreUnreachable, StoreAuthError, StoreQueryError: as `connect` and `prepare`.
    """
    client = connect(settings.clickhouse)
    try:
        if migrate:
            prepare(client, settings)
        yield Stores.over(client)
    finally:
        client.close()
