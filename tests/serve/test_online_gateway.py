"""A gateway that runs, a student refined from its log by the command: the next answer is the new
version's, and after a roll back the old one's; a tenant's corrections become its own answers."""

from __future__ import annotations

import json
import socket
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import yaml
from candidate_gateways import who
from gateway_servers import Model, models, says, status
from test_gateway_http import Got, send
from test_workers import serving
from tiny_students import TASK, label_folder
from typer.testing import CliRunner

from gateway_stores import call_of, served_of
from stillhouse.cli import app
from stillhouse.models.head_weights import HeadStudent, open_head_student
from stillhouse.models.personal_student import open_personal
from stillhouse.retrain.gateway_admin import GatewayAdmin
from stillhouse.serve.private import SECRET_VARIABLE, Pseudonyms
from stillhouse.serve.records import Outcome
from stillhouse.serve.tables import open_database
from stillhouse.serve.traffic_log import TrafficLog

SECRET = "0123456789abcdef"
TEXTS = ("boring film", "a warm moving film", "funny and dull")
RIGHT = "good"


def _free() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _fill(folder: Path) -> None:
    engine = open_database(f"sqlite:///{folder / 'gateway.db'}")
    log = TrafficLog(engine, redact=lambda text: text, pseudonyms=Pseudonyms(SECRET.encode()))
    for n in range(200):
        user = f"user{n % 40}"
        asked = {"model": "t", "messages": [{"role": "user", "content": TEXTS[n % 3]}]}
        said = {"choices": [{"message": {"role": "assistant", "content": RIGHT}}]}
        log.offer(
            call_of(n, request=asked, response=said, user=user),
            served_of(n, task="t", arm="teacher_only", user=user, unit=user, tenant="shop"),
        )
    assert log.flush(20)
    log.close()
    engine.dispose()


def _online(folder: Path, *options: str) -> str:
    found = CliRunner().invoke(app, ["online", str(folder / "loop.yaml"), "t", *options])
    if found.exception is not None:
        raise found.exception
    return found.output


def _said(got: Got) -> str:
    assert got.status == 200
    return str(got.json["choices"][0]["message"]["content"])


@pytest.mark.full
def test_the_gateway_answers_with_the_refined_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SECRET_VARIABLE, SECRET)
    monkeypatch.setenv("STILLHOUSE_ADMIN_KEY", "a")
    made = label_folder(tmp_path / "made") / "onnx"
    _fill(tmp_path)
    teacher = Model(says(RIGHT))
    with models(teacher):
        raw: dict[str, Any] = {
            "listen": {"port": 0},
            "admin": {"port": _free()},
            # The rows are of 1970.
            "log": {"url": f"sqlite:///{tmp_path / 'gateway.db'}", "retention_days": None},
            "upstreams": {
                "big": {"base_url": teacher.url, "model": "big-1"},
                "small": {"kind": "student", "path": str(made)},
            },
            "tasks": {
                "t": {
                    "teacher": "big",
                    "student": "small",
                    "experiment": {"stages": [{"kind": "full"}], "teacher_only": 0},
                }
            },
            "students": {"roots": ["loop", str(made.parent)]},
        }
        recipe = {
            "name": "films",
            "task": TASK.model_dump(mode="json"),
            "traffic": {"path": "traffic.jsonl"},
            "teacher": {"model": "embedded"},
            "student": {"head": "label", "from": "embedded-encoder"},
        }
        online = {
            "guard": {"share": 0.3, "least": 20},
            "steps": 150,
            "learning_rate": 0.05,
            "anchor_kl": 0.0,
        }
        loop = {
            "gateway": "gateway.yaml",
            "tasks": {"t": {"recipe": "recipe.yaml", "online": online}},
        }
        (tmp_path / "loop").mkdir()
        for name, value in (("recipe", recipe), ("loop", loop)):
            (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(value), encoding="utf-8")
        with serving(tmp_path, raw) as gateway:
            url = f"http://127.0.0.1:{gateway.port}"

            def ask(text: str) -> Got:
                return send(url, {"model": "t", "messages": [{"role": "user", "content": text}]})

            before = [_said(ask(text)) for text in TEXTS]
            assert before != [RIGHT] * 3
            told = json.loads(_online(tmp_path, "--json"))
            assert (told["swapped"], told["live"], told["notes"]) == (True, 1, [])
            after = [ask(text) for text in TEXTS]
            assert [who(one) for one in after] == ["t-online-1"] * 3
            assert [_said(one) for one in after] == [RIGHT] * 3
            admin = GatewayAdmin(f"http://127.0.0.1:{gateway.admin}", "a")
            assert admin.state("t").student == "t-online-1"
            _online(tmp_path, "--roll-back", "0")
            back = [ask(text) for text in TEXTS]
            assert [_said(one) for one in back] == before
            assert admin.state("t").student == "t-online-0"


KEYS = {"shop": "key-of-the-shop", "base": "key-of-the-base"}


def best(student: HeadStudent) -> list[int]:
    return [int(at) for at in student.read(TEXTS).log_p.argmax(-1)]


