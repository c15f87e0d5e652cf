"""The SQL of the tick store, kept in files beside it."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import LiteralString


@cache
def load_sql(name: str) -> LiteralString:
    """Return the statement in `sql/<name>.sql`."""
    return resources.files(__package__).joinpath("sql", f"{name}.sql").read_text(encoding="utf-8").strip()
