"""The tree of errors that the module draws is the one that it has."""

from __future__ import annotations

import re

from market_pipeline import errors
from market_pipeline.errors import MarketPipelineError, Terminal, Transient


def drawn() -> list[tuple[int, str, str]]:
    """Return depth, name and mark of every line of the drawing."""
    found = re.findall(r"^ {4}((?:[│ ]   )*)[├└]── (\w+)(?: \((\w+)\))?", errors.__doc__ or "", re.M)
    return [(len(indent) // 4, name, mark) for indent, name, mark in found]


def test_every_error_is_drawn_beneath_its_parent_with_its_mark() -> None:
    parents: dict[int, type[Exception]] = {-1: MarketPipelineError}
    for depth, name, mark in drawn():
        error = getattr(errors, name)
        parent = parents[depth - 1]
        assert parent in error.__bases__, f"{name} is no child of {parent.__name__}"
        marks = {"transient": Transient, "terminal": Terminal}
        assert {word for word, kind in marks.items() if issubclass(error, kind)} == (
            {mark} if mark else {word for word, kind in marks.items() if issubclass(parent, kind)}
        ), name
        parents[depth] = error
    here = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Exception)}
    assert {name for _, name, _ in drawn()} == here - {"MarketPipelineError"}
