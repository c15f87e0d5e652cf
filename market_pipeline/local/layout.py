"""The stack's folder: where everything lies, and with which rights."""

from __future__ import annotations

import os
import pwd
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

from market_pipeline.errors import LocalStackError
from market_pipeline.settings import SETTINGS_FILE

PRIVATE_DIR = 0o700
PRIVATE_FILE = 0o600


@dataclass(frozen=True)
class Home:
    """Name every path of one stack; `root` is absolute."""

    root: Path

    @classmethod
    def at(cls, path: Path | str) -> Home:
        """Return the layout of the stack in `path` (made absolute, symlinks resolved)."""
        return cls(Path(path).expanduser().resolve())

    @property
    def settings_file(self) -> Path:
        return self.root / SETTINGS_FILE

    @property
    def secrets(self) -> Path:
        return self.root / "secrets"

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def dagster_home(self) -> Path:
        return self.root / "dagster_home"

    @property
    def ports_file(self) -> Path:
        return self.run / "ports.json"

    @property
    def state_file(self) -> Path:
        return self.run / "state.json"

    @property
    def socket_dir_file(self) -> Path:
        return self.run / "postgres-socket-dir"

    def data(self, component: str) -> Path:
        return self.root / component

    def log(self, name: str) -> Path:
        return self.logs / f"{name}.log"

    def lock(self, name: str) -> Path:
        return self.run / f"{name}.lock"

    def create(self) -> None:
        """Make the folders, private to their owner.

        As root the top folder stays passable for others (0711): PostgreSQL runs as another user and has to pass
        through it to its own folder. Everything below is private.

        Raises:
            LocalStackError: the folder belongs to another user, or cannot be made.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self._check_owner()
            self.root.chmod(0o711 if os.geteuid() == 0 else PRIVATE_DIR)
            for folder in (self.secrets, self.run, self.logs, self.dagster_home, self.data("nats"), self.data("spool")):
                folder.mkdir(exist_ok=True)
                folder.chmod(PRIVATE_DIR)
            for name in ("clickhouse", "simulator"):
                self.data(name).mkdir(exist_ok=True, mode=PRIVATE_DIR)
        except OSError as error:
            raise LocalStackError(
                f"cannot use the folder {self.root}: {error.strerror}. Choose another with --home"
            ) from error

    def _check_owner(self) -> None:
        owner = self.root.stat().st_uid
        if owner != os.geteuid():
            raise LocalStackError(
                f"the folder {self.root} belongs to {user_name(owner)}, and you are {user_name(os.geteuid())}: "
                "run as its owner, or choose another folder with --home"
            )


def user_name(uid: int) -> str:
    """Return the name of a user, or its number when the system knows no name."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def write_private(path: Path, text: str, *, durable: bool = True) -> None:
    """Replace a file in one step, mode 0600 from its first byte; a crash leaves the old or the new text."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mode 0600
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def is_private(path: Path) -> bool:
    """Tell whether only the owner may read a file or folder."""
    return not path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO)
