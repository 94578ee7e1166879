"""A recipe's teacher asked by batch (`teacher.batch`), and the teacher is a gateway's task."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from batch_gateways import batching
from gateway_servers import FULL, Model, models, says, two

from stillhouse.core.progress import Silent
from stillhouse.core.recipe_teacher import PricesSection, TeacherSection
from stillhouse.core.records import Message, Query
from stillhouse.models.completer import Sampling
from stillhouse.teacher.batch_ask import Clock
from stillhouse.teacher.batch_build import BatchResult, ask_batches
from stillhouse.teacher.build import open_teacher
from stillhouse.teacher.store import AnswerStore


def test_a_recipe_asks_a_task_by_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_KEY", "key-a")
    queries = [
        Query(id=f"q{number}", messages=(Message(role="user", content=f"text {number}"),))
        for number in range(12)
    ]
    teacher, student = Model(says("big")), Model(says("small"))

    async def run(section: TeacherSection) -> BatchResult:
        completer = open_teacher(section, PricesSection())
        try:
            with AnswerStore(tmp_path / "answers.jsonl") as store:
                return await ask_batches(
                    completer,
                    queries,
                    Sampling(max_tokens=8),
                    store,
                    tmp_path / "asked",
                    section=section,
                    prices=PricesSection(),
                    progress=Silent(),
                    clock=Clock(settle_s=0.05),
                )
        finally:
            await completer.aclose()

    with models(teacher, student), batching(tmp_path, two(teacher, student, **FULL)) as (at, work):
        section = TeacherSection.model_validate(
            {
                "model": "openai-compatible:t",
                "base_url": f"{at.url}/v1",
                "api_key_env": "GATEWAY_KEY",
                "batch": {"poll_s": 0.02, "pilot": 1},
            }
        )
        result = asyncio.run(run(section))
        left = work.files.listed("a", 0.0, purpose="batch")[0]
    assert not result.failures
    assert len(student.bodies) == 12
    asked = {body["messages"][-1]["content"] for body in student.bodies}
    assert asked == {f"text {number}" for number in range(12)}
    assert not left  # what was sent in is deleted again
