"""Errors of the platform as failures that a person can read in the UI."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from market_pipeline.errors import MarketPipelineError, RangeNotLoaded, Terminal

_MOST_RANGES = 50


@contextmanager
def readable_failures() -> Iterator[None]:
    """Turn a MarketPipelineError into a Failure: one sentence first, missing ranges as a table.

    A terminal error forbids retries: only a person or another request can mend it.
    """
    try:
        yield
    except MarketPipelineError as error:
        metadata: dict[str, dg.MetadataValue] = {"error": dg.MetadataValue.text(type(error).__name__)}
        if isinstance(error, RangeNotLoaded) and error.missing:
            metadata["missing ranges"] = dg.MetadataValue.table(
                records=[
                    dg.TableRecord(
                        {"symbol": symbol, "start": f"{start:%Y-%m-%d %H:%M}", "end": f"{end:%Y-%m-%d %H:%M}"}
                    )
                    for symbol, start, end in error.missing[:_MOST_RANGES]
                ],
                schema=dg.TableSchema([dg.TableColumn(name) for name in ("symbol", "start", "end")]),
            )
        raise dg.Failure(
            description=str(error), metadata=metadata, allow_retries=not isinstance(error, Terminal)
        ) from error
