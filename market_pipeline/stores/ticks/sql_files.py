"""The SQL of the tick store, kept in files beside it."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import LiteralString, cast


@cache
def load_sql(name: str) -> LiteralString:
    """Return the statement in `sql/<name>.sql`."""
    text = resources.files(__package__).joinpath("sql", f"{name}.sql").read_text(encoding="utf-8").strip()
    # what ships with the package is as fixed as what stands in it
    return cast(LiteralString, text)
