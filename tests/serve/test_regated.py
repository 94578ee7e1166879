"""A retrained student with its own gate, from the cycle through the registry to the gateway.

Students and gates are real and tiny; only the training, by which a cycle comes to its student, is
short. Of the reviews three of five say what they are, and two hold a word of either kind: to these
the teacher's answer is anybody's guess, and the student cannot be sure.
"""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gateway_servers import ADMIN, Model, gateway, models, says
from test_gateway_http import send
from tiny_students import taught_student
from typer.testing import CliRunner

from retrain_doubles import DAY, START, Clock, FakeWorkshop, Rows, WordEmbedder, loop_of, row
from stillhouse import calibrating_answers, recalibrating
from stillhouse.calibrating_answers import opened_brain
from stillhouse.cli import app
from stillhouse.compress.onnx_export import export_onnx
from stillhouse.core.artefact import copy_student, read_artefact, student_sha
from stillhouse.core.hashing import unit_hash
from stillhouse.core.loop_retrain import RetrainSection
from stillhouse.core.progress import Silent
from stillhouse.core.recipe import Recipe
from stillhouse.core.records import Message, Query
from stillhouse.core.risk_control import least_samples
from stillhouse.core.tasks import GenerationTask
from stillhouse.models.head_weights import open_head_student
from stillhouse.retrain import cycle_choose
from stillhouse.retrain.cycle import run_cycle
from stillhouse.retrain.cycle_records import HeldOut, Promise
from stillhouse.retrain.gateway_admin import GatewayAdmin
from stillhouse.retrain.gateway_standing import AdminGateway
from stillhouse.retrain.seams import Samples, Trained
from stillhouse.retraining import PipelineWorkshop
from stillhouse.serve.gate_file import load_gate

pytest.importorskip("onnxruntime", reason="the onnx extra is not installed")
NAMES = ("positive", "negative")
GOOD = ("gripping", "wonderful", "funny", "warm", "moving")
BAD = ("dull", "boring", "tired", "lifeless", "long")
RECIPE = Recipe.model_validate(
    {
        "name": "films",
        "task": {
            "kind": "classification",
            "name": "mood",
            "labels": list(NAMES),
            "prompt": "Review: {text}",
        },
        "traffic": {"path": "x"},
        "teacher": {"model": "embedded"},
        "student": {"head": "label", "from": "embedded-encoder"},
        "train": {"device": "cpu"},
    }
)
PROMISE = Promise(error=0.1, delta=0.1, held_out=150)


