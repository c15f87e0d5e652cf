"""What others read to find the stack: settings.json, .env, DAGSTER_HOME/dagster.yaml."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from market_pipeline.errors import LocalStackError
from market_pipeline.file_locks import is_held
from market_pipeline.local import passwords
from market_pipeline.local.layout import Home, write_private
from market_pipeline.local.ports import LOOPBACK
from market_pipeline.settings import POLYGON_KEY, Settings, load_settings

POSTGRES_URL = "MARKET_PIPELINE_DAGSTER_POSTGRES_URL"
HOME_VARIABLE = "MARKET_PIPELINE_HOME"
WORKSPACE = "workspace.yaml"
DAGSTER_YAML = "dagster.yaml"
# Without both, Dagster writes 25-30 events a second for a ranged run; with both, 1,450-1,820.
EVENT_SWITCHES = {"DAGSTER_EVENT_BATCH_SIZE": "1000", "DAGSTER_EMIT_PARTITION_SUBSET_IN_PLANNED_EVENTS": "1"}
_NOTE = "# The next lines are market-pipeline's: `market-pipeline up` rewrites them. No vendor key belongs here."


def write_settings(home: Home, ports: dict[str, int], secrets: dict[str, str]) -> Settings:
    """Write `<home>/settings.json` (0600), in the shape of the Settings tree, and return what others load from it.

    Without POLYGON_API_KEY the vendor is the simulator.
    """
    tree: dict[str, Any] = {
        "clickhouse": {"host": LOOPBACK, "port": ports["clickhouse"], "password": secrets[passwords.CLICKHOUSE]},
        "nats": {
            "url": f"nats://{LOOPBACK}:{ports['nats']}",
            "user": "market",
            "password": secrets[passwords.NATS],
        },
        "postgres": {
            "host": LOOPBACK,
            "port": ports["postgres"],
            "user": "market",
            "password": secrets[passwords.POSTGRES_MARKET],
            "database": "market",
            "sslmode": "disable",
        },
        "dagster": {"webserver_url": f"http://{LOOPBACK}:{ports['dagster-webserver']}"},
    }
    if not os.environ.get(POLYGON_KEY):
        tree["vendor"] = {
            "base_url": f"http://{LOOPBACK}:{ports['simulator']}",
            "api_key": secrets[passwords.SIMULATOR_KEY],
            "plan": "paid",
        }
    write_private(home.settings_file, json.dumps(tree, indent=2) + "\n")
    return load_settings(home.root)


def dagster_variables(home: Home, ports: dict[str, int], secrets: dict[str, str]) -> dict[str, str]:
    """Return the variables with which any Dagster process finds this stack."""
    password = secrets[passwords.POSTGRES_DAGSTER]
    return {
        "DAGSTER_HOME": str(home.dagster_home),
        HOME_VARIABLE: str(home.root),
        POSTGRES_URL: f"postgresql+psycopg2://dagster:{password}@{LOOPBACK}:{ports['postgres']}/dagster",
        **EVENT_SWITCHES,
    }


def write_dotenv(folder: Path, home: Home, variables: dict[str, str]) -> None:
    """Put the stack's variables into `<folder>/.env` (0600), keeping every other line.

    Raises:
        LocalStackError: the file points at another stack that is running.
    """
    path = folder / ".env"
    lines = path.read_text().splitlines() if path.exists() else []
    other = _home_of(lines)
    if other and Path(other) != home.root and is_held(Home(Path(other)).lock("supervisor")):
        raise LocalStackError(
            f"{path} belongs to the stack in {other}, which is running: stop that one first, or start this one from "
            "another folder (or with --project-dir)"
        )
    kept = [line for line in lines if line != _NOTE and _variable(line) not in variables]
    ours = [_NOTE, *(f"{name}={value}" for name, value in variables.items())]
    write_private(path, "\n".join([*kept, *ours]) + "\n")


def clear_dotenv(folder: Path, home: Home) -> bool:
    """Take the stack's variables out of `<folder>/.env` and tell whether there were any; other lines stay.

    A file that names another stack is left alone, one of which nothing is left is removed.
    """
    path = folder / ".env"
    lines = path.read_text().splitlines() if path.exists() else []
    if _home_of(lines) != str(home.root):
        return False
    ours = {"DAGSTER_HOME", HOME_VARIABLE, POSTGRES_URL, *EVENT_SWITCHES}
    kept = [line for line in lines if line != _NOTE and _variable(line) not in ours]
    if kept:
        write_private(path, "\n".join(kept) + "\n")
    else:
        path.unlink()
    return True


def install_dagster_yaml(home: Home, project_dir: Path | None) -> None:
    """Copy dagster.yaml into DAGSTER_HOME: the project's own, else the one that comes with the package."""
    package = Path(__file__).resolve().parent
    candidates = [package / DAGSTER_YAML, package.parents[1] / DAGSTER_YAML]
    if project_dir is not None:
        candidates.insert(0, project_dir / DAGSTER_YAML)
    for candidate in candidates:
        if candidate.exists():
            write_private(home.dagster_home / DAGSTER_YAML, candidate.read_text())
            return
    raise LocalStackError(f"{DAGSTER_YAML} is missing beside {WORKSPACE}: start the stack in the project's folder")


def project_folder(given: Path | None) -> Path | None:
    """Return the folder that gets the .env: the one given, else the current one if it holds workspace.yaml."""
    if given is not None:
        if not given.is_dir():
            raise LocalStackError(f"the project folder {given} does not exist")
        return given.resolve()
    return Path.cwd() if (Path.cwd() / WORKSPACE).exists() else None


def _home_of(lines: list[str]) -> str:
    """Return the folder of the stack that the lines of a .env name, "" if they name none."""
    return next((line.partition("=")[2].strip() for line in lines if line.startswith(f"{HOME_VARIABLE}=")), "")


def _variable(line: str) -> str:
    name = line.partition("=")[0].strip()
    return name.removeprefix("export ").strip()
