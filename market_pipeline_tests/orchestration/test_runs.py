"""Runs of the assets and jobs over ranges, with the rooms below replaced."""

# no `from __future__ import annotations`: Dagster reads the annotations of the asset below

import time
from datetime import UTC, date, datetime, timedelta
from typing import Any

import dagster as dg
import polars as pl
import pytest

from market_pipeline.errors import RangeNotLoaded, VendorAuthError
from market_pipeline.market.bars import BAR_SCHEMA, TS
from market_pipeline.orchestration.assets.derived import DAILY_DERIVED, bars_key
from market_pipeline.orchestration.assets.minutes import MINUTES
from market_pipeline.orchestration.jobs import range_tags
from market_pipeline.orchestration.partition_metadata import add_partition_metadata
from market_pipeline_tests.orchestration.conftest import LEDGER_SCHEMA, Calls, StoredBars

LOAD = "load_history"


def run(
    defs: dg.Definitions, instance: dg.DagsterInstance, job: str, tags: dict[str, str] | None = None, **more: Any
) -> dg.ExecuteInProcessResult:
    return defs.resolve_job_def(job).execute_in_process(instance=instance, tags=tags, **more)


def events(instance: dg.DagsterInstance, asset: dg.AssetKey) -> dict[str, dg.AssetMaterialization]:
    records = instance.fetch_materializations(asset, limit=5_000, ascending=True).records
    found = {}
    for record in records:
        assert record.asset_materialization is not None
        found[str(record.asset_materialization.partition)] = record.asset_materialization
    return found


def values(event: dg.AssetMaterialization) -> dict[str, Any]:
    return {name: value.value for name, value in event.metadata.items()}


def test_a_range_of_days_and_symbols_is_one_load_and_one_derivation(
    defs: dg.Definitions, instance: dg.DagsterInstance, calls: Calls, stored: StoredBars
) -> None:
    result = run(defs, instance, LOAD, range_tags("2024-03-04|EURUSD", "2024-03-06|us"))
    assert result.success
    days = [(date(2024, 3, 4), date(2024, 3, 7))]
    wanted = {"EURUSD": days, "BTCUSD": days, "SPY": days, "IBM": days}
    assert [call["wanted"] for call in calls.loads] == [wanted]
    assert calls.loads[0]["run_id"] == calls.loads[0]["root_run_id"] == result.run_id
    assert [(call["wanted"], call["timeframes"]) for call in calls.derivations] == [(wanted, [*DAILY_DERIVED, "1w"])]
    keys = {f"2024-03-0{day}|{partition}" for day in (4, 5, 6) for partition in ("EURUSD", "BTCUSD", "us")}
    for asset in (MINUTES, *(bars_key(code) for code in DAILY_DERIVED)):
        assert set(events(instance, asset)) == keys


def test_each_partition_has_its_numbers_and_the_last_of_a_symbol_the_summary(
    defs: dg.Definitions, instance: dg.DagsterInstance, calls: Calls, stored: StoredBars
) -> None:
    calls.partial_from = date(2024, 3, 6)
    assert run(defs, instance, LOAD, range_tags("2024-03-04|EURUSD", "2024-03-06|us")).success
    minutes = events(instance, MINUTES)
    last = values(minutes["2024-03-06|us"])
    earlier = [values(minutes[f"2024-03-0{day}|us"]) for day in (4, 5)]
    # The asset's page shows one partition of the run, whichever Dagster writes last: that one has a summary as well.
    plain = next(each for each in earlier if "range" not in each)
    assert plain == {
        "dagster/partition_row_count": 2860,  # two instruments share the partition
        "expected minutes": 2880,
        "missing minutes": 20,
        "coverage": pytest.approx(2860 / 2880),
        "partial": False,
    }
    assert last["partial"] is True
    assert (last["new"], last["vendor requests"], last["retries of the run"]) == (2860 * 3, 2, 2)
    assert last["range"] == "2024-03-04 to 2024-03-06"
    assert last["picture"].startswith("![coverage](data:image/svg+xml;base64,")
    assert len(last["gaps"].records) == 2
    assert minutes["2024-03-06|us"].tags["dagster/partition/symbol"] == "us"
    page = instance.get_latest_materialization_event(MINUTES)
    assert page is not None
    assert page.asset_materialization is not None
    assert "picture" in page.asset_materialization.metadata  # whichever partition it is that the asset's page shows
    derived = values(events(instance, bars_key("1h"))["2024-03-06|EURUSD"])
    assert (derived["dagster/partition_row_count"], derived["complete bars"], derived["partial"]) == (7, 6, False)


