"""The three databases under their supervisor: start, stop, death, recovery."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from typer.testing import CliRunner

from market_pipeline.bus.dead_letter import DeadLetter, Reason
from market_pipeline.bus.dead_letters import publish_letter
from market_pipeline.bus.lag import Lag
from market_pipeline.bus.overview import StreamStatus
from market_pipeline.bus.session import open_bus
from market_pipeline.bus.spool import Spool, SpoolRecord, spool_root
from market_pipeline.bus.streams import STREAMS
from market_pipeline.cli import build_app
from market_pipeline.errors import LocalStackError
from market_pipeline.local import locks, ports
from market_pipeline.local.doctor import examine
from market_pipeline.local.doctor_road import examine_spool, examine_streams, judge_stream
from market_pipeline.local.stack import Stack
from market_pipeline_tests.local.clients import clickhouse, modes, read_everywhere, write_everywhere

SERVERS = ("nats", "postgres", "clickhouse")


@pytest.fixture(autouse=True)
def _no_real_vendor(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("MARKET_PIPELINE_") or name == "POLYGON_API_KEY"]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder deeper than a unix socket's path may be long."""
    return tmp_path_factory.mktemp("stack") / ("deep" * 20) / "home"


@pytest.fixture(scope="module")
def stack(home: Path) -> Iterator[Stack]:
    with Stack(home, SERVERS, die_with_parent=True) as running:
        yield running


def until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def pid_of(stack: Stack, name: str) -> int:
    state = stack.state()
    assert state is not None
    component = state.component(name)
    assert component is not None
    assert component.pid is not None
    return component.pid


def test_every_server_takes_a_write_and_gives_it_back(stack: Stack) -> None:
    sequence = write_everywhere(stack.settings, 1)
    assert read_everywhere(stack.settings, sequence) == ([1], [1], b"1")


def test_passwords_and_addresses_are_private(stack: Stack) -> None:
    home = stack.home
    assert set(modes(home.secrets).values()) == {"0o600"}
    assert home.secrets.stat().st_mode & 0o777 == 0o700
    assert home.run.stat().st_mode & 0o777 == 0o700
    assert home.settings_file.stat().st_mode & 0o777 == 0o600
    assert (home.run / "nats.conf").stat().st_mode & 0o777 == 0o600
    secrets = [path.read_text().strip() for path in home.secrets.iterdir()]
    assert len(set(secrets)) == len(secrets)
    assert all(len(secret) >= 32 for secret in secrets)


def test_no_password_is_on_a_command_line_or_in_a_log(stack: Stack) -> None:
    secrets = [path.read_text().strip() for path in stack.home.secrets.iterdir()]
    seen = [log.read_text(errors="replace") for log in stack.home.logs.iterdir()]
    for name in SERVERS:
        seen.append(" ".join(psutil.Process(pid_of(stack, name)).cmdline()))
    assert not [secret for secret in secrets for text in seen if secret in text]


def test_servers_do_not_get_the_users_keys(stack: Stack) -> None:
    for name in ("nats", "clickhouse"):
        environment = psutil.Process(pid_of(stack, name)).environ()
        assert environment["TZ"] == "UTC"
        assert not [key for key in environment if "KEY" in key or "TOKEN" in key]


def test_servers_listen_on_loopback_only(stack: Stack) -> None:
    kept = ports.ensure_ports(stack.home, ())
    wanted = {kept[name] for name in SERVERS}
    listening = [c for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN and c.laddr[1] in wanted]
    assert {c.laddr[1] for c in listening} == wanted
    assert {c.laddr[0] for c in listening} == {"127.0.0.1"}


def test_postgres_does_not_run_as_root_nor_open_the_folders_above(stack: Stack, home: Path) -> None:
    process = psutil.Process(pid_of(stack, "postgres"))
    assert process.uids().effective != 0
    assert home.parents[1].stat().st_mode & 0o077 == 0  # pytest's own folder, private before and after


def test_a_second_start_changes_nothing(stack: Stack) -> None:
    before = {name: pid_of(stack, name) for name in SERVERS}
    state = Stack(stack.home.root, SERVERS).start()
    assert state.healthy
    assert {name: pid_of(stack, name) for name in SERVERS} == before


