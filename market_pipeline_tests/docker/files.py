"""The Compose files as Compose would see them: merged, with their variables filled in."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text()
FILES = {"single": ["compose.yaml"], "cluster": ["compose.yaml", "compose.cluster.yaml"]}
# ${NAME}, ${NAME:-default}, ${NAME:?message}: what the Compose files use of Compose's syntax.
VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?::(?P<kind>[-?])(?P<text>[^}]*))?\}")
SECRET = re.compile(r"PASSWORD|KEY|SECRET|TOKEN")
PASSWORD = "1234567890"  # a number to nats.conf, were it not quoted

Service = dict[str, Any]


def compose(kind: str) -> dict[str, Any]:
    """Return the project `single` or `cluster`."""
    merged: dict[str, Any] = {}
    for name in FILES[kind]:
        merged = _merged(merged, yaml.safe_load((DOCKER / name).read_text()), ())
    return merged


def services(kind: str = "single") -> dict[str, Service]:
    """Return the services of a project."""
    found: dict[str, Service] = compose(kind)["services"]
    return found


def live_services(kind: str = "single") -> dict[str, Service]:
    """Return the services that the profile `live` starts."""
    return {name: spec for name, spec in services(kind).items() if "live" in spec.get("profiles", [])}


def mounts(spec: Service) -> dict[str, str]:
    """Return what is mounted, by the place where: a file or the name of a volume."""
    return {volume.split(":")[1]: volume.split(":")[0] for volume in spec.get("volumes", [])}


def environment(service: str, kind: str = "single") -> dict[str, str]:
    """Return what a service's processes see when every secret in .env is PASSWORD."""
    variables = {name: value or PASSWORD for name, value in example().items()}
    given = services(kind)[service].get("environment", {})
    return {name: interpolate(value, variables) for name, value in given.items()}


def example() -> dict[str, str]:
    """Return .env.example."""
    lines = (DOCKER / ".env.example").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def interpolate(value: object, variables: dict[str, str]) -> str:
    """Replace ${...} as Compose does; a missing variable that must be set raises KeyError."""

    def replaced(found: re.Match[str]) -> str:
        if given := variables.get(found["name"]):
            return given
        if found["kind"] == "?":
            raise KeyError(found["name"])
        return found["text"] or ""

    return VARIABLE.sub(replaced, str(value))


def _merged(below: Any, above: Any, path: tuple[str, ...]) -> Any:
    """Merge as Compose does: mappings by key, volumes by place; a command or a test is replaced."""
    if isinstance(below, dict) and isinstance(above, dict):
        names = [*below, *(name for name in above if name not in below)]
        return {
            name: _merged(below[name], above[name], (*path, name))
            if name in below and name in above
            else below.get(name, above.get(name))
            for name in names
        }
    if isinstance(below, list) and path[-1] == "volumes":
        return list({volume.split(":")[1]: volume for volume in [*below, *above]}.values())
    assert not isinstance(below, list) or path[-1] in {"command", "test"}, f"how does Compose merge {path}?"
    return above
