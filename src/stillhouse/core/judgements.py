"""The record a judge leaves of one answer: how the judge stage and the dataset stage meet.

Knows neither the judge nor what is done with its verdicts.
"""

from __future__ import annotations

from typing import Final, Literal

from stillhouse.core.records import Record

# Files of the judge stage.
JUDGEMENTS: Final = "judgements.jsonl"
JUDGE: Final = "judge.json"


class Judgement(Record):
    """What a judge said of one sample of one query.

    `score` is 1 to 5 (pointwise), or the share of comparisons won, a tie counting one half
    (pairwise); `None` where the judge's answer could not be read or had. `good` is whether the
    score reached `dataset.judge.min_score`; `None` in pairwise mode, which only ranks.
    `model` and `revision` are the teacher's, so that samples of several teachers stay apart.
    """

    query_id: str
    sample: int
    model: str
    mode: Literal["pointwise", "pairwise"]
    score: float | None = None
    good: bool | None = None
    detail: str = ""