def test_a_second_supervisor_is_refused(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    racing = Stack(stack.home.root, SERVERS)
    monkeypatch.setattr(Stack, "is_running", False)  # as for two that look at the same moment
    with pytest.raises(LocalStackError, match="started or run by another process"):
        racing.start()


@pytest.mark.parametrize("name", SERVERS)
def test_a_killed_server_is_restarted_with_its_data(stack: Stack, name: str) -> None:
    settings = stack.settings
    sequence = write_everywhere(settings, {"nats": 10, "postgres": 11, "clickhouse": 12}[name])
    before = read_everywhere(settings, sequence)
    pid = pid_of(stack, name)
    os.kill(pid, signal.SIGKILL)

    def restarted() -> bool:
        state = stack.state()
        component = state.component(name) if state else None
        return bool(component and component.state == "ready" and component.pid not in (None, pid))

    until(restarted)
    state = stack.state()
    assert state is not None
    component = state.component(name)
    assert component is not None
    assert component.restarts == 1
    assert "SIGKILL" in component.last_exit
    assert read_everywhere(settings, sequence) == before


def test_doctor_finds_every_server_well(stack: Stack) -> None:
    found = {check.name: check for check in examine(stack.home)}
    assert {found[name].verdict for name in SERVERS} <= {"good", "warning"}  # they were restarted above
    assert all("answers in" in found[name].seen for name in SERVERS)
    assert found["permissions"].verdict == "good"
    assert found["vendor"].verdict == "wrong"  # the simulator is not among the started
    assert "not reachable" in found["vendor"].seen


def test_doctor_sees_an_open_file(stack: Stack) -> None:
    secret = stack.home.secrets / "nats"
    secret.chmod(0o644)
    try:
        found = {check.name: check for check in examine(stack.home)}
    finally:
        secret.chmod(0o600)
    assert found["permissions"].verdict == "wrong"
    assert str(secret) in found["permissions"].advice


def test_status_and_doctor_show_streams_dead_letters_and_the_spool(stack: Stack) -> None:
    settings = stack.settings

    async def fill() -> None:
        async with open_bus(settings.nats, "test") as bus:
            await bus.ensure_streams(scale=1 / 64)
            await bus.js.publish("market.EURUSD.1m", b"x" * 1000)
            await publish_letter(
                bus.js, DeadLetter(Reason.INSERT_FAILED, "LIVE", "market.EURUSD.1m", 1, "c", b"", "no")
            )
        spool = Spool(spool_root(settings), "collector default", settings.spool)
        for number in range(3):
            await spool.append(SpoolRecord("market.EURUSD.tick", f"id{number}", {}, b"ticks", 1_700_000_000_000))
        await spool.close()

    asyncio.run(fill())
    home = ["--home", str(stack.home.root)]
    shown = CliRunner().invoke(build_app(), ["status", *home], catch_exceptions=False)
    assert "collector default" in shown.output
    assert "nobody: a bridge drains it" in shown.output
    assert "1 dead letters are unread (1 insert_failed of LIVE)" in " ".join(shown.output.split())
    assert all(name in shown.output for name in STREAMS)

    told = json.loads(CliRunner().invoke(build_app(), ["status", "--json", *home], catch_exceptions=False).output)
    live = next(each for each in told["streams"] if each["name"] == "LIVE")
    assert (live["exists"], live["messages"], live["lag"]["num_pending"]) == (True, 1, 1)
    assert live["limit"] == STREAMS["LIVE"].bytes_at(1 / 64)
    assert told["dead_letters_unread"] == [{"stream": "LIVE", "reason": "insert_failed", "letters": 1}]
    assert [(each["name"], each["records"], each["adoptable"]) for each in told["spool"]] == [
        ("collector default", 3, True)
    ]

    found = {check.name: check for check in examine(stack.home)}
    assert found["spool"].verdict == "warning"
    assert "3 records of collector default" in found["spool"].seen
    assert "run bridge" in found["spool"].advice
    assert found["dead letters"].seen == "1 unread"

    # without NATS there is the spool alone
    away = settings.model_copy(update={"nats": settings.nats.model_copy(update={"url": "nats://127.0.0.1:9"})})
    assert [check.verdict for check in examine_streams(away)] == ["warning"]
    shutil.rmtree(spool_root(settings))
    assert [check.verdict for check in examine_spool(settings)] == ["good"]


def test_the_doctor_judges_a_stream_by_its_room_and_by_what_is_not_stored() -> None:
    def verdicts(**facts: Any) -> list[str]:
        status = StreamStatus(**{"name": "LIVE", "exists": True, "limit": 100, "lag": Lag(0, 0, 0.0)} | facts)
        return [check.verdict for check in judge_stream(status, lag_s=30.0)]

    assert verdicts(exists=False) == ["warning"]
    assert verdicts(bytes=79) == []
    assert verdicts(bytes=80) == ["warning"]
    assert verdicts(bytes=95) == ["wrong"]
    assert verdicts(bytes=99, discards_old=True) == [], "a full TICKS is as it should be"
    assert verdicts(lag=Lag(3, 0, 29.0)) == []
    assert verdicts(lag=Lag(0, 3, 31.0)) == ["warning"]


def test_two_stacks_side_by_side(stack: Stack, tmp_path: Path) -> None:
    sequence = write_everywhere(stack.settings, 20)
    with Stack(tmp_path / "other", SERVERS, die_with_parent=True) as other:
        tables = {name for (name,) in clickhouse(other.settings).query("SHOW TABLES").result_rows}
        assert "bars" in tables, "the schema is there as soon as the stack is"
        assert "kept" not in tables
        second = write_everywhere(other.settings, 5)
        assert read_everywhere(other.settings, second) == ([5], [5], b"5")
        mine, theirs = ports.ensure_ports(stack.home, ()), ports.ensure_ports(other.home, ())
        assert not set(mine.values()) & set(theirs.values())
    assert read_everywhere(stack.settings, sequence)[2] == b"20"


def test_after_everything_was_killed_it_starts_with_all_data(stack: Stack) -> None:
    sequence = write_everywhere(stack.settings, 30)
    before = read_everywhere(stack.settings, sequence)
    kept = ports.ensure_ports(stack.home, ())
    stack.kill_all()
    assert not stack.is_running
    assert not locks.marked(stack.home.root)
    assert stack.start().healthy
    assert read_everywhere(stack.settings, sequence) == before
    assert ports.ensure_ports(stack.home, ()) == kept


def test_orphans_of_a_killed_supervisor_never_share_a_folder(stack: Stack) -> None:
    """Only the supervisor dies, and its servers are frozen, so that they cannot heed the kernel's signal."""
    sequence = write_everywhere(stack.settings, 31)
    orphans = [psutil.Process(pid_of(stack, name)) for name in SERVERS]
    for orphan in orphans:
        orphan.suspend()
    os.kill(stack.state().pid, signal.SIGKILL)  # type: ignore[union-attr]
    until(lambda: not stack.is_running)
    assert all(orphan.is_running() for orphan in orphans)
    assert stack.start().healthy
    assert not [orphan for orphan in orphans if orphan.is_running() and orphan.status() != psutil.STATUS_ZOMBIE]
    assert read_everywhere(stack.settings, sequence)[2] == b"31"


def test_servers_end_with_their_supervisor(stack: Stack) -> None:
    servers = [psutil.Process(pid_of(stack, name)) for name in SERVERS]
    os.kill(stack.state().pid, signal.SIGKILL)  # type: ignore[union-attr]
    until(lambda: not [s for s in servers if s.is_running() and s.status() != psutil.STATUS_ZOMBIE])
    assert stack.start().healthy


def test_a_start_during_a_stop_waits_and_starts(stack: Stack) -> None:
    before = stack.state()
    assert before is not None
    os.kill(before.pid, signal.SIGTERM)
    until(lambda: (state := stack.state()) is None or state.phase == "stopping")
    assert stack.start().healthy
    after = stack.state()
    assert after is not None
    assert after.pid != before.pid


def test_stop_leaves_nothing(stack: Stack) -> None:
    socket_dir = Path(stack.home.socket_dir_file.read_text().strip())
    assert socket_dir.is_dir()
    servers = [psutil.Process(pid_of(stack, name)) for name in SERVERS]
    assert stack.stop()
    assert not [server for server in servers if server.is_running()]
    assert not socket_dir.exists()
    assert not stack.stop()
    found = {check.name: check for check in examine(stack.home)}
    assert found["stack"].verdict == "wrong"
    assert "market-pipeline up" in found["stack"].advice
