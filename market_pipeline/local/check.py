"""A finding of the doctor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["good", "warning", "wrong"]


@dataclass(frozen=True)
class Check:
    """One finding: what was looked at, what was seen, and what to do when it is not good."""

    name: str
    verdict: Verdict
    seen: str
    advice: str = ""