def test_the_touched_weeks_are_recorded_with_the_days(
    defs: dg.Definitions, instance: dg.DagsterInstance, calls: Calls, stored: StoredBars
) -> None:
    assert run(defs, instance, LOAD, range_tags("2024-03-08|EURUSD", "2024-03-11|EURUSD")).success
    weeks = events(instance, bars_key("1w"))
    assert {key: values(event)["partial"] for key, event in weeks.items()} == {
        "2024-03-03|EURUSD": False,
        "2024-03-10|EURUSD": False,
    }
    assert weeks["2024-03-10|EURUSD"].tags["dagster/partition/date"] == "2024-03-10"


def test_a_running_day_and_week_are_partial(
    defs: dg.Definitions, instance: dg.DagsterInstance, calls: Calls, stored: StoredBars
) -> None:
    today = datetime.now(UTC).date()
    job = defs.resolve_implicit_global_asset_job_def()
    key = f"{today}|BTCUSD"
    assert job.execute_in_process(instance=instance, asset_selection=[bars_key("1d")], partition_key=key).success
    assert values(events(instance, bars_key("1d"))[key])["partial"] is True
    assert [values(event)["partial"] for event in events(instance, bars_key("1w")).values()] == [True]


def test_a_subset_of_timeframes_goes_through_the_same_door(
    defs: dg.Definitions, instance: dg.DagsterInstance, calls: Calls, stored: StoredBars
) -> None:
    job = defs.resolve_implicit_global_asset_job_def()
    result = job.execute_in_process(
        instance=instance, asset_selection=[bars_key("30m"), bars_key("1d")], partition_key="2024-03-04|BTCUSD"
    )
    assert result.success
    assert calls.derivations[0]["timeframes"] == ["30m", "1d", "1w"]
    assert not calls.loads
    assert events(instance, bars_key("30m"))
    assert not events(instance, bars_key("1h"))


def test_weeks_can_be_materialized_alone(
    defs: dg.Definitions, instance: dg.DagsterInstance, calls: Calls, stored: StoredBars
) -> None:
    job = defs.resolve_implicit_global_asset_job_def()
    tags = range_tags("2024-03-03|EURUSD", "2024-03-17|EURUSD")
    assert job.execute_in_process(instance=instance, asset_selection=[bars_key("1w")], tags=tags).success
    assert calls.derivations[0]["wanted"] == {"EURUSD": [(date(2024, 3, 3), date(2024, 3, 24))]}
    assert calls.derivations[0]["timeframes"] == ["1w"]
    assert set(events(instance, bars_key("1w"))) == {f"2024-03-{day}|EURUSD" for day in ("03", "10", "17")}


def test_a_week_maps_to_its_seven_days(defs: dg.Definitions) -> None:
    graph = defs.resolve_asset_graph()
    week = graph.get(bars_key("1w"))
    assert week.partitions_def is not None
    mapping = graph.get_partition_mapping(bars_key("1w"), parent_asset_key=bars_key("1d"))
    subset = week.partitions_def.subset_with_partition_keys(["2024-03-03|EURUSD"])
    upstream = mapping.get_upstream_mapped_partitions_result_for_partitions(
        subset, week.partitions_def, graph.get(bars_key("1d")).partitions_def
    ).partitions_subset.get_partition_keys()
    assert sorted(upstream) == [f"2024-03-0{day}|EURUSD" for day in range(3, 10)]


def test_a_run_without_partitions_says_how_to_name_them(
    defs: dg.Definitions, instance: dg.DagsterInstance, calls: Calls, stored: StoredBars
) -> None:
    result = run(defs, instance, LOAD, raise_on_error=False)
    assert not result.success
    assert "dagster/asset_partition_range_start" in _failure(result)


