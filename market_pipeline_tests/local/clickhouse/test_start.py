"""Starting, refusing to start, stopping and being killed."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import psutil
import pytest

from market_pipeline.errors import LocalStackError
from market_pipeline.local.clickhouse.lock import LOCK_FILE, FolderLock
from market_pipeline.local.clickhouse.options import listen, prepare_folder
from market_pipeline.local.clickhouse.password import read_or_create
from market_pipeline.local.clickhouse.process import ServerProcess, command, environment, start
from market_pipeline_tests.local.clickhouse.conftest import connect, raw
from market_pipeline_tests.local.clickhouse.test_concurrency import ENDLESS, send, wait_for


def run(path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a server that is expected to refuse."""
    path.mkdir(exist_ok=True)
    asked = command(path, arguments=arguments)
    return subprocess.run(asked, capture_output=True, text=True, timeout=30, env=environment(), check=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_only_loopback(host: str) -> None:
    with pytest.raises(LocalStackError, match="only loopback addresses are allowed"):
        listen(host, 0)


def test_refusals_are_one_sentence_and_a_status(tmp_path: Path) -> None:
    refused = run(tmp_path, "--host=0.0.0.0")
    assert refused.returncode == 1
    assert refused.stdout == ""
    assert refused.stderr.startswith("clickhouse: refusing to listen on 0.0.0.0: ")
    assert refused.stderr.count("\n") == 1


def test_a_taken_port_leaves_no_lock(tmp_path: Path) -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        refused = run(tmp_path, f"--port={port}")
    assert refused.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in refused.stderr
    FolderLock(tmp_path).release()


def test_the_password_is_generated_once_and_closed_to_others(tmp_path: Path) -> None:
    file = tmp_path / "new" / "password"
    password = read_or_create(file)
    assert len(password) >= 24
    assert file.stat().st_mode & 0o777 == 0o600
    assert read_or_create(file) == password
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o602])
def test_a_password_file_open_to_others_is_refused(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "password"
    file.write_text("secret-word\n")
    file.chmod(mode)
    with pytest.raises(LocalStackError, match="chmod 600") as caught:
        read_or_create(file)
    assert "secret-word" not in str(caught.value)


def test_an_empty_password_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.touch(0o600)
    with pytest.raises(LocalStackError, match="is empty"):
        read_or_create(file)


def test_the_password_is_in_no_command_line_environment_or_log(server: ServerProcess) -> None:
    process = psutil.Process(server.pid)
    places = [*process.cmdline(), *process.environ().values(), (server.path / "server.log").read_text(), repr(server)]
    assert not [place for place in places if server.password in place]


def test_a_folder_is_served_once(tmp_path: Path) -> None:
    with start(tmp_path) as running:
        with pytest.raises(LocalStackError, match=f"process {running.pid} already serves the folder"):
            start(tmp_path)
        with raw(running) as http:  # the attempt must not have touched what the first one wrote
            assert http.post("/", content="SELECT 1").text == "1\n"
        ready = json.loads((tmp_path / "ready.json").read_text())
        assert ready == {"port": running.port, "pid": running.pid}


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    with pytest.raises(LocalStackError, match=r"the disk of .* is full: \d+ MiB free, \d+ MiB needed"):
        prepare_folder(tmp_path, 1 << 60)


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "config.xml").touch()
    with pytest.raises(LocalStackError, match="cannot use the folder"):
        prepare_folder(tmp_path / "file", 0)
    with pytest.raises(LocalStackError, match=r"config\.xml would configure the engine"):
        prepare_folder(tmp_path, 0)