def _correct(folder: Path, says: dict[str, str], right: str) -> None:
    """Tenant `base` is answered by a teacher that agrees with the student; `shop` corrects it."""
    engine = open_database(f"sqlite:///{folder / 'gateway.db'}")
    log = TrafficLog(engine, redact=lambda text: text, pseudonyms=Pseudonyms(SECRET.encode()))
    for n in range(260):
        own = n >= 200
        user, text = f"user{n % 40}", TEXTS[n % 3]
        asked = {"model": "t", "messages": [{"role": "user", "content": text}]}
        said = {"choices": [{"message": {"role": "assistant", "content": says[text]}}]}
        served = served_of(
            n,
            task="t",
            tenant="shop" if own else "base",
            variant="student" if own else "teacher",
            arm="treatment" if own else "teacher_only",
            user=user,
            unit=user,
        )
        log.offer(call_of(n, request=asked, response=said, user=user), served)
    assert log.flush(20)
    for n in range(200, 260):
        told = says[TEXTS[2]] if n % 3 == 2 else right  # of one text the student is right
        log.outcome(Outcome(request=f"r{n}", kind="corrected", score=0, at=n, corrected=told))
    log.close()
    engine.dispose()


@pytest.mark.full
def test_a_tenant_is_answered_as_it_corrected_until_its_user_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SECRET_VARIABLE, SECRET)
    monkeypatch.setenv("STILLHOUSE_ADMIN_KEY", "a")
    made = label_folder(tmp_path / "made") / "onnx"
    student = open_head_student(made, TASK)
    says = {text: TASK.labels[i] for text, i in zip(TEXTS, best(student), strict=True)}
    right = next(one for one in TASK.labels if one not in says.values())
    _correct(tmp_path, says, right)
    personal = {"least_rows": 20, "harm": 0.99, "anchor_l2": 0.0, "steps": 200}
    online = {
        "guard": {"share": 0.3, "least": 20},
        "corrections": "personal",
        "personal": personal,
    }
    recipe = {
        "name": "films",
        "task": TASK.model_dump(mode="json"),
        "traffic": {"path": "traffic.jsonl"},
        "teacher": {"model": "embedded"},
        "student": {"head": "label", "from": "embedded-encoder"},
    }
    loop = {"gateway": "gateway.yaml", "tasks": {"t": {"recipe": "recipe.yaml", "online": online}}}
    for name, value in (("recipe", recipe), ("loop", loop)):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(value), encoding="utf-8")
    root = tmp_path / "loop" / "t" / "online"
    root.mkdir(parents=True)
    clients = [
        {"tenant": tenant, "sha256": sha256(key.encode()).hexdigest()}
        for tenant, key in KEYS.items()
    ]
    with models(teacher := Model(status(500))):
        raw: dict[str, Any] = {
            "admin": {"port": _free()},
            # The rows are of 1970.
            "log": {"url": f"sqlite:///{tmp_path / 'gateway.db'}", "retention_days": None},
            "clients": clients,
            "upstreams": {
                "big": {"base_url": teacher.url, "model": "big-1"},
                "small": {"kind": "student", "path": str(made), "adapters": "loop/t/online"},
            },
            "tasks": {
                "t": {
                    "teacher": "big",
                    "student": "small",
                    "experiment": {"stages": [{"kind": "full"}], "teacher_only": 0},
                }
            },
            "students": {"roots": ["loop", str(made.parent)]},
        }
        with serving(tmp_path, raw) as gateway:  # two workers
            url = f"http://127.0.0.1:{gateway.port}"

            def answers(tenant: str) -> list[tuple[str, bool]]:
                headers = {"authorization": f"Bearer {KEYS[tenant]}"}
                found = []
                for text in TEXTS * 3:  # whichever worker answers
                    body = {"model": "t", "messages": [{"role": "user", "content": text}]}
                    got = send(url, body, headers=headers)
                    found.append((_said(got), got.headers["x-stillhouse-adapter"] == "shared"))
                return found

            shared = [(says[text], True) for text in TEXTS * 3]
            assert answers("shop") == answers("base") == shared
            assert "note" not in _online(tmp_path)
            adapters = open_personal(root, open_head_student(root / "current", TASK), TASK.labels)
            wanted = adapters.answer(TEXTS * 3, ["shop"] * 9, [None] * 9)
            assert answers("shop") == [(label, False) for label in wanted.labels]
            assert wanted.labels == [right, right, says[TEXTS[2]]] * 3
            assert answers("base") == shared
            told = send(
                f"http://127.0.0.1:{gateway.admin}",
                {"tenant": "shop", "user": "user7"},
                "/users/forget",
                {"authorization": "Bearer a"},
            )
            assert (told.status, told.json["requests"]) == (200, 2)
            assert answers("shop") == shared
            _online(tmp_path)  # makes it anew without that user
            assert answers("shop") == [(label, False) for label in wanted.labels]
            assert not list((root / "forgotten").iterdir())
