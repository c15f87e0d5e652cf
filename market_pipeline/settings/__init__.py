"""One tree of settings.

Each value comes from, first wins: an argument, the environment (`MARKET_PIPELINE_CLICKHOUSE__PORT=…`),
the file `<home>/settings.json` that the local stack writes (mode 0600), the default. Secrets are `SecretStr`.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from pydantic import ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from market_pipeline.errors import SettingsError
from market_pipeline.settings.data import PRECEDENCE, HistorySettings, LiveSettings
from market_pipeline.settings.outages import BreakerSettings, SpoolSettings, ThrottleSettings
from market_pipeline.settings.servers import ClickHouseSettings, DagsterSettings, NatsSettings, PostgresSettings
from market_pipeline.settings.vendor import VENDOR_HOSTS, StreamSettings, VendorSettings, is_loopback

__all__ = [
    "ENV_PREFIX",
    "POLYGON_KEY",
    "PRECEDENCE",
    "SETTINGS_FILE",
    "VENDOR_HOSTS",
    "BreakerSettings",
    "ClickHouseSettings",
    "DagsterSettings",
    "HistorySettings",
    "LiveSettings",
    "NatsSettings",
    "PostgresSettings",
    "Settings",
    "SpoolSettings",
    "StreamSettings",
    "ThrottleSettings",
    "VendorSettings",
    "is_loopback",
    "load_settings",
]

ENV_PREFIX = "MARKET_PIPELINE_"
SETTINGS_FILE = "settings.json"
POLYGON_KEY = "POLYGON_API_KEY"


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
