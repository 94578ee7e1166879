"""The steps `register`, `offer` and `decide`: into the registry, past the gateway, live.

Where the gateway decides, the registry follows it: shadow, canary, then live or retired. Without
one, a candidate that passed the gate becomes live. Either way not where somebody has made another
student live meanwhile: it was judged against one that is gone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from pydantic import JsonValue

from stillhouse.core.loop_retrain import duration_s
from stillhouse.retrain.cycle_files import ENTRY
from stillhouse.retrain.cycle_records import Cycle, CycleLine, Incumbent
from stillhouse.retrain.cycle_train import Refused, artefacts_of
from stillhouse.retrain.gateway_admin import GatewayError
from stillhouse.retrain.gateway_follow import served_path
from stillhouse.retrain.loop import Loop
from stillhouse.retrain.registry_lineage import lineage_of
from stillhouse.retrain.registry_objects import folder_digest
from stillhouse.retrain.registry_records import ConflictError

STUDENT: Final = ("train", "student")
NO_GATE: Final = "no_gate"  # the gateway's word for it


def incumbent_of(loop: Loop) -> Incumbent | None:
    """The student that is live, or that of the task's first run where none is.

    Raises:
        UserError: the registry was tampered with.
    """
    entry = loop.registry.live(loop.name)
    if entry is not None:
        return Incumbent(
            id=entry.id, folder=str(loop.registry.folder(entry.id)), digest=entry.digest
        )
    if loop.first_run is None:
        return None
    folder = loop.first_run.joinpath(*STUDENT)
    if not folder.is_dir():
        return None
    return Incumbent(folder=str(folder), digest=folder_digest(folder))


def register_step(loop: Loop, cycle: Cycle, lines: Sequence[CycleLine]) -> Cycle:
    """Add the candidate; the first run's student before it, as live, where it is not in there."""
    incumbent, parent = cycle.incumbent, None
    if incumbent is not None:
        parent = incumbent.id
        if parent is None:
            folder = Path(incumbent.folder)
            made = lineage_of(folder.parents[len(STUDENT) - 1])
            first = loop.registry.add(
                folder,
                task=loop.name,
                lineage=made.lineage,
                metrics={**made.metrics, "scores": dict(cycle.live_scores)},
                by=loop.by,
                reason="the task's first student",
            )
            parent = first.id
            if loop.registry.live(loop.name) is None:
                loop.registry.promote(parent, reason="the task's first student", by=loop.by)
    entry = loop.files.cycle(cycle.number) / ENTRY
    teacher: dict[str, JsonValue] = {
        "model": cycle.teacher,
        "revision": max(cycle.revisions, key=lambda name: cycle.revisions[name], default=None),
        "revisions": dict(cycle.revisions),
    }
    lineage: dict[str, JsonValue] = {
        **cycle.trained,
        "cycle": cycle.number,
        "window": {"since": cycle.since, "until": cycle.until},
        "teacher": teacher,
    }
    metrics: dict[str, JsonValue] = {
        "scores": dict(cycle.scores),
        "live_scores": dict(cycle.live_scores),
        "checks": [check.model_dump(mode="json") for check in cycle.checks],
    }
    if cycle.promise is not None and cycle.fallback is not None:
        metrics["fallback"] = {
            "error": cycle.promise.error,
            "delta": cycle.promise.delta,
            **cycle.fallback.model_dump(mode="json", exclude_none=True),
        }
    added = loop.registry.add(
        entry,
        task=loop.name,
        lineage=lineage,
        metrics=metrics,
        artefacts=artefacts_of(entry),
        parent=parent,
        by=loop.by,
        reason=cycle.reason,
    )
    if added.stage == "retired":  # the same files as an earlier candidate's
        loop.registry.move(added.id, "candidate", reason=cycle.reason, by=loop.by)
    loop.say(f"window {cycle.name}: {added.id} is a candidate")
    before = None if incumbent is None else incumbent.model_copy(update={"id": parent})
    return cycle.model_copy(update={"candidate": added.id, "incumbent": before})


def offer_step(loop: Loop, cycle: Cycle, lines: Sequence[CycleLine]) -> Cycle:
    """Offer the candidate to the gateway, where one decides.

    Raises:
        Refused: the gateway lets no such student climb; or another is live by now.
    """
    assert cycle.candidate is not None
    _still_against_the_live_one(loop, cycle)
    if loop.gateway is None:
        return cycle
    path = served_path(loop.registry, loop.registry.get(cycle.candidate))
    reason = f"cycle {cycle.number}: {cycle.reason}"
    try:
        loop.gateway.offer(loop.name, path, cycle.candidate, reason)
    except GatewayError as error:
        if error.code == NO_GATE:
            raise Refused(f"the gateway lets no student climb that has no gate: {error}") from None
        raise
    if loop.registry.get(cycle.candidate).stage == "candidate":
        loop.registry.move(cycle.candidate, "shadow", reason="offered to the gateway", by=loop.by)
    return cycle.model_copy(update={"offered_at": loop.clock()})


