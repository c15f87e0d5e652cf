"""Resources: the settings tree, and the vendor, the bus and the stores that it names.

Addresses come from the settings of the stack's folder; a resource's own fields override them, so that a test or a
deployment can point one part elsewhere. Secrets are never fields: the UI shows fields.
"""
# no `from __future__ import annotations`: Dagster reads the annotations of what it calls

import asyncio
import time
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import dagster as dg
from pydantic import BaseModel, Field

from market_pipeline.settings import Settings, load_settings

if TYPE_CHECKING:
    from market_pipeline.bus.dead_letter_box import DeadLetterBox, Unread
    from market_pipeline.stores import Stores

Answer = TypeVar("Answer")
Section = TypeVar("Section", bound=BaseModel)


class SettingsResource(dg.ConfigurableResource):
    """The settings of one stack."""

    home: str = Field(
        default="", description="Folder of the stack; empty: MARKET_PIPELINE_HOME, else ./.market_pipeline"
    )

    def load(self) -> Settings:
        """Load the tree anew, so that a changed address needs no restart of Dagster.

        Raises:
            SettingsError: a value is wrong.
        """
        return load_settings(self.home or None)


class _Part(dg.ConfigurableResource):
    """A part of the platform: what of the settings it overrides, and how it is probed."""

    settings: dg.ResourceDependency[SettingsResource]

    @abstractmethod
    def apply(self, settings: Settings) -> Settings:
        """Return the settings with this part's overrides."""

    @abstractmethod
    def probe(self) -> float:
        """Do a small piece of the part's real work; return how long it took, in ms.

        Raises:
            MarketPipelineError: the typed error of a part that cannot do its work.
        """


class VendorResource(_Part):
    """The market data vendor's REST API."""

    base_url: str = Field(default="", description="Address instead of the one in the settings")

    def apply(self, settings: Settings) -> Settings:
        """Return the settings with this part's overrides."""
        return settings.model_copy(update={"vendor": _overridden(settings.vendor, base_url=self.base_url)})

    def probe(self) -> float:
        """Ask the vendor for something small; return how long it took, in ms."""
        from market_pipeline import history

        return history.probe_all(platform_settings(self))["vendor"]


class BusResource(_Part):
    """NATS JetStream, through which every bar goes."""

    url: str = Field(default="", description="Address instead of the one in the settings: nats://host:port")

    def apply(self, settings: Settings) -> Settings:
        """Return the settings with this part's overrides."""
        return settings.model_copy(update={"nats": _overridden(settings.nats, url=self.url)})

    def probe(self) -> float:
        """Publish to JetStream and fetch; return how long it took, in ms."""
        from market_pipeline.bus.connection import connect, probe

        nats = platform_settings(self).nats

        async def run() -> float:
            client = await connect(nats, "dagster probe")
            try:
                started = time.perf_counter()
                await probe(client)
                return (time.perf_counter() - started) * 1000
            finally:
                await client.close()

        return asyncio.run(run())

    def with_dead_letters(self, work: Callable[["DeadLetterBox"], Awaitable[Answer]]) -> Answer:
        """Do something with the dead letters; return what it returns."""
        from market_pipeline.bus.dead_letter_box import DeadLetterBox
        from market_pipeline.bus.session import open_bus

        nats = platform_settings(self).nats

        async def run() -> Answer:
            async with open_bus(nats, "dagster dead letters") as bus:
                return await work(DeadLetterBox(bus))

        return asyncio.run(run())

    def unread_letters(self) -> "Unread":
        """Count the dead letters that nobody has read."""
        return self.with_dead_letters(lambda box: box.unread())


class StoresResource(_Part):
    """ClickHouse, where every bar ends up, with its ledgers."""

    host: str = Field(default="", description="Host instead of the one in the settings")
    port: int = Field(default=0, description="HTTP port instead of the one in the settings; 0: as in the settings")
    database: str = Field(default="", description="Database instead of the one in the settings")

    def apply(self, settings: Settings) -> Settings:
        """Return the settings with this part's overrides."""
        changed = _overridden(settings.clickhouse, host=self.host, port=self.port, database=self.database)
        return settings.model_copy(update={"clickhouse": changed})

    def probe(self) -> float:
        """Write a row and read it back; return how long it took, in ms."""
        from market_pipeline.stores.clickhouse import connect, probe

        client = connect(platform_settings(self).clickhouse)
        try:
            started = time.perf_counter()
            probe(client)
            return (time.perf_counter() - started) * 1000
        finally:
            client.close()

    @contextmanager
    def open(self) -> Iterator["Stores"]:
        """Open the stores, with the schema brought up to date."""
        from market_pipeline.stores import open_stores

        with open_stores(platform_settings(self)) as stores:
            yield stores


def platform_settings(*parts: _Part) -> Settings:
    """Return the settings with the overrides of the parts, which share one settings resource.

    Raises:
        SettingsError: a value is wrong.
    """
    settings = parts[0].settings.load()
    for part in parts:
        settings = part.apply(settings)
    return settings


def default_resources() -> dict[str, Any]:
    """Return the resources of a stack that is found by the environment."""
    settings = SettingsResource()
    return {
        "settings": settings,
        "vendor": VendorResource(settings=settings),
        "bus": BusResource(settings=settings),
        "stores": StoresResource(settings=settings),
    }


def _overridden(section: Section, **values: object) -> Section:
    """Return a section of the settings with those values that are set, validated."""
    given = {name: value for name, value in values.items() if value}
    return type(section).model_validate({**dict(section), **given}) if given else section
