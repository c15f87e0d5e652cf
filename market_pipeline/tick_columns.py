"""The columns of a tick batch, as its payload holds them: what arrays and frames are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from market_pipeline.market.tick_arrays import Floats, Ints, TickArrays
from market_pipeline.market.ticks import QUOTE, STORED_TICK_SCHEMA, TRADE

TIMES: tuple[str, ...] = ("ts", "received_at")
TEXTS: tuple[str, ...] = ("kind", "exchange", "conditions")
NUMBERS: tuple[str, ...] = ("bid", "ask", "price", "size")

Text = tuple[str | None, ...]


@dataclass(frozen=True, slots=True)
class TickColumns:
    """Hold a decoded payload: times as epoch ms; numbers with NaN for null and where they are not null.

    Texts are the distinct ones and of each row the place of its own; codes are None where all rows have the first.
    valid: of a number's column None where no row is null; a column that is all null is absent from both.
    """

    symbol: str
    batch_id: int
    rows: int
    times: dict[str, Ints]
    texts: dict[str, tuple[Text, NDArray[Any] | None]]
    numbers: dict[str, Floats]
    valid: dict[str, NDArray[np.bool_] | None]

    def arrays(self) -> TickArrays:
        """Return what bars are made of."""
        kinds, codes = self.texts["kind"]
        quote, trade = (
            np.full(self.rows, kinds[0] == kind)
            if codes is None
            else np.fromiter((text == kind for text in kinds), bool, len(kinds))[codes]
            for kind in (QUOTE, TRADE)
        )
        return TickArrays(
            ts=self.times["ts"],
            received=self.times["received_at"],
            quote=quote,
            trade=trade,
            **{name: self.numbers[name] if name in self.numbers else np.full(self.rows, np.nan) for name in NUMBERS},
        )

    def frame(self) -> pl.DataFrame:
        """Return the columns and dtypes of STORED_TICK_SCHEMA, in the order of arrival."""
        made: dict[str, pl.Series] = {
            "symbol": _repeated("symbol", self.symbol, self.rows),
            "batch_id": pl.Series("batch_id", np.full(self.rows, self.batch_id, np.uint64)),
            "n": pl.Series("n", np.arange(self.rows, dtype=np.uint32)),
        }
        for name, values in self.times.items():
            made[name] = pl.Series(name, values).cast(STORED_TICK_SCHEMA[name])
        for name, (texts, codes) in self.texts.items():
            made[name] = (
                _repeated(name, texts[0] if texts else None, self.rows)
                if codes is None
                else pl.Series(name, [texts[code] for code in codes.tolist()], pl.String)
            )
        for name in NUMBERS:
            if name not in self.numbers:
                made[name] = pl.Series(name, [None], pl.Float64).new_from_index(0, self.rows)
                continue
            valid = self.valid[name]
            series = pl.Series(name, self.numbers[name])
            made[name] = series if valid is None else series.set(pl.Series(~valid), None)
        return pl.DataFrame([made[name] for name in STORED_TICK_SCHEMA])


def _repeated(name: str, text: str | None, rows: int) -> pl.Series:
    return pl.Series(name, [text], pl.String).new_from_index(0, rows)
