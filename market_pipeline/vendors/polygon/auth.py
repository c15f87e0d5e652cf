"""The key, sent as a header: so that no URL, and nothing that prints one, carries it."""

from __future__ import annotations

from collections.abc import Generator

import httpx
from pydantic import SecretStr

from market_pipeline.errors import VendorAuthError

KEY_SETTING = "POLYGON_API_KEY (or MARKET_PIPELINE_VENDOR__API_KEY)"


class BearerKey(httpx.Auth):
    """Add `Authorization: Bearer …` to every request."""

    def __init__(self, key: SecretStr) -> None:
        """Check that there is a key that a header can carry.

        Raises:
            VendorAuthError: the key is empty or cannot be one; the message names the setting, never the key.
        """
        text = key.get_secret_value()
        if not text:
            raise VendorAuthError(f"there is no vendor key: set {KEY_SETTING}")
        if not text.isascii() or not text.isprintable() or any(char.isspace() for char in text):
            raise VendorAuthError(f"the vendor key holds characters that no key has: mend {KEY_SETTING}")
        self._key = key

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Set the header."""
        request.headers["Authorization"] = f"Bearer {self._key.get_secret_value()}"
        yield request
