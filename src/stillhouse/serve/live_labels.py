"""What came of a student's answers in live traffic, as samples to calibrate by.

Shadow answers are seen whatever their confidence, so they stand for the traffic and may choose a
threshold; answers that were shown passed a gate, and may only help to fit. A log may hold answers
of several students, of which one is calibrated. Knows the traffic log's figures and outcomes, and
no model.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Final, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from stillhouse.serve.calibrator import Halves, Judged, halves
from stillhouse.serve.records import OutcomeKind
from stillhouse.serve.stored_calls import SCORING, outcomes_since
from stillhouse.serve.stored_records import NO_CALL
from stillhouse.serve.tables import CALLS

OWN_KIND: Final = "student:"  # of `GatewayCall.model`, where the gateway opened the student itself
_CHUNK: Final = 500
# Fewer live samples than this do not choose a threshold.
ENOUGH: Final = 300


class Author(NamedTuple):
    """Who answered, as the log has it: a name of gateway.yaml, or that a student was offered by;
    the fingerprint of the files where the gateway opened them itself."""

    name: str
    fingerprint: str | None = None

    def __str__(self) -> str:
        return self.name if self.fingerprint is None else f"{self.name} ({self.fingerprint})"


class Whose(NamedTuple):
    """Whose answers count.

    `fingerprint` is of the files at hand; `said`, a name or fingerprint, is what somebody says that
    the log calls them. Without either all count.
    """

    fingerprint: str | None = None
    said: str | None = None

    def wrote(self, author: Author) -> bool:
        """Whether an author is this student: by the files, where both are known."""
        if self.said is not None and self.said not in author:
            return False
        if self.fingerprint is not None and author.fingerprint is not None:
            return self.fingerprint == author.fingerprint
        return self.said is not None or self.fingerprint is None


ANYBODY: Final = Whose()


class LiveLabels(NamedTuple):
    """Judged answers: `seen` whatever their confidence, `shown` because it was high enough. How
    many by `authors`, and how many of `others` were left out."""

    seen: list[Judged]
    shown: list[Judged]
    authors: Counter[Author] = Counter()  # noqa: RUF012 - never added to
    others: Counter[Author] = Counter()  # noqa: RUF012 - never added to


class Mixed(NamedTuple):
    """Halves to fit and to test on, where the tests came from, and how many were left out since
    they lack a feature."""

    halves: Halves
    source: str
    left_out: int


def live_labels(
    engine: Engine,
    task: str,
    since: float,
    kinds: Collection[OutcomeKind] = SCORING,
    acceptable: float = 0.5,
    *,
    whose: Whose = ANYBODY,
) -> LiveLabels:
    """A student's answers since a time (Unix seconds) that have an outcome of these kinds; the
    newest outcome counts. A user's answers are one group.

    Args:
        acceptable: score from which an answer is acceptable.
        whose: the student; answers of others are counted and left out.
    """
    newest = {
        served.id: (served, outcome)
        for served, outcome in outcomes_since(engine, task, since, kinds)
        if served.variant == "student" and served.features
    }
    said = _fingerprints(engine, [s.id for s, _ in newest.values() if s.fingerprint is None])
    found = LiveLabels([], [], Counter(), Counter())
    for served, outcome in newest.values():
        author = Author(served.upstream, _files(served.fingerprint or said.get(served.id)))
        if not whose.wrote(author):
            found.others[author] += 1
            continue
        found.authors[author] += 1
        judged = Judged(served.id, dict(served.features), outcome.score >= acceptable, served.unit)
        (found.shown if served.shadow_of is None else found.seen).append(judged)
    return found


def _files(fingerprint: str | None) -> str | None:
    """A fingerprint, with all adapters of one student under one name: they are others than it, and
    there may be thousands."""
    base, own, _ = (fingerprint or "").partition(".")
    return f"{base}.adapters" if own else fingerprint


def _fingerprints(engine: Engine, ids: Sequence[str]) -> dict[str, str]:
    """What answers say of the files that gave them: rows of before the log had it in its figures.

    A model server's own fingerprint is of its build, and says nothing of the weights.
    """
    found: dict[str, str] = {}
    with engine.connect() as connection:
        for start in range(0, len(ids), _CHUNK):
            query = sa.select(CALLS.c.id, CALLS.c.call).where(
                CALLS.c.id.in_(ids[start : start + _CHUNK]), CALLS.c.call.is_not(None)
            )
            for identity, text in connection.execute(query):
                with suppress(*NO_CALL):
                    call = json.loads(text)
                    said = (call["response"] or {}).get("system_fingerprint")
                    if isinstance(said, str) and str(call["model"]).startswith(OWN_KIND):
                        found[identity] = said
    return found


def mixed(held_out: Halves, live: LiveLabels) -> Mixed:
    """Held-out and live samples together.

    All of them fit but one half of the representative ones, which tests; where the live half is too
    small, the held-out one tests. Selection by confidence is selection by the features, so that
    answers that passed a gate do not bend P(acceptable | features).

    Raises:
        ValueError: there are no samples at all.
    """
    every = [*held_out.fits, *held_out.tests, *live.seen, *live.shown]
    if not every:
        raise ValueError("there are no judged answers with features")
    names = set.intersection(*(set(one.features) for one in (held_out.fits or every)))
    left_out = sum(not names <= set(one.features) for one in every)

    def same(some: list[Judged]) -> list[Judged]:
        return [
            one._replace(features={name: one.features[name] for name in sorted(names)})
            for one in some
            if names <= set(one.features)
        ]

    seen = halves(same(live.seen))
    fits = same(held_out.fits) + seen.fits + same(live.shown)
    if len(seen.tests) >= ENOUGH or not held_out.tests:
        return Mixed(Halves(fits, seen.tests), "live shadow answers", left_out)
    return Mixed(Halves(fits, same(held_out.tests)), "held-out answers", left_out)
