"""`stillhouse online` on a real log and a tiny student of transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_students import taught_student
from typer.testing import CliRunner

from gateway_stores import call_of, served_of
from stillhouse.cli import app
from stillhouse.core.records import Message, Query
from stillhouse.core.tasks import ClassificationTask
from stillhouse.models.batching import Call
from stillhouse.models.completer import Sampling
from stillhouse.models.student import LabelStudent, open_student
from stillhouse.serve.private import SECRET_VARIABLE, Pseudonyms
from stillhouse.serve.tables import open_database
from stillhouse.serve.traffic_log import TrafficLog
from tiny_models import TEXTS

NAMES = ("good", "bad")
GOOD, BAD = TEXTS[::2], TEXTS[1::2]
SECRET = "0123456789abcdef"


def _log(url: str, count: int) -> None:
    engine = open_database(url)
    log = TrafficLog(engine, redact=lambda text: text, pseudonyms=Pseudonyms(SECRET.encode()))
    for n in range(count):
        text = (GOOD if n % 2 else BAD)[n // 2 % 3]
        said = "good" if n % 2 else "bad"  # the student was taught the opposite
        request = {"model": "reviews", "messages": [{"role": "user", "content": text}]}
        response = {"choices": [{"message": {"role": "assistant", "content": said}}]}
        call = call_of(n, request=request, response=response, user=f"user{n % 40}")
        log.offer(call, served_of(n, user=f"user{n % 40}", unit=f"u{n % 40}"))
    log.flush(10)
    log.close()
    engine.dispose()


@pytest.fixture
def loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(SECRET_VARIABLE, SECRET)
    taught_student(tmp_path / "student", [*GOOD, *BAD], ["bad"] * 3 + ["good"] * 3, NAMES, steps=60)
    task = {"kind": "classification", "labels": list(NAMES)}
    files = {
        "recipe.yaml": {
            "name": "films",
            "task": task,
            "traffic": {"path": "x.jsonl"},
            "teacher": {"model": "embedded"},
            "student": {"head": "label", "from": "embedded-encoder"},
        },
        "gateway.yaml": {
            "upstreams": {
                "big": {"base_url": "http://127.0.0.1:9/v1", "model": "big"},
                "small": {"kind": "student", "path": "student", "task": task},
            },
            "tasks": {"reviews": {"teacher": "big", "student": "small"}},
            "log": {"url": f"sqlite:///{tmp_path}/g.db", "retention_days": None},
        },
        "loop.yaml": {
            "gateway": "gateway.yaml",
            "tasks": {
                "reviews": {
                    "recipe": "recipe.yaml",
                    "online": {
                        "guard": {"share": 0.3, "least": 20},
                        "caps": {"user_share": 0.2},
                        "learning_rate": 0.05,
                    },
                }
            },
        },
    }
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content), encoding="utf-8")
    _log(f"sqlite:///{tmp_path}/g.db", 200)
    return tmp_path / "loop.yaml"


def test_a_pass_a_roll_back_and_a_deletion(loop: Path) -> None:
    run = CliRunner()
    done = run.invoke(app, ["online", str(loop), "reviews", "--json"])
    assert done.exit_code == 0, done.output
    facts = json.loads(done.output.splitlines()[-1])
    assert facts["swapped"], facts
    online = loop.parent / "loop" / "reviews" / "online"
    task = ClassificationTask(kind="classification", labels=NAMES)
    opened = open_student(online / "current", task, "label", 8)
    assert isinstance(opened, LabelStudent)
    calls = [
        Call(Query(id="q", messages=(Message(role="user", content=text),)), Sampling())
        for text in (*GOOD, *BAD)
    ]
    assert [one[0].text for one in opened.run_batch(calls)] == ["good"] * 3 + ["bad"] * 3
    told = json.loads(
        run.invoke(app, ["online", str(loop), "reviews", "--status", "--json"]).output
    )
    assert told["live"] == facts["live"] == 1
    gone = run.invoke(app, ["online", str(loop), "reviews", "--forget", "shop", "user3"])
    assert gone.output.startswith("5 rows"), gone.output
    back = run.invoke(app, ["online", str(loop), "reviews", "--roll-back", "0"])
    assert back.output.startswith("version 0 is live"), back.output
    unknown = run.invoke(app, ["online", str(loop), "nothing"])
    assert "TASK: is not in" in str(unknown.exception or unknown.output)
