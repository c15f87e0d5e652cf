"""`market_ticks`: the live quotes and trades, written by the live run."""

from __future__ import annotations

import dagster as dg

from market_pipeline.orchestration.partitions import BarPartitions

VENDOR_STREAM = dg.AssetKey("vendor_stream")
TICKS = dg.AssetKey("market_ticks")

_COLUMNS = [
    ("ts", "timestamptz(3)", "the vendor's time of the event, UTC"),
    ("received_at", "timestamptz(3)", "when the collector had it, UTC"),
    ("symbol", "text", "the instrument's key: EURUSD for EUR/USD"),
    ("kind", '"char"', "q: quote, t: trade"),
    ("bid", "double precision", "of a quote; may lie above ask: crossed quotes are real and stay"),
    ("ask", "double precision", "of a quote"),
    ("price", "double precision", "of a trade"),
    ("size", "double precision", "of a trade"),
    ("exchange", "text", "the vendor's code, where it gives one"),
    ("conditions", "text", "the vendor's codes, where it gives some"),
    ("batch_id", "bigint", "the batch that brought it: a batch is stored once, however often it is delivered"),
    ("n", "integer", "place in the batch; exact repeats of a tick are real and stay"),
]


def vendor_stream() -> dg.AssetSpec:
    """Return the vendor's stream as the live road's beginning; Dagster never materializes it."""
    return dg.AssetSpec(
        VENDOR_STREAM,
        description="Quotes and trades of the market data vendor (WebSocket). Not ours: where live ticks come from.",
        group_name="vendor",
        kinds={"json"},
    )


def market_ticks(partitions: BarPartitions) -> dg.AssetSpec:
    """Return the ticks by day and symbol; the live run reports its partitions, and no run can make them again."""
    return dg.AssetSpec(
        TICKS,
        deps=[VENDOR_STREAM],
        partitions_def=partitions.daily,
        description=(
            "Live quotes and trades in PostgreSQL (a TimescaleDB hypertable where the extension is there, daily "
            "partitions where not), each exactly once. Written by the run of *live_ingestion*, which the sensor "
            "*keep_live* keeps alive; time in which ticks may have been lost is in `tick_losses`."
        ),
        group_name="live",
        kinds={"postgres", "nats"},
        metadata={
            "dagster/column_schema": dg.TableSchema(
                columns=[dg.TableColumn(name, kind, text) for name, kind, text in _COLUMNS]
            ),
            "dagster/table_name": "market_ticks",
            "time zone": "UTC",
        },
    )
