"""Real students behind requests: onnxruntime, llama.cpp and transformers answer as evaluated."""

from __future__ import annotations

import asyncio
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from gateway_servers import FULL, Model, gateway, models, says
from test_gateway_http import send
from tiny_students import TASK, label_folder, text_folder

from stillhouse.compress.onnx_export import export_onnx
from stillhouse.core.errors import UserError
from stillhouse.core.records import Message, Query
from stillhouse.core.tasks import ClassificationTask, GenerationTask
from stillhouse.models.completer import Sampling
from stillhouse.models.loading import locate
from stillhouse.models.quiet import quiet_transformers
from stillhouse.models.student import open_student
from stillhouse.serve.sse import Events, joined
from stillhouse.serve.student_brains import open_brain
from stillhouse.serve.student_frames import ASK, END, PIECE, Frame, Frames
from stillhouse.serve.student_labels import Around, Brain, Opening
from stillhouse.serve.student_local import LocalAnswer, ask_all
from tiny_models import TEXTS

pytest.importorskip("onnxruntime", reason="the onnx extra is not installed")
WRITE = GenerationTask(kind="generation")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return label_folder(tmp_path_factory.mktemp("labels"))


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("xllamacpp", reason="the gguf extra is not installed")
    return text_folder(tmp_path_factory.mktemp("texts"))


def opened(folder: Path, head: str, task: Any) -> Brain:
    return open_brain(Opening(folder, head, task, "films", 4, 20))


def chat(text: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], **more}


def asked(brain: Brain, *bodies: dict[str, Any]) -> list[Mapping[str, Any]]:
    found = ask_all(brain, bodies, 4, lambda _: None)
    assert [one.status for one in found] == [200] * len(bodies)
    return [one.body for one in found]


def content(body: Mapping[str, Any], index: int = 0) -> str:
    return str(body["choices"][index]["message"]["content"])


def evaluated(folder: Path, task: Any, head: str, sampling: Sampling) -> list[Any]:
    """What evaluation would have been told."""
    student = open_student(folder, task, head, 4, "cpu")

    async def go() -> list[Any]:
        queries = [
            Query(id=str(n), messages=(Message(role="user", content=text),))
            for n, text in enumerate(TEXTS)
        ]
        found = await asyncio.gather(*(student.complete(one, sampling) for one in queries))
        await student.aclose()
        return [one[0] for one in found]

    return asyncio.run(go())


@pytest.mark.parametrize("form", ["onnx", "one", "float"])
def test_labels_are_those_of_the_evaluation(labels: Path, form: str) -> None:
    brain = opened(labels / form, "label", TASK)
    more = {"logprobs": True, "top_logprobs": 3}
    got = asked(brain, *(chat(text, **more) for text in TEXTS))
    wanted = evaluated(labels / form, TASK, "label", Sampling())
    for body, said in zip(got, wanted, strict=True):
        assert content(body) == said.text
        assert body["usage"]["prompt_tokens"] == said.prompt_tokens
        (token,) = body["choices"][0]["logprobs"]["content"]
        belief = {one["token"]: one["logprob"] for one in token["top_logprobs"]}
        assert belief == pytest.approx(said.label_logprobs, abs=2e-5)
        assert math.fsum(math.exp(value) for value in belief.values()) == pytest.approx(1, abs=1e-4)
    assert brain.voice.fingerprint == opened(labels / form, "label", TASK).voice.fingerprint
    other = "float" if form == "onnx" else "onnx"
    assert brain.voice.fingerprint != opened(labels / other, "label", TASK).voice.fingerprint


def test_a_student_of_other_labels_is_not_opened(labels: Path) -> None:
    task = ClassificationTask(kind="classification", labels=("bad", "good"))
    for form in ("onnx", "float"):
        with pytest.raises(UserError, match="labels"):
            opened(labels / form, "label", task)


def streamed(brain: Brain, body: dict[str, Any]) -> dict[str, Any]:
    sent: list[bytes] = []
    around = Around(sent.append, lambda: None, lambda _: False)
    brain.answer([Frame(ASK, 1, json.dumps({**body, "stream": True}).encode())], around)
    frames = Frames().feed(b"".join(sent))
    assert [one.kind for one in frames] == [PIECE] * (len(frames) - 1) + [END]
    assert len(frames) > 3
    return joined(Events().feed(b"".join(one.payload for one in frames)))