def test_an_inherited_lock_is_kept(tmp_path: Path) -> None:
    """A supervisor locks and hands the descriptor on: the lock then outlives the supervisor, not the server."""
    descriptor = os.open(tmp_path / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with start(tmp_path, arguments=[f"--lock-fd={descriptor}"], pass_fds=[descriptor]) as running:
        os.close(descriptor)
        with pytest.raises(LocalStackError, match=f"process {running.pid} already serves"):
            FolderLock(tmp_path)
    FolderLock(tmp_path).release()


def test_a_lock_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(LocalStackError, match="no open descriptor"):
        FolderLock(tmp_path, inherited=999)
    with open(tmp_path / "else", "w") as other:  # of another file: the folder's lock is taken all the same
        lock = FolderLock(tmp_path, inherited=os.dup(other.fileno()))
        with pytest.raises(LocalStackError, match=f"process {os.getpid()} already"):
            FolderLock(tmp_path)
        lock.release()


def test_signals_stop_cleanly_even_in_the_midst_of_a_statement(tmp_path: Path) -> None:
    running = start(tmp_path)
    with connect(running) as client:
        client.command("CREATE TABLE kept (a Int8) ENGINE = MergeTree ORDER BY a")
        client.insert("kept", [[1]], column_names=["a"])
        connection = send(running, ENDLESS, "endless")
        wait_for(client, 1, "endless")
    assert stop(running, signal.SIGTERM) < 8
    assert connection.recv(100).startswith(b"HTTP/1.1 500")
    connection.close()

    again = start(tmp_path)
    with connect(again) as client:
        assert client.command("SELECT sum(a) FROM kept") == 1
    assert stop(again, signal.SIGINT) < 5
    assert not (tmp_path / "ready.json").exists()
    assert "Traceback" not in (tmp_path / "server.log").read_text()
    assert (tmp_path / LOCK_FILE).read_text() == ""


def stop(running: ServerProcess, number: signal.Signals) -> float:
    """Return the seconds until the server has ended with status 0."""
    started = time.monotonic()
    running.process.send_signal(number)
    assert running.process.wait(15) == 0
    return time.monotonic() - started


def test_a_server_ends_with_its_parent(tmp_path: Path) -> None:
    """Also when the thread that started it has long ended, which alone must not stop it."""
    program = (
        "import sys, threading, time; from pathlib import Path\n"
        "from market_pipeline.local.clickhouse.process import start\n"
        "found = []\n"
        "thread = threading.Thread(target=lambda: found.append(start(Path(sys.argv[1]))))\n"
        "thread.start(); thread.join(); time.sleep(0.5)\n"
        "print(found[0].pid, found[0].process.poll(), flush=True); time.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=environment()
    )
    assert parent.stdout is not None
    pid, status = parent.stdout.readline().split()
    server = psutil.Process(int(pid))
    assert status == "None"
    assert server.is_running()
    parent.kill()
    parent.wait()
    parent.stdout.close()
    psutil.wait_procs([server], timeout=10)
    assert not server.is_running() or server.status() == psutil.STATUS_ZOMBIE
    FolderLock(tmp_path).release()


def test_acknowledged_rows_survive_a_kill(tmp_path: Path) -> None:
    acknowledged: list[tuple[int, int]] = []
    rows = 500

    def write(running: ServerProcess, writer: int) -> None:
        with raw(running) as http:
            for batch in range(100_000):
                insert = f"INSERT INTO kept SELECT {writer}, {batch}, number FROM numbers({rows})"
                data = "".join(f"{writer}\t{batch}\t{i}\n" for i in range(rows))
                query = {"query": "INSERT INTO kept FORMAT TSV", "async_insert": "0"}
                try:
                    answer = http.post("/", params=query, content=data) if batch % 2 else http.post("/", content=insert)
                except httpx.TransportError:
                    return
                assert answer.status_code == 200
                acknowledged.append((writer, batch))

    running = start(tmp_path)
    with connect(running) as client:
        client.command("CREATE TABLE kept (w Int64, b Int64, i Int64) ENGINE = MergeTree ORDER BY (w, b, i)")
    writers = [threading.Thread(target=write, args=(running, writer)) for writer in range(3)]
    for thread in writers:
        thread.start()
    time.sleep(1.5)
    running.kill()
    for thread in writers:
        thread.join()
    assert len(acknowledged) > 20
    with start(tmp_path) as again, connect(again) as client:
        stored = dict(client.query("SELECT (w, b), count() FROM kept GROUP BY w, b").result_rows)
    lost = [batch for batch in acknowledged if stored.get(batch) != rows]
    assert lost == []


def test_a_start_that_fails_shows_the_last_lines_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("word")
    (tmp_path / "password").chmod(0o644)
    with pytest.raises(LocalStackError, match="ended with status 1") as caught:
        start(tmp_path)
    assert "chmod 600" in str(caught.value)
    assert not [child for child in psutil.Process().children() if str(tmp_path) in " ".join(child.cmdline())]


def test_a_second_socket_cannot_share_the_port() -> None:
    with listen("127.0.0.1", 0) as first, socket.socket() as second:
        second.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with pytest.raises(OSError, match="in use"):
            second.bind(first.getsockname())
