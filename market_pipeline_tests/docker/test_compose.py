"""The files in docker/, as far as they can be checked without a Docker engine."""

from __future__ import annotations

import asyncio
import json
import os
import re
import runpy
import subprocess
import sysconfig
import threading
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.request import urlopen
from xml.etree import ElementTree

import nats
import pytest
import yaml
from pydantic import BaseModel

from market_pipeline.bus.streams import storage_needed
from market_pipeline.local.environment import EVENT_SWITCHES
from market_pipeline.settings import ENV_PREFIX, POLYGON_KEY, Settings, load_settings
from market_pipeline.stores.migrations import render
from market_pipeline_tests.servers import die_with_parent

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "docker"
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILE = (DOCKER / "Dockerfile").read_text()
# ${NAME}, ${NAME:-default}, ${NAME:?message}: what the compose file uses of Compose's syntax.
VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?::(?P<kind>[-?])(?P<text>[^}]*))?\}")
SECRET = re.compile(r"PASSWORD|KEY|SECRET|TOKEN")
PASSWORD = "1234567890"  # a number to nats.conf, were it not quoted


def interpolate(value: object, variables: dict[str, str]) -> str:
    """Replace ${...} as Compose does; a missing variable that must be set raises KeyError."""

    def replaced(found: re.Match[str]) -> str:
        if given := variables.get(found["name"]):
            return given
        if found["kind"] == "?":
            raise KeyError(found["name"])
        return found["text"] or ""

    return VARIABLE.sub(replaced, str(value))


def example() -> dict[str, str]:
    lines = (DOCKER / ".env.example").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def environment(service: str) -> dict[str, str]:
    """Return what a service's processes see when every secret in .env is PASSWORD."""
    variables = {name: value or PASSWORD for name, value in example().items()}
    return {name: interpolate(value, variables) for name, value in SERVICES[service].get("environment", {}).items()}


def is_setting(variable: str) -> bool:
    model: type[BaseModel] = Settings
    *sections, leaf = variable.removeprefix(ENV_PREFIX).lower().split("__")
    for section in sections:
        inner = model.model_fields[section].annotation if section in model.model_fields else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return False
        model = inner
    return leaf in model.model_fields


# ---------------------------------------------------------------- settings and secrets


def test_every_variable_of_ours_is_a_setting() -> None:
    texts = [path.read_text() for path in DOCKER.rglob("*") if path.is_file() and path.name != ".env"]
    named = set(re.findall(rf"\b{ENV_PREFIX}[A-Z0-9_]+", "\n".join(texts)))
    assert len(named) > 10
    assert {name for name in named if not is_setting(name)} == set()
    assert not is_setting(f"{ENV_PREFIX}CLICKHOUSE__HOSTNAME")
    assert not is_setting(f"{ENV_PREFIX}STORE__HOST")


def test_settings_load_from_the_code_servers_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith(ENV_PREFIX) or name == POLYGON_KEY:
            monkeypatch.delenv(name)
    for name, value in environment("code").items():
        monkeypatch.setenv(name, value)
    settings = load_settings(tmp_path)
    assert settings.vendor.api_key.get_secret_value() == PASSWORD
    assert settings.vendor.base_url == "https://api.polygon.io"
    for section in (settings.clickhouse, settings.nats, settings.postgres):
        assert section.password.get_secret_value() == PASSWORD
    assert settings.clickhouse.host in SERVICES
    assert settings.postgres.host in SERVICES
    assert re.fullmatch(r"nats://(\w+):4222", settings.nats.url)[1] in SERVICES  # type: ignore[index]


def test_secrets_come_only_from_the_environment_and_must_be_set() -> None:
    for service, spec in SERVICES.items():
        for name, value in spec.get("environment", {}).items():
            if SECRET.search(name):
                found = VARIABLE.fullmatch(str(value).strip('"'))
                assert found, f"{service}: {name} is written down"
                assert found["kind"] == "?", f"{service}: {name} may be empty"
    assert {name for name, value in example().items() if SECRET.search(name) and value} == set()


def test_the_example_names_exactly_what_the_compose_file_asks_for() -> None:
    used = {found["name"] for found in VARIABLE.finditer((DOCKER / "compose.yaml").read_text())}
    assert used == set(example())