@pytest.mark.parametrize("form", ["gguf", "float"])
def test_texts_are_those_of_the_evaluation_whole_and_streamed(texts: Path, form: str) -> None:
    brain = opened(texts / form, "text", WRITE)
    got = asked(brain, *(chat(text, max_tokens=8) for text in TEXTS))
    wanted = evaluated(texts / form, WRITE, "text", Sampling(max_tokens=8))
    assert [content(body) for body in got] == [said.text for said in wanted]
    assert [body["usage"]["prompt_tokens"] for body in got] == [
        said.prompt_tokens for said in wanted
    ]
    assert [body["choices"][0]["finish_reason"] for body in got] == [
        said.finish_reason for said in wanted
    ]
    # One that says much, drawn twice: the same seed, the same text, whatever shares the batch.
    drawn = chat(TEXTS[0], max_tokens=12, temperature=1, seed=3, logprobs=True, top_logprobs=2)
    alone, *_ = asked(brain, drawn)
    crowd = asked(brain, chat(TEXTS[1], max_tokens=3, temperature=1), drawn, {**drawn, "n": 2})
    assert content(crowd[1]) == content(crowd[2]) == content(alone)
    assert content(crowd[2], 1) != content(alone)
    stream = streamed(brain, drawn)
    assert stream["choices"][0]["message"]["content"] == content(alone)
    assert stream["choices"][0]["finish_reason"] == alone["choices"][0]["finish_reason"]
    tokens = alone["choices"][0]["logprobs"]["content"]
    assert len(tokens) <= alone["usage"]["completion_tokens"] <= 12
    assert all(len(token["top_logprobs"]) == 2 and token["logprob"] <= 0 for token in tokens)
    told = stream["choices"][0]["logprobs"]["content"]
    assert [one["logprob"] for one in told] == pytest.approx(
        [one["logprob"] for one in tokens][: len(told)], abs=1e-3
    )
    # A stop text is some letters of what it says.
    whole = content(alone)
    stop = whole[3:5]
    (short,) = asked(brain, {**drawn, "stop": [stop]})
    assert content(short) == whole[: whole.index(stop)].rstrip()
    assert short["choices"][0]["finish_reason"] == "stop"
    assert short["usage"]["completion_tokens"] < alone["usage"]["completion_tokens"]


