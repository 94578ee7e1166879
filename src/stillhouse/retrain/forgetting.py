"""What a series of students forgot: measures of the matrix of scores, windows by students.

R[i][j] is the score on window j's held-out set of the student that was live after window i, i >= j.
Average forgetting after window t is the mean over j < t of max_{l < t} R[l][j] - R[t][j]
(Chaudhry et al. 2018, without its sign change where a later student is better: it may be below 0);
backward transfer is the mean over j < t of R[t][j] - R[j][j] (Lopez-Paz and Ranzato 2017). Both are
in the score's own unit. A score that was not measured is missing, and its window is left out. Knows
numbers alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

Row = Mapping[str, float]


class Transfer(NamedTuple):
    """After the last window: mean forgetting, mean backward transfer, and the worst window's
    forgetting with its name; `None` where there is no earlier window."""

    average_forgetting: float | None
    backward_transfer: float | None
    worst: tuple[str, float] | None


def transfer(names: Sequence[str], rows: Sequence[Row]) -> Transfer:
    """Forgetting and backward transfer after the last row.

    Args:
        names: of the windows, oldest first.
        rows: `rows[i]` has the scores after window `names[i]`, by window.

    Raises:
        ValueError: lengths differ, or there is none.
    """
    if len(names) != len(rows) or not rows:
        raise ValueError(f"{len(names)} windows have {len(rows)} rows; there must be one each")
    last = len(rows) - 1
    lost: dict[str, float] = {}
    moved: list[float] = []
    for j, name in enumerate(names[:last]):
        earlier = [rows[i][name] for i in range(j, last) if name in rows[i]]
        if name not in rows[last] or not earlier:
            continue
        lost[name] = max(earlier) - rows[last][name]
        if name in rows[j]:
            moved.append(rows[last][name] - rows[j][name])
    if not lost:
        return Transfer(None, None, None)
    worst = max(lost, key=lambda name: lost[name])
    return Transfer(
        sum(lost.values()) / len(lost),
        sum(moved) / len(moved) if moved else None,
        (worst, lost[worst]),
    )


def best_before(name: str, rows: Sequence[Row]) -> int | None:
    """Which row has the highest score of a window; the latest of equals, `None`: none has one."""
    found = [i for i, row in enumerate(rows) if name in row]
    return max(found, key=lambda i: (rows[i][name], i)) if found else None
