"""What an HTTP answer or failure means: one typed error for each, with no key and no query string in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx
import msgspec

from market_pipeline.errors import (
    ClockWrong,
    VendorAuthError,
    VendorBadAnswer,
    VendorError,
    VendorNotEntitled,
    VendorNotFound,
    VendorRateLimited,
    VendorRequestRejected,
    VendorUnavailable,
)
from market_pipeline.vendors.polygon.auth import KEY_SETTING
from market_pipeline.vendors.polygon.dates import http_date
from market_pipeline.vendors.polygon.redaction import redact

# DELAYED: plans without real-time data get it for the newest bars. Answers of reference routes name no status.
GOOD_STATUSES = frozenset({"", "OK", "DELAYED", "SUCCESS"})


@dataclass(frozen=True)
class Subject:
    """What a request is about, for errors and logs."""

    what: str
    symbol: str | None = None
    start: datetime | None = None
    end: datetime | None = None
    secret: str = ""

    def error(
        self, kind: type[VendorError], message: str, *, status: int | None = None, request_id: str | None = None
    ) -> VendorError:
        """Make a typed error that names this request and hides its secret."""
        return kind(
            redact(message, self.secret),
            symbol=self.symbol,
            start=self.start,
            end=self.end,
            status=status,
            request_id=request_id,
        )


class Complaint(msgspec.Struct):
    """The members of an answer that say what is wrong with it."""

    status: str | None = None
    error: str | None = None
    message: str | None = None
    request_id: str | None = None

    @property
    def text(self) -> str:
        """The vendor's own words."""
        return self.error or self.message or self.status or ""


_COMPLAINT = msgspec.json.Decoder(Complaint, strict=False)


def read_complaint(body: bytes) -> Complaint:
    """Read what the vendor says about an error; bodies may be empty, plain text or JSON."""
    try:
        return _COMPLAINT.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        plain = body[:200].decode("utf-8", errors="replace").strip()
        return Complaint(error=None if plain.startswith(("<", "{", "[")) else plain or None)


def is_not_entitled(text: str) -> bool:
    """Whether the words say that the plan lacks the data: sent with 403, and with `status` ERROR at other statuses."""
    lowered = text.lower()
    return "not entitled" in lowered or "upgrade your plan" in lowered


def status_error(subject: Subject, status: int, headers: Mapping[str, str], body: bytes) -> VendorError | None:
    """Map the answer's HTTP status to an error; None for 200."""
    if status == httpx.codes.OK:
        return None
    said = read_complaint(body)

    def error(kind: type[VendorError], meaning: str) -> VendorError:
        words = f": {said.text}" if said.text else ""
        return subject.error(kind, f"{subject.what}: {meaning}{words}", status=status, request_id=said.request_id)

    if status == httpx.codes.TOO_MANY_REQUESTS:
        limited = error(VendorRateLimited, "too many requests (429)")
        if isinstance(limited, VendorRateLimited):
            limited.retry_after = read_retry_after(headers.get("retry-after"))
        return limited
    if status == httpx.codes.FORBIDDEN or is_not_entitled(said.text):
        return error(VendorNotEntitled, f"the plan of the key in {KEY_SETTING} does not include this")
    if status == httpx.codes.UNAUTHORIZED:
        return error(VendorAuthError, f"the vendor does not know the key, mend {KEY_SETTING}")
    if status == httpx.codes.NOT_FOUND:
        return error(VendorNotFound, "the vendor has no such thing (404)")
    if 300 <= status < 400:
        return error(VendorRequestRejected, f"a redirect ({status}), which the key must not follow: mend the base_url")
    if 400 <= status < 500:
        return error(VendorRequestRejected, f"the vendor rejects the request ({status})")
    if status >= 500:
        return error(VendorUnavailable, f"the vendor fails ({status})")
    return error(VendorBadAnswer, f"an unexpected status ({status})")


def clock_error(
    subject: Subject, sent_at: datetime, headers: Mapping[str, str], allowed_s: float
) -> VendorError | None:
    """Return the error of a clock of ours that is further ahead of the vendor's than allowed; None where it is not.

    Whether a bar has settled is told by our clock. The vendor tells its own when it answers, which is after `sent_at`:
    so a slow answer proves nothing wrong.
    """
    stated = http_date(headers)
    ahead = 0.0 if stated is None else (sent_at - stated).total_seconds() - 1  # a Date has whole seconds
    if ahead <= allowed_s:
        return None
    return subject.error(
        ClockWrong,
        f"{subject.what}: this machine's clock ({sent_at:%Y-%m-%d %H:%M:%S} UTC) is {ahead:.0f} s ahead of the "
        f"vendor's: bars would be taken as settled before they are. Set the clock (NTP), then repeat; what the vendor "
        f"should be forgiven is the setting vendor.max_clock_ahead_s",
    )


def body_error(subject: Subject, said: Complaint) -> VendorError | None:
    """Map the `status` inside a 200 to an error; None when it is a good one."""
    status = (said.status or "").upper()
    if status in GOOD_STATUSES:
        return None
    kind: type[VendorError] = VendorBadAnswer
    meaning = f"the vendor answers 200 with status {status}"
    if status == "NOT_AUTHORIZED" or is_not_entitled(said.text):
        kind, meaning = VendorNotEntitled, f"the plan of the key in {KEY_SETTING} does not include this"
    words = f": {said.text}" if said.text and said.text != said.status else ""
    return subject.error(kind, f"{subject.what}: {meaning}{words}", status=200, request_id=said.request_id)


def transport_error(subject: Subject, error: httpx.HTTPError | TimeoutError, timeout_s: float) -> VendorError:
    """Map a failure below HTTP: it passes with time, whether the connection, the time or the body ran out."""
    if isinstance(error, httpx.TimeoutException | TimeoutError):
        return subject.error(VendorUnavailable, f"{subject.what}: no whole answer in time ({timeout_s:g} s)")
    if isinstance(error, httpx.DecodingError | httpx.RemoteProtocolError | httpx.ReadError):
        return subject.error(VendorUnavailable, f"{subject.what}: the answer was cut ({type(error).__name__})")
    return subject.error(
        VendorUnavailable, f"{subject.what}: the vendor cannot be reached ({type(error).__name__}: {error})"
    )


def cause_of(error: VendorError) -> str:
    """Name the cause of a retry, for logs and counters: `http_503`, `rate_limited`, `unavailable`, `bad_answer`."""
    if isinstance(error, VendorRateLimited):
        return "rate_limited"
    if isinstance(error, VendorBadAnswer):
        return "bad_answer"
    return f"http_{error.status}" if error.status else "unavailable"


def read_retry_after(value: str | None) -> float | None:
    """Read a Retry-After header, in seconds or as a date; None when there is none to be read."""
    if not value:
        return None
    try:
        return max(0.0, float(value)) if float(value) < float("inf") else None
    except ValueError:
        pass
    try:
        until = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (until.replace(tzinfo=until.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
