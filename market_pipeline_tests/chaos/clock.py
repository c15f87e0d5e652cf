"""Time that runs faster than the wall's, the same in every process of a world."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

LOOK_EVERY_S = 0.02


@dataclass(frozen=True)
class FastClock:
    """Run at `speed` from `vendor_s` at the wall's `wall_s` (both epoch seconds)."""

    wall_s: float
    vendor_s: float
    speed: float

    def seconds(self) -> float:
        """Return the epoch seconds of now."""
        return self.vendor_s + (time.time() - self.wall_s) * self.speed

    def now(self) -> datetime:
        """Return now, UTC."""
        return datetime.fromtimestamp(self.seconds(), UTC)

    def text(self) -> str:
        """Return it as an argument for another process."""
        return f"{self.wall_s!r},{self.vendor_s!r},{self.speed!r}"

    @staticmethod
    def read(text: str) -> FastClock:
        """Read the argument."""
        return FastClock(*(float(part) for part in text.split(",")))


class WrongClock:
    """A clock of a machine whose time jumps: that of a FastClock, and beside it what a file says (seconds)."""

    def __init__(self, right: FastClock, file: Path) -> None:
        self._right, self._file = right, file
        self._looked, self._offset = 0.0, 0.0

    def now(self) -> datetime:
        """Return what this machine takes for now, UTC."""
        if time.monotonic() - self._looked > LOOK_EVERY_S:
            self._looked = time.monotonic()
            text = self._file.read_text() if self._file.exists() else ""
            self._offset = float(text or 0.0)
        return datetime.fromtimestamp(self._right.seconds() + self._offset, UTC)
