"""Requests answered by a tag student, as a process of the gateway answers them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
from gateway_servers import FULL, gateway
from test_gateway_http import send

from stillhouse.compress.onnx_export import export_onnx
from stillhouse.core.errors import UserError
from stillhouse.serve.features import answer_features
from stillhouse.serve.gateway_sections import StudentSection
from stillhouse.serve.sse import Events, joined
from stillhouse.serve.student_brains import open_brain
from stillhouse.serve.student_folder import notes_of, setup_of
from stillhouse.serve.student_frames import ASK, Frame, Frames
from stillhouse.serve.student_labels import Around, Brain, Opening
from stillhouse.serve.student_local import ask_all
from tiny_models import TEXTS
from tiny_tags import RAW_TASK, SCHEMA, TASK, word_tagger


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a tag student and its recipe."""
    root = tmp_path_factory.mktemp("run")
    (root / "recipe.json").write_text(json.dumps({"task": RAW_TASK}))
    word_tagger(root / "train" / "student")
    return root


@pytest.fixture(scope="module")
def compressed(run: Path) -> Path:
    """The same student in ONNX."""
    pytest.importorskip("onnxruntime", reason="the onnx extra is not installed")
    folder = run / "compress" / "onnx"
    export_onnx(run / "train" / "student", folder, TASK, texts=["a dull film"])
    return folder


@pytest.fixture(scope="module", params=["float", "onnx"])
def brain(run: Path, request: pytest.FixtureRequest) -> Brain:
    """The student in either form: whatever runs it, a request is answered alike."""
    folder = run / "train" / "student"
    if request.param == "onnx":
        folder = request.getfixturevalue("compressed")
    return open_brain(Opening(folder, "tags", TASK, "words", 4, 20))


def chat(text: str, **more: Any) -> dict[str, Any]:
    (message,) = TASK.messages_for(text)
    return {"messages": [message.model_dump()], **more}


def asked(brain: Brain, *bodies: dict[str, Any]) -> list[tuple[int, Mapping[str, Any]]]:
    return [(one.status, one.body) for one in ask_all(brain, bodies, 4, lambda _: None)]


def content(body: Mapping[str, Any], index: int = 0) -> str:
    return str(body["choices"][index]["message"]["content"])


def test_it_answers_a_chat_with_json(brain: Brain) -> None:
    texts = ("a dull film", "the warm cast", "the film")
    found = asked(brain, *(chat(text) for text in texts))
    assert [status for status, _ in found] == [200] * 3
    assert [json.loads(content(body)) for _, body in found] == [
        {"blame": "dull"},
        {"praise": "warm"},
        {},
    ]
    first = found[0][1]
    assert first["usage"] == {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6}
    assert first["choices"][0]["finish_reason"] == "stop"
    assert first["choices"][0]["logprobs"] is None


def test_its_log_probabilities_are_what_a_gate_reads(brain: Brain) -> None:
    wants = {"logprobs": True, "top_logprobs": 2, "n": 2}
    ((_, body), (_, bare)) = asked(brain, chat("a dull film", **wants), chat("a dull plot"))
    tokens = body["choices"][1]["logprobs"]["content"]
    assert [one["token"] for one in tokens] == ["O", "B-blame", "O"]
    assert {len(one["top_logprobs"]) for one in tokens} == {2}
    assert content(body, 0) == content(body, 1)
    features = answer_features(body)
    assert features["tokens"] == 3
    assert features["min_margin"] > 0
    assert features["min_logprob"] <= features["mean_logprob"] < 0
    assert answer_features(bare) == {}


@pytest.mark.parametrize(
    "form",
    [
        {"type": "json_object"},
        {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}},
        {"type": "text"},
    ],
)
def test_a_form_that_its_answers_have_is_served(brain: Brain, form: dict[str, Any]) -> None:
    ((status, body),) = asked(brain, chat("a dull film", response_format=form))
    assert (status, content(body)) == (200, '{"blame": "dull"}')


def test_an_answer_that_breaks_the_requests_schema_is_refused(brain: Brain) -> None:
    schema = {**SCHEMA, "required": ["praise"]}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    found = asked(
        brain,
        chat("a dull film", response_format=form),
        chat("a warm film", response_format=form),
    )
    assert [status for status, _ in found] == [422, 200]
    assert "lacks 'praise'" in found[0][1]["error"]["message"]


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "object", "required": [["blame"]]}, "the schema cannot be read"),
        ({"properties": {"blame": {"enum": [float("nan")]}}}, "the schema cannot be read"),
        ({"properties": {"blame": {"maxLength": 1}}}, "maxLength is not checked"),
        ({"$ref": "#/x"}, r"\$ref is not checked"),
    ],
)
def test_a_schema_that_is_not_understood_is_refused_and_ends_no_batch(
    brain: Brain, schema: dict[str, Any], said: str
) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    found = asked(brain, chat("a dull film", response_format=form), chat("a dull plot"))
    assert [status for status, _ in found] == [422, 200]
    assert re.search(said, found[0][1]["error"]["message"])


