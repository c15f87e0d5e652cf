"""History: from a vendor's REST answers to checked bars of every timeframe, without Dagster.

`load_minutes`, `derive_bars`, `repair_gaps`, `monitor_gaps`, `aggregate_ticks`, `reconcile_live` and `probe_all` are
what orchestration/ and the CLI call.
"""

from market_pipeline.history.reports import (
    AggregateReport,
    DeriveReport,
    LoadReport,
    MonitorReport,
    ReconcileReport,
    RepairReport,
    SeriesCounts,
    SymbolLoad,
)
from market_pipeline.history.service import (
    aggregate_ticks,
    derive_bars,
    load_minutes,
    monitor_gaps,
    probe_all,
    reconcile_live,
    repair_gaps,
)

__all__ = [
    "AggregateReport",
    "DeriveReport",
    "LoadReport",
    "MonitorReport",
    "ReconcileReport",
    "RepairReport",
    "SeriesCounts",
    "SymbolLoad",
    "aggregate_ticks",
    "derive_bars",
    "load_minutes",
    "monitor_gaps",
    "probe_all",
    "reconcile_live",
    "repair_gaps",
]
