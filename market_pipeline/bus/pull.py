"""Pull requests to a JetStream consumer: one message at once when one comes, and what else is there with it.

The client's own `fetch` either waits for the whole number it was asked for, or leaves a request behind that takes
messages while nobody is waiting for them. Two kinds of request avoid both: `no_wait` for what is there, and a
lingering one for a single message.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

NO_MESSAGES, REQUEST_TIMEOUT, CONFLICT, CONTROL = "404", "408", "409", "100"
_ACK_PREFIX = "$JS.ACK."
# A fetch of 256 batches of the largest size, twice: beyond it nats-py drops messages.
PENDING_BYTES = 512 * 1024 * 1024
PENDING_MESSAGES = 64 * 1024
# How much longer than the server's expiry we wait for its answer.
GRACE_S = 0.5


class PullBroken(Exception):
    """The consumer is gone, or the server refuses the request: it must be created anew."""


class Puller:
    """Pull messages of one consumer through one inbox."""

    def __init__(self, nc: Client, subscription: Subscription, inbox: str, stream: str, durable: str) -> None:
        self._nc, self._subscription, self._inbox = nc, subscription, inbox
        self._next = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{durable}"
        self._requests = 0

    @classmethod
    async def open(cls, nc: Client, stream: str, durable: str) -> Puller:
        """Subscribe to a new inbox."""
        inbox = nc.new_inbox()
        subscription = await nc.subscribe(
            f"{inbox}.*", pending_bytes_limit=PENDING_BYTES, pending_msgs_limit=PENDING_MESSAGES
        )
        return cls(nc, subscription, inbox, stream, durable)

    async def close(self) -> None:
        """Unsubscribe; the server takes back what it has not sent."""
        with suppress(nats.errors.Error):
            await self._subscription.unsubscribe()

    async def pull(self, most: int, max_wait_s: float) -> list[Msg]:
        """Return up to `most` messages: all that are there, or the first to come within `max_wait_s` and its company.

        Raises:
            PullBroken: the consumer does not exist any more.
        """
        messages = await self._request(most, 0.0)
        if messages or max_wait_s <= 0:
            return messages
        messages = await self._request(1, max_wait_s)
        if messages and most > 1:
            messages += await self._request(most - 1, 0.0)
        return messages

    async def _request(self, most: int, linger_s: float) -> list[Msg]:
        """Send one request and collect until the server ends it; take along what came late for an earlier one."""
        self._requests += 1
        reply = f"{self._inbox}.{self._requests}"
        asked: dict[str, int | bool] = {"batch": most}
        if linger_s > 0:
            asked["expires"] = round(linger_s * 1e9)
        else:
            asked["no_wait"] = True
        messages: list[Msg] = []
        deadline = time.monotonic() + linger_s + GRACE_S
        left = most
        try:
            await self._nc.publish(self._next, json.dumps(asked).encode(), reply)
            while left > 0:
                message = await self._subscription.next_msg(max(0.001, deadline - time.monotonic()))
                if message.reply.startswith(_ACK_PREFIX):
                    # Messages carry their own subject, not the request they answer.
                    messages.append(message)
                    left -= 1
                    deadline = max(deadline, time.monotonic() + GRACE_S)
                elif message.subject == reply and not _goes_on(message, have=bool(messages)):
                    break
        except nats.errors.TimeoutError:
            pass
        except nats.errors.Error as error:
            if not messages:
                raise PullBroken(str(error) or type(error).__name__) from error
        return messages


def _goes_on(status: Msg, *, have: bool) -> bool:
    """Judge the server's word on a request: heartbeats go on, an end ends, and a consumer that is gone raises."""
    headers = status.headers or {}
    code, description = headers.get("Status", ""), headers.get("Description", "")
    if code == CONTROL:
        return True
    passing = code in {NO_MESSAGES, REQUEST_TIMEOUT} or (code == CONFLICT and "deleted" not in description.lower())
    if not passing and not have:
        raise PullBroken(f"{code} {description}".strip())
    return False
