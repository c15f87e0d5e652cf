"""The vendor's rate, held across every process and run that uses one key."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import time
from collections.abc import Callable
from urllib.parse import urlsplit

import nats.errors
import structlog
from nats.aio.client import Client
from nats.js import api
from nats.js.errors import APIError, BucketNotFoundError, KeyNotFoundError, KeyWrongLastSequenceError
from nats.js.errors import Error as JetStreamError
from nats.js.kv import KeyValue

from market_pipeline.errors import BusUnreachable
from market_pipeline.settings import VendorSettings
from market_pipeline.vendors.rate import RateRule

log = structlog.get_logger(__name__)

# A plan of few requests a minute survives a restart of the server on disk. One of many is touched up to 100 times a
# second, which disks with slow syncs would feel, and its even spacing has next to nothing to lose in a restart.
LOG_BUCKET = "vendor_rate_log"
CELL_BUCKET = "vendor_rate_cells"
FORGET_AFTER_S = 86_400.0
CALL_TIMEOUT_S = 2.0
# How long JetStream may be away, restarting say, before a caller is told.
PATIENCE_S = 15.0
NOTE_ATTEMPTS = 5
_IN_USE_ALREADY = 10058


def fingerprint(api_key: str, base_url: str) -> str:
    """Name a key at a vendor without telling the key: 16 hexadecimal digits of SHA-256 over host and key."""
    return hashlib.sha256(f"{urlsplit(base_url).netloc.lower()}\n{api_key}".encode()).hexdigest()[:16]


class KvRateGate:
    """Let at most `requests` through in any `per_seconds`, over all gates with the same fingerprint.

    The grants of the last window lie under one key of a NATS key-value bucket and are changed by compare-and-set, so
    two processes cannot both take the last one. Times are those of the hosts' wall clocks: keep them in step (NTP);
    a clock that is s seconds off shortens or lengthens the window by s where both hosts take part.
    """

    def __init__(
        self,
        client: Client,
        key_fingerprint: str,
        requests: int,
        per_seconds: float,
        *,
        replicas: int = 1,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._client = client
        self._key = f"rate.{key_fingerprint}"
        self._rule = RateRule(requests, per_seconds)
        self._replicas = replicas
        self._clock = clock
        self._turn = asyncio.Lock()
        self._bucket: KeyValue | None = None
        # The last state seen: when nobody else took a grant since, the next one costs one round trip.
        self._seen: tuple[list[float], int] | None = None

    @classmethod
    def of(cls, client: Client, vendor: VendorSettings, *, replicas: int = 1) -> KvRateGate:
        """Make the gate of a vendor's key and plan."""
        name = fingerprint(vendor.api_key.get_secret_value(), vendor.base_url)
        return cls(client, name, vendor.rate, vendor.rate_window_s, replicas=replicas)

    async def acquire(self) -> float:
        """Wait until one request may be sent; return the seconds waited. Callers of one gate are served in order.

        Raises:
            BusUnreachable: JetStream did not answer for 15 seconds: without it the rate cannot be held.
        """
        started = time.monotonic()
        async with self._turn:
            while True:
                wait = await self._patiently()
                if wait is None:
                    return time.monotonic() - started
                if wait > 1:
                    log.debug("vendor_rate_wait", seconds=round(wait, 1))
                # The jitter keeps waiting processes from asking in the same millisecond.
                await asyncio.sleep(wait + random.uniform(0, 0.005))

    async def note_delay(self, seconds: float) -> None:
        """Count a request that took long from now on; without NATS nothing is noted, and `acquire` will tell."""
        if not self._rule.logged or seconds <= self._rule.margin:
            return
        for _ in range(NOTE_ATTEMPTS):
            try:
                bucket = self._bucket or await self._open()
                state, revision = await self._read(bucket)
                moved = self._rule.delayed(state, self._clock(), seconds)
                await bucket.update(self._key, json.dumps(moved).encode(), last=revision)
            except KeyWrongLastSequenceError:
                continue
            except (JetStreamError, nats.errors.Error, TimeoutError, OSError) as error:
                log.debug("vendor_rate_delay_not_noted", error=str(error) or type(error).__name__)
            return

    async def _patiently(self) -> float | None:
        until = time.monotonic() + PATIENCE_S
        while True:
            try:
                return await self._try()
            except (JetStreamError, nats.errors.Error, TimeoutError, OSError) as error:
                self._seen = self._bucket = None  # a bucket in memory is gone after a restart
                if self._client.is_closed or time.monotonic() > until:
                    raise BusUnreachable(
                        f"the vendor's rate cannot be held: JetStream does not answer ({error or type(error).__name__})"
                    ) from error
                await asyncio.sleep(random.uniform(0.1, 0.3))

    async def _try(self) -> float | None:
        """Take a grant and return None, or return the seconds after which to try again."""
        bucket = self._bucket or await self._open()
        state, revision = self._seen or await self._read(bucket)
        stamped = time.monotonic()
        taken, wait = self._rule.take(state, self._clock())
        if wait:
            # The state may be an old one of ours: others only ever add to it, so waiting on it is never too long.
            self._seen = None
            return wait
        try:
            revision = await bucket.update(self._key, json.dumps(taken).encode(), last=revision)
        except KeyWrongLastSequenceError:
            self._seen = None
            return random.uniform(0, 0.003)
        self._seen = taken, revision
        # A grant that came back later than the margin allows is stamped too early to be safe: it is thrown away.
        return None if time.monotonic() - stamped <= self._rule.margin else 0.0

    async def _read(self, bucket: KeyValue) -> tuple[list[float], int]:
        try:
            entry = await bucket.get(self._key)
        except KeyNotFoundError:
            return [], 0
        return [float(at) for at in json.loads(entry.value or b"[]")], entry.revision or 0

    async def _open(self) -> KeyValue:
        js = self._client.jetstream(timeout=CALL_TIMEOUT_S)
        name = LOG_BUCKET if self._rule.logged else CELL_BUCKET
        try:
            self._bucket = await js.key_value(name)
        except BucketNotFoundError:
            try:
                self._bucket = await js.create_key_value(
                    api.KeyValueConfig(
                        bucket=name,
                        description="requests sent to vendors, by fingerprint of the key",
                        storage=api.StorageType.FILE if self._rule.logged else api.StorageType.MEMORY,
                        history=1,
                        ttl=FORGET_AFTER_S,
                        replicas=self._replicas,
                    )
                )
            except APIError as error:
                if error.err_code != _IN_USE_ALREADY:
                    raise
                self._bucket = await js.key_value(name)
        return self._bucket
