"""The files in docker/, as far as they can be checked without a Docker engine."""

from __future__ import annotations

import json
import os
import re
import runpy
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any
from urllib.parse import urlsplit
from xml.etree import ElementTree

import pytest
import yaml
from pydantic import BaseModel, SecretStr
from typer.main import get_command

from market_pipeline.bus.spool import spool_root
from market_pipeline.cli import build_app
from market_pipeline.live import supervisor
from market_pipeline.live.build import build_services, service_names
from market_pipeline.local.environment import EVENT_SWITCHES
from market_pipeline.settings import ENV_PREFIX, POLYGON_KEY, Settings, load_settings
from market_pipeline.stores.migrations import render
from market_pipeline_tests.docker.files import (
    DOCKER,
    DOCKERFILE,
    FILES,
    PASSWORD,
    ROOT,
    SECRET,
    VARIABLE,
    compose,
    environment,
    example,
    live_services,
    mounts,
    services,
)

COMPOSE = compose("cluster")  # all services, those of the single node among them
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
LIVE = service_names()


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


def settings_of(service: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Load the settings as a container does: from the Compose file's environment and the image's."""
    for name in list(os.environ):
        if name.startswith(ENV_PREFIX) or name == POLYGON_KEY:
            monkeypatch.delenv(name)
    [home] = re.findall(rf"{ENV_PREFIX}HOME=(\S+)", DOCKERFILE)
    for name, value in {f"{ENV_PREFIX}HOME": home, **environment(service, kind)}.items():
        monkeypatch.setenv(name, value)
    return load_settings()


@pytest.mark.parametrize("kind", FILES)
def test_settings_load_from_the_code_servers_environment(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of("code", kind, monkeypatch)
    assert settings.vendor.api_key.get_secret_value() == PASSWORD
    assert settings.vendor.base_url == "https://api.polygon.io"
    for section in (settings.clickhouse, settings.nats, settings.postgres):
        assert section.password.get_secret_value() == PASSWORD
    assert settings.clickhouse.host in services(kind)
    assert settings.postgres.host in services(kind)
    nodes = [urlsplit(address) for address in settings.nats.url.split(",")]
    assert {each.port for each in nodes} == {4222}
    assert [each.hostname for each in nodes] == [name for name in services(kind) if name.startswith("nats")]
    assert settings.nats.replicas == len(nodes)


def test_secrets_come_only_from_the_environment_and_must_be_set() -> None:
    for service, spec in SERVICES.items():
        for name, value in spec.get("environment", {}).items():
            if SECRET.search(name):
                found = VARIABLE.fullmatch(str(value).strip('"'))
                assert found, f"{service}: {name} is written down"
                assert found["kind"] == "?", f"{service}: {name} may be empty"
            for password in re.findall(r"//[^/@\s]*:([^@\s]*)@", str(value)):
                found = VARIABLE.fullmatch(password)
                assert found, f"{service}: {name} has a password written down"
                assert found["kind"] == "?", f"{service}: {name} may have an empty password"
        shown = json.dumps([spec.get("command"), spec["healthcheck"], spec.get("labels")])
        assert not any(SECRET.search(found["name"]) for found in VARIABLE.finditer(shown)), service
    assert {name for name, value in example().items() if SECRET.search(name) and value} == set()


def test_the_example_names_exactly_what_the_compose_files_ask_for() -> None:
    used = {found["name"] for name in FILES["cluster"] for found in VARIABLE.finditer((DOCKER / name).read_text())}
    assert used == set(example())


# What each live service works with, besides NATS.
WORKS_WITH = {
    "collector": {"vendor"},
    "aggregator": {"clickhouse"},
    "ticks": {"postgres"},
    "bridge": {"clickhouse"},
    "repair": {"vendor", "clickhouse", "postgres"},
    "throttle": set(),
}


@pytest.mark.parametrize("name", LIVE)
def test_a_live_service_is_made_from_its_environment_and_knows_no_other_password(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(name, "single", monkeypatch)
    [made] = build_services(settings, [name])
    assert made.name == name
    secrets = {
        "vendor": settings.vendor.api_key,
        "clickhouse": settings.clickhouse.password,
        "postgres": settings.postgres.password,
        "nats": settings.nats.password,
    }
    assert {place for place, secret in secrets.items() if secret != SecretStr("")} == {"nats", *WORKS_WITH[name]}
    # What runs in Dagster or in another container has the same settings.
    assert environment(name).items() <= environment("code").items()
    assert environment(name, "cluster").items() <= environment("code", "cluster").items()


def test_the_control_room_knows_neither_the_vendor_nor_the_stores() -> None:
    for name in ("webserver", "daemon"):
        assert not any(variable.startswith(ENV_PREFIX) or variable == POLYGON_KEY for variable in environment(name))


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


def test_the_nodes_of_the_cluster_are_alike() -> None:
    cluster = services("cluster")
    nodes = [name for name in cluster if name.startswith("nats")]
    assert len(nodes) == 3

    def shape(name: str) -> dict[str, Any]:
        spec = {**cluster[name], "environment": {**cluster[name]["environment"]}, "volumes": mounts(cluster[name])}
        assert spec["environment"].pop("NATS_NAME") == name
        assert spec["volumes"].pop("/data") == name
        return spec

    assert shape(nodes[0]) == shape(nodes[1]) == shape(nodes[2])
    routes = json.loads(environment("nats", "cluster")["NATS_ROUTES"])
    assert routes == [f"nats-route://route:{PASSWORD}@{name}:6222" for name in nodes]
    for name, variables in ((name, environment(name, "cluster")) for name in cluster):
        if f"{ENV_PREFIX}NATS__URL" in variables:
            assert set(nodes) <= set(cluster[name]["depends_on"]), name


def test_published_ports_are_bound_to_loopback() -> None:
    published = [port for spec in SERVICES.values() for port in spec.get("ports", [])]
    assert published
    assert all(isinstance(port, str) and port.startswith("127.0.0.1:") for port in published)
    assert not any("network_mode" in spec or "privileged" in spec for spec in SERVICES.values())


def test_nothing_reaches_the_docker_socket() -> None:
    assert not any("docker.sock" in (DOCKER / name).read_text() for name in FILES["cluster"])


def test_every_mounted_or_copied_file_exists() -> None:
    for name, spec in SERVICES.items():
        if "build" in spec:
            context = (DOCKER / spec["build"]["context"]).resolve()
            assert context == ROOT
            assert (context / spec["build"]["dockerfile"]).is_file()
        for place, source in mounts(spec).items():
            known = (DOCKER / source).is_file() if source.startswith(".") else source in COMPOSE["volumes"]
            assert known, f"{name}: {source} at {place}"
    copied = re.findall(r"^COPY (?!--from)(?:--chmod=\d+ )?(.+) \S+$", DOCKERFILE, re.M)
    ignored = (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
    for source in " ".join(copied).split():
        assert (ROOT / source).exists(), source
        assert f"!{source}" in ignored, f"{source} does not reach the builder"
    hatch = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    for source in (*hatch["packages"], *hatch["force-include"]):
        assert source in " ".join(copied).split(), f"the wheel takes {source}, which is not copied"


def test_services_start_in_order_restart_and_prove_their_health() -> None:
    for name, spec in SERVICES.items():
        assert spec["restart"] == "unless-stopped", name
        assert spec["healthcheck"]["test"][0] in {"CMD", "CMD-SHELL"}, name
        assert set(spec["networks"]) <= set(COMPOSE["networks"]), name
        for needed, how in spec.get("depends_on", {}).items():
            assert how == {"condition": "service_healthy"}
            assert set(spec["networks"]) & set(SERVICES[needed]["networks"]), f"{name} cannot reach {needed}"
    assert set(services()["code"]["depends_on"]) == {"clickhouse", "nats", "postgres"}
    for name, spec in live_services().items():
        assert set(spec["depends_on"]) == {"nats", *WORKS_WITH[name]} - {"vendor"}


def parsed(arguments: list[str]) -> dict[str, Any]:
    """Parse a command as `market-pipeline` does; KeyError or a usage error for what it does not know."""
    program, name, *rest = arguments
    assert program in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    app: Any = get_command(build_app())
    params: dict[str, Any] = app.commands[name].make_context(name, rest).params
    return params


def test_every_live_service_has_a_container_that_watches_itself() -> None:
    live = live_services()
    assert sorted(live) == sorted(LIVE)
    assert {
        name for name, spec in services().items() if spec.get("command", [])[:2] == ["market-pipeline", "run"]
    } == set(live)
    for name, spec in live.items():
        kind, *check = spec["healthcheck"]["test"]
        assert (spec["command"][1], check[1], kind) == ("run", "services", "CMD")
        assert parsed(spec["command"])["names"] == [name]
        asked = parsed(check)
        assert (asked["names"], asked["here"]) == ([name], True)  # not another container of the same service
        assert spec["init"] is True
        grace = re.fullmatch(r"(\d+)s", spec["stop_grace_period"])
        assert grace, name
        assert int(grace[1]) > supervisor.STOP_S + supervisor.LEAVE_S, f"{name} is killed before it has finished"
        # `--scale bridge=2`, and a host name of its own for each
        assert not {"container_name", "hostname", "ports"} & set(spec), name


def test_whoever_publishes_shares_the_spool_of_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    made = re.search(r"install -d -o market -g market -m 0750 (.+?) *\n[A-Z]", DOCKERFILE.replace("\\\n", ""), re.S)
    assert made
    publishers = [name for name in services() if f"{ENV_PREFIX}NATS__URL" in environment(name)]
    assert set(publishers) == {"code", *LIVE}
    for name in publishers:
        place = str(spool_root(settings_of(name, "single", monkeypatch)))
        assert mounts(services()[name]).get(place) == "spool", name
        assert place in made[1].split(), "a volume on a folder that the image lacks would belong to root"
    assert COMPOSE["volumes"]["spool"] is None  # the local driver: flock must hold between containers


def test_the_image_runs_as_an_ordinary_user_from_the_whole_lock() -> None:
    final = DOCKERFILE.rpartition("\nFROM ")[2]
    assert re.search(r"^USER [1-9]\d*:[1-9]\d*$", final, re.M)
    assert "pip install --require-hashes -r requirements.lock" in DOCKERFILE
    # What builds the package comes from the lock too; with isolation pip would fetch it anew, without a hash.
    assert re.findall(r"^RUN pip install (?!--require-hashes)(.+)$", DOCKERFILE, re.M) == [
        "--no-deps --no-build-isolation ."
    ]
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]
    for name in re.findall(r"^[a-z-]+", "\n".join(build["requires"]), re.M):
        assert re.search(rf"^{name}==\S+ \\$", (ROOT / "requirements.lock").read_text(), re.M), name
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


def test_the_live_run_that_only_observes_is_one_that_the_job_takes() -> None:
    from dagster import DefaultSensorStatus, validate_run_config

    from market_pipeline.definitions import defs

    [config] = re.findall(r"-j live_ingestion .*\\\n\s+--config-json '(.+)'", (DOCKER / "README.md").read_text())
    job = defs.resolve_job_def("live_ingestion")
    validate_run_config(job, json.loads(config))
    assert json.loads(config)["ops"]["ingest"]["config"]["services"] == ["throttle"]
    # Where the profile `live` runs, nothing else may start services unasked.
    assert defs.resolve_sensor_def("keep_live").default_status == DefaultSensorStatus.STOPPED


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


# ---------------------------------------------------------------- ClickHouse, PostgreSQL


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
