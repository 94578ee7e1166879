"""Adapters behind the gateway: whose answers, in which batch, read anew, gone with their users.

The students are real and tiny; what the gateway answers is compared with `open_personal`.
"""

from __future__ import annotations

import concurrent.futures
import json
import logging
import math
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from candidate_gateways import Stored, stored, until
from gateway_servers import ADMIN, FULL, SHADOW, Model, models, says
from test_gates import who
from test_gateway_http import Got, send
from tiny_students import TASK, label_folder, text_folder

from stillhouse.core.errors import UserError
from stillhouse.core.recipe_file import parse_as
from stillhouse.models.adapter_files import (
    AdapterEntry,
    AdapterIndex,
    By,
    delta_path,
    forgotten_users,
    write_index,
)
from stillhouse.models.head_weights import HeadStudent, HeadWeights, open_head_student, save_head
from stillhouse.models.personal_student import open_personal
from stillhouse.serve.gate_file import Calibrator, GateFile, save_gate
from stillhouse.serve.gateway_file import GatewayFile, load_gateway
from stillhouse.serve.private import Pseudonyms
from stillhouse.serve.stored_calls import served_since
from stillhouse.serve.student_brains import open_brain
from stillhouse.serve.student_folder import setup_of
from stillhouse.serve.student_frames import (
    ADAPTER,
    ANSWER,
    ASK,
    TROUBLE,
    Frame,
    FrameError,
    Frames,
    asked_as,
    asker_of,
    status_of,
)
from stillhouse.serve.student_labels import Around, Opening
from stillhouse.serve.tables import open_database

