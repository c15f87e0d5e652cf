"""The runbook quotes what the program says, so that a message can be searched for in it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text()
_QUOTING = ("the message says", "it says")


def quotes() -> Iterator[str]:
    """Yield what stands in backticks in the first column of the tables of messages."""
    heading = ""
    for line in RUNBOOK.splitlines():
        if not line.startswith("|"):
            heading = ""
            continue
        first = line.split("|")[1].strip()
        heading = heading or first
        if heading in _QUOTING:
            yield from re.findall(r"`([^`]+)`", first)


@cache
def texts() -> str:
    """Return every text of the program, `…` for what an f-string fills in; no docstring, nothing of the simulator."""
    found = []
    program = ROOT / "market_pipeline"
    for path in sorted(set(program.rglob("*.py")) - set((program / "simulator").rglob("*.py"))):
        tree = ast.parse(path.read_text())
        prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if id(node) in prose:
                continue
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = (str(each.value) if isinstance(each, ast.Constant) else "…" for each in node.values)
                found.append("".join(parts))
    return "\n".join(found)


def test_the_runbook_has_quotes() -> None:
    assert len(list(quotes())) > 12


@pytest.mark.parametrize("quote", sorted(set(quotes())))
def test_the_program_says_it(quote: str) -> None:
    for part in filter(None, (part.strip() for part in quote.split("…"))):
        assert part in texts(), part