def test_a_schema_is_kept_where_the_runtime_can_and_refused_where_not(texts: Path) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "string", "enum": ["x", "y"]}},
        "required": ["a"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
    # This student knows no JSON: drawn less freely it loses itself in white space.
    drawn = {"temperature": 3, "seed": 1, "n": 5}
    body = chat("the cast", max_tokens=120, response_format=form, **drawn)
    (found,) = asked(opened(texts / "gguf", "text", WRITE), body)
    ended = [one for one in found["choices"] if one["finish_reason"] == "stop"]
    assert ended
    for one in ended:
        assert json.loads(one["message"]["content"])["a"] in ("x", "y")
    (refused,) = ask_all(opened(texts / "float", "text", WRITE), [body], 4, lambda _: None)
    assert isinstance(refused, LocalAnswer)
    assert (refused.status, refused.body["error"]["param"]) == (400, "response_format")


@pytest.mark.parametrize("form", ["gguf", "float"])
def test_a_text_student_of_a_classification_answers_with_labels(texts: Path, form: str) -> None:
    brain = opened(texts / form, "text", TASK)
    got = asked(brain, *(chat(text, logprobs=True, top_logprobs=3) for text in TEXTS[:3]))
    wanted = evaluated(texts / form, TASK, "text", Sampling(labels=TASK.labels))
    for body, said in zip(got, wanted, strict=False):
        assert content(body) == said.text
        (token,) = body["choices"][0]["logprobs"]["content"]
        belief = {one["token"]: one["logprob"] for one in token["top_logprobs"]}
        assert belief == pytest.approx(said.label_logprobs, abs=1e-3)


@pytest.mark.parametrize("form", ["gguf", "float"])
def test_writing_ends_when_nobody_waits(texts: Path, form: str) -> None:
    brain = opened(texts / form, "text", WRITE)
    sent: list[bytes] = []
    heard = 0

    def gone(_: int) -> bool:
        nonlocal heard
        heard += 1
        return heard > 3

    body = json.dumps(chat("the cast", max_tokens=150, stream=True, temperature=2, seed=1))
    brain.answer([Frame(ASK, 1, body.encode())], Around(sent.append, lambda: None, gone))
    assert heard == 4


@pytest.mark.model
def test_minilm_answers_through_the_gateway_as_it_does_alone(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = locate("embedded-encoder").folder
    config = transformers.AutoConfig.from_pretrained(
        folder,
        num_hidden_layers=1,
        id2label=dict(enumerate(TASK.labels)),
        label2id={label: number for number, label in enumerate(TASK.labels)},
    )
    torch.manual_seed(0)
    with quiet_transformers():
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            folder, config=config
        )
    model.save_pretrained(tmp_path / "float")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.model_max_length = 64
    tokenizer.save_pretrained(tmp_path / "float")
    export_onnx(tmp_path / "float", tmp_path / "onnx", TASK, texts=TEXTS[:2])
    wanted = evaluated(tmp_path / "float", TASK, "label", Sampling())
    raw = {
        "upstreams": {
            "none": {"base_url": "http://127.0.0.1:9/v1", "model": "none"},
            "small": {"kind": "student", "path": str(tmp_path / "onnx")},
        },
        "tasks": {"t": {"teacher": "none", "student": "small", **FULL}},
    }
    more = {"model": "t", "logprobs": True, "top_logprobs": 3}
    with gateway(raw) as running, ThreadPoolExecutor(6) as threads:
        got = list(threads.map(lambda text: send(running.url, chat(text, **more)), TEXTS))
    for one, said in zip(got, wanted, strict=True):
        assert content(one.json) == said.text
        (token,) = one.json["choices"][0]["logprobs"]["content"]
        belief = {other["token"]: other["logprob"] for other in token["top_logprobs"]}
        assert belief == pytest.approx(said.label_logprobs, abs=1e-4)


SERVE = "import sys, pathlib, stillhouse.cli_serve as c; c.serve(pathlib.Path(sys.argv[1]))"


@pytest.mark.parametrize(
    ("end", "workers"),
    [
        (signal.SIGTERM, 1),
        (signal.SIGKILL, 1),
        pytest.param(signal.SIGKILL, 2, marks=pytest.mark.full),
    ],
)
def test_a_served_onnx_student_leaves_no_process_behind(
    labels: Path, tmp_path: Path, end: signal.Signals, workers: int
) -> None:
    """With several workers each has students of its own, and a supervisor above it."""
    teacher = Model(says("teacher"))
    with models(teacher):
        raw = {
            "listen": {"port": 0, "workers": workers, "drain_s": 1},
            "upstreams": {
                "big": {"base_url": teacher.url, "model": "big-1"},
                "small": {"kind": "student", "path": str(labels / "onnx"), "workers": 3 - workers},
            },
            "tasks": {"t": {"teacher": "big", "student": "small", **FULL}},
        }
        if workers > 1:
            raw["log"] = {"url": f"sqlite:///{tmp_path / 'gateway.db'}"}
        (tmp_path / "gateway.yaml").write_text(yaml.safe_dump(raw))
        process = subprocess.Popen(
            [sys.executable, "-u", "-c", SERVE, str(tmp_path / "gateway.yaml")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "STILLHOUSE_PSEUDONYM_SECRET": "0123456789abcdef"},
        )
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            url = line.split(" on ")[1].strip().removesuffix("/v1")
            got = send(url, {"model": "t", **chat(TEXTS[0])})
            assert got.headers["x-stillhouse-variant"] == "student"
            assert got.json["choices"][0]["message"]["content"] in TASK.labels
            below = psutil.Process(process.pid).children(recursive=True)
            students = [one for one in below if "student_worker" in " ".join(one.cmdline())]
            assert len(students) == 2
            assert len(below) == (2 if workers == 1 else 4)
            loaded = students[0].memory_maps()
            assert not [one.path for one in loaded if "libtorch" in one.path]
            process.send_signal(end)
            _, errors = process.communicate(timeout=60)
        finally:
            if process.poll() is None:
                process.kill()
                process.communicate()
    assert process.returncode == (0 if end == signal.SIGTERM else -end)
    assert not errors
    ends = time.monotonic() + 20
    while any(_runs(one) for one in below):
        assert time.monotonic() < ends, "a process outlives its gateway"
        time.sleep(0.02)


def _runs(one: psutil.Process) -> bool:
    try:
        return bool(one.is_running() and one.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
