"""The base of all recipe sections."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Base of recipe sections: no unknown keys, no inf or nan, immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
