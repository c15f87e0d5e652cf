"""The columns of stored bars, as the UI shows them: types as in ClickHouse, units and meaning in the descriptions."""

from __future__ import annotations

import dagster as dg

_PRICE = "in the quote currency"


def bar_columns(timeframe: str) -> dg.TableSchema:
    """Return the column schema of the winning bars of one timeframe."""
    origin = (
        "empty: minutes have no parent" if timeframe == "1m" else "the weakest source among the minutes it is made of"
    )
    rows = [
        ("symbol", "LowCardinality(String)", "the instrument's key: EURUSD for EUR/USD"),
        ("timeframe", "LowCardinality(String)", f"always {timeframe} in this asset"),
        ("ts", "DateTime64(3, 'UTC')", "open of the window, UTC; the window is left-closed"),
        ("source", "LowCardinality(String)", "who made the bar; the read view picks the winner among sources"),
        ("origin", "LowCardinality(String)", origin),
        ("open", "Float64", f"first price, {_PRICE}"),
        ("high", "Float64", f"highest price, {_PRICE}"),
        ("low", "Float64", f"lowest price, {_PRICE}"),
        ("close", "Float64", f"last price, {_PRICE}"),
        ("volume", "Float64", "shares, coins, or for forex the vendor's tick volume"),
        ("vwap", "Nullable(Float64)", f"volume-weighted price, {_PRICE}; null where the vendor gives none"),
        ("trades", "UInt32", "trades or quotes in the window"),
        ("complete", "Bool", "the window was over and settled, and none of its expected minutes is missing"),
        ("revision", "UInt64", "grows with every restatement; milliseconds since 1970 of the fetch, or more"),
    ]
    return dg.TableSchema(columns=[dg.TableColumn(name=name, type=kind, description=text) for name, kind, text in rows])


def bar_metadata(timeframe: str) -> dict[str, object]:
    """Return what an asset says of its table before anything is loaded."""
    return {
        "dagster/column_schema": bar_columns(timeframe),
        "dagster/table_name": f"market.bars_final [timeframe = {timeframe}]",
        "time zone": "UTC",
    }
