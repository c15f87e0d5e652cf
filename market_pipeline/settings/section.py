"""What every section of the settings has in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A group of settings: frozen, and without names that nobody knows."""

    model_config = ConfigDict(extra="forbid", frozen=True)
