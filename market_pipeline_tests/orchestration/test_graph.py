"""The whole graph against a committed snapshot: a change of it must be seen, and meant.

To accept a change: `python -m market_pipeline_tests.orchestration.test_graph`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import dagster as dg

from market_pipeline.market.instruments import parse_instruments
from market_pipeline.orchestration.build import build_definitions
from market_pipeline_tests.orchestration.conftest import INSTRUMENTS

SNAPSHOT = Path(__file__).with_name("graph.json")


def describe_partitions(partitions: dg.PartitionsDefinition | None) -> Any:
    if not isinstance(partitions, dg.MultiPartitionsDefinition):
        return None
    described: dict[str, Any] = {}
    for dimension in partitions.partitions_defs:
        keys = dimension.partitions_def.get_partition_keys()
        static = isinstance(dimension.partitions_def, dg.StaticPartitionsDefinition)
        described[dimension.name] = keys if static else f"{type(dimension.partitions_def).__name__} from {keys[0]}"
    return described


def blocking(graph: Any, key: dg.AssetCheckKey) -> str:
    return "blocks" if graph.get(key).blocking else "reports"


def describe(defs: dg.Definitions) -> dict[str, Any]:
    graph = defs.resolve_asset_graph()
    repository = defs.get_repository_def()
    assets = {}
    for node in sorted(graph.asset_nodes, key=lambda node: node.key.to_user_string()):
        columns = node.metadata.get("dagster/column_schema")
        assets[node.key.to_user_string()] = {
            "parents": sorted(key.to_user_string() for key in node.parent_keys),
            "group": node.group_name,
            "kinds": " ".join(sorted(node.kinds)),
            "executable": node.is_executable,
            "partitions": describe_partitions(node.partitions_def),
            "backfill": None if node.backfill_policy is None else node.backfill_policy.policy_type.value,
            "columns": "" if columns is None else " ".join(column.name for column in columns.columns),
            "described": bool(node.description),
            "checks": {key.name: blocking(graph, key) for key in sorted(graph.get_check_keys_for_assets([node.key]))},
        }
    return {
        "assets": assets,
        "jobs": sorted(job.name for job in repository.get_all_jobs() if not job.name.startswith("__")),
        "schedules": {
            schedule.name: {
                "cron": schedule.cron_schedule,
                "job": schedule.job_name,
                "on": schedule.default_status.value == "RUNNING",
            }
            for schedule in repository.schedule_defs
        },
        "sensors": {
            sensor.name: {"every": sensor.minimum_interval_seconds, "on": sensor.default_status.value == "RUNNING"}
            for sensor in repository.sensor_defs
        },
        "resources": sorted(name for name in repository.get_top_level_resources()),
    }


def test_the_graph_is_the_one_that_was_agreed(defs: dg.Definitions) -> None:
    assert describe(defs) == json.loads(SNAPSHOT.read_text())


if __name__ == "__main__":
    definitions = build_definitions(parse_instruments(INSTRUMENTS, "the test's instruments"))
    SNAPSHOT.write_text(json.dumps(describe(definitions), indent=2, sort_keys=True) + "\n")
