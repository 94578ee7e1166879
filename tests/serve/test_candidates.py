"""A new student beside the running one: who answers, what counts as its evidence, how it ends."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from rollout_world import FEEDBACK, PLAN, World, file_of, state_of
from test_controller import lived, memory, written

from stillhouse.core.recipe_file import parse_as
from stillhouse.serve.api_errors import ApiError
from stillhouse.serve.candidates import (
    first_climb,
    offered,
    reloaded,
    stepped,
    withdrawn,
    without_candidate,
)
from stillhouse.serve.evidence import StageEvidence
from stillhouse.serve.gateway_file import GatewayFile
from stillhouse.serve.gateway_sections import StageSection
from stillhouse.serve.in_memory import HashAssigner
from stillhouse.serve.migration import changed, with_student
from stillhouse.serve.policy import rules_of, teachers_per_student
from stillhouse.serve.presence import MemoryPresence
from stillhouse.serve.records import Assignment, ExperimentState, StudentFolder
from stillhouse.serve.seats import allowed
from stillhouse.serve.states import StoredStates
from stillhouse.serve.stored_parts import begin
from stillhouse.serve.tables import open_database

NEW = StudentFolder(name="s-new", path="/srv/registry/new", fingerprint="fp_new", threshold=0.7)
N = 8_000


def climbing(file: GatewayFile, stage: int, running: int = 3) -> ExperimentState:
    """A candidate at a stage, offered while the running student was at another."""
    plan = file.tasks["reviews"].experiment.stages
    state = offered(state_of(file, running, student="small:s"), plan, NEW, "better", 10.0).state
    for number in range(1, stage + 1):
        state = state.model_copy(update=stepped(state, plan, number, 10.0))
    return state


def assigned(file: GatewayFile, state: ExperimentState) -> list[Assignment]:
    assigner = HashAssigner(file.tasks)
    return [assigner.assign("reviews", f"u{n}", None, f"r{n}", state) for n in range(N)]


def near(count: int, share: float) -> bool:
    """Within 4.5 standard deviations of a binomial: 1 in 100,000 by chance."""
    return abs(count - N * share) <= 4.5 * math.sqrt(N * share * (1 - share)) + 1e-9


def test_while_it_climbs_the_running_student_keeps_its_traffic_but_for_the_compared_part() -> None:
    file = file_of(teacher_only=0.02, candidate_pairs=0.1)
    for stage, share in ((0, 0.0), (1, 0.05), (2, 0.25)):
        places = assigned(file, climbing(file, stage))
        arms = Counter(one.arm for one in places)
        assert near(arms["teacher_only"], 0.02)
        assert near(arms["treatment"], 0.98 * share)
        assert near(arms["incumbent"], 0.98 * (1 - share) * 0.9)
        compared = "shadow" if stage == 0 else "control"
        assert near(arms[compared], 0.98 * (1 - share) * 0.1)
        assert sum(arms.values()) == arms["teacher_only"] + sum(
            arms[arm] for arm in ("treatment", "incumbent", compared)
        )
        for one in places:
            assert one.variant == (
                "student" if one.arm in ("treatment", "incumbent") else "teacher"
            )
            assert one.candidate == "s-new"
            # whatever the teacher answers is a pair with the candidate's shadow answer
            assert one.shadowed == (one.arm != "treatment")


def test_a_running_student_that_had_a_share_gets_no_more_than_that() -> None:
    file = file_of(teacher_only=0.02, candidate_pairs=0.1)
    places = assigned(file, climbing(file, 1, running=2))
    arms = Counter(one.arm for one in places)
    assert near(arms["treatment"], 0.98 * 0.05)
    assert near(arms["incumbent"], 0.98 * (0.25 - 0.05) * 0.9)
    assert near(arms["control"], 0.98 * (0.75 + 0.2 * 0.1))
    shadowing = Counter(one.arm for one in assigned(file, climbing(file, 0, running=0)))
    assert shadowing["incumbent"] == 0  # it answered nobody before


def test_units_do_not_move_between_students_but_by_the_share() -> None:
    file = file_of()
    before = assigned(file, climbing(file, 1))
    after = assigned(file, climbing(file, 2))
    for old, new in zip(before, after, strict=True):
        if old.arm == "treatment":
            assert new.arm == "treatment"
        elif new.arm != "treatment":
            assert new.arm == old.arm


@pytest.mark.parametrize("running", [0, 2, 3])
def test_the_planned_ratio_of_the_arms_is_what_is_assigned(running: int) -> None:
    file = file_of(evidence=FEEDBACK, teacher_only=0.05, candidate_pairs=0.2)
    for stage in (1, 2):
        state = climbing(file, stage, running)
        arms = Counter(one.arm for one in assigned(file, state))
        found = (arms["control"] + arms["teacher_only"]) / arms["treatment"]
        planned = teachers_per_student(file.tasks["reviews"].experiment, state)
        # of a ratio of two counts, by the delta method, 4.5 standard deviations
        spread = planned * math.sqrt(1 / arms["treatment"] + planned / N) * 4.5
        assert abs(found - planned) <= spread


def test_the_kill_switch_is_above_it() -> None:
    file = file_of()
    state, _ = changed(climbing(file, 2), file.tasks["reviews"].experiment.stages, "kill", "", 1.0)
    assert {(one.variant, one.shadowed) for one in assigned(file, state)[:500]} == {
        ("teacher", False)
    }
    assert without_candidate(state).killed


def offer(states: Any, file: GatewayFile, at: float) -> None:
    plan = file.tasks["reviews"].experiment.stages
    old = states.get("reviews")
    full = old.model_copy(update={"stage": 3, "kind": "full", "share": 1.0, "student": "small:s"})
    new, decision = offered(full, plan, NEW, "retrained", at)
    assert states.swap(old.version, new, decision)


def test_a_good_one_takes_over_by_its_own_evidence_alone() -> None:
    """The running student is bad: were it counted, nothing would advance."""
    file = file_of(candidate_pairs=0.3)
    states, log, controller = memory(file)
    offer(states, file, 0.0)
    world = World(file, student=0.2, teacher=0.9, new=0.93)
    lived(states, log, controller, world, 20_000)
    state = states.get("reviews")
    assert (state.kind, state.candidate, state.serving) == ("full", None, NEW)
    assert (state.threshold, state.student) == (0.7, "s-new:fp_new")
    told = [(one.action, one.student, one.from_stage, one.to_stage) for one in states.decisions]
    assert told == [
        ("offer", "s-new", 3, 0),
        ("advance", "s-new", 0, 1),
        ("advance", "s-new", 1, 2),
        ("promote", "s-new", 2, 3),
    ]
    assert states.decisions[-1].by == "policy"


def test_at_full_its_answers_count_and_those_of_its_version_before_do_not() -> None:
    file = file_of(teacher_only=0.3)
    state = state_of(file, 3, serving=NEW)
    served, _ = World(file, 0.9, 0.9).requests(state, 300)
    assert {one.upstream for one in served} == {"big", "s-new"}
    evidence = StageEvidence(rules_of(file.tasks["reviews"], state), state)
    assert all(evidence.counts(one) for one in served)
    old = [one.model_copy(update={"upstream": "s-old"}) for one in served if one.upstream != "big"]
    assert not any(evidence.counts(one) for one in old)


def test_a_bad_one_is_rolled_back_and_the_running_student_goes_on() -> None:
    file = file_of(candidate_pairs=0.3)
    states, log, controller = memory(file)
    offer(states, file, 0.0)
    world = World(file, student=0.99, teacher=0.9, new=0.6)
    for _ in range(60):
        if states.get("reviews").candidate is None:
            break
        written(log, world.requests(states.get("reviews"), 100))
        controller.tick(world.now)
    state = states.get("reviews")
    assert (state.kind, state.stage, state.share, state.held) == ("full", 3, 1.0, False)
    assert (state.candidate, state.serving, state.student) == (None, None, "small:s")
    assert state.counts_from == state.version  # what was seen meanwhile is no evidence of it
    last = states.decisions[-1]
    assert (last.action, last.student, last.from_stage, last.to_stage) == (
        "roll_back",
        "s-new",
        0,
        3,
    )
    assert "worse than allowed" in last.reason
    assert last.numbers["worse"] is True
    assert {one.variant for one in assigned(file, state)[:200]} == {"teacher", "student"}


def test_one_that_fails_is_rolled_back_by_the_guardrail() -> None:
    file = file_of(evidence=None)
    states, log, controller = memory(file)
    offer(states, file, 0.0)
    plan = file.tasks["reviews"].experiment.stages
    old = states.get("reviews")
    new, decision = changed(old, plan, "approve", "", 1.0)
    assert states.swap(old.version, new, decision)
    world = World(file, student=0.9, teacher=0.9, new=0.9, fails=0.5, now=2.0)
    for _ in range(60):
        if states.get("reviews").candidate is None:
            break
        written(log, world.requests(states.get("reviews"), 100))
        controller.tick(world.now)
    assert states.get("reviews").kind == "full"
    assert "too many failures" in states.decisions[-1].reason


@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("evidence", [None, FEEDBACK])
def test_what_the_running_student_answers_changes_no_number(
    stage: int, evidence: dict[str, Any] | None
) -> None:
    file = file_of(**({} if evidence is None else {"evidence": evidence}), candidate_pairs=0.3)
    state = climbing(file, stage).model_copy(update={"since": 0.0})
    kind: Any = "scorer" if evidence is None else "feedback"
    served, scored = World(file, 0.1, 0.9, new=0.9, kind=kind).requests(state, 1500)
    rules = rules_of(file.tasks["reviews"], state)
    all_of_it, without = StageEvidence(rules, state), StageEvidence(rules, state)
    all_of_it.serve(served)
    all_of_it.score(scored)
    without.serve(one for one in served if one.upstream != "small")
    without.score(one for one in scored if one.served.upstream != "small")
    for one in (all_of_it, without):
        one.close(1e9)
    assert all_of_it.numbers() == without.numbers()
    assert all_of_it.numbers().requests < 1500 / 2
    # an answer of the running one under the candidate's arm, of a gateway that lags behind
    strange = [one.model_copy(update={"upstream": "small"}) for one in served]
    late = StageEvidence(rules, state)
    late.serve(strange)
    numbers = late.numbers()
    assert all(not one.n for one in numbers.guardrails)


def test_it_does_not_advance_before_every_gateway_has_it() -> None:
    file = file_of(candidate_pairs=1.0)
    states, log, controller = memory(file)
    offer(states, file, 0.0)
    open_here = False

    def missing(task: str, name: str, now: float) -> list[str]:
        assert (task, name) == ("reviews", "s-new")
        return [] if open_here else ["b:1 has not opened s-new: it is no student"]

    controller._from = controller._from._replace(missing=missing)
    world = World(file, 0.9, 0.9, new=0.95)
    for _ in range(12):
        written(log, world.requests(states.get("reviews"), 100))
        controller.tick(world.now)
    assert states.get("reviews").stage == 0
    assert "b:1 has not opened s-new" in controller.view("reviews")["words"]
    assert controller.view("reviews")["candidate"] == "s-new"
    open_here = True
    written(log, world.requests(states.get("reviews"), 100))
    controller.tick(world.now)
    assert states.get("reviews").stage == 1


def test_an_offer_that_does_not_fit_is_refused_by_its_cause() -> None:
    file = file_of()
    plan = file.tasks["reviews"].experiment.stages
    full = state_of(file, 3)
    with pytest.raises(ApiError, match="killed"):
        offered(full.model_copy(update={"killed": True}), plan, NEW, "", 1.0)
    with pytest.raises(ApiError, match="s-new climbs already"):
        offered(climbing(file, 1), plan, NEW, "", 1.0)
    with pytest.raises(ApiError, match="is the student already"):
        offered(full.model_copy(update={"serving": NEW}), plan, NEW, "", 1.0)
    with pytest.raises(ApiError, match="no stage before full"):
        first_climb([StageSection(kind="off"), StageSection(kind="full")])
    with pytest.raises(ApiError, match="No new student"):
        withdrawn(full, "withdraw", "", 1.0)
    with pytest.raises(ApiError, match="candidate's name"):
        reloaded(climbing(file, 1), plan, NEW, "", 1.0)
    assert first_climb([StageSection(kind="off"), *plan]) == 1


def test_by_hand_it_is_approved_up_to_the_end_or_rolled_back() -> None:
    file = file_of()
    plan = file.tasks["reviews"].experiment.stages
    state = climbing(file, 0)
    for stage in (1, 2, 3):
        state, decision = changed(state, plan, "approve", "go", 5.0)
        assert (decision.student, decision.to_stage) == ("s-new", stage)
    assert (state.candidate, state.serving, state.kind) == (None, NEW, "full")
    back, decision = changed(climbing(file, 2), plan, "rollback", "no", 5.0)
    assert (back.kind, back.candidate, back.serving) == ("full", None, None)
    assert (decision.action, decision.by, decision.reason) == ("roll_back", "admin", "no")


def test_a_reload_keeps_the_stage_and_whoever_climbs() -> None:
    file = file_of()
    plan = file.tasks["reviews"].experiment.stages
    newer = NEW.model_copy(update={"name": "s-newer", "threshold": 0.8})
    full = state_of(file, 3, student="small:s")
    state, decision = reloaded(full, plan, newer, "", 9.0)
    assert (decision.action, decision.student) == ("reload", "s-newer")
    assert (state.stage, state.since, state.counts_from) == (3, full.since, full.counts_from)
    assert (state.serving, state.threshold) == (newer, 0.8)
    below, _ = reloaded(state_of(file, 1), plan, newer, "", 9.0)
    assert (below.stage, below.counts_from, below.since) == (1, below.version, 9.0)
    beside = climbing(file, 1)
    both, _ = reloaded(beside, plan, newer, "", 9.0)
    assert both.candidate is not None
    assert (both.stage, both.counts_from, both.threshold) == (1, beside.counts_from, 0.7)
    ended = withdrawn(both, "withdraw", "", 10.0).state
    assert (ended.serving, ended.threshold, ended.kind) == (newer, 0.8, "full")


def test_a_gateway_without_it_goes_by_the_state_before() -> None:
    file = file_of()
    state = climbing(file, 1)
    seen = without_candidate(state)
    assert (seen.kind, seen.candidate) == ("full", None)
    assert seen.version < state.counts_from
    assert without_candidate(seen) is seen


def test_another_student_in_the_file_is_the_running_one_beside_a_candidate() -> None:
    file = file_of()
    plan = file.tasks["reviews"].experiment.stages
    state = climbing(file, 1)
    new, _ = with_student(state, plan, "small:other", 20.0)
    assert new.candidate is not None
    assert (new.stage, new.kind, new.student) == (1, "canary", "s-new:fp_new")
    assert (new.candidate.before.kind, new.candidate.before.student) == ("shadow", "small:other")
    assert without_candidate(new).version < new.counts_from


def rooted(url: str, roots: list[str], **more: Any) -> GatewayFile:
    raw = file_of(url).model_dump(mode="json")
    raw["tasks"]["reviews"]["experiment"] |= more
    return parse_as(GatewayFile, raw | {"students": {"roots": roots} if roots else None}, "x")


def test_over_a_restart_it_stays_as_long_as_its_root_is_named(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/a.db"
    engine = open_database(url)
    file = rooted(url, ["/srv/registry"])
    plan = file.tasks["reviews"].experiment.stages
    states = StoredStates(engine)
    begin(states, file, 1.0)
    first = states.get("reviews")
    climbs = offered(first, plan, NEW, "", 2.0)
    assert states.swap(first.version, *climbs)
    begin(states, file, 3.0)
    assert states.get("reviews") == climbs.state  # nothing of it is the file's to say
    other = rooted(url, ["/srv/registry"], stages=[{**PLAN[0]}, {"kind": "canary", "share": 0.1}])
    begin(states, other, 4.0)
    assert states.get("reviews").candidate is not None
    promoted = climbs.state.model_copy(
        update=stepped(states.get("reviews"), plan, 3, 5.0)
        | {"version": states.get("reviews").version + 1}
    )
    decision = climbs.decision.model_copy(update={"action": "promote"})
    assert states.swap(promoted.version - 1, promoted, decision)
    begin(StoredStates(engine), file, 6.0)
    states.refresh()
    assert states.get("reviews") == promoted
    begin(states, rooted(url, []), 7.0)
    back = states.get("reviews")
    assert (back.serving, back.stage, back.student) == (None, 0, "small:s")
    assert states.audit("reviews")[-1].decision.reason == "another student: it begins again"
    engine.dispose()


def test_one_that_climbs_is_withdrawn_where_its_root_is_named_no_more(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/a.db"
    engine = open_database(url)
    states = StoredStates(engine)
    file = rooted(url, ["/srv/registry"])
    begin(states, file, 1.0)
    first = states.get("reviews")
    plan = file.tasks["reviews"].experiment.stages
    assert states.swap(first.version, *offered(first, plan, NEW, "", 2.0))
    begin(states, rooted(url, ["/srv/other"]), 3.0)
    assert states.get("reviews").candidate is None
    last = states.last("reviews")
    assert last is not None
    assert (last.action, last.by) == ("withdraw", "gateway.yaml")
    engine.dispose()


def test_a_gateway_without_a_database_knows_what_it_has_open() -> None:
    alone = MemoryPresence()
    assert alone.missing("t", "s-1", 0.0)
    alone.tell({"t": {"open": ["s-1"], "problems": {}}}, 0.0)
    assert alone.missing("t", "s-1", 0.0) == []
    assert alone.missing("t", "s-2", 0.0) == ["the gateway has not opened s-2: not yet"]


def test_folders_are_allowed_below_a_root_alone_wherever_links_lead(tmp_path: Path) -> None:
    root, outside = tmp_path / "registry", tmp_path / "secret"
    (root / "a").mkdir(parents=True)
    outside.mkdir()
    (root / "out").symlink_to(outside)
    (root / "in").symlink_to(root / "a")
    (root / "file").write_text("")
    (tmp_path / "link").symlink_to(root)
    roots = (tmp_path / "link",)
    assert allowed(root / "a", roots) == (root / "a").resolve()
    assert allowed(root / "in", roots) == (root / "a").resolve()
    for wrong in ("out", "../secret", "a/../../secret", "nothing", "file", ".", "a\0b"):
        assert allowed(root / wrong, roots) is None, wrong
    assert allowed(tmp_path / "registry-2", roots) is None
