"""Pictures for event metadata: an SVG of under 1,000 characters as markdown, since the UI shows a longer one as a link.

Inline `<svg>` is stripped by the UI; an image with a base64 data URL is shown.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from itertools import pairwise

LIMIT = 1_000
_WIDTH, _HEIGHT = 180, 28
_HEAD = f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}">'
# readable on the UI's light and dark ground
_LEVELS = ((0.99, "#2a9d6f"), (0.95, "#e0a030"), (0.0, "#d1495b"))
_LINE = "#4c7fd0"
_MOST_BARS, _MOST_POINTS = 30, 48


def coverage_strip(shares: Sequence[float]) -> str:
    """Return markdown with a strip of bars, one a day or group of days: height and colour are the share covered.

    `shares` lie in [0, 1], oldest first; a group shows its worst day, so that a hole stays visible in a long range.
    Green from 99 %, amber from 95 %, red below. Returns an empty string where there is nothing to draw.
    """
    if not shares:
        return ""
    groups = _worst_of_groups([min(1.0, max(0.0, share)) for share in shares])
    step = _WIDTH / len(groups)
    width = max(1.0, step * 0.85)
    moves: dict[str, list[str]] = {colour: [] for _, colour in _LEVELS}
    for n, share in enumerate(groups):
        height = max(1, round(share * _HEIGHT))
        colour = next(colour for least, colour in _LEVELS if share >= least)
        moves[colour].append(f"M{_num(n * step + width / 2)} {_HEIGHT}v-{height}")
    return _markdown("coverage", "".join(_strokes(some, colour, width) for colour, some in moves.items()))


def sparkline(values: Sequence[float]) -> str:
    """Return markdown with a line through the values, oldest first, scaled to their own range.

    Returns an empty string for fewer than two values.
    """
    if len(values) < 2:
        return ""
    count = min(len(values), _MOST_POINTS)
    picked = [values[round(n * (len(values) - 1) / (count - 1))] for n in range(count)]
    low, high = min(picked), max(picked)
    scale = (_HEIGHT - 2) / (high - low) if high > low else 0.0
    step = _WIDTH / (len(picked) - 1)
    points = " ".join(f"{_num(n * step)},{_num(_HEIGHT - 1 - (v - low) * scale)}" for n, v in enumerate(picked))
    return _markdown("line", f'<polyline points="{points}" fill="none" stroke="{_LINE}"/>')


def _worst_of_groups(values: list[float]) -> list[float]:
    if len(values) <= _MOST_BARS:
        return values
    edges = [round(n * len(values) / _MOST_BARS) for n in range(_MOST_BARS + 1)]
    return [min(values[a:b]) for a, b in pairwise(edges)]


def _strokes(moves: list[str], colour: str, width: float) -> str:
    return f'<path d="{"".join(moves)}" stroke="{colour}" stroke-width="{_num(width)}"/>' if moves else ""


def _num(value: float) -> str:
    return f"{value:.1f}".rstrip("0").rstrip(".") or "0"


def _markdown(alt: str, body: str) -> str:
    encoded = base64.b64encode(f"{_HEAD}{body}</svg>".encode()).decode()
    picture = f"![{alt}](data:image/svg+xml;base64,{encoded})"
    if len(picture) >= LIMIT:
        raise ValueError(f"the picture has {len(picture)} characters and would show as a link: the limit is {LIMIT}")
    return picture
