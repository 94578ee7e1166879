"""Adapters of tenants: better for their owner, refused where they harm, gone with their owner."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from test_online import TASK, FakeStudent, Rows, make, row, section

from stillhouse.core.loop_online import GuardSection, PersonalSection
from stillhouse.core.records import Message, Query
from stillhouse.models.batching import Call
from stillhouse.models.completer import ModelInfo, Sampling
from stillhouse.models.head_weights import Floats, HeadWeights
from stillhouse.models.personal import PersonalStudent
from stillhouse.retrain.online import OnlineTask
from stillhouse.train.online_head import HeadRates, fit_delta


def personal(tmp_path: Path, **changes: object) -> OnlineTask:
    own = PersonalSection.model_validate({"least_rows": 20, **changes})
    rates = HeadRates(own.steps, own.learning_rate, 0.0, own.anchor_l2)

    def fit(shared: HeadWeights, x: Floats, y: Floats) -> HeadWeights:
        return fit_delta(shared, x, y, rates, rank=own.rank)

    wanted = section(personal=own, guard=GuardSection(share=0.3, least=20), corrections="personal")
    return make(tmp_path, wanted, fit=fit)


def stream() -> Rows:
    """t0 has the teacher's answers; `own` calls every text by the next label's name."""
    shared = [row(n, 0) for n in range(200)]
    own = [row(n, 0, tenant="own", flip=True) for n in range(200, 300)]
    return Rows([*shared, *own])


def test_an_owner_is_answered_in_its_own_way_and_others_are_not(tmp_path: Path) -> None:
    task = personal(tmp_path, harm=0.99)
    task.run_once(stream())
    kept = task.adapters()
    (adapter,) = kept.index.values()
    assert (adapter.owner, adapter.state) == ("own", "used")
    assert adapter.own > adapter.shared + 0.3
    student = FakeStudent(tmp_path / "student")
    info = ModelInfo(name="s", revision="1", parameters=1, local=True)
    opened = PersonalStudent(
        student, TASK, info, lambda query: kept.of(query.user or "", adapter.base)
    )
    numbers = range(900, 960)
    wrong = {"own": 0, "t0": 0}
    for tenant in wrong:
        calls = []
        for n in numbers:
            query = Query(id=str(n), messages=row(n, 0).messages, user=tenant)
            calls.append(Call(query, Sampling()))
        said = [one[0] for one in opened.run_batch(calls)]
        right = [row(n, 0, tenant=tenant, flip=tenant == "own") for n in numbers]
        for one, answer in zip(right, said, strict=True):
            assert one.student is not None
            assert sum(np.exp(list((answer.label_logprobs or {}).values()))) == pytest.approx(1)
            wrong[tenant] += answer.text != (one.student.corrected or one.student.text)
    # Without an adapter nearly all of the owner's 60 would be wrong; half of them is the bound.
    assert wrong["own"] < 30
    assert wrong["t0"] < 30
    assert kept.of("own", "another student") is None


def test_an_adapter_that_harms_the_guard_set_is_not_used(tmp_path: Path) -> None:
    task = personal(tmp_path, harm=0.05)
    task.run_once(stream())
    (adapter,) = task.adapters().index.values()
    assert adapter.state == "refused"
    assert "guard set" in adapter.why
    assert task.adapters().of("own", adapter.base) is None


def test_a_forgotten_user_leaves_the_adapter(tmp_path: Path) -> None:
    task = personal(tmp_path, harm=0.99, by="user", least_rows=5)
    rows = [row(n, 0) for n in range(200)]
    rows += [row(5000 + n * 50, 0, tenant="own", flip=True) for n in range(40)]  # all user0's
    task.run_once(Rows(rows))
    assert "own\nuser0" in task.adapters().index
    task.forget("own", ["user0"])
    assert "own\nuser0" not in task.adapters().index
    assert not list((tmp_path / "online" / "adapters").glob("*.safetensors"))


def test_messages_are_texts_of_the_task() -> None:
    assert len(json.loads(row(1, 0).messages[0].content)) == 16
    assert isinstance(row(1, 0).messages[0], Message)