def test_a_failed_range_is_named_in_one_sentence_and_a_table(
    defs: dg.Definitions, instance: dg.DagsterInstance, calls: Calls, stored: StoredBars
) -> None:
    start, end = datetime(2024, 3, 4, tzinfo=UTC), datetime(2024, 3, 5, tzinfo=UTC)
    calls.error = RangeNotLoaded("EUR/USD: not loaded: 2024-03-04 to 2024-03-05", [("EUR/USD", start, end)])
    result = run(defs, instance, LOAD, range_tags("2024-03-04|EURUSD", "2024-03-04|EURUSD"), raise_on_error=False)
    assert not result.success
    data = result.failure_data_for_node("bars_1m")
    assert data is not None
    assert data.user_failure_data is not None
    assert data.user_failure_data.description == "EUR/USD: not loaded: 2024-03-04 to 2024-03-05"
    table = data.user_failure_data.metadata["missing ranges"].value
    assert table.records[0].data == {"symbol": "EUR/USD", "start": "2024-03-04 00:00", "end": "2024-03-05 00:00"}
    assert not events(instance, MINUTES)
    assert not calls.derivations


def test_a_terminal_error_is_told_in_its_own_words(
    defs: dg.Definitions, instance: dg.DagsterInstance, calls: Calls, stored: StoredBars
) -> None:
    calls.error = VendorAuthError("the key is unknown: set POLYGON_API_KEY")
    result = run(defs, instance, LOAD, range_tags("2024-03-04|EURUSD", "2024-03-04|EURUSD"), raise_on_error=False)
    data = result.failure_data_for_node("bars_1m")
    assert data is not None
    assert data.user_failure_data is not None
    assert "POLYGON_API_KEY" in _failure(result)


def test_a_retry_belongs_to_its_root(
    defs: dg.Definitions, instance: dg.DagsterInstance, calls: Calls, stored: StoredBars
) -> None:
    tags = range_tags("2024-03-04|EURUSD", "2024-03-04|EURUSD")
    again = {**tags, "dagster/root_run_id": "the-first", "dagster/parent_run_id": "the-first"}
    job = defs.resolve_job_def(LOAD)
    run_ = instance.create_run_for_job(job, tags=again, root_run_id="the-first", parent_run_id="the-first")
    assert run_.root_run_id == "the-first"
    list(dg._core.execution.api.execute_run_iterator(dg._core.definitions.job_base.InMemoryJob(job), run_, instance))
    assert calls.loads[0]["root_run_id"] == "the-first"
    assert calls.loads[0]["run_id"] == run_.run_id


def test_progress_and_counts_are_in_the_runs_log(
    defs: dg.Definitions, instance: dg.DagsterInstance, calls: Calls, stored: StoredBars
) -> None:
    result = run(defs, instance, LOAD, range_tags("2024-03-04|EURUSD", "2024-03-05|EURUSD"))
    lines = [entry.user_message for entry in instance.all_logs(result.run_id)]
    assert any(line.startswith("loading 2 days of EURUSD, 2024-03-04 to 2024-03-05") for line in lines)
    assert any("1,440 rows, 1 of 1 partitions (100%)" in line for line in lines)
    assert any("2,860 new" in line for line in lines)


def test_repair_reports_what_it_mended_and_judges_the_gaps(
    defs: dg.Definitions, instance: dg.DagsterInstance, calls: Calls, stored: StoredBars
) -> None:
    start = datetime(2024, 3, 4, 23, 50, tzinfo=UTC)
    end = start + timedelta(minutes=20)
    stored.ledger = pl.DataFrame(
        [
            ("EURUSD", start, end, 20, "not_loaded", "repaired", 1, "", 2**62),
            ("BTCUSD", start, end, 20, "not_loaded", "repaired", 1, "", 1),  # by an earlier run
        ],
        schema=LEDGER_SCHEMA,
        orient="row",
    )
    # 1,438 of the day's minutes are there, and one hour; the repair itself asked for twenty minutes
    day = datetime(2024, 3, 4, tzinfo=UTC)
    opens = pl.Series("ts", [day + timedelta(minutes=n) for n in range(1440) if n not in (7, 8)]).cast(TS)
    for code, ts in (("1m", opens), ("1h", opens[:1])):
        prices = dict.fromkeys(("open", "high", "low", "close", "vwap", "volume"), 1.0)
        bars = {"symbol": "EURUSD", "timeframe": code, "ts": ts, **prices, "trades": 1, "complete": True}
        stored.frames[("EURUSD", code)] = (
            pl.DataFrame(bars)
            .with_columns(pl.lit(None, dtype).alias(name) for name, dtype in BAR_SCHEMA.items() if name not in bars)
            .select(pl.col(name).cast(dtype) for name, dtype in BAR_SCHEMA.items())
        )
    config = {"ops": {"repair": {"config": {"symbols": ["EUR/USD"], "retry_given_up": True}}}}
    assert run(defs, instance, "repair_gaps", run_config=config).success
    assert calls.repairs[0]["symbols"] == ["EUR/USD"]
    assert calls.repairs[0]["retry_given_up"] is True
    for asset in (MINUTES, *(bars_key(code) for code in DAILY_DERIVED)):
        found = events(instance, asset)
        assert set(found) == {"2024-03-04|EURUSD", "2024-03-05|EURUSD"}
        assert values(found["2024-03-04|EURUSD"])["by"] == "repair_gaps"
    whole = values(events(instance, MINUTES)["2024-03-04|EURUSD"])
    assert (whole["dagster/partition_row_count"], whole["expected minutes"], whole["missing minutes"]) == (
        1438,
        1440,
        2,
    )
    hours = values(events(instance, bars_key("1h"))["2024-03-04|EURUSD"])
    assert (hours["dagster/partition_row_count"], hours["complete bars"]) == (1, 1)
    assert set(events(instance, bars_key("1w"))) == {"2024-03-03|EURUSD"}
    assert check_status(instance, MINUTES, "gaps") == "SUCCEEDED"