TEXTS = ("boring film", "a warm moving film", "funny and dull", "unlike moving, wonderfully acted")
WHOSE = Pseudonyms(b"0123456789abcdef").of
KEYS = {"shop": "k-shop", "bank": "k-bank", "other": "k-other"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return label_folder(tmp_path_factory.mktemp("students"))


def always(student: HeadStudent, label: int) -> HeadWeights:
    """An adapter that makes one label likely, and looks at the text as well."""
    shape = student.head.weight.shape
    weight = np.random.default_rng(label).normal(size=shape).astype(np.float32) * 0.1
    bias = np.zeros(shape[0], np.float32)
    bias[label] = 9
    return HeadWeights(weight, bias)


def put(
    root: Path, student: HeadStudent, owners: Mapping[str, HeadWeights], by: By = "tenant"
) -> None:
    entries = []
    for owner, numbers in owners.items():
        save_head(delta_path(root, numbers.digest()), numbers)
        entries.append(AdapterEntry(owner=owner, delta=numbers.digest()))
    index = AdapterIndex(by=by, shared=student.head.digest(), adapters=tuple(entries))
    write_index(root, index)


def raw(teacher: Model, folder: Path, root: Path, plan: Any = None) -> dict[str, Any]:
    small = {"kind": "student", "path": str(folder), "adapters": str(root), "max_wait_ms": 20}
    return {
        "listen": {"port": 0, "drain_s": 2},
        "admin": {"port": 0},
        "clients": [
            {"tenant": tenant, "sha256": sha256(key.encode()).hexdigest()}
            for tenant, key in KEYS.items()
        ],
        "upstreams": {"big": {"base_url": teacher.url, "model": "big-1"}, "small": small},
        "tasks": {"t": {"teacher": "big", "student": "small", **(plan or FULL)}},
    }


@pytest.fixture
def running(made: Path, tmp_path: Path) -> Iterator[Stored]:
    (tmp_path / "online").mkdir()
    with models(teacher := Model(says("teacher"))):
        given = raw(teacher, made / "onnx", tmp_path / "online")
        with stored(given, tmp_path / "gateway.db") as found:
            yield found


def ask(url: str, text: str, tenant: str, user: str | None = None, **more: Any) -> Got:
    body = {"model": "t", "messages": [{"role": "user", "content": text}], **more}
    headers = {"authorization": f"Bearer {KEYS[tenant]}"}
    return send(url, body | ({} if user is None else {"user": user}), headers=headers)


def label(got: Got) -> str:
    return str(got.json["choices"][0]["message"]["content"])


def used(got: Got) -> str | None:
    assert got.status == 200
    return got.headers.get("x-stillhouse-adapter")


def belief(got: Got) -> dict[str, float]:
    (one,) = got.json["choices"][0]["logprobs"]["content"]
    return {top["token"]: top["logprob"] for top in one["top_logprobs"]}


def counted(running: Stored, used: str) -> float:
    found = running.gateway.metrics.registry.get_sample_value(
        "stillhouse_adapter_answers_total", {"task": "t", "used": used}
    )
    return found or 0


def test_tenants_are_answered_as_the_adapters_say_alone_and_together(
    running: Stored, made: Path, tmp_path: Path
) -> None:
    root = tmp_path / "online"
    student = open_head_student(made / "onnx", TASK)
    plain = {text: label(ask(running.url, text, "shop")) for text in TEXTS}
    assert used(ask(running.url, TEXTS[0], "shop")) == "shared"
    own = {"shop": always(student, 0), "bank": always(student, 2)}
    put(root, student, own)  # while the gateway runs
    personal = open_personal(root, student, TASK.labels)
    names = {tenant: delta.digest()[:12] for tenant, delta in own.items()} | {"other": "shared"}
    asks = [(tenant, text) for text in TEXTS for tenant in KEYS] * 3

    def one(asked: tuple[str, str]) -> Got:
        return ask(running.url, asked[1], asked[0], logprobs=True, top_logprobs=3)

    with concurrent.futures.ThreadPoolExecutor(12) as threads:
        found = list(threads.map(one, asks))
    for (tenant, text), got in zip(asks, found, strict=True):
        wanted = personal.answer([text], [tenant], [None])
        assert (label(got), used(got)) == (wanted.labels[0], names[tenant])
        rows = dict(zip(TASK.labels, wanted.log_p[0], strict=True))
        assert belief(got) == pytest.approx(rows, abs=2e-5)
        marked = got.json["system_fingerprint"].endswith(f".{names[tenant]}")
        assert marked == wanted.adapted[0] == (tenant != "other")
        if tenant == "other":
            assert label(got) == plain[text]
    until(lambda: counted(running, "own") >= 24)  # counted after the last byte
    assert (counted(running, "own"), counted(running, "broken")) == (24, 0)
    stream = ask(running.url, TEXTS[1], "bank", stream=True)
    assert (used(stream), b'"so so"' in stream.body) == (names["bank"], True)
    assert label(ask(running.url, TEXTS[1], "shop", n=2)) == "bad"
    # What a client writes into its body is nobody's name.
    odd = ask(running.url, TEXTS[1], "other", asker="shop", metadata={"asker": "shop"})
    assert used(odd) == "shared"


def test_users_have_their_own_and_lose_it_with_the_request_to_forget(
    running: Stored, made: Path, tmp_path: Path
) -> None:
    root = tmp_path / "online"
    student = open_head_student(made / "onnx", TASK)
    ann, bob = (f"shop\n{WHOSE('shop', name)}" for name in ("ann", "bob"))
    put(root, student, {ann: always(student, 0), bob: always(student, 2)}, by="user")

    def said(tenant: str, user: str | None) -> tuple[str, bool]:
        got = ask(running.url, "a warm moving film", tenant, user)
        return label(got), used(got) == "shared"

    shared = said("shop", None)
    assert shared[1]
    assert (said("shop", "ann"), said("shop", "bob")) == (("bad", False), ("so so", False))
    assert said("bank", "ann") == said("shop", "eve") == shared
    admin = running.admin_url
    forget = {"tenant": "shop", "user": "ann"}
    headers = {"authorization": f"Bearer {ADMIN}"}
    got = send(admin, forget, "/users/forget", headers)
    assert (got.status, got.json["requests"]) == (200, 1)
    assert (said("shop", "ann"), said("shop", "bob")) == (shared, ("so so", False))
    (told,) = forgotten_users(root)
    assert told.user.whose == WHOSE("shop", "ann")
    # Where it cannot be written down that the adapter is void, the admin hears of it.
    put(root, student, {bob: always(student, 2)}, by="user")
    told.path.unlink()
    (root / "forgotten").rmdir()
    (root / "forgotten").write_text("no folder")
    assert send(admin, forget, "/users/forget", headers).status == 503


def test_whose_adapters_are_void_cannot_be_read_so_none_is_used(
    running: Stored, made: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "online"
    student = open_head_student(made / "onnx", TASK)
    put(root, student, {"shop": always(student, 0)})
    assert used(ask(running.url, TEXTS[1], "shop")) != "shared"
    (root / "forgotten").write_text("no folder")
    with caplog.at_level(logging.WARNING):
        assert used(ask(running.url, TEXTS[1], "shop")) == "shared"
        until(lambda: any("answer no more" in one for one in caplog.messages))  # after the answer
    (told,) = [one for one in caplog.messages if "answer no more" in one]
    assert "no adapter is used" in told
    assert "\n" not in told


def calibrated(folder: Path, student: Path) -> Path:
    """A gate that was fitted to a student, and accepts whatever it says."""
    one = Calibrator(
        features=("logit",), means=(0.0,), scales=(1.0,), weights=(0.0,), bias=5.0, n=10
    )
    gate = GateFile(
        calibrator=one,
        threshold=0.5,
        error=0.05,
        delta=0.05,
        coverage=1,
        n=10,
        task=TASK,
        student=open_brain(Opening(student, "label", TASK, "films", 4, 20)).voice.fingerprint,
    )
    save_gate(folder / "gate.json", gate)
    return folder / "gate.json"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("adapters", ["teacher", "shown"])
def test_a_calibrated_gate_judges_the_shared_students_answers_alone(
    made: Path, tmp_path: Path, adapters: str, stream: bool
) -> None:
    root = tmp_path / "online"
    student = open_head_student(made / "onnx", TASK)
    own = always(student, 0)
    put(root, student, {"shop": own})
    path = calibrated(tmp_path, made / "onnx")
    with models(teacher := Model(says("good"))):
        given = raw(teacher, made / "onnx", root)
        given["tasks"]["t"]["fallback"] = {"calibrator": str(path), "adapters": adapters}
        with stored(given, tmp_path / "gateway.db") as running:
            shared = ask(running.url, TEXTS[1], "bank", stream=stream)
            assert (who(shared), used(shared)) == (("student", None), "shared")
            got = ask(running.url, TEXTS[1], "shop", stream=stream)
    if adapters == "shown":
        assert (who(got), used(got)) == (("student", None), own.digest()[:12])
    else:
        assert (who(got), used(got)) == (("teacher", "low-confidence"), None)
    engine = open_database(f"sqlite:///{tmp_path / 'gateway.db'}")
    of = {one.tenant: one for one in served_since(engine, "t", 0)}
    engine.dispose()
    fingerprint = of["bank"].fingerprint
    assert of["bank"].confidence == pytest.approx(1 / (1 + math.exp(-5)))
    # What was not judged has no confidence, and is not taken for the shared student's.
    assert of["shop"].confidence is None
    if adapters == "shown":
        assert of["shop"].fingerprint == f"{fingerprint}.{own.digest()[:12]}"


def test_who_answers_where_a_calibrator_knows_nothing_must_be_said(tmp_path: Path) -> None:
    def file(*, has: bool, **fallback: Any) -> GatewayFile:
        given = raw(Model(says("x")), tmp_path, tmp_path)
        given["upstreams"]["big"]["base_url"] = "http://127.0.0.1:1/v1"
        if not has:
            del given["upstreams"]["small"]["adapters"]
        given["tasks"]["t"]["fallback"] = fallback
        return parse_as(GatewayFile, given, "gateway.yaml")

    with pytest.raises(UserError, match=r"tasks\.t\.fallback\.adapters is missing: small") as told:
        file(has=True, calibrator="gate.json")
    assert "\n" not in str(told.value)
    file(has=True, calibrator="gate.json", adapters="teacher")
    file(has=True, threshold=0.5)  # the operator's own, and no promise
    with pytest.raises(UserError, match="whose student has no adapters"):
        file(has=False, calibrator="gate.json", adapters="shown")


def test_a_tampered_adapter_is_told_once_and_the_shared_student_answers(
    running: Stored, made: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "online"
    student = open_head_student(made / "onnx", TASK)
    numbers = always(student, 0)
    shared = label(ask(running.url, TEXTS[1], "shop"))
    put(root, student, {"shop": numbers, "bank": always(student, 2)})
    path = delta_path(root, numbers.digest())
    part = bytearray(path.read_bytes())
    part[-1] ^= 1
    path.write_bytes(part)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            got = ask(running.url, TEXTS[1], "shop")
            assert (label(got), used(got)) == (shared, "broken")
        assert label(ask(running.url, TEXTS[1], "bank")) == "so so"
    told = [one.getMessage() for one in caplog.records if "was changed" in one.getMessage()]
    assert len(told) == 1
    assert told[0].startswith("student small: ")
    until(lambda: counted(running, "own") >= 1)  # counted after the last byte
    assert (counted(running, "broken"), counted(running, "own")) == (3, 1)


def test_what_is_asked_unseen_is_asked_for_its_asker(made: Path, tmp_path: Path) -> None:
    root = tmp_path / "online"
    student = open_head_student(made / "onnx", TASK)
    put(root, student, {"shop": always(student, 0)})
    with models(teacher := Model(says("good"))):
        given = raw(teacher, made / "onnx", root, SHADOW)
        with stored(given, tmp_path / "gateway.db") as running:
            got = ask(running.url, TEXTS[1], "shop")
            assert (label(got), used(got)) == ("good", None)
    assert (counted(running, "own"), counted(running, "shared")) == (1, 0)
    assert "asker" not in json.dumps(teacher.headers)


@pytest.mark.parametrize("form", ["onnx", "one", "float"])
def test_every_form_of_a_label_student_answers_as_open_personal_does(
    made: Path, tmp_path: Path, form: str
) -> None:
    student = open_head_student(made / form, TASK)
    put(tmp_path, student, {"shop": always(student, 0), "bank": always(student, 2)})
    opening = Opening(made / form, "label", TASK, "films", 32, 20, adapters=tmp_path)
    brain, without = open_brain(opening), open_brain(opening._replace(adapters=None))
    asks = [(tenant, text) for text in TEXTS for tenant in ("shop", None, "bank", "other")]

    def answers(brain: Any) -> list[dict[str, Any]]:
        sent: list[Frame] = []
        around = Around(
            lambda part: sent.extend(Frames().feed(part)), lambda: None, lambda _: False
        )
        brain.answer([job(n, tenant, text) for n, (tenant, text) in enumerate(asks)], around)
        assert [one for one in sent if one.kind == TROUBLE] == []
        found = {one.number: status_of(one.payload)[1] for one in sent if one.kind == ANSWER}
        order = [one.kind for one in sent if one.number == 0]
        assert order in ([ANSWER], [ADAPTER, ANSWER])
        return [json.loads(found[n]) for n in range(len(asks))]

    personal = open_personal(tmp_path, student, TASK.labels)
    wanted = personal.answer(
        [text for _, text in asks], [one or "" for one, _ in asks], [None] * 16
    )
    plain = answers(without)
    for row, said in enumerate(answers(brain)):
        assert said["choices"][0]["message"]["content"] == wanted.labels[row]
        rows = dict(zip(TASK.labels, wanted.log_p[row], strict=True))
        assert beliefs(said) == pytest.approx(rows, abs=2e-5)
        if not wanted.adapted[row]:
            assert beliefs(said) == pytest.approx(beliefs(plain[row]), abs=2e-5)
            assert said["system_fingerprint"] == plain[row]["system_fingerprint"]
        assert said["usage"] == plain[row]["usage"]


def beliefs(said: Mapping[str, Any]) -> dict[str, float]:
    (one,) = said["choices"][0]["logprobs"]["content"]
    assert math.isclose(
        sum(math.exp(top["logprob"]) for top in one["top_logprobs"]), 1, abs_tol=1e-4
    )
    return {top["token"]: top["logprob"] for top in one["top_logprobs"]}


def job(number: int, tenant: str | None, text: str) -> Frame:
    messages = [{"role": "user", "content": text}]
    body = json.dumps({"messages": messages, "logprobs": True, "top_logprobs": 3}).encode()
    if tenant is None:
        return Frame(ASK, number, body)
    (frame,) = Frames().feed(asked_as(number, tenant, body))
    return frame


@pytest.mark.parametrize("asker", ["", "shop", "shop\nann", "\u4f60\n" + "x" * 500])
def test_who_asks_stands_before_the_body(asker: str) -> None:
    (frame,) = Frames().feed(asked_as(3, asker, b"{}"))
    assert asker_of(frame) == (asker, b"{}")
    assert asker_of(Frame(ASK, 3, b"{}")) == (None, b"{}")
    for cut in (b"", frame.payload[:1]):
        with pytest.raises(FrameError):
            asker_of(frame._replace(payload=cut))


def test_what_has_no_last_layer_to_adapt_is_refused_in_one_line(made: Path, tmp_path: Path) -> None:
    def file(folder: Path) -> GatewayFile:
        given = raw(Model(says("x")), folder, tmp_path)
        given["upstreams"]["big"]["base_url"] = "http://127.0.0.1:1/v1"
        return parse_as(GatewayFile, given, "gateway.yaml")

    section: Any = file(text_folder(tmp_path / "text") / "gguf").upstreams["small"]
    with pytest.raises(UserError, match=r"upstreams\.small\.adapters: are of label students alone"):
        setup_of("small", section)
    section = file(made / "onnx").upstreams["small"]
    assert setup_of("small", section)["adapters"] == str(tmp_path.resolve())
    opening = Opening(made / "onnx", "text", TASK, "films", 4, 20, adapters=tmp_path)
    with pytest.raises(UserError, match="leave adapters out"):
        open_brain(opening)


def test_the_folder_is_seen_from_the_file(tmp_path: Path) -> None:
    text = """
upstreams:
  big: {base_url: "http://127.0.0.1:1/v1", model: big-1}
  small: {kind: student, path: runs/x, adapters: loop/t/online}
tasks:
  t: {teacher: big, student: small}
"""
    (tmp_path / "gateway.yaml").write_text(text)
    section: Any = load_gateway(tmp_path / "gateway.yaml").upstreams["small"]
    assert section.adapters == tmp_path / "loop/t/online"
