"""Follow pages safely: where a link may lead, and whether pages advance."""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import parse_qsl, urlencode, urljoin, urlsplit, urlunsplit

import polars as pl

_DEFAULT_PORTS = {"http": 80, "https": 443}


def next_link(link: str, base_url: str, allowed_hosts: Collection[str]) -> str:
    """Check a `next_url` and return it without any key.

    It must lead to one of `allowed_hosts` (host, with the port unless it is the scheme's own) by https, or by http
    where `base_url` is http itself.

    Raises:
        ValueError: it leads elsewhere; the message names the host, without the query.
    """
    base = urlsplit(base_url)
    parts = urlsplit(urljoin(base_url + "/", link))
    schemes = {"https", base.scheme}
    allowed = {(scheme, _place(scheme, host)) for host in allowed_hosts for scheme in schemes}
    if (parts.scheme, _place(parts.scheme, parts.netloc)) not in allowed:
        raise ValueError(f"next_url leads to {parts.scheme}://{parts.hostname}, which is not allowed")
    query = parse_qsl(parts.query, keep_blank_values=True)
    kept = urlencode([(name, value) for name, value in query if name.lower() != "apikey"])
    return urlunsplit((parts.scheme, parts.netloc, parts.path, kept, ""))


def _place(scheme: str, netloc: str) -> str:
    host, _, port = netloc.lower().partition(":")
    return host if port == str(_DEFAULT_PORTS.get(scheme, "")) else netloc.lower()


class PageGuard:
    """Watch the pages of one request: no link twice, and every page ahead of the one before."""

    def __init__(self) -> None:
        self._seen: set[str] = set()
        self._last: pl.DataFrame | None = None

    @property
    def last_ms(self) -> int | None:
        """The time of the last bar so far, in epoch milliseconds."""
        return None if self._last is None else int(self._last["ts"].cast(pl.Int64)[0])

    def restart(self) -> None:
        """Forget the links, not the last bar: the request is asked again from there."""
        self._seen.clear()

    def is_new(self, url: str) -> bool:
        """Remember a link; False if it was there before."""
        if url in self._seen:
            return False
        self._seen.add(url)
        return True

    def advance(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Return the rows that come after the earlier pages; the last bar may be repeated, as it was.

        Raises:
            ValueError: the page goes back, repeats the last bar with other values, or does not advance at all.
        """
        if frame.is_empty():
            return frame
        if self._last is not None:
            last = self._last["ts"][0]
            early = frame.filter(pl.col("ts") <= last)
            if not early.is_empty():
                if not early.equals(self._last, null_equal=True):
                    raise ValueError("a page goes back behind the one before")
                frame = frame.slice(1)
            if frame.is_empty():
                raise ValueError("a page repeats the one before")
        self._last = frame.tail(1)
        return frame
