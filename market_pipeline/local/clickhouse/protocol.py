"""What an HTTP request asks for: parameters, headers, settings, external tables, credentials."""

from __future__ import annotations

import base64
import binascii
import hmac
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl

from starlette.types import Scope

from market_pipeline.local.clickhouse.bodies import Part
from market_pipeline.local.clickhouse.errors import ClickHouseError, Code
from market_pipeline.local.clickhouse.sql import Settings

# URL parameters that are no settings (ClickHouse, "HTTP Interface").
_RESERVED = frozenset(
    {
        *("query", "query_id", "database", "default_format", "role", "quota_key", "user", "password"),
        *("session_id", "session_timeout", "session_check", "close_session", "client_protocol_version"),
        *("compress", "decompress", "enable_http_compression", "http_zlib_compression_level"),
        *("wait_end_of_query", "buffer_size", "stacktrace", "cancel_http_readonly_queries_on_client_close"),
        *("send_progress_in_http_headers", "http_headers_progress_interval_ms", "add_http_cors_header"),
    }
)
_PARAMETER = "param_"
_WORD = re.compile(r"\w+", re.ASCII)
_UNPRINTABLE = re.compile(r"[^\x20-\x7e]")


@dataclass
class Request:
    """One request: URL parameters (those of a multipart form join them) and headers, names in lower case.

    Header values are latin-1 as HTTP has them; parameters carry undecodable bytes as surrogates.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    parameters: dict[str, str]
    externals: list[Part] = field(default_factory=list)
    query_id: str = field(init=False)

    def __post_init__(self) -> None:
        asked = self.parameters.get("query_id", "")
        # The id goes back in a header: one that would break the header is replaced, as an absent one is.
        self.query_id = asked if asked and not _UNPRINTABLE.search(asked) else str(uuid.uuid4())

    def add_form(self, part: Part) -> None:
        """Add a part of a multipart form: a parameter or the data of an external table."""
        described = (f"{part.name}_structure", f"{part.name}_types")
        if part.is_file or any(name in self.parameters for name in described):
            self.externals.append(part)
        else:
            self.parameters[part.name] = part.data.decode(errors="surrogateescape")

    def flag(self, name: str) -> bool:
        """Say whether a parameter is 1."""
        return self.parameters.get(name) == "1"

    @property
    def sql(self) -> bytes:
        """The parameter `query`."""
        return self.parameters.get("query", "").encode(errors="surrogateescape")

    @property
    def database(self) -> str | None:
        """The database of this request, None for the default one."""
        return self.parameters.get("database") or self.headers.get("x-clickhouse-database")

    @property
    def default_format(self) -> str:
        """The format of answers to statements that name none."""
        name = self.parameters.get("default_format") or self.headers.get("x-clickhouse-format") or "TabSeparated"
        if not _WORD.fullmatch(name):
            raise ClickHouseError(f"Unknown format {name!r}", Code.UNKNOWN_FORMAT)
        return name

    @property
    def query_parameters(self) -> dict[str, str]:
        """The values of `{name:Type}` in the statement."""
        found = {k.removeprefix(_PARAMETER): v for k, v in self.parameters.items() if k.startswith(_PARAMETER)}
        if bad := [name for name in found if not _WORD.fullmatch(name)]:
            raise ClickHouseError(f"Bad name of a query parameter: {bad[0]!r}", Code.BAD_ARGUMENTS)
        return found

    @property
    def settings(self) -> Settings:
        """The settings of this request, sorted by name; raises ClickHouseError (UNKNOWN_SETTING) for a bad name."""
        described = {f"{part.name}_{what}" for part in self.externals for what in ("structure", "types", "format")}
        found = {
            name: value
            for name, value in self.parameters.items()
            if name not in _RESERVED and name not in described and not name.startswith(_PARAMETER)
        }
        if bad := [name for name in found if not _WORD.fullmatch(name)]:
            raise ClickHouseError(f"Unknown setting {bad[0]!r}", Code.UNKNOWN_SETTING)
        return tuple(sorted(found.items()))


def parse(scope: Scope) -> Request:
    """Return the request of an ASGI scope."""
    headers = {name.decode("latin1").lower(): value.decode("latin1") for name, value in scope["headers"]}
    query = scope["query_string"].decode("latin1")
    parameters = dict(parse_qsl(query, keep_blank_values=True, errors="surrogateescape"))
    return Request(scope["method"], scope["path"], headers, parameters)


@dataclass(frozen=True)
class Credentials:
    """The one user of the server."""

    user: str
    password: str = field(repr=False)

    def check(self, request: Request) -> None:
        """Raise ClickHouseError (AUTHENTICATION_FAILED) unless the request carries this user and password.

        ClickHouse takes them from headers of its own, from parameters, or from HTTP basic authentication.
        """
        user, password = _header(request, "user", "user"), _header(request, "key", "password")
        authorization = request.headers.get("authorization", "")
        if user is None and authorization.startswith("Basic "):
            try:
                user, _, password = base64.b64decode(authorization[6:], validate=True).partition(b":")
            except binascii.Error:
                user = b""
        user = b"default" if user is None else user
        known = hmac.compare_digest(user, self.user.encode())
        if not known & hmac.compare_digest(password or b"", self.password.encode()):
            name = user.decode(errors="replace")[:64]
            raise ClickHouseError(
                f"{name}: Authentication failed: password is incorrect, or there is no user with such name.",
                Code.AUTHENTICATION_FAILED,
            )


def _header(request: Request, header: str, parameter: str) -> bytes | None:
    value = request.headers.get(f"x-clickhouse-{header}")
    if value is not None:
        return value.encode("latin1")
    value = request.parameters.get(parameter)
    return None if value is None else value.encode(errors="surrogateescape")
