"""The vendor's breaker: an outage opens it, the plan's rate does not, and a trial closes it again."""

from __future__ import annotations

import pytest

from market_pipeline.breaker import Breakers
from market_pipeline.errors import VendorBadAnswer, VendorError, VendorRateLimited, VendorUnavailable
from market_pipeline.settings import BreakerSettings
from market_pipeline_tests.vendors.conftest import START, at
from market_pipeline_tests.vendors.scripted import Asked, Reply, bar, page


class Vendor:
    """Answer with what a test sets."""

    def __init__(self) -> None:
        self.reply = page([bar(0)])

    def __call__(self, asked: Asked) -> Reply:
        return self.reply


@pytest.mark.parametrize("outage", [Reply(503), Reply(delay_s=1.0)], ids=["5xx", "time-out"])
async def test_an_outage_opens_it_and_then_nothing_is_sent_until_a_trial(bench, outage: Reply) -> None:
    now = [0.0]
    breakers, vendor = Breakers(BreakerSettings(failures=2, open_s=60), clock=lambda: now[0]), Vendor()
    async with bench(vendor, breakers=breakers, timeout_s=0.1, max_attempts=2) as b:
        vendor.reply = outage
        for asked in (2, 4):  # a request counts once, after its retries
            with pytest.raises(VendorUnavailable):
                await b.pages()
            assert len(b.vendor.asked) == asked
        assert breakers.facts()["breaker_vendor"] == "open"
        now[0] = 20.0
        with pytest.raises(VendorUnavailable, match=r"tried again from \d\d:\d\d:\d\d UTC on \(in 40 s\)") as caught:
            await b.pages()
        assert (caught.value.symbol, caught.value.start, caught.value.end) == ("EUR/USD", START, at(10))
        assert len(b.vendor.asked) == 4
        assert "vendor is away" in breakers.problems()[0]

        now[0] = 61.0
        assert breakers.facts()["breaker_vendor"] == "half_open"
        with pytest.raises(VendorUnavailable):
            await b.pages()
        assert breakers.facts()["breaker_vendor"] == "open", "the trial failed"
        now[0], vendor.reply = 122.0, page([bar(0)])
        assert [each.frame.height for each in await b.pages()] == [1]
        assert (breakers.facts()["breaker_vendor"], breakers.problems()) == ("closed", [])
        assert breakers.facts()["breaker_vendor_opened"] == 1


@pytest.mark.parametrize(
    ("reply", "kind"),
    [(Reply(429), VendorRateLimited), (Reply(body=b"[]"), VendorBadAnswer), (Reply(401), VendorError)],
    ids=["rate", "unreadable", "key"],
)
async def test_a_vendor_that_answers_is_not_away(bench, reply: Reply, kind: type[VendorError]) -> None:
    breakers = Breakers(BreakerSettings(failures=2))
    async with bench(lambda _: reply, breakers=breakers) as b:
        for _ in range(4):
            with pytest.raises(kind):
                await b.pages()
        assert breakers.facts()["breaker_vendor"] == "closed"
