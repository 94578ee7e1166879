"""A candidate's climb as the admin API tells it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stillhouse.retrain.gateway_admin import GatewayDecision, GatewayState
from stillhouse.retrain.gateway_standing import AdminGateway


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
        self.withdrawn: list[str] = []

    def state(self, task: str) -> GatewayState:
        return self.now

    def offer(self, *values: Any, version: int | None = None) -> GatewayState:
        self.offers.append((*values, version))
        return self.now

    def withdraw(self, task: str, reason: str = "") -> GatewayState:
        self.withdrawn.append(task)
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
    gateway(admin).withdraw("mood")
    assert admin.withdrawn == ["mood"]
