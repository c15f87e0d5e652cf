"""One tree of settings.

Each value comes from, first wins: an argument, the environment (`MARKET_PIPELINE_CLICKHOUSE__PORT=…`),
the file `<home>/settings.json` that the local stack writes (mode 0600), the default. Secrets are `SecretStr`.
"""

from __future__ import annotations

import json
import os
import stat
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from market_pipeline.errors import SettingsError

ENV_PREFIX = "MARKET_PIPELINE_"
SETTINGS_FILE = "settings.json"
POLYGON_KEY = "POLYGON_API_KEY"
VENDOR_HOSTS = ("api.polygon.io", "api.massive.com")
# market.bars.MINUTE_SOURCES, highest first: not imported, since who only reads settings should not wait for polars
PRECEDENCE = ("live_aggregated", "live_gap_filled", "historical_aggregated", "vendor_historical")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ClickHouseSettings(_Section):
    """Where ClickHouse answers on its HTTP interface."""

    host: str = "127.0.0.1"
    port: int = 8123
    user: str = "default"
    password: SecretStr = SecretStr("")
    database: str = Field(default="market", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    secure: bool = False
    connect_timeout: float = 5.0
    request_timeout: float = 120.0


class NatsSettings(_Section):
    """Where NATS with JetStream answers."""

    url: str = "nats://127.0.0.1:4222"
    user: str = ""
    password: SecretStr = SecretStr("")
    connect_timeout: float = 5.0
    replicas: int = Field(default=1, ge=1, le=5)


class PostgresSettings(_Section):
    """Where PostgreSQL (TimescaleDB) answers; `host` may be the folder of a unix socket."""

    host: str = "127.0.0.1"
    port: int = 5432
    user: str = "market"
    password: SecretStr = SecretStr("")
    database: str = "market"
    sslmode: str = "prefer"


class VendorSettings(_Section):
    """The market data vendor: Polygon.io, now Massive, or the simulator that speaks like it.

    max_clock_ahead_s: answers are refused while this machine's clock is further ahead of the vendor's: a bar would be
    taken as settled before it is.
    """

    base_url: str = "https://api.polygon.io"
    api_key: SecretStr = SecretStr("")
    plan: Literal["free", "paid"] = "free"
    requests_per_minute: int | None = Field(default=None, ge=1, le=6000)
    rate_window_s: float = Field(default=60.0, gt=0)
    extra_hosts: tuple[str, ...] = ()
    timeout_s: float = Field(default=30.0, gt=0)
    max_attempts: int = Field(default=6, ge=1, le=20)
    backoff_initial_s: float = Field(default=0.5, ge=0)
    backoff_max_s: float = Field(default=30.0, ge=0)
    page_limit: int = Field(default=50_000, ge=1, le=50_000)
    max_clock_ahead_s: float = Field(default=10.0, ge=1.0)

    @field_validator("base_url")
    @classmethod
    def _url(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError(f"{value!r} is not an http(s) address")
        if parts.username or parts.password or parts.query:
            raise ValueError("the address must not carry a user, a password or a query: set api_key instead")
        return value.rstrip("/")

    @property
    def rate(self) -> int:
        """Requests allowed in one `rate_window_s`: the explicit setting, else the plan's."""
        if self.requests_per_minute is not None:
            return self.requests_per_minute
        return 5 if self.plan == "free" else 6000

    @property
    def allowed_hosts(self) -> frozenset[str]:
        """Host names, with the port where one is given, to which a `next_url` may lead."""
        return frozenset({urlsplit(self.base_url).netloc, *VENDOR_HOSTS, *self.extra_hosts})


class HistorySettings(_Section):
    """How history is loaded, settled and repaired, and which source of a minute wins.

    precedence: the four sources of minutes, highest first: of complete bars of one minute the first of them wins. The
    views of the store follow it at once, without a row being written; bars of 5m and more follow when they are
    materialized again. Every process of a stack must have the same: the last one to start decides.
    """

    settle: timedelta = timedelta(minutes=5)
    lateness: timedelta = timedelta(minutes=10)
    max_unresolved_batches: int = Field(default=64, ge=1, le=1024)
    symbols_at_once: int = Field(default=2, ge=1, le=64)
    drain_timeout_s: float = Field(default=120.0, gt=0)
    gap_attempts: int = Field(default=2, ge=1)
    precedence: tuple[str, ...] = PRECEDENCE

    @field_validator("precedence")
    @classmethod
    def _precedence(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if sorted(value) != sorted(PRECEDENCE):
            wrong = {
                "missing": [name for name in PRECEDENCE if name not in value],
                "unknown": sorted({name for name in value if name not in PRECEDENCE}),
                "named twice": [name for name in PRECEDENCE if value.count(name) > 1],
            }
            said = "; ".join(f"{what}: {', '.join(names)}" for what, names in wrong.items() if names)
            raise ValueError(f"name each of {', '.join(PRECEDENCE)} once, the highest first ({said})")
        return value


class StreamSettings(_Section):
    """How live quotes and trades are collected.

    url: ws or wss address of the vendor's streams; empty: derived from `vendor.base_url`.
    separator: between the currencies of a pair when subscribing; both are understood in what arrives.
    silence_s: without data for so long, in market hours, a connection is given up.
    cooldown_s: after the vendor said that the key has a connection already.
    stable_s: life of a connection after which the pauses between attempts begin small again.
    queue: ticks that wait in memory at most; more are dropped, counted, and their interval is recorded as lost.
    batch_ms, batch_ticks: a micro-batch is published after so long, or with so many ticks.
    heartbeat_s: the longest pause between two batches of a symbol while its market is open.
    lease_ttl_s: after so long without a sign of life another collector takes over.
    """

    url: str = ""
    separator: Literal["/", "-"] = "/"
    silence_s: float = Field(default=20.0, gt=0)
    cooldown_s: float = Field(default=60.0, ge=0)
    stable_s: float = Field(default=10.0, ge=0)
    handshake_timeout_s: float = Field(default=10.0, gt=0)
    ack_timeout_s: float = Field(default=10.0, gt=0)
    backoff_initial_s: float = Field(default=0.5, gt=0)
    backoff_max_s: float = Field(default=30.0, gt=0)
    queue: int = Field(default=65_536, ge=1)
    batch_ms: float = Field(default=50.0, ge=0, le=1000)
    batch_ticks: int = Field(default=256, ge=1, le=4096)
    heartbeat_s: float = Field(default=1.0, gt=0)
    lease_ttl_s: float = Field(default=10.0, ge=1)

    @field_validator("url")
    @classmethod
    def _url(cls, value: str) -> str:
        parts = urlsplit(value)
        if value and (parts.scheme not in {"ws", "wss"} or not parts.hostname):
            raise ValueError(f"{value!r} is not a ws(s) address")
        if parts.username or parts.password or parts.query:
            raise ValueError("the address must not carry a user, a password or a query: set vendor.api_key instead")
        return value.rstrip("/")


class LiveSettings(_Section):
    """How live ticks become bars, and how live time is joined to history.

    symbols: of the instruments that are streamed, in any form; empty: all.
    delay: a window closes when everything up to so long after its end has come.
    lateness: so long after its end a window takes late ticks, each of which reissues its bars.
    ahead: ticks whose time lies so far ahead of their arrival make no bar.
    silent_s: without a batch of a symbol for so long, its bars under way come out unproven.
    derive_wait: so long after its end a window of 5m and more is derived.
    look_back: at the start so much time is derived, and searched for gaps, again.
    repair_every_s: pause between two looks for minutes that live time lacks.
    report_every_s: pause between two materializations of the running day.
    ticks_kept_days: days of ticks in the tick store; None: all.
    unhealthy_after_s: input that waits for so long without output makes a service unhealthy.
    price_tolerance, volume_tolerance: relative differences from the vendor's minute that reconciliation lets pass.
    """

    symbols: tuple[str, ...] = ()
    delay: timedelta = timedelta(0)
    lateness: timedelta = timedelta(minutes=2)
    ahead: timedelta = timedelta(minutes=1)
    silent_s: float = Field(default=15.0, gt=0)
    derive_wait: timedelta = timedelta(seconds=3)
    look_back: timedelta = timedelta(days=2)
    repair_every_s: float = Field(default=30.0, gt=0)
    report_every_s: float = Field(default=900.0, ge=5)
    ticks_kept_days: int | None = Field(default=30, ge=3)
    unhealthy_after_s: float = Field(default=30.0, gt=0)
    price_tolerance: float = Field(default=0.0, ge=0)
    volume_tolerance: float = Field(default=0.0, ge=0)


class BreakerSettings(_Section):
    """When an edge (publish, insert, tick write, vendor) stops asking a server that is away.

    failures: so many in a row open the breaker; so does a share of `failure_rate` among at least `min_calls` calls of
    the last `window_s`. open_s: it stays open; then `trials` calls at once may try.
    """

    failures: int = Field(default=5, ge=1)
    failure_rate: float = Field(default=0.5, gt=0, le=1)
    min_calls: int = Field(default=20, ge=1)
    window_s: float = Field(default=60.0, gt=0)
    open_s: float = Field(default=60.0, gt=0)
    trials: int = Field(default=1, ge=1)


class SpoolSettings(_Section):
    """Where batches wait on disk while NATS is unreachable.

    folder: default `<home>/spool`. max_bytes: of all folders together. min_free_bytes: of the disk, left to others.
    full: `stop` makes the producer wait with a clear error; `oldest` gives up the oldest batches of live ticks, counts
    them and records their time as lost. wait_s: a historical run waits so long for its spool to drain, then fails.
    """

    folder: Path | None = None
    max_bytes: int = Field(default=5 * 1024**3, ge=1024**2)
    min_free_bytes: int = Field(default=512 * 1024**2, ge=0)
    segment_bytes: int = Field(default=16 * 1024**2, ge=64 * 1024)
    full: Literal["stop", "oldest"] = "stop"
    wait_s: float = Field(default=120.0, gt=0)


class ThrottleSettings(_Section):
    """When historical loads are slowed down for the bridge's sake.

    lag_s: age of the oldest unacknowledged message at which a limit is set; release_s: at which it is lifted.
    batches_per_s: the limit. expiry_s: it lapses after so long without being renewed. every_s: between two looks.
    """

    lag_s: float = Field(default=30.0, gt=0)
    release_s: float = Field(default=10.0, ge=0)
    batches_per_s: float = Field(default=2.0, gt=0)
    expiry_s: float = Field(default=15.0, gt=0)
    every_s: float = Field(default=2.0, gt=0)


class DagsterSettings(_Section):
    """Where Dagster keeps its runs and events, for messages only: Dagster itself reads dagster.yaml."""

    webserver_url: str = ""


class Settings(BaseSettings):
    """Everything that can be set, as one tree."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        extra="ignore",
        frozen=True,
        nested_model_default_partial_update=True,
    )

    home: Path = Path(".market_pipeline")
    instruments_file: Path | None = None
    clickhouse: ClickHouseSettings = ClickHouseSettings()
    nats: NatsSettings = NatsSettings()
    postgres: PostgresSettings = PostgresSettings()
    vendor: VendorSettings = VendorSettings()
    history: HistorySettings = HistorySettings()
    stream: StreamSettings = StreamSettings()
    live: LiveSettings = LiveSettings()
    breaker: BreakerSettings = BreakerSettings()
    spool: SpoolSettings = SpoolSettings()
    throttle: ThrottleSettings = ThrottleSettings()
    dagster: DagsterSettings = DagsterSettings()

    @model_validator(mode="before")
    @classmethod
    def _polygon_key(cls, data: Any) -> Any:
        """Take the vendor's own variable: with POLYGON_API_KEY alone the real service is used, never the simulator."""
        key = os.environ.get(POLYGON_KEY)
        if key and isinstance(data, dict) and f"{ENV_PREFIX}VENDOR__API_KEY" not in os.environ:
            data = {**data, "vendor": {**(data.get("vendor") or {}), "api_key": key}}
        return data

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings, env_settings, _HomeFile(settings_cls, init_settings))


class _HomeFile(PydanticBaseSettingsSource):
    """Read `<home>/settings.json`; refuse a file with secrets that others can read."""

    def __init__(self, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource) -> None:
        super().__init__(settings_cls)
        given = init_settings().get("home") or os.environ.get(f"{ENV_PREFIX}HOME") or ".market_pipeline"
        self._file = Path(given) / SETTINGS_FILE

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        try:
            mode = self._file.stat().st_mode
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise SettingsError(f"cannot read {self._file}: {error.strerror}") from error
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise SettingsError(f"{self._file} holds passwords and must be private: chmod 600 {self._file}")
        try:
            data = json.loads(self._file.read_text())
        except PermissionError as error:
            raise SettingsError(f"{self._file} belongs to another user: run as its owner") from error
        except ValueError as error:
            raise SettingsError(
                f"{self._file} is not JSON ({error}): run `market-pipeline up` to write it again"
            ) from error
        if not isinstance(data, dict):
            raise SettingsError(f"{self._file} must hold an object: run `market-pipeline up` to write it again")
        if os.environ.get(POLYGON_KEY):
            data.pop("vendor", None)  # the file's is the simulator: neither its address nor its plan is the real one's
        return data


def load_settings(home: Path | str | None = None) -> Settings:
    """Load the settings of the stack in `home` (default: `MARKET_PIPELINE_HOME`, else `./.market_pipeline`).

    Raises:
        SettingsError: a value is wrong; the message names every wrong setting and its environment variable.
    """
    try:
        settings = Settings(home=Path(home)) if home is not None else Settings()
    except ValidationError as error:
        lines = []
        for item in error.errors(include_url=False, include_input=False):
            name = ".".join(str(part) for part in item["loc"])
            variable = ENV_PREFIX + "__".join(str(part).upper() for part in item["loc"])
            lines.append(f"{name}: {item['msg']} (set {variable} or mend {SETTINGS_FILE})")
        raise SettingsError("; ".join(lines)) from None
    except SettingsError:
        raise
    except ValueError as error:  # an environment variable that holds broken JSON
        raise SettingsError(str(error)) from None
    return settings.model_copy(update={"home": settings.home.expanduser().absolute()})
