"""What a check concludes, and how Dagster is told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import dagster as dg
import polars as pl

from market_pipeline.orchestration.event_metadata import frame_table

Level = Literal["pass", "warn", "error"]


@dataclass(frozen=True)
class Verdict:
    """Hold a conclusion: its level, one sentence, numbers that the UI plots, and a table of what is bad."""

    level: Level
    sentence: str
    numbers: dict[str, int | float | str] = field(default_factory=dict)
    table: pl.DataFrame = field(default_factory=pl.DataFrame)
    table_name: str = "bad partitions"

    def result(self, **more: Any) -> dg.AssetCheckResult:
        """Return the verdict as the result of a check that is being executed; `more` names asset and check."""
        return dg.AssetCheckResult(
            passed=self.level == "pass",
            severity=self._severity,
            description=self.sentence,
            metadata=self._metadata,
            **more,
        )

    def evaluation(self, asset: dg.AssetKey, check: str) -> dg.AssetCheckEvaluation:
        """Return the verdict as an evaluation that a sensor or another job reports."""
        return dg.AssetCheckEvaluation(
            asset_key=asset,
            check_name=check,
            passed=self.level == "pass",
            severity=self._severity,
            description=self.sentence,
            metadata=self._metadata,
        )

    @property
    def _severity(self) -> dg.AssetCheckSeverity:
        return dg.AssetCheckSeverity.WARN if self.level == "warn" else dg.AssetCheckSeverity.ERROR

    @property
    def _metadata(self) -> dict[str, Any]:
        metadata: dict[str, Any] = dict(self.numbers)
        if self.table.height:
            metadata[self.table_name] = frame_table(self.table)
            metadata[f"{self.table_name} in all"] = self.table.height
        return metadata
