"""Polygon.io, now Massive: history and reference data over REST.

Aggregates are asked for with `adjusted=true`, the vendor's default: prices of stocks are adjusted for splits up to the
day of the request (never for dividends). So a split restates history: a later load finds that and stores a revision.
"""

from market_pipeline.vendors.polygon.client import BREAKER, PolygonClient
from market_pipeline.vendors.polygon.plan import MAX_MINUTES, plan_requests

__all__ = ["BREAKER", "MAX_MINUTES", "PolygonClient", "plan_requests"]
