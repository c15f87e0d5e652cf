"""A lease: one holder at a time, across processes and machines, with an epoch that grows with every change of holder.

The lease is a key in a bucket whose entries end after `ttl_s`: who creates the key holds the lease, and renews it by
compare-and-set. Only the server's clock decides when it ends; the holder counts from BEFORE it sent a renewal, on its
own monotonic clock, so it stops believing before anybody else can create the key. The epoch lies in a bucket without
an end. A holder that was stopped and wakes up late may still send for a moment: consumers compare epochs.

Those who compare (the tick store, a checkpoint) may outlive the bucket: a store of NATS that was wiped, or restored
from an old copy, must not give out epochs that they have seen. So an epoch is the time at which it was given (epoch
ms), and one more than the last where that is not later: it grows with the bucket and without it.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import Callable
from contextlib import suppress

import msgspec
import structlog
from nats.js import JetStreamContext
from nats.js.errors import KeyNotFoundError, KeyWrongLastSequenceError
from nats.js.kv import KeyValue

from market_pipeline.bus.envelope import now_ms
from market_pipeline.bus.kv import KV_ERRORS, open_bucket
from market_pipeline.bus.session import BusSession
from market_pipeline.bus.subjects import token
from market_pipeline.errors import BusError
from market_pipeline.tasks import end_tasks

log = structlog.get_logger(__name__)

LEASE_BUCKET = "leases"
EPOCH_BUCKET = "lease_epochs"
TTL_S = 10.0
# The holder stops this share of the time to live before the server would end the lease.
SAFETY = 0.1


class _Held(msgspec.Struct, frozen=True):
    holder: str
    instance: str
    epoch: int
    work: str = ""


class Lease:
    """Hold, renew and give up one lease.

    `held`: this process may act for the lease now. `lost` is set once another holder has it, or may have had it:
    then nothing that was done for it may go on, and it has to be acquired anew. While NATS is away the lease is not
    held, and not lost either: when NATS is back and nobody else held it meanwhile, it goes on with the same epoch.
    `other_work`: while it is awaited, whoever holds it for another work than ours; empty where the work is the same.
    """

    def __init__(
        self,
        bus: BusSession,
        name: str,
        holder: str,
        *,
        ttl_s: float = TTL_S,
        work: str = "",
        clock: Callable[[], int] = now_ms,
    ) -> None:
        """Prepare; `holder` is shown to others who want the lease, `clock` (epoch ms) is what epochs are made of.

        `work` says what it is held for, where those who want it may want it for something else by mistake.
        """
        self._bus, self._work = bus, work
        self._clock = clock
        self._ttl_s = ttl_s
        # The time to live is the bucket's: leases of another one lie in another bucket.
        self._bucket_name = LEASE_BUCKET if ttl_s == TTL_S else f"{LEASE_BUCKET}_{round(ttl_s * 1000)}ms"
        self._key = token(name)
        self._instance = secrets.token_hex(8)
        self._revision = 0
        self._until = 0.0
        self._keeper: asyncio.Task[None] | None = None
        self._held_again = asyncio.Event()
        self.name, self.holder = name, holder
        self.epoch = 0
        self.other_work = ""
        self.lost = asyncio.Event()

    @property
    def held(self) -> bool:
        """Whether this process may act for the lease now."""
        return time.monotonic() < self._until and not self.lost.is_set()

    async def wait_held(self) -> None:
        """Wait until the lease is held; for ever once it is lost."""
        while not self.held:
            self._held_again.clear()
            await self._held_again.wait()

    async def acquire(self) -> int:
        """Wait until the lease is ours and return its epoch; it is renewed until `release`. NATS may be away."""
        await self._stop_keeper()
        said = ""
        while True:
            try:
                other = await self._try_to_take()
            except (BusError, *KV_ERRORS) as error:
                other = f"nobody can tell, NATS is away ({error or type(error).__name__})"
            if other is None:
                break
            if other != said:
                log.info("lease_awaited", lease=self.name, held_by=other)
                said = other
            await asyncio.sleep(self._ttl_s / 10 * random.uniform(0.5, 1.5))
        self.other_work = ""
        self.lost.clear()
        self._held_again.set()
        self._keeper = asyncio.create_task(self._keep(), name=f"lease {self.name}")
        log.info("lease_acquired", lease=self.name, holder=self.holder, epoch=self.epoch)
        return self.epoch

    async def release(self) -> None:
        """Give the lease up, so that the next one need not wait for its end; harmless when it is not held."""
        await self._stop_keeper()
        held, self._until = self.held, 0.0
        if held:
            with suppress(BusError, *KV_ERRORS):  # then it ends by itself
                await (await self._leases()).delete(self._key, last=self._revision)
                log.info("lease_released", lease=self.name, epoch=self.epoch)

    async def _stop_keeper(self) -> None:
        if self._keeper is not None:
            await end_tasks((self._keeper,))
            self._keeper = None

    async def _try_to_take(self) -> str | None:
        """Take the lease and return None, or return who has it."""
        leases, epochs = await self._leases(), await self._epochs()
        created_at = time.monotonic()
        try:
            revision = await leases.create(self._key, self._value(0))
        except (KeyWrongLastSequenceError, KeyNotFoundError):
            return await self._holder(leases)
        epoch = await self._count_up(epochs)
        # Whoever slept since the creation may have lost the lease to another, who counted before or after: only this
        # second write, which fails then, makes the lease ours.
        try:
            self._revision = await leases.update(self._key, self._value(epoch), last=revision)
        except KeyWrongLastSequenceError:
            return await self._holder(leases)
        self.epoch = epoch
        self._until = self._end(created_at)
        return None

    async def _holder(self, leases: KeyValue) -> str:
        try:
            held = _read((await leases.get(self._key)).value)
        except KeyNotFoundError:
            return "nobody any more"
        self.other_work = held.holder if self._work and held.work not in ("", self._work) else ""
        return held.holder

    async def _count_up(self, epochs: KeyValue) -> int:
        while True:
            known, revision = await self._known_epoch(epochs)
            epoch = max(self._clock(), known + 1)
            with suppress(KeyWrongLastSequenceError):
                await epochs.update(self._key, str(epoch).encode(), last=revision)
                return epoch

    async def _known_epoch(self, epochs: KeyValue) -> tuple[int, int]:
        try:
            entry = await epochs.get(self._key)
        except KeyNotFoundError:
            return 0, 0
        return int(entry.value or b"0"), entry.revision or 0

    async def _keep(self) -> None:
        """Renew until the lease is lost."""
        away = False
        while True:
            await asyncio.sleep(self._ttl_s / (10 if away else 3))
            try:
                kept = await self._renew()
                away = False
            except (BusError, *KV_ERRORS) as error:
                if not away:
                    log.warning("lease_not_renewed", lease=self.name, error=str(error) or type(error).__name__)
                away = True
                continue
            if not kept:
                self._until = 0.0
                self.lost.set()
                log.warning("lease_lost", lease=self.name, epoch=self.epoch)
                return
            self._held_again.set()

    async def _renew(self) -> bool:
        """Renew once; return False when the lease is lost."""
        leases = await self._leases()
        while True:
            sent_at = time.monotonic()
            try:
                self._revision = await leases.update(self._key, self._value(self.epoch), last=self._revision)
                self._until = self._end(sent_at)
                return True
            except KeyWrongLastSequenceError:
                pass
            try:
                entry = await leases.get(self._key)
            except KeyNotFoundError:
                return await self._take_again(leases)
            if _read(entry.value).instance != self._instance or not await self._still_our_epoch():
                return False
            # An earlier write had arrived although its answer was lost. When it had, nobody knows: write again.
            self._revision = entry.revision or 0

    async def _take_again(self, leases: KeyValue) -> bool:
        """Go on after the lease ended unrenewed, NATS having been away, if nobody held it since."""
        created_at = time.monotonic()
        try:
            revision = await leases.create(self._key, self._value(self.epoch))
        except (KeyWrongLastSequenceError, KeyNotFoundError):
            return False
        if not await self._still_our_epoch():
            with suppress(KeyWrongLastSequenceError):
                await leases.delete(self._key, last=revision)
            return False
        self._revision = revision
        self._until = self._end(created_at)
        return True

    async def _still_our_epoch(self) -> bool:
        return (await self._known_epoch(await self._epochs()))[0] == self.epoch

    def _end(self, sent_at: float) -> float:
        return sent_at + self._ttl_s * (1 - SAFETY)

    def _value(self, epoch: int) -> bytes:
        return msgspec.json.encode(_Held(self.holder, self._instance, epoch, self._work))

    async def _leases(self) -> KeyValue:
        return await open_bucket(
            self._js(), self._bucket_name, "who holds what now", ttl_s=self._ttl_s, replicas=self._bus.replicas
        )

    async def _epochs(self) -> KeyValue:
        return await open_bucket(
            self._js(), EPOCH_BUCKET, "the epoch of the last holder of each lease", replicas=self._bus.replicas
        )

    def _js(self) -> JetStreamContext:
        # An answer that takes longer than this is no proof of anything any more.
        return self._bus.nc.jetstream(timeout=max(0.5, self._ttl_s / 4))


def _read(value: bytes | None) -> _Held:
    try:
        return msgspec.json.decode(value or b"", type=_Held)
    except msgspec.MsgspecError:
        return _Held("somebody unknown", "", 0)
