"""Generated passwords: one file each, private, made once and kept."""

from __future__ import annotations

import secrets

from market_pipeline.local.layout import PRIVATE_FILE, Home, write_private

NATS = "nats"
CLICKHOUSE = "clickhouse"
POSTGRES_MARKET = "postgres_market"
POSTGRES_DAGSTER = "postgres_dagster"
SIMULATOR_KEY = "simulator_api_key"
SIMULATOR_CONTROL = "simulator_control_token"
ALL = (NATS, CLICKHOUSE, POSTGRES_MARKET, POSTGRES_DAGSTER, SIMULATOR_KEY, SIMULATOR_CONTROL)


def ensure_passwords(home: Home) -> dict[str, str]:
    """Read every password of the stack, making the ones that are missing; name -> password."""
    return {name: _ensure(home, name) for name in ALL}


def _ensure(home: Home, name: str) -> str:
    path = home.secrets / name
    if path.exists():
        path.chmod(PRIVATE_FILE)
        text = path.read_text().strip()
        if text:
            return text
    password = secrets.token_urlsafe(24)
    write_private(path, password)
    return password
