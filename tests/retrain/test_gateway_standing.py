"""A candidate's climb as the admin API tells it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from registry_students import student_folder
from stillhouse.retrain.gateway_admin import GatewayDecision, GatewayError, GatewayState
from stillhouse.retrain.gateway_follow import follow
from stillhouse.retrain.gateway_standing import AdminGateway
from stillhouse.retrain.registry import Registry
from stillhouse.retrain.registry_records import Entry


class Admin:
    """What `GatewayAdmin` would answer."""

    def __init__(self, **state: Any) -> None:
        values = {
            "task": "mood",
            "version": 7,
            "stage": 1,
            "kind": "canary",
            "share": 0.05,
            "since": 0.0,
            "killed": False,
            "waiting": False,
            "held": False,
            "student": "s-old",
            "candidate": None,
        }
        self.now = GatewayState.model_validate({**values, **state})
        self.offers: list[tuple[Any, ...]] = []
        self.withdrawn: list[tuple[str, str]] = []
        self.reloads: list[tuple[str, ...]] = []
        self.versions: list[int | None] = []
        self.fails: GatewayError | None = None
        self.meanwhile: Callable[[], object] | None = None  # comes before the next swap

    def state(self, task: str) -> GatewayState:
        return self.now

    def offer(self, *values: Any, version: int | None = None) -> GatewayState:
        self.offers.append((*values, version))
        return self.now

    def withdraw(self, task: str, reason: str = "") -> GatewayState:
        self.withdrawn.append((task, reason))
        return self.now

    def reload(
        self,
        task: str,
        path: str,
        name: str,
        reason: str = "",
        *,
        version: int | None = None,
        refined: bool = True,
    ) -> GatewayState:
        assert not refined  # what the registry has live is no version of what ran before
        if self.fails is not None:
            raise self.fails
        if self.meanwhile is not None:
            other, self.meanwhile = self.meanwhile, None
            other()
            self.now = self.now.model_copy(update={"version": self.now.version + 1})
        if version not in (None, self.now.version):
            raise GatewayError("gateway: the state has been changed meanwhile", 409)
        self.versions.append(version)
        self.reloads.append((task, path, name, reason))
        return self.now


def gateway(admin: Admin) -> AdminGateway:
    return AdminGateway(admin)  # type: ignore[arg-type]


def decided(reason: str) -> GatewayDecision:
    return GatewayDecision(
        at=0, action="advance", from_stage=0, to_stage=1, reason=reason, by="policy"
    )


def test_it_stands_where_the_state_says() -> None:
    climbing = gateway(Admin(candidate="s-new", last=decided("900 pairs"))).standing(
        "mood", "s-new"
    )
    assert climbing == ("climbing", "canary", "900 pairs")
    full = gateway(Admin(student="s-new", kind="full")).standing("mood", "s-new")
    assert full == ("full", "full", "no decision yet")
    back = gateway(Admin(last=decided("worse than allowed"))).standing("mood", "s-new")
    assert back == ("rolled_back", "canary", "worse than allowed")


def test_problems_and_a_kill_are_told() -> None:
    shut = Admin(candidate="s-new", problems=("cannot open it",))
    assert gateway(shut).standing("mood", "s-new").said == "cannot open it"
    killed = Admin(candidate="s-new", killed=True)
    assert "all traffic goes to the teacher" in gateway(killed).standing("mood", "s-new").said


def test_an_offer_is_made_once_on_the_state_that_was_read(tmp_path: Path) -> None:
    admin = Admin()
    gateway(admin).offer("mood", tmp_path, "s-new", "cycle 3")
    assert admin.offers == [("mood", str(tmp_path.resolve()), "s-new", "cycle 3", 7)]
    for state in ({"candidate": "s-new"}, {"student": "s-new"}):
        again = Admin(**state)
        gateway(again).offer("mood", tmp_path, "s-new", "cycle 3")
        assert again.offers == []
    gateway(admin).withdraw("mood", "refused")
    assert admin.withdrawn == [("mood", "refused")]


def test_another_student_is_put_back_or_it_is_said_why_not(tmp_path: Path) -> None:
    admin = Admin()
    assert gateway(admin).put_back("mood", tmp_path, "s-old", "refused") is None
    assert admin.reloads == [("mood", str(tmp_path.resolve()), "s-old", "refused")]
    admin.fails = GatewayError("gateway: status 422: outside", 422)
    assert gateway(admin).put_back("mood", tmp_path, "s-old", "") == "gateway: status 422: outside"
    for status in (0, 409, 503):
        admin.fails = GatewayError("gateway: later", status)
        with pytest.raises(GatewayError, match="later"):
            gateway(admin).put_back("mood", tmp_path, "s-old", "")


def registered(tmp_path: Path) -> tuple[Registry, Entry]:
    made = student_folder(tmp_path / "made", "x")
    (made / "small").mkdir()
    (made / "small" / "model.onnx").write_bytes(b"x")
    registry = Registry(tmp_path / "registry")
    artefacts = {"best": "small"}
    entry = registry.add(made, task="mood", lineage={}, metrics={}, artefacts=artefacts)
    return registry, registry.promote(entry.id, reason="", by="ann")


def test_a_gateway_follows_a_move_by_hand(tmp_path: Path) -> None:
    registry, entry = registered(tmp_path)
    admin = Admin()
    found = follow(admin, registry, entry, "complaints")
    assert found == (True, f"the gateway answers with {entry.id} now, s-old before")
    path = str((registry.folder(entry.id) / "small").resolve())
    assert admin.reloads == [("mood", path, entry.id, "complaints")]
    assert admin.versions == [7]  # the state that was read before the registry was
    running = Admin(student=entry.id)
    assert follow(running, registry, entry, "").done
    assert running.reloads == []
    climbing = Admin(candidate=entry.id)
    assert follow(climbing, registry, entry, "enough").done
    assert (climbing.withdrawn, len(climbing.reloads)) == ([("mood", "enough")], 1)


def test_of_two_who_promote_at_once_the_gateway_follows_the_registry(tmp_path: Path) -> None:
    registry, entry = registered(tmp_path)
    other = registry.add(
        student_folder(tmp_path / "other", "y"), task="mood", lineage={}, metrics={}
    )

    def promoted() -> object:
        return registry.promote(other.id, reason="better", by="bob")

    # Between the look at the registry and the swap.
    admin = Admin()
    admin.meanwhile = promoted
    found = follow(admin, registry, entry, "ann's")
    assert (found.done, admin.reloads) == (False, [])
    assert found.said == (
        f"{other.id} was made live meanwhile: the gateway is left to whoever did that"
    )
    # Before the look.
    again = Admin()
    assert not follow(again, registry, entry, "ann's").done
    assert again.reloads == []
    # What the gateway does by itself meanwhile is no reason to give up.
    busy = Admin()
    busy.meanwhile = lambda: None
    assert follow(busy, registry, registry.get(other.id), "bob's").done
    assert busy.versions == [8]


def test_a_student_that_no_gate_lets_through_is_told_of(tmp_path: Path) -> None:
    registry, entry = registered(tmp_path)
    for admin in (Admin(teacher_answers=True), Admin(student=entry.id, teacher_answers=True)):
        found = follow(admin, registry, entry, "")
        assert found.done
        assert (
            "but the teacher answers for it, since no gate lets its answers through" in found.said
        )
        assert "\n" not in found.said
    assert "teacher" not in follow(Admin(), registry, entry, "").said


@pytest.mark.parametrize(
    ("status", "remedy"),
    [
        (0, "start the gateway"),
        (401, "export the key"),
        (404, "a task of that name"),
        (409, "see what stands there"),
        (422, "students.roots"),
    ],
)
def test_one_that_does_not_is_told_of_in_one_line(tmp_path: Path, status: int, remedy: str) -> None:
    registry, entry = registered(tmp_path)
    admin = Admin()
    admin.fails = GatewayError("gateway 127.0.0.1:8081: no", status)
    found = follow(admin, registry, entry, "")
    assert not found.done
    assert remedy in found.said
    assert "stillhouse registry reload mood --loop LOOP_YAML" in found.said
    assert "\n" not in found.said