def text_of(number: int) -> str:
    good, bad = GOOD[number % 5], BAD[number // 5 % 5]
    if number % 5 < 2:
        return f"Review: the {good} {bad} film from start {number}"
    return f"Review: the {(good, bad)[number % 2]} story from start {number}"


def said_of(text: str) -> str:
    """The teacher."""
    words = set(text.split())
    good, bad = words & set(GOOD), words & set(BAD)
    if good and bad:
        return NAMES[unit_hash(re.findall(r"\d+", text)[-1], 1) < 0.5]
    return NAMES[bool(bad)]


def held_out(numbers: Sequence[int]) -> list[HeldOut]:
    found = []
    for number in numbers:
        messages = (Message(role="user", content=text_of(number)),)
        query = Query(id=f"h{number}", messages=messages, task="mood")
        found.append(HeldOut(query=query, answer=said_of(text_of(number))))
    return found


def taught(folder: Path, texts: Sequence[str]) -> tuple[Path, Path]:
    """A student of these chats, and its ONNX form."""
    plain = [text.removeprefix("Review: ") for text in texts]
    student = taught_student(
        folder / "train" / "student", plain, [said_of(text) for text in texts], NAMES
    )
    export_onnx(student, folder / "compress" / "best", RECIPE.task, name="tiny", texts=plain[:3])
    return student, folder / "compress" / "best"


class TinyWorkshop(FakeWorkshop):
    """Its students are real, and asked and calibrated as the real workshop does it."""

    task = RECIPE.task  # type: ignore[assignment]
    truth = staticmethod(said_of)

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.real = PipelineWorkshop(RECIPE, RetrainSection(), root, None, Silent())
        self.calibrate = self.real.calibrate  # type: ignore[method-assign]
        self.predict = self.real.predict  # type: ignore[method-assign]

    def train(
        self, folder: Path, queries: Sequence[Query], limit_usd: float | None, start: Path | None
    ) -> Trained:
        student, form = taught(folder, [query.last_user_text for query in queries])
        return Trained(student, form, len(queries), {})


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The student that runs, with a gate for gateway.yaml."""
    root = tmp_path_factory.mktemp("old")
    _, form = taught(root, [text_of(number) for number in range(5000, 5150)])
    workshop = PipelineWorkshop(RECIPE, RetrainSection(), root, None, Silent())
    samples = Samples(held_out(range(6000, 6100)), held_out(range(7000, 7150)))
    found = workshop.calibrate(form, root, root / "gate", samples, PROMISE)
    assert found.gate is not None
    assert found.gate.threshold is not None
    return root


def test_a_gate_in_its_folder_changes_nothing_of_a_student(old: Path, tmp_path: Path) -> None:
    """Neither its fingerprint, by which the gate names it, nor whether its files are whole."""
    for name in ("train/student", "compress/best"):
        folder = tmp_path / name
        shutil.copytree(old / name, folder)
        bare = opened_brain(RECIPE, folder, "student").voice.fingerprint
        sha = student_sha(folder)
        for file in ("gate.json", "novelty.npz"):
            (folder / file).write_text("{}")
        assert opened_brain(RECIPE, folder, "student").voice.fingerprint == bare
        assert student_sha(folder) == sha
        copy_student(folder, tmp_path / "copies" / name)
        left = {path.name for path in (tmp_path / "copies" / name).iterdir()}
        assert left == {path.name for path in (old / name).iterdir()}
        # A head that is refined is another student: the gate does not go with it.
        head = open_head_student(folder, RECIPE.task, 8)  # type: ignore[arg-type]
        head.write(head.head, tmp_path / "refined" / name)
        assert not (tmp_path / "refined" / name / "gate.json").exists()
    read_artefact(tmp_path / "compress/best")


def test_what_was_wrong_nowhere_is_calibrated_too(old: Path, tmp_path: Path) -> None:
    workshop = PipelineWorkshop(RECIPE, RetrainSection(), old, None, Silent())
    plain = [n for n in range(8000, 9000) if n % 5 > 1]
    samples = Samples(held_out(plain[:60]), held_out(plain[60:160]))
    found = workshop.calibrate(old / "compress" / "best", old, tmp_path, samples, PROMISE)
    assert found.gate is not None
    assert found.gate.threshold is not None
    assert found.gate.coverage > 0.9
    assert load_gate(tmp_path / "gate.json") == found.gate
    # Of what nobody can know no threshold keeps the error, and no number of samples would.
    unclear = [n for n in range(8000, 9000) if n % 5 < 2]
    samples = Samples(held_out(unclear[:60]), held_out(unclear[60:260]))
    found = workshop.calibrate(old / "compress" / "best", old, tmp_path, samples, PROMISE)
    assert found.gate is not None
    assert (found.gate.threshold, found.wanted) == (None, None)
    # Of too few, about how many.
    samples = Samples(held_out(range(8000, 8060)), held_out(range(8060, 8085)))
    found = workshop.calibrate(old / "compress" / "best", old, tmp_path, samples, PROMISE)
    assert found.gate is not None
    assert found.gate.threshold is None
    assert found.wanted is not None
    assert found.wanted > least_samples(PROMISE.error, PROMISE.delta) > 25
    # And of more there is one.
    samples = Samples(held_out(range(8000, 8060)), held_out(range(8060, 8660)))
    found = workshop.calibrate(old / "compress" / "best", old, tmp_path, samples, PROMISE)
    assert found.gate is not None
    assert found.gate.threshold is not None
    assert found.wanted is None


def test_answers_with_other_features_are_the_teachers(
    old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some without log-probabilities, among those that fit and those that choose."""
    workshop = PipelineWorkshop(RECIPE, RetrainSection(), old, None, Silent())
    plain = [n for n in range(8000, 9000) if n % 5 > 1]
    samples = Samples(held_out(plain[:60]), held_out(plain[60:160]))
    asked = calibrating_answers.answer_features
    count = 0

    def some(body: Any, first: int | None = None) -> dict[str, float]:
        nonlocal count
        count += 1
        return {} if count % 20 == 0 else asked(body, first)

    monkeypatch.setattr(calibrating_answers, "answer_features", some)
    found = workshop.calibrate(old / "compress" / "best", old, tmp_path, samples, PROMISE)
    assert count == 160
    assert found.gate is not None
    assert (found.gate.n, found.fitted) == (100, 57)
    assert found.gate.threshold is not None
    assert 0.8 < found.gate.coverage <= 0.95
    monkeypatch.setattr(calibrating_answers, "answer_features", lambda *_: {})
    found = workshop.calibrate(old / "compress" / "best", old, tmp_path, samples, PROMISE)
    assert found.gate is None


def text_answer(second: float, tokens: int = 1) -> dict[str, Any]:
    """A text whose tokens have two alternatives each."""
    top = [{"logprob": math.log(0.6)}, {"logprob": math.log(second)}]
    token = {"logprob": math.log(0.6), "top_logprobs": top}
    message = {"message": {"content": "x"}, "logprobs": {"content": [token] * tokens}}
    return {"choices": [message]}


@pytest.mark.parametrize("outlier", [text_answer(0.4), {"choices": [{"message": {}}]}])
def test_a_text_is_judged_by_the_features_of_texts(
    monkeypatch: pytest.MonkeyPatch, outlier: dict[str, Any]
) -> None:
    """One token whose two alternatives are as good as all looks like a label with its classes."""
    bodies = [text_answer(0.2, tokens=3), outlier, text_answer(0.3, tokens=2)]
    monkeypatch.setattr(calibrating_answers, "ask_all", lambda *_: [(200, body) for body in bodies])
    recipe = RECIPE.model_copy(update={"task": GenerationTask(kind="generation")})
    samples = recalibrating._set_of(held_out(range(3)))
    looks = calibrating_answers.Looks(0.5, window=1)
    found = calibrating_answers.scored(recipe, object(), samples, looks, Silent())  # type: ignore[arg-type]
    for one in found:
        assert set(one.judged.features) <= set(calibrating_answers.OF_TEXTS)
        assert set(one.judged.window or {}) == set(one.judged.features)
    kept = recalibrating.alike([one.judged for one in found])
    assert len(kept) == (3 if outlier["choices"][0].get("logprobs") else 2)
    assert all(set(one.features) == set(calibrating_answers.OF_TEXTS) for one in kept)


def test_the_retrained_student_climbs_and_serves_by_its_own_gate(
    old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cycle_choose, "open_embedder", lambda *_: WordEmbedder())
    rows = Rows([row(n, START + n, text=text_of(n), teacher_cost_usd=0) for n in range(700)])
    calibrator, registry = old / "gate" / "gate.json", tmp_path / "registry"
    stages = [{"kind": "shadow"}, {"kind": "canary", "share": 0.5}, {"kind": "full"}]
    with models(teacher := Model(says("the teacher's"))):
        raw: dict[str, Any] = {
            "listen": {"port": 0},
            "admin": {"port": 0},
            "upstreams": {
                "big": {"base_url": teacher.url, "model": "b"},
                "small": {"kind": "student", "path": str(old / "compress" / "best")},
            },
            "students": {"roots": [str(registry)]},
            "tasks": {
                "mood": {
                    "teacher": "big",
                    "student": "small",
                    "fallback": {"calibrator": str(calibrator)},
                    "experiment": {"stages": stages, "teacher_only": 0, "candidate_pairs": 0.5},
                }
            },
        }
        folder = tmp_path / "loop" / "mood"
        folder.mkdir(parents=True)
        loop = loop_of(
            tmp_path, rows, Clock(START + DAY), TinyWorkshop(folder), calibrator=calibrator,
            new=200, margin=0.5, fallback={"held_out": 150},
        )  # fmt: skip
        with gateway(raw) as running:
            admin = GatewayAdmin(running.admin, ADMIN)
            for _ in stages[1:]:
                admin.act("mood", "approve", "tried before")
            loop = replace(loop, gateway=AdminGateway(admin))
            cycle = run_cycle(loop, "once")
            assert cycle.step == "decide", cycle.verdict
            assert cycle.fallback is not None
            assert cycle.candidate is not None
            gate = load_gate(loop.registry.folder(cycle.candidate) / "forms/best/gate.json")
            assert (gate.error, gate.delta, gate.n) == (0.1, 0.1, 150)
            assert gate.threshold == cycle.fallback.threshold
            assert 0.4 < gate.coverage < 0.8
            assert admin.state("mood").candidate == cycle.candidate

            def ask(number: int) -> str:
                messages = [{"role": "user", "content": text_of(number)}]
                body = {"model": "mood", "messages": messages, "user": f"u{number}"}
                return send(running.url, body).headers["x-stillhouse-variant"]

            admin.act("mood", "approve", "to the canary")
            for number in range(20_000, 20_040):
                ask(number)
            own = [
                one
                for _, one in running.log.calls
                if one.arm in ("treatment", "shadow") and one.features
            ]
            assert len(own) > 10
            assert {one.fell_back for one in own} == {True, False}
            for one in own:
                # By the features in the log: its own gate decided, seen or unseen.
                assert gate.confident(one.features) == (one.confidence, not one.fell_back)
            admin.act("mood", "approve", "to all")
            assert run_cycle(loop, "once").outcome == "promoted"
            state = admin.state("mood")
            assert (state.student, state.teacher_answers) == (cycle.candidate, False)
            found = [(number % 5 >= 2, ask(number)) for number in range(30_000, 30_030)]
            clear = [who for plain, who in found if plain]
            assert clear.count("student") > len(clear) / 2
            assert "teacher" in {who for plain, who in found if not plain}
    told = CliRunner().invoke(app, ["registry", "list", "--registry", str(registry)])
    assert f"{gate.threshold:.3f}, error 10%" in told.output
    told = CliRunner().invoke(
        app, ["registry", "show", "mood@live", "--registry", str(registry), "--json"]
    )
    assert f'"threshold": {gate.threshold}' in told.output
    assert '"source": "requests of the window, held out to calibrate"' in told.output
