"""What holds for every test: property tests judge results, never times, and try the same examples in every run.

With HYPOTHESIS_RANDOM=1 they try new ones: for looking for trouble, where a red run stops nobody's work.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from dagster._core.storage.defs_state.base import set_defs_state_storage
from hypothesis import HealthCheck, settings

settings.register_profile(
    "market_pipeline",
    deadline=None,
    derandomize=not os.environ.get("HYPOTHESIS_RANDOM"),
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("market_pipeline")


@pytest.fixture(autouse=True)
def no_instance_of_another_test() -> Iterator[None]:
    """Hide what an earlier test's Dagster instance left behind.

    An instance that is entered twice (by a test, and by the code that it calls) keeps its state storage current after
    both have left, and loading definitions then asks an instance that is gone.
    """
    with set_defs_state_storage(None):
        yield
