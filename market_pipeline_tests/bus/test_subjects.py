from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_pipeline.bus import subjects
from market_pipeline.errors import InputError

ANY_TEXT = st.text(st.characters(), min_size=1)  # lone surrogates too
KV_KEY = re.compile(r"[-/_=.a-zA-Z0-9]+")


@given(ANY_TEXT)
def test_a_token_is_reversible_and_valid_in_subjects_and_keys(text: str) -> None:
    encoded = subjects.token(text)
    assert subjects.untoken(encoded) == text
    assert KV_KEY.fullmatch(encoded)
    assert not set(encoded) & set(".*> \t\r\n")


@given(ANY_TEXT, ANY_TEXT)
def test_different_texts_have_different_tokens(one: str, other: str) -> None:
    assert (subjects.token(one) == subjects.token(other)) == (one == other)


@given(st.text(st.sampled_from("AZaz09_-=2E.4"), min_size=1))
def test_what_decodes_is_what_was_encoded(encoded: str) -> None:
    try:
        text = subjects.untoken(encoded)
    except InputError:
        return
    assert subjects.token(text) == encoded


def test_names_that_break_subjects_as_they_are() -> None:
    assert subjects.token("EURUSD") == "EURUSD"
    assert subjects.token("BRK.B") == "BRK=2EB"
    assert subjects.token("C:EURUSD") == "C=3AEURUSD"
    assert subjects.token("a=b") != subjects.token("a.b")


@pytest.mark.parametrize("wrong", ["", "a.b", "=2e", "=41", "=2", "a=", "=FF", "é"])
def test_what_is_no_token_is_refused(wrong: str) -> None:
    with pytest.raises(InputError):
        subjects.untoken(wrong)


def test_empty_text_is_refused() -> None:
    with pytest.raises(InputError):
        subjects.token("")


def test_subjects_have_the_tokens_that_the_streams_filter_by() -> None:
    assert subjects.history_subject("BRK.B", "1m") == "history.BRK=2EB.1m"
    assert subjects.market_subject("EURUSD", "tick") == "market.EURUSD.tick"
    assert subjects.external_subject("calendar") == "external.calendar"
    assert subjects.dlq_subject("HISTORY", "malformed_row") == "dlq.HISTORY.malformed_row"
    assert subjects.receipt_subject("run 1") == "receipt.run=201"