def decide_step(loop: Loop, cycle: Cycle, lines: Sequence[CycleLine]) -> Cycle | None:
    """Make the candidate live; `None` while it climbs the gateway's stages.

    Raises:
        Refused: the gateway rolled it back, it took too long, or another student is live by now.
    """
    assert cycle.candidate is not None
    said = "passed the gate"
    if loop.gateway is not None:
        found = loop.gateway.standing(loop.name, cycle.candidate)
        if found.standing == "rolled_back":
            raise Refused(f"the gateway ended its experiment: {found.said}")
        if found.standing == "climbing":
            began = cycle.started_at if cycle.offered_at is None else cycle.offered_at
            if loop.clock() - began > duration_s(loop.section.wait):
                loop.gateway.withdraw(loop.name, "it took too long")
                raise Refused(
                    f"after {loop.section.wait} it is still at the stage {found.stage} of the "
                    f"gateway ({found.said})"
                )
            stage = loop.registry.get(cycle.candidate).stage
            if found.stage == "canary" and stage != "canary":
                loop.registry.move(cycle.candidate, "canary", reason=found.said, by=loop.by)
            loop.say(f"window {cycle.name}: {cycle.candidate} is at {found.stage}: {found.said}")
            return None
        said = f"full at the gateway: {found.said}"
    version = loop.registry.version(loop.name)  # before the look that it vouches for
    _still_against_the_live_one(loop, cycle)
    live = loop.registry.live(loop.name)
    if live is None or live.id != cycle.candidate:
        try:
            loop.registry.promote(cycle.candidate, reason=said, by=loop.by, version=version)
        except ConflictError:  # somebody moved a student between the look and this
            return decide_step(loop, cycle, lines)
    return cycle.model_copy(update={"outcome": "promoted"})


def say_apart(loop: Loop) -> None:
    """Say where the gateway answers with a student of the registry that is not the live one: a move
    by hand, on one side alone. Nothing is done about it, for nothing says which side is right."""
    if loop.gateway is None:
        return
    try:
        name = loop.gateway.student(loop.name)
    except GatewayError:
        return  # whatever needs it will say so
    live = loop.registry.live(loop.name)
    known = {entry.id for entry in loop.registry.entries(loop.name)}
    if name in known and (live is None or live.id != name):
        loop.say(
            f"the gateway answers with {name}, the registry's live student is "
            f"{'none' if live is None else live.id}; make one right with stillhouse registry "
            f"promote {name}, or reload {loop.name} --loop LOOP_YAML"
        )


def put_right(loop: Loop, cycle: Cycle) -> str | None:
    """Have the gateway let go of a refused candidate that it climbs with or answers with; what was
    done, or is left to do. Done again, nothing changes.

    Raises:
        GatewayError: there was no answer; the next start asks again.
    """
    if loop.gateway is None or cycle.candidate is None:
        return None
    live = loop.registry.live(loop.name)
    if live is not None and live.id == cycle.candidate:
        return None
    standing = loop.gateway.standing(loop.name, cycle.candidate).standing
    if standing == "climbing":
        loop.gateway.withdraw(loop.name, cycle.verdict)
        return "it was withdrawn from the gateway"
    if standing != "full":
        return None
    problem: str | None = "no student is live in the registry"
    if live is not None:
        path = served_path(loop.registry, live)
        problem = loop.gateway.put_back(loop.name, path, live.id, cycle.verdict)
        if problem is None:
            return f"the gateway, which had it at full, answers with {live.id} again"
    return (
        f"the gateway still answers with it ({problem}): promote the right student with "
        "stillhouse registry promote REF --loop LOOP_YAML"
    )


def retire(loop: Loop, cycle: Cycle) -> None:
    """Put a refused candidate away."""
    if cycle.candidate is None:
        return
    stage = loop.registry.get(cycle.candidate).stage
    if stage not in ("live", "retired"):
        loop.registry.move(cycle.candidate, "retired", reason=cycle.verdict, by=loop.by)


def _still_against_the_live_one(loop: Loop, cycle: Cycle) -> None:
    live = loop.registry.live(loop.name)
    before = None if cycle.incumbent is None else cycle.incumbent.id
    now = None if live is None else live.id
    if now not in (before, cycle.candidate):
        raise Refused(
            f"{now} was made live meanwhile, and the candidate was judged against "
            f"{before or 'no student'}"
        )
