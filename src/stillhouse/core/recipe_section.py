"""The base of all recipe sections."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator


class Section(BaseModel):
    """Base of recipe sections: no unknown keys, no inf or nan, immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _on_is_a_word(cls, raw: Any) -> Any:
        # YAML 1.1 reads a bare `on` as true, as a key too.
        if isinstance(raw, dict) and "on" in cls.model_fields and True in raw and "on" not in raw:
            return {("on" if key is True else key): value for key, value in raw.items()}
        return raw
