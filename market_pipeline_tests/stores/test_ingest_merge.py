"""Merged lines of the ledger: nothing is lost of counts, digests and times, and nothing is mixed that is told apart."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from market_pipeline.market.timeframes import from_ms
from market_pipeline.stores.ingest_ledger import IngestRow
from market_pipeline.stores.ingest_merge import merged_lines
from market_pipeline_tests.stores.test_ingest_ledger import PUBLISHED, line


@st.composite
def some_lines(draw: st.DrawFn) -> list[IngestRow]:
    made = []
    for seq in range(draw(st.integers(0, 12))):
        symbol, code = draw(st.sampled_from(["A", "BRK=2EB"])), draw(st.sampled_from(["1s", "1m"]))
        one = line(draw(st.integers(1, 2)), outcome=draw(st.sampled_from(["stored", "rejected"])), new_rows=1)
        made.append(
            replace(
                one,
                symbol=symbol,
                timeframe=code,
                subject=f"market.{symbol}.{code}",
                stream_seq=seq,
                rows=draw(st.integers(0, 9)),
                digest=draw(st.integers(0, 2**64 - 1)),
                received_at=draw(st.none() | st.integers(0, 99).map(lambda ms: from_ms(PUBLISHED + ms))),
                start_ts=one.start_ts + timedelta(minutes=draw(st.integers(0, 9))),
            )
        )
    return made


@given(some_lines())
def test_merging_keeps_what_is_there(lines: list[IngestRow]) -> None:
    groups = defaultdict(list)
    for each in lines:
        groups[each.batch_id, each.timeframe, each.source, each.outcome].append(each)
    merged = merged_lines(lines)
    assert len(merged) == len(groups)
    for one in merged:
        group = groups[one.batch_id, one.timeframe, one.source, one.outcome]
        assert (one.rows, one.new_rows) == (sum(each.rows for each in group), len(group))
        assert one.digest == sum(each.digest for each in group) % 2**64
        assert one.start_ts == min(each.start_ts for each in group)
        assert one.received_at == max((each.received_at for each in group if each.received_at), default=None)
        symbols = {each.symbol for each in group}
        assert one.symbol == (symbols.pop() if len(symbols) == 1 else "*")
        assert one.subject == f"market.{one.symbol}.{one.timeframe}"
        assert one.stream_seq == min(each.stream_seq for each in group)
