"""Sessions that outlive a request: `session_id` names a handle with its settings and temporary tables."""

from __future__ import annotations

import threading
import time

from market_pipeline.local.clickhouse.engine import Engine, Handle
from market_pipeline.local.clickhouse.errors import ClickHouseError, Code
from market_pipeline.local.clickhouse.sql import Settings

DEFAULT_TIMEOUT = 60.0
MAX_TIMEOUT = 3600.0  # ClickHouse's max_session_timeout


class Session:
    """A handle that is kept between requests, used by one request at a time."""

    def __init__(self, handle: Handle) -> None:
        self.handle = handle
        self.lock = threading.Lock()
        self.used = time.monotonic()
        self.timeout = DEFAULT_TIMEOUT
        self.settings: dict[str, str] = {}  # those that came as parameters of the last request
        self.requested: str | None = None  # database that the last request's parameter named
        self.own = "default"  # database that the session itself chose, by USE

    def prepare(self, database: str | None, settings: Settings, defaults: dict[str, str]) -> None:
        """Apply a request's settings and database, and take back those of the request before."""
        wanted = dict(settings)
        gone = [name for name in self.settings if name not in wanted]
        if reset := [name for name in gone if name not in defaults]:
            self.handle.query("SET " + ", ".join(f"{name} = DEFAULT" for name in reset))
        changed = {name: value for name, value in wanted.items() if self.settings.get(name) != value}
        self.handle.set({name: defaults[name] for name in gone if name in defaults} | changed)
        self.settings = wanted
        if not self.requested:
            self.own = self.handle.value("SELECT currentDatabase()")
        if (database or self.own) != (self.requested or self.own):
            self.handle.use(database or self.own)
        self.requested = database

    def used_use(self) -> None:
        """Note that the request was a USE: from now on the session's own choice counts."""
        self.requested = None


class Sessions:
    """The sessions of one engine. Its methods block: call them from a worker thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._sessions: dict[str, Session] = {}

    def take(
        self, session_id: str, database: str | None, settings: Settings, *, timeout: str | None, must_exist: bool
    ) -> Session:
        """Return the session, new if need be, locked for this request and prepared with its settings.

        Raises ClickHouseError: SESSION_NOT_FOUND with `must_exist`, SESSION_IS_LOCKED while another request has it,
        INVALID_SESSION_TIMEOUT.
        """
        seconds = _seconds(timeout)
        with self._lock:
            self._close_expired()
            session = self._sessions.get(session_id)
            if session is None:
                if must_exist:
                    raise ClickHouseError(f"Session {session_id} not found.", Code.SESSION_NOT_FOUND)
                session = self._sessions[session_id] = Session(self._engine.connect())
            if not session.lock.acquire(blocking=False):
                raise ClickHouseError(f"Session {session_id} is locked by a concurrent client.", Code.SESSION_IS_LOCKED)
            session.timeout = seconds
        try:
            session.prepare(database, settings, self._engine.defaults)
        except BaseException:
            session.lock.release()
            raise
        return session

    def give_back(self, session_id: str, session: Session, *, close: bool) -> None:
        """Unlock a session for the next request, or end it."""
        with self._lock:
            session.used = time.monotonic()
            if close:
                self._sessions.pop(session_id, None)
                session.handle.close()
            session.lock.release()

    def _close_expired(self) -> None:
        now = time.monotonic()
        for session_id, session in list(self._sessions.items()):
            if now - session.used > session.timeout and not session.lock.locked():
                del self._sessions[session_id]
                session.handle.close()

    def close(self) -> None:
        """End every session; none may be in use."""
        with self._lock:
            for session in self._sessions.values():
                session.handle.close()
            self._sessions.clear()


def _seconds(timeout: str | None) -> float:
    try:
        seconds = float(timeout or DEFAULT_TIMEOUT)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= MAX_TIMEOUT:
        raise ClickHouseError(
            f"Session timeout '{timeout}' is not a number of seconds up to {MAX_TIMEOUT:g}",
            Code.INVALID_SESSION_TIMEOUT,
        )
    return seconds
