"""Where the servers answer."""

from __future__ import annotations

from pydantic import Field, SecretStr

from market_pipeline.settings.section import Section


class ClickHouseSettings(Section):
    """Where ClickHouse answers on its HTTP interface."""

    host: str = "127.0.0.1"
    port: int = 8123
    user: str = "default"
    password: SecretStr = SecretStr("")
    database: str = Field(default="market", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    secure: bool = False
    connect_timeout: float = 5.0
    request_timeout: float = 120.0


class NatsSettings(Section):
    """Where NATS with JetStream answers."""

    url: str = "nats://127.0.0.1:4222"
    user: str = ""
    password: SecretStr = SecretStr("")
    connect_timeout: float = 5.0
    replicas: int = Field(default=1, ge=1, le=5)


class PostgresSettings(Section):
    """Where PostgreSQL (TimescaleDB) answers; `host` may be the folder of a unix socket."""

    host: str = "127.0.0.1"
    port: int = 5432
    user: str = "market"
    password: SecretStr = SecretStr("")
    database: str = "market"
    sslmode: str = "prefer"


class DagsterSettings(Section):
    """Where Dagster keeps its runs and events, for messages only: Dagster itself reads dagster.yaml."""

    webserver_url: str = ""
