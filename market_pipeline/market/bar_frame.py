"""The pandera schema of a bars frame; apart from bars.py because importing pandera takes seconds."""

from __future__ import annotations

from typing import Annotated

import pandera.polars as pa
import polars as pl
from pandera.errors import SchemaError, SchemaErrors

from market_pipeline.errors import InvalidBars
from market_pipeline.market.bars import BAR_SCHEMA, SOURCES, STORED_SCHEMA
from market_pipeline.market.timeframes import TIMEFRAMES

_Ts = Annotated[pl.Datetime, "ms", "UTC"]


class BarFrame(pa.DataFrameModel):
    """State the columns of a bars frame (BAR_SCHEMA), their dtypes and what each value may be on its own."""

    symbol: str = pa.Field(str_length={"min_value": 1})
    timeframe: str = pa.Field(isin=list(TIMEFRAMES))
    ts: _Ts
    source: str = pa.Field(isin=list(SOURCES))
    origin: str = pa.Field(isin=["", *SOURCES])
    open: float
    high: float
    low: float
    close: float
    volume: float = pa.Field(ge=0)
    vwap: float = pa.Field(nullable=True)
    trades: pl.UInt32
    complete: bool
    revision: pl.UInt64
    is_deleted: pl.UInt8 = pa.Field(isin=[0, 1])


def check_columns(frame: pl.DataFrame, where: str) -> None:
    """Check columns and dtypes against BarFrame; columns that only STORED_SCHEMA has are allowed.

    Raises:
        InvalidBars: names every column that lacks, is unknown or has another dtype.
    """
    wrong = [f"unknown column {name}" for name in frame.columns if name not in STORED_SCHEMA]
    try:
        # a lazy frame is checked by its schema only: the values have their own pass in bars.py, thirty times as fast
        BarFrame.validate(frame.select(name for name in frame.columns if name in BAR_SCHEMA).lazy(), lazy=True)
    except (SchemaError, SchemaErrors):
        for name, dtype in BAR_SCHEMA.items():
            if name not in frame.columns:
                wrong.append(f"no column {name}")
            elif frame.schema[name] != dtype:
                wrong.append(f"{name}: is {frame.schema[name]}, not {dtype}")
        if not wrong:
            raise
    if wrong:
        raise InvalidBars(f"{where}: {'; '.join(wrong)}")
