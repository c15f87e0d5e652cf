"""What others read to find a stack: settings.json, .env, dagster.yaml."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from market_pipeline.errors import LocalStackError
from market_pipeline.local import environment, passwords, ports
from market_pipeline.local.layout import Home
from market_pipeline.local.locks import Lock

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.delenv("POLYGON_API_KEY", raising=False)
    home = Home.at(tmp_path / "home")
    home.create()
    return home


def variables(home: Home) -> dict[str, str]:
    return environment.dagster_variables(home, ports.ensure_ports(home), passwords.ensure_passwords(home))


def test_settings_reach_the_stack_and_its_simulator(home: Home) -> None:
    chosen, secrets = ports.ensure_ports(home), passwords.ensure_passwords(home)
    settings = environment.write_settings(home, chosen, secrets)
    assert settings.clickhouse.port == chosen["clickhouse"]
    assert settings.nats.url.endswith(f":{chosen['nats']}")
    assert settings.postgres.password.get_secret_value() == secrets[passwords.POSTGRES_MARKET]
    assert settings.vendor.base_url.endswith(f":{chosen['simulator']}")
    assert settings.vendor.plan == "paid"
    assert home.settings_file.stat().st_mode & 0o777 == 0o600


def test_with_a_real_key_the_vendor_is_the_real_one(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYGON_API_KEY", "real-key")
    settings = environment.write_settings(home, ports.ensure_ports(home), passwords.ensure_passwords(home))
    assert settings.vendor.base_url == "https://api.polygon.io"
    assert settings.vendor.api_key.get_secret_value() == "real-key"
    assert "real-key" not in home.settings_file.read_text()
    assert "vendor" not in json.loads(home.settings_file.read_text())


def test_dotenv_holds_what_dagster_needs_and_no_key(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POLYGON_API_KEY", "real-key")
    environment.write_dotenv(tmp_path, home, variables(home))
    path = tmp_path / ".env"
    assert path.stat().st_mode & 0o777 == 0o600
    names = [line.partition("=")[0] for line in path.read_text().splitlines() if not line.startswith("#")]
    assert sorted(names) == [
        "DAGSTER_EMIT_PARTITION_SUBSET_IN_PLANNED_EVENTS",
        "DAGSTER_EVENT_BATCH_SIZE",
        "DAGSTER_HOME",
        "MARKET_PIPELINE_DAGSTER_POSTGRES_URL",
        "MARKET_PIPELINE_HOME",
    ]
    assert "real-key" not in path.read_text()


def test_dotenv_keeps_foreign_lines_and_is_stable(home: Home, tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_text("# mine\nEDITOR=vi\nexport DAGSTER_HOME=/elsewhere\n")
    environment.write_dotenv(tmp_path, home, variables(home))
    once = path.read_text()
    environment.write_dotenv(tmp_path, home, variables(home))
    assert path.read_text() == once
    assert once.startswith("# mine\nEDITOR=vi\n")
    assert "/elsewhere" not in once


def test_dotenv_of_another_running_stack_is_not_taken(home: Home, tmp_path: Path) -> None:
    other = Home.at(tmp_path / "other")
    other.create()
    environment.write_dotenv(tmp_path, other, variables(other))
    with Lock(other.lock("supervisor")) as running:
        assert running.take()
        with pytest.raises(LocalStackError, match="belongs to the stack in"):
            environment.write_dotenv(tmp_path, home, variables(home))
    environment.write_dotenv(tmp_path, home, variables(home))
    assert str(home.root) in (tmp_path / ".env").read_text()


def test_a_stack_takes_back_its_own_lines_of_dotenv_only(home: Home, tmp_path: Path) -> None:
    path = tmp_path / ".env"
    assert not environment.clear_dotenv(tmp_path, home)
    environment.write_dotenv(tmp_path, home, variables(home))
    assert environment.clear_dotenv(tmp_path, home)
    assert not path.exists()
    path.write_text("# mine\nEDITOR=vi\n")
    environment.write_dotenv(tmp_path, home, variables(home))
    other = Home.at(tmp_path / "other")
    before = path.read_text()
    assert not environment.clear_dotenv(tmp_path, other)
    assert path.read_text() == before
    assert environment.clear_dotenv(tmp_path, home)
    assert path.read_text() == "# mine\nEDITOR=vi\n"
    assert path.stat().st_mode & 0o777 == 0o600


def test_dagster_yaml_leaves_a_slot_for_live_ingestion(home: Home) -> None:
    environment.install_dagster_yaml(home, None)
    instance = yaml.safe_load((home.dagster_home / "dagster.yaml").read_text())
    assert instance["storage"]["postgres"]["postgres_url"] == {"env": environment.POSTGRES_URL}
    concurrency = instance["concurrency"]
    assert concurrency["pools"]["default_limit"] < concurrency["runs"]["max_concurrent_runs"]
    assert concurrency["pools"]["granularity"] == "run"
    assert instance["telemetry"] == {"enabled": False}


def test_workspace_points_at_the_definitions() -> None:
    location = yaml.safe_load((ROOT / "workspace.yaml").read_text())["load_from"][0]["python_module"]
    assert location == {"module_name": "market_pipeline.definitions", "location_name": "market_pipeline.definitions"}