def test_what_it_cannot_do_is_refused_by_name(brain: Brain) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    found = asked(
        brain,
        chat("a dull film", tools=tools),
        {"messages": [{"role": "user", "content": "another prompt"}]},
    )
    assert [status for status, _ in found] == [400, 422]


def test_a_stream_holds_the_whole_answer(brain: Brain) -> None:
    sent: list[bytes] = []
    around = Around(sent.append, lambda: None, lambda _: False)
    body = chat("a dull film", stream=True, logprobs=True)
    brain.answer([Frame(ASK, 1, json.dumps(body).encode())], around)
    frames = Frames().feed(b"".join(sent))
    whole = joined(Events().feed(b"".join(one.payload for one in frames)))
    assert content(whole) == '{"blame": "dull"}'


@pytest.mark.parametrize("form", ["float", "onnx"])
def test_a_folder_says_that_it_is_a_tag_student(run: Path, compressed: Path, form: str) -> None:
    folder = compressed if form == "onnx" else run / "train" / "student"
    notes = notes_of(folder, "upstreams.words")
    assert (notes.head, notes.task) == ("tags", TASK)
    section = StudentSection(kind="student", path=folder, model="words")
    assert setup_of("words", section)["head"] == "tags"
    adapted = section.model_copy(update={"adapters": run / "online"})
    with pytest.raises(UserError, match=r"upstreams\.words\.adapters: are of label students alone"):
        setup_of("words", adapted)
    opening = Opening(folder, "tags", TASK, "words", 4, 20, adapters=run / "online")
    with pytest.raises(UserError, match="adapters: are of label students alone"):
        open_brain(opening)


def test_both_forms_say_the_same_with_fingerprints_of_their_own(
    run: Path, compressed: Path
) -> None:
    brains = [
        open_brain(Opening(folder, "tags", TASK, "words", 4, 20))
        for folder in (run / "train" / "student", compressed)
    ]
    assert brains[0].voice.fingerprint != brains[1].voice.fingerprint
    wants = {"logprobs": True, "top_logprobs": 3}
    bodies = [chat(text, **wants) for text in (*TEXTS, "", "a longly, WARM film", "dull " * 30)]
    for (_, left), (_, right) in zip(*(asked(one, *bodies) for one in brains), strict=True):
        assert content(left) == content(right)
        assert left["usage"] == right["usage"]
        tokens = [one["choices"][0]["logprobs"]["content"] for one in (left, right)]
        for one, other in zip(*tokens, strict=True):
            assert one["token"] == other["token"]
            assert one["logprob"] == pytest.approx(other["logprob"], abs=2e-5)


def test_a_gateway_answers_from_onnx_in_a_process_without_torch(compressed: Path) -> None:
    raw = {
        "upstreams": {
            "none": {"base_url": "http://127.0.0.1:9/v1", "model": "none"},
            "small": {"kind": "student", "path": str(compressed)},
        },
        "tasks": {"words": {"teacher": "none", "student": "small", **FULL}},
    }
    with gateway(raw) as running:
        got = send(running.url, chat("a dull film", model="words", logprobs=True))
        below = psutil.Process().children(recursive=True)
        (student,) = [one for one in below if "student_worker" in " ".join(one.cmdline())]
        loaded = [one.path for one in student.memory_maps()]
    assert got.headers["x-stillhouse-variant"] == "student"
    assert got.json["choices"][0]["message"]["content"] == '{"blame": "dull"}'
    tokens = got.json["choices"][0]["logprobs"]["content"]
    assert [one["token"] for one in tokens] == ["O", "B-blame", "O"]
    assert [path for path in loaded if "onnxruntime" in path]
    assert not [path for path in loaded if "libtorch" in path]


def test_a_gateway_refuses_a_task_that_tags_cannot_fill(run: Path) -> None:
    folder = run / "train" / "student"
    given: dict[str, Any] = {"kind": "student", "path": folder, "model": "words"}
    text = StudentSection.model_validate({**given, "task": {"kind": "generation"}})
    with pytest.raises(UserError, match=r"upstreams\.words\.task: of a tag student"):
        setup_of("words", text)
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}}
    counts = StudentSection.model_validate(
        {**given, "task": {"kind": "extraction", "json_schema": schema}}
    )
    with pytest.raises(UserError, match=r"upstreams\.words\.task: .*properties\.n is"):
        setup_of("words", counts)
