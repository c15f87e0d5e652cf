"""The benchmark of the live road counts for nothing where rows are missing or doubled."""

from __future__ import annotations

import pytest

from market_pipeline_tests.benchmarks.live import end


@pytest.mark.parametrize("stored", [999, 1001])
def test_rows_that_are_not_equal_are_a_failure(stored: int) -> None:
    with pytest.raises(SystemExit) as ended:
        end(1000, stored)
    assert ended.value.code not in (0, None), "a message on stderr and exit code 1"


def test_each_tick_once_is_none() -> None:
    end(1000, 1000)
