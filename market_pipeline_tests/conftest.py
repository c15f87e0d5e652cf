"""What holds for every test: property tests judge results, never times, and try the same examples in every run.

With HYPOTHESIS_RANDOM=1 they try new ones: for looking for trouble, where a red run stops nobody's work.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

settings.register_profile(
    "market_pipeline",
    deadline=None,
    derandomize=not os.environ.get("HYPOTHESIS_RANDOM"),
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("market_pipeline")