def test_repair_needs_no_configuration(
    defs: dg.Definitions, instance: dg.DagsterInstance, calls: Calls, stored: StoredBars
) -> None:
    assert run(defs, instance, "repair_gaps").success
    assert calls.repairs[0]["symbols"] is None
    assert calls.repairs[0]["retry_given_up"] is False


def test_implausible_minutes_block_the_derived_bars(
    defs: dg.Definitions, instance: dg.DagsterInstance, calls: Calls, stored: StoredBars
) -> None:
    row = dict.fromkeys(stored.bad.columns) | {
        "symbol": "EURUSD", "ts": datetime(2024, 3, 4, 10, tzinfo=UTC), "open": 1.1, "high": 1.0, "low": 1.2,
        "close": 1.1, "volume": 5.0, "reason": "high is below low",
    }  # fmt: skip
    stored.bad = pl.DataFrame([row], schema=stored.bad.schema)
    result = run(defs, instance, LOAD, range_tags("2024-03-04|EURUSD", "2024-03-04|EURUSD"), raise_on_error=False)
    assert not result.success
    assert not calls.derivations
    assert check_status(instance, MINUTES, "ohlc_sanity") == "FAILED"


def test_missing_minutes_do_not_block_the_derived_bars(
    defs: dg.Definitions, instance: dg.DagsterInstance, calls: Calls, stored: StoredBars
) -> None:
    assert run(defs, instance, LOAD, range_tags("2024-03-04|EURUSD", "2024-03-04|EURUSD")).success
    assert check_status(instance, MINUTES, "gaps") == "FAILED"  # the stand-in store holds no minute
    assert calls.derivations


def test_metadata_of_a_long_range_is_attached_in_one_go() -> None:
    partitions = dg.DailyPartitionsDefinition("2019-01-01", end_date="2023-12-06")
    spent = []

    @dg.asset(partitions_def=partitions, backfill_policy=dg.BackfillPolicy.single_run())
    def many(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        started = time.perf_counter()
        add_partition_metadata(
            context, context.asset_key, {key: {"rows": n} for n, key in enumerate(context.partition_keys)}
        )
        spent.append(time.perf_counter() - started)
        return dg.MaterializeResult()

    with dg.DagsterInstance.ephemeral() as instance:
        job = dg.Definitions(assets=[many]).get_implicit_global_asset_job_def()
        tags = range_tags("2019-01-01", "2019-04-10")
        assert job.execute_in_process(instance=instance, tags=tags).success
        found = events(instance, many.key)
    assert [values(found[key])["rows"] for key in sorted(found)] == list(range(100))
    assert spent[0] < 0.5


def check_status(instance: dg.DagsterInstance, asset: dg.AssetKey, check: str) -> str:
    key = dg.AssetCheckKey(asset, check)
    records = instance.event_log_storage.get_asset_check_execution_history(key, limit=1)
    return records[0].status.value if records else "NONE"


def _failure(result: dg.ExecuteInProcessResult) -> str:
    data = result.failure_data_for_node("bars_1m")
    assert data is not None
    return str(data.user_failure_data.description if data.user_failure_data else data.error)