def test_only_the_code_server_gets_the_vendor_key_and_the_stores() -> None:
    assert [name for name in SERVICES if POLYGON_KEY in environment(name)] == ["code"]
    for name in ("webserver", "daemon"):
        assert not any(variable.startswith(ENV_PREFIX) for variable in environment(name))


# ---------------------------------------------------------------- services


def test_images_are_pinned() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for name, spec in SERVICES.items():
        image, _, tag = spec["image"].partition(":")
        if "build" in spec:
            assert (image, tag) == ("market-pipeline", version)
        else:
            assert re.match(r"\d+\.\d+\.\d+", tag), f"{name}: {spec['image']}"
    assert set(re.findall(r"^FROM (\S+)", DOCKERFILE, re.M)) == {"python:3.11-slim-bookworm"}


def test_published_ports_are_bound_to_loopback() -> None:
    published = [port for spec in SERVICES.values() for port in spec.get("ports", [])]
    assert published
    assert all(isinstance(port, str) and port.startswith("127.0.0.1:") for port in published)
    assert not any("network_mode" in spec or "privileged" in spec for spec in SERVICES.values())


def test_nothing_reaches_the_docker_socket() -> None:
    assert "docker.sock" not in (DOCKER / "compose.yaml").read_text()


def test_every_mounted_or_copied_file_exists() -> None:
    for name, spec in SERVICES.items():
        if "build" in spec:
            context = (DOCKER / spec["build"]["context"]).resolve()
            assert context == ROOT
            assert (context / spec["build"]["dockerfile"]).is_file()
        for volume in spec.get("volumes", []):
            source = volume.split(":")[0]
            known = (DOCKER / source).is_file() if source.startswith(".") else source in COMPOSE["volumes"]
            assert known, f"{name}: {volume}"
    copied = re.findall(r"^COPY (?!--from)(?:--chmod=\d+ )?(.+) \S+$", DOCKERFILE, re.M)
    ignored = (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
    for source in " ".join(copied).split():
        assert (ROOT / source).exists(), source
        assert f"!{source}" in ignored, f"{source} does not reach the builder"


def test_services_start_in_order_restart_and_prove_their_health() -> None:
    for name, spec in SERVICES.items():
        assert spec["restart"] == "unless-stopped", name
        assert spec["healthcheck"]["test"][0] in {"CMD", "CMD-SHELL"}, name
        assert set(spec["networks"]) <= set(COMPOSE["networks"]), name
        for needed, how in spec.get("depends_on", {}).items():
            assert how == {"condition": "service_healthy"}
            assert set(spec["networks"]) & set(SERVICES[needed]["networks"]), f"{name} cannot reach {needed}"
    assert set(SERVICES["code"]["depends_on"]) == {"clickhouse", "nats", "postgres"}


def test_the_image_runs_as_an_ordinary_user_from_the_whole_lock() -> None:
    final = DOCKERFILE.rpartition("\nFROM ")[2]
    assert re.search(r"^USER [1-9]\d*:[1-9]\d*$", final, re.M)
    assert "pip install --require-hashes -r requirements.lock" in DOCKERFILE
    for name, value in EVENT_SWITCHES.items():
        assert f"{name}={value} " in final


# ---------------------------------------------------------------- Dagster


def test_dagsters_files_agree_with_the_compose_file() -> None:
    [location] = yaml.safe_load((DOCKER / "workspace.yaml").read_text())["load_from"]
    [local] = yaml.safe_load((ROOT / "workspace.yaml").read_text())["load_from"]
    server, command = location["grpc_server"], SERVICES["code"]["command"][-1]
    assert server["host"] == "code"
    assert f"-p {server['port']}" in command
    assert f"close_lost_runs.py --host {server['host']} &&" in command
    assert server["location_name"] == local["python_module"]["location_name"]
    assert f"--location-name {server['location_name']}" in command
    assert str(server["port"]) in SERVICES["code"]["healthcheck"]["test"]


def test_dagster_yaml_differs_from_the_local_one_only_in_where_things_are_kept() -> None:
    ours = yaml.safe_load((DOCKER / "dagster.yaml").read_text())
    local = yaml.safe_load((ROOT / "dagster.yaml").read_text())
    places = {"storage", "compute_logs", "local_artifact_storage"}
    assert {key: value for key, value in ours.items() if key not in places} == {
        key: value for key, value in local.items() if key not in places
    }


def test_dagster_accepts_the_instance_and_finds_its_database(monkeypatch: pytest.MonkeyPatch) -> None:
    from dagster._core.instance.config import dagster_instance_config
    from dagster_postgres.utils import pg_url_from_config

    config, _ = dagster_instance_config(str(DOCKER))
    given = environment("daemon")
    storage = config["storage"]["postgres"]["postgres_db"]
    resolved = {key: given[value["env"]] if isinstance(value, dict) else value for key, value in storage.items()}
    assert pg_url_from_config({"postgres_db": {"port": 5432, **resolved}}) == (
        f"postgresql+psycopg2://dagster:{PASSWORD}@postgres:5432/dagster"
    )
    assert {name: environment("code")[name] for name in given} == given


def test_lost_runs_are_closed_and_others_left_alone() -> None:
    from dagster import DagsterInstance, DagsterRunStatus
    from dagster._core.storage.tags import GRPC_INFO_TAG
    from dagster._core.test_utils import create_run_for_test

    close_lost_runs = runpy.run_path(str(DOCKER / "close_lost_runs.py"))["close_lost_runs"]
    here = {GRPC_INFO_TAG: json.dumps({"host": "code", "port": 4000})}
    elsewhere = {GRPC_INFO_TAG: json.dumps({"host": "other", "port": 4000})}
    with DagsterInstance.ephemeral() as instance:

        def run(status: DagsterRunStatus, tags: dict[str, str]) -> str:
            return create_run_for_test(instance, status=status, tags=tags).run_id

        lost = run(DagsterRunStatus.STARTED, here)
        cancelling = run(DagsterRunStatus.CANCELING, here)
        kept = {
            run(DagsterRunStatus.STARTED, elsewhere): DagsterRunStatus.STARTED,
            run(DagsterRunStatus.STARTING, {}): DagsterRunStatus.STARTING,
            run(DagsterRunStatus.NOT_STARTED, {}): DagsterRunStatus.NOT_STARTED,
            run(DagsterRunStatus.SUCCESS, here): DagsterRunStatus.SUCCESS,
        }
        assert set(close_lost_runs(instance, "code")) == {lost, cancelling}
        statuses = {found.run_id: found.status for found in instance.get_runs()}
        assert statuses == {lost: DagsterRunStatus.FAILURE, cancelling: DagsterRunStatus.CANCELED, **kept}
        assert close_lost_runs(instance, "code") == []


@contextmanager
def webserver(workspace: dict[str, Any]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            body = json.dumps({"data": {"workspaceOrError": workspace}}).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/graphql"
    finally:
        server.shutdown()
        server.server_close()


def located(load_status: str, location: dict[str, str] | None) -> dict[str, Any]:
    entry = {"name": "market", "loadStatus": load_status, "locationOrLoadError": location}
    return {"__typename": "Workspace", "locationEntries": [entry]}


@pytest.mark.parametrize(
    ("workspace", "said"),
    [
        (located("LOADED", {"__typename": "RepositoryLocation"}), ""),
        (located("LOADING", None), "market is being loaded"),
        (located("LOADED", {"__typename": "PythonError", "message": "no such module"}), "no such module"),
        ({"__typename": "Workspace", "locationEntries": []}, "no code location"),
        ({"__typename": "PythonError", "message": "broken"}, "broken"),
    ],
)
def test_the_webserver_is_healthy_only_when_the_code_is_loaded(
    workspace: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    check = runpy.run_path(str(DOCKER / "check_webserver.py"))["main"]
    with webserver(workspace) as address:
        assert check(address) == (1 if said else 0)
    assert said in capsys.readouterr().err
    assert check(address) == 1  # it is gone


# ---------------------------------------------------------------- NATS, ClickHouse, PostgreSQL

NATS_SERVER = Path(sysconfig.get_path("scripts")) / "nats-server"
NATS_CONF = DOCKER / "nats" / "nats.conf"


def nats_environment(**changes: str) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], **environment("nats"), **changes}


def test_nats_accepts_its_configuration_only_with_the_secrets() -> None:
    command = [str(NATS_SERVER), "-t", "-c", str(NATS_CONF)]
    good = subprocess.run(command, env=nats_environment(), capture_output=True, text=True, timeout=10)
    assert good.returncode == 0, good.stderr
    bare = subprocess.run(command, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, timeout=10)
    assert bare.returncode != 0


@contextmanager
def nats_server(folder: Path) -> Iterator[dict[str, list[str]]]:
    """Run the real server with the real file; only the addresses and the folder are the test's own."""
    text = NATS_CONF.read_text()
    for theirs, ours in (
        ('"0.0.0.0:4222"', '"127.0.0.1:-1"'),
        ('"127.0.0.1:8222"', '"127.0.0.1:-1"'),
        ("/data\n", f"{json.dumps(str(folder))}\n"),
    ):
        assert text.count(theirs) == 1
        text = text.replace(theirs, ours)
    config = folder / "nats.conf"
    config.write_text(f"{text}\nports_file_dir: {json.dumps(str(folder))}\n")
    with (folder / "nats.log").open("wb") as log:
        process = subprocess.Popen(
            [str(NATS_SERVER), "-c", str(config)],
            env=nats_environment(),
            stdout=log,
            stderr=log,
            preexec_fn=die_with_parent,
        )
    try:
        ports = folder / f"nats-server_{process.pid}.ports"
        until = time.monotonic() + 15
        while not (ports.exists() and ports.read_text().endswith("}")):
            assert process.poll() is None, (folder / "nats.log").read_text()
            assert time.monotonic() < until, "nats-server does not start"
            time.sleep(0.02)
        yield json.loads(ports.read_text())
    finally:
        process.kill()
        process.wait()


async def test_nats_runs_as_configured(tmp_path: Path) -> None:
    with nats_server(tmp_path) as ports:
        [address], [monitoring] = ports["nats"], ports["monitoring"]
        client = await nats.connect(address, user="market", password=PASSWORD, allow_reconnect=False)
        await client.jetstream().account_info()
        assert client.max_payload == 4 * 1024 * 1024
        await client.close()
        with pytest.raises(nats.errors.Error, match=r"(?i)authorization"):
            await nats.connect(address, user="market", password="wrong", allow_reconnect=False)
        jetstream = json.load(await asyncio.to_thread(urlopen, f"{monitoring}/jsz", None, 5))
        assert jetstream["config"]["max_storage"] >= max(storage_needed(), 8_000_000_000)
        assert jetstream["config"]["sync_always"] is True
        health = json.load(await asyncio.to_thread(urlopen, f"{monitoring}/healthz", None, 5))
        assert health["status"] == "ok"


def test_clickhouse_has_one_user_with_a_password_from_the_environment() -> None:
    users = ElementTree.parse(DOCKER / "clickhouse" / "users.xml").getroot()
    server = ElementTree.parse(DOCKER / "clickhouse" / "server.xml").getroot()
    assert [user.tag for user in users.find("users") or []] == ["default", "market"]
    assert users.find("users/default").get("remove")  # type: ignore[union-attr]
    password = users.find("users/market/password")
    assert password is not None
    assert password.text is None
    assert password.get("from_env") in environment("clickhouse")
    assert environment("clickhouse")["CLICKHOUSE_USER"] == environment("code")["MARKET_PIPELINE_CLICKHOUSE__USER"]
    assert users.findtext("profiles/default/async_insert") == "0"
    assert server.findtext("timezone") == "UTC"
    # What the user may do names the database that the settings name, and every table of the schema is in it.
    database = Settings.model_fields["clickhouse"].default.database
    assert f"GRANT ALL ON {database}.*" in [grant.text for grant in users.iterfind("users/market/grants/query")]
    assert not [sql for migration in render() for sql in migration.statements if re.search(r"TABLE \w+ \w+\.\w", sql)]


def test_postgres_creates_both_databases_with_passwords_from_the_environment() -> None:
    script = (DOCKER / "postgres" / "create_databases.sql").read_text()
    code = environment("code")
    assert re.findall(r"CREATE DATABASE (\w+) OWNER (\w+)", script) == [("market", "market"), ("dagster", "dagster")]
    assert (code["DAGSTER_POSTGRES_USER"], code["DAGSTER_POSTGRES_DB"]) == ("dagster", "dagster")
    postgres = Settings.model_fields["postgres"].default
    assert (postgres.user, postgres.database) == ("market", "market")
    for variable in re.findall(r"\\getenv \w+ (\w+)", script):
        assert variable in environment("postgres")
    assert re.findall(r"PASSWORD (\S+);", script) == [":'market_password'", ":'dagster_password'"]
