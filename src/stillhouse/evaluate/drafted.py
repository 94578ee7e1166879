"""What the speculate stage found, in short, as a strict record: speculate/summary.json.

The stage (`stillhouse.compress`) computes it; reports and studies read it. Knows no runtime.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from pydantic import Field, ValidationError

from stillhouse.core.errors import RunFolderError
from stillhouse.core.jsonl import read_json
from stillhouse.core.statistics import Interval
from stillhouse.evaluate.results import Result

SUMMARY: Final = "summary.json"


class Drafted(Result):
    """The target with the student as its draft, in the runtime in which that gains most."""

    target: str = Field(description="Whose answers they are.")
    runtime: str = Field(description="In which the draft gains most.")
    length: int = Field(description="Tokens a draft, the best that was measured.")
    acceptance: Interval | None = Field(description="Accepted over judged tokens.")
    tokens_per_s: float = Field(description="Written, one answer at a time.")
    tokens_per_s_alone: float = Field(description="Of the target without a draft.")
    speedup: Interval | None = Field(description="Over the target alone, paired by prompt.")
    over_lookup: Interval | None = Field(description="Over prompt lookup.")
    over_undistilled: Interval | None = Field(description="Over what the draft is held to.")
    identical: int = Field(description="Greedy answers that are the target's, token for token.")
    compared: int
    lossless: bool = Field(
        description="Greedy answers are the target's in each runtime; no test tells sampled ones."
    )
    faster: bool = Field(description="The whole interval of the speed-up lies above 1.")


def read_drafted(folder: Path) -> Drafted:
    """The summary of a finished speculate stage.

    Raises:
        RunFolderError: missing or damaged.
    """
    path = folder / SUMMARY
    try:
        return Drafted.model_validate(read_json(path))
    except ValidationError as error:
        raise RunFolderError(f"{path}: is damaged ({error.errors()[0]['msg']})") from None
