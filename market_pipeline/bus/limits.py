"""How large a message may be: what the server takes, less what its dead letter would add."""

from __future__ import annotations

MB = 1024 * 1024
MAX_PAYLOAD = 4 * MB
"""The server's max_payload as our configurations set it; a message over it costs whoever sends it the connection."""
MAX_HEADERS = 65_535
"""What JetStream takes of headers, whatever the payload."""
HEAD_ROOM = 64 * 1024
"""What a dead letter may add: errors, where it came from. Without it what is refused could not be buried either."""


def message_limit(max_payload: int) -> int:
    """Return the bytes of a message, headers included, that leave room for its dead letter."""
    return max_payload - min(HEAD_ROOM, max_payload // 16)
