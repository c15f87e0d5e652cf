"""What a check concludes, and how Dagster is told."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import dagster as dg
import polars as pl
from dagster._core.definitions.asset_checks.asset_check_evaluation import AssetCheckEvaluationTargetMaterializationData

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
    in_all: int | None = None
    """Rows of the whole table, where `table` is only its beginning."""

    def evaluation(
        self,
        asset: dg.AssetKey,
        check: str,
        *,
        blocking: bool = False,
        target: AssetCheckEvaluationTargetMaterializationData | None = None,
    ) -> dg.AssetCheckEvaluation:
        """Return the verdict as Dagster's evaluation of a check; `target` is the materialization that was judged."""
        return dg.AssetCheckEvaluation(
            asset_key=asset,
            check_name=check,
            passed=self.level == "pass",
            severity=self._severity,
            description=self.sentence,
            metadata=self._metadata,
            blocking=blocking,
            target_materialization_data=target,
        )

    @property
    def _severity(self) -> dg.AssetCheckSeverity:
        return dg.AssetCheckSeverity.WARN if self.level == "warn" else dg.AssetCheckSeverity.ERROR

    @property
    def _metadata(self) -> dict[str, Any]:
        metadata: dict[str, Any] = dict(self.numbers)
        if self.table.height:
            metadata[self.table_name] = frame_table(self.table)
            metadata[f"{self.table_name} in all"] = self.table.height if self.in_all is None else self.in_all
        return metadata


def report(
    instance: dg.DagsterInstance, spec: dg.AssetCheckSpec, verdict: Verdict
) -> Iterator[dg.Output[None] | dg.AssetCheckEvaluation]:
    """Yield what a step of checks yields for one of them.

    Dagster turns an AssetCheckResult into the same two events, but lists every partition of the asset for it: 0.5 s of
    processor time for 50,000 partitions, and that for each check of each run.
    """
    newest = instance.fetch_materializations(spec.asset_key, limit=1).records
    target = None
    if newest:
        record = newest[0]
        target = AssetCheckEvaluationTargetMaterializationData(
            storage_id=record.storage_id, run_id=record.run_id, timestamp=record.timestamp
        )
    yield dg.Output(None, output_name=spec.get_python_identifier())
    yield verdict.evaluation(spec.asset_key, spec.name, blocking=spec.blocking, target=target)
