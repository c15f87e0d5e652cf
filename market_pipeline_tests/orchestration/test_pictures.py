import base64
import re
import xml.etree.ElementTree as ElementTree

from hypothesis import given, settings
from hypothesis import strategies as st

from market_pipeline.orchestration.pictures import LIMIT, coverage_strip, sparkline


def svg_of(markdown: str) -> ElementTree.Element:
    match = re.fullmatch(r"!\[\w+\]\(data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)\)", markdown)
    assert match
    return ElementTree.fromstring(base64.b64decode(match[1]))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(-1, 2), min_size=1, max_size=4000))
def test_a_coverage_strip_is_small_and_well_formed(shares: list[float]) -> None:
    markdown = coverage_strip(shares)
    assert len(markdown) < LIMIT
    assert svg_of(markdown).tag.endswith("svg")


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(0, 1e12), min_size=2, max_size=4000))
def test_a_sparkline_is_small_and_well_formed(values: list[float]) -> None:
    markdown = sparkline(values)
    assert len(markdown) < LIMIT
    assert svg_of(markdown)[0].tag.endswith("polyline")


def test_one_bad_day_of_years_stays_visible() -> None:
    whole = svg_of(coverage_strip([1.0] * 1800))
    holed = svg_of(coverage_strip([1.0] * 900 + [0.5] + [1.0] * 899))
    assert len(whole) == 1
    assert len(holed) == 2
    assert holed[1].get("d", "").count("M") == 1


def test_a_thin_market_is_not_painted_red() -> None:
    strip = svg_of(coverage_strip([1.0, 0.985, 0.5]))
    assert [path.get("stroke") for path in strip] == ["#2a9d6f", "#e0a030", "#d1495b"]


def test_nothing_to_draw_is_nothing() -> None:
    assert coverage_strip([]) == ""
    assert sparkline([3.0]) == ""


def test_a_flat_line_is_drawn() -> None:
    assert "polyline" in svg_of(sparkline([5.0, 5.0, 5.0]))[0].tag
