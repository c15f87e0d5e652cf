"""Which source of a minute wins: the ranks in the views bars_ranked and bar_revisions_ranked, kept as the settings say.

No row knows its rank, so that another ranking is two replaced views: a statement each, at once, for every bar there is.
The comment of bars_ranked, which is replaced last, keeps the time of the change, which is a revision like any other to
the bars that are derived from it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import NamedTuple

import structlog

from market_pipeline.errors import StoreQueryError
from market_pipeline.market.bars import MINUTE_SOURCES
from market_pipeline.stores.clickhouse import Client
from market_pipeline.stores.migrations import execute, render_statement
from market_pipeline.stores.sql_files import load_sql

log = structlog.get_logger(__name__)

_COMMENTS = re.compile(r"^--.*\n", re.MULTILINE)
_DISTRIBUTED = re.compile(r"Distributed\('([^']+)'")
_PLACES = ("first", "second", "third", "fourth")


class Precedence(NamedTuple):
    """Sources of minutes, highest first, since when that holds (ms since 1970; 0: since the schema was made), and the
    cluster over which the tables lie, if any."""

    sources: tuple[str, ...]
    set_at: int
    cluster: str | None = None


def in_force(client: Client) -> Precedence:
    """Return what the view bars_ranked of the client's database says; no sources where there is no such view."""
    rows = client.rows(load_sql("precedence"))
    if not rows:
        return Precedence((), 0)
    sources, set_at, engine = rows[0]
    return Precedence(tuple(sources), set_at, cluster_of(engine or ""))


def cluster_of(engine: str) -> str | None:
    """Return the cluster that the engine of `bars`, as system.tables tells it in full, is distributed over."""
    found = _DISTRIBUTED.match(engine)
    return found[1] if found else None


def follow(client: Client, precedence: Sequence[str]) -> bool:
    """Let the views rank the sources of minutes as given, highest first; return whether that was a change.

    One query when they do already. Safe when several processes do it at once: each view is replaced as a whole, and
    readers see the old or the new one. The schema must have been applied.

    Raises:
        ValueError: not each of MINUTE_SOURCES once.
        StoreQueryError: the server refuses the new view, for example because the user may not create views.
    """
    if sorted(precedence) != sorted(MINUTE_SOURCES):
        raise ValueError(f"{', '.join(precedence)}: not each of {', '.join(MINUTE_SOURCES)} once")
    before = in_force(client)
    if before.sources == tuple(precedence):
        return False
    set_at = max(time.time_ns() // 1_000_000, before.set_at + 1)
    # That of the versions first: the comment of the other one says that the change is done.
    for name in ("bar_revisions_ranked", "bars_ranked"):
        statement = view(precedence, set_at, name=name, cluster=before.cluster)
        execute(client, statement, what="the change of precedence")
    after = in_force(client)
    if after.set_at == set_at and not after.sources:  # else every program that starts would replace it again
        raise StoreQueryError(
            "the view bars_ranked does not show the ranks that it was given: this server writes views down in a form "
            "that sql/precedence.sql does not know"
        )
    # A person's decision, or two programs that disagree and replace each other's view: either way it must be seen.
    log.warning("precedence_changed", database=client.database, before=list(before.sources), now=list(precedence))
    return True


def view(precedence: Sequence[str], set_at: int, *, name: str = "bars_ranked", cluster: str | None = None) -> str:
    """Return the statement that replaces a ranked view; a view's text takes no parameters."""
    statement = _COMMENTS.sub("", load_sql(name))
    for place, source in zip((*_PLACES, "set_at"), (*precedence, str(set_at)), strict=True):
        statement = statement.replace(f"/* {place} */", source)
    return render_statement(statement, cluster)
