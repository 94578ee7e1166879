"""A student's process without a model: what it does is said by the words of a request.

`crash` ends the process, `hang` sleeps for ever, `slow` takes a while, `fail` raises; `sure` and
`unsure` set its belief. A file `contrary` in its folder makes it say the other label, `broken`
keeps it from being opened, `slow` for ever or for so many seconds. Run in place of
`stillhouse.serve.student_worker`.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Sequence
from functools import partial

from stillhouse.core.errors import StillhouseError
from stillhouse.core.records import Completion, Query
from stillhouse.serve import student_worker
from stillhouse.serve.student_answers import Voice
from stillhouse.serve.student_labels import Brain, LabelBrain, Opening

LABELS = ("good", "bad")
SLOW_S = 0.4


def believe(queries: Sequence[Query], contrary: bool = False) -> list[Completion]:
    found = []
    for query in queries:
        words = query.last_user_text.split()
        if "crash" in words:
            os._exit(3)
        if "hang" in words:
            time.sleep(3600)
        if "slow" in words:
            time.sleep(SLOW_S)
        if "fail" in words:
            raise RuntimeError("no answer to this")
        high = 0.6 if "unsure" in words else 0.99
        label = LABELS[("bad" in words) != contrary]
        belief = {one: math.log(high if one == label else 1 - high) for one in LABELS}
        found.append(
            Completion(
                query_id=query.id,
                text=label,
                model="fake",
                revision="1",
                # How many shared the batch: the tests look at it.
                prompt_tokens=len(queries),
                label_logprobs=belief,
            )
        )
    return found


def open_brain(opening: Opening) -> Brain:
    slow = opening.folder / "slow"
    if slow.exists():
        time.sleep(float(slow.read_text() or 3600))
    if (opening.folder / "broken").exists():
        raise StillhouseError("its weights are torn")
    contrary = (opening.folder / "contrary").exists()
    mark = opening.folder / "mark"
    name = mark.read_text() if mark.exists() else "fp_fake"
    return LabelBrain(opening, Voice(opening.model, name), partial(believe, contrary=contrary))


if __name__ == "__main__":
    student_worker.open_brain = open_brain
    student_worker.main(int(sys.argv[1]))
