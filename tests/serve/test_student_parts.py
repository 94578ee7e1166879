"""The parts of an embedded student, alone: frames, requests, pieces of text, batches, folders."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.core.errors import UserError
from stillhouse.core.records import Completion, Message, Query, TokenLogprob
from stillhouse.core.tasks import ClassificationTask, GenerationTask
from stillhouse.models.writing import Piece, Stopper, Trimmer, Written
from stillhouse.serve.api_errors import ApiError
from stillhouse.serve.gateway_file import load_gateway
from stillhouse.serve.gateway_sections import StudentSection
from stillhouse.serve.sse import Events, joined
from stillhouse.serve.student_answers import Answering, Voice, label_logprob
from stillhouse.serve.student_brains import writings_of
from stillhouse.serve.student_folder import notes_of, setup_of
from stillhouse.serve.student_frames import (
    ANSWER,
    ASK,
    CANCEL,
    END,
    PIECE,
    Frame,
    FrameError,
    Frames,
    answered,
    framed,
    status_of,
)
from stillhouse.serve.student_labels import Around
from stillhouse.serve.student_requests import Asked, Runtime, query_of, read_request
from stillhouse.serve.student_worker import (
    GatewayGoneError,
    Inbox,
    Outbox,
    answer_batches,
    answer_threads,
)

LABELS = ClassificationTask(
    kind="classification",
    labels=("good", "bad"),
    prompt="Review: {text}\nVerdict:",
    system="Judge.",
)
TEXTS = GenerationTask(kind="generation")
LABEL = Runtime(writes=False)
WRITES = Runtime(writes=True)
LLAMA = Runtime(writes=True, schemas=True, top_p=True, penalties=True)
VOICE = Voice("films", "fp_1")


def body(*messages: tuple[str, Any], **more: Any) -> bytes:
    shown = [{"role": role, "content": content} for role, content in messages]
    return json.dumps({"model": "t", "messages": shown, **more}).encode()


def read(raw: bytes, task: Any = TEXTS, runtime: Runtime = LLAMA) -> Asked:
    return read_request(raw, task, runtime, 77)


# --- frames ---


@given(
    st.lists(
        st.tuples(st.integers(0, 255), st.integers(0, 2**64 - 1), st.binary(max_size=300)),
        max_size=8,
    ),
    st.lists(st.integers(1, 40)),
)
def test_frames_come_out_as_they_went_in_however_they_are_cut(
    sent: list[tuple[int, int, bytes]], cuts: list[int]
) -> None:
    data = b"".join(framed(*one) for one in sent)
    frames, found = Frames(), []
    for size in cuts:
        found += frames.feed(data[:size])
        data = data[size:]
    found += frames.feed(data)
    assert found == [Frame(*one) for one in sent]


@given(st.binary(max_size=200))
def test_any_bytes_are_frames_or_an_error(data: bytes) -> None:
    try:
        Frames(longest=100).feed(data)
    except FrameError:
        assert len(data) >= 13


def test_an_answer_carries_its_status() -> None:
    (frame,) = Frames().feed(answered(7, 422, b"no"))
    assert (frame.kind, frame.number, status_of(frame.payload)) == (ANSWER, 7, (422, b"no"))
    with pytest.raises(FrameError, match="status"):
        status_of(b"x")


# --- requests ---


def test_a_request_is_read_as_the_student_was_trained() -> None:
    asked = read(
        body(("system", "Judge."), ("user", "Review: so dull\nVerdict:"), n=3, seed=-1),
        LABELS,
        LABEL,
    )
    assert LABELS.input_text(asked.query) == "so dull"
    assert (asked.n, asked.logprobs, asked.streams, asked.max_tokens) == (3, None, False, 77)
    assert asked.seed == 2**32 - 1
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert read(body(("user", parts))).query.last_user_text == "one\ntwo"
    # Left out, the temperature is that of the evaluation.
    assert read(body(("user", "x"))).sampling_temperature == 0
    told = read(body(("user", "x"), temperature=0.5, stop="a", max_completion_tokens=9))
    assert (told.sampling_temperature, told.stop, told.max_tokens) == (0.5, ("a",), 9)
    lone = read(body(("user", "a\ud800b")))
    assert lone.query.last_user_text == "a\ufffdb"


MISFITS: list[tuple[tuple[str, Any], ...]] = [
    (("user", "Review: so dull\nVerdict:"),),
    (("system", "Judge!"), ("user", "Review: so dull\nVerdict:")),
    (("system", "Judge."), ("user", "so dull")),
    (("system", "Judge."), ("user", "Review: so dull")),
    (("system", "Judge."), ("system", "Review: so dull\nVerdict:")),
    (("system", "Judge."), ("user", "Review:\nVerdict:")),
]


def test_a_chat_that_is_not_of_the_task_is_refused() -> None:
    for messages in MISFITS:
        with pytest.raises(ApiError) as refused:
            read(body(*messages), LABELS, LABEL)
        assert (refused.value.status, refused.value.code) == (422, "not_of_the_task")


REFUSED: list[tuple[Any, Runtime, dict[str, Any], str]] = [
    (LABELS, LABEL, {"response_format": {"type": "json_object"}}, "response_format"),
    (LABELS, LABEL, {"tools": [{}]}, "tools"),
    (TEXTS, WRITES, {"response_format": {"type": "json_schema"}}, "response_format"),
    (TEXTS, LLAMA, {"response_format": {"type": "json_schema"}}, "response_format"),
    (TEXTS, LLAMA, {"logit_bias": {"1": 2}}, "logit_bias"),
    (TEXTS, WRITES, {"top_p": 0.5}, "top_p"),
    (TEXTS, WRITES, {"presence_penalty": 1}, "presence_penalty"),
    (TEXTS, LLAMA, {"stop": ["a"] * 17}, "stop"),
    (TEXTS, LLAMA, {"stop": [""]}, "stop"),
    (TEXTS, LLAMA, {"modalities": ["audio"]}, "modalities"),
]


@pytest.mark.parametrize(("task", "runtime", "more", "param"), REFUSED)
def test_what_a_runtime_cannot_do_is_refused_by_name(
    task: Any, runtime: Runtime, more: dict[str, Any], param: str
) -> None:
    chat = (("system", "Judge."), ("user", "Review: x\nVerdict:"))
    with pytest.raises(ApiError) as refused:
        read(body(*chat, **more), task, runtime)
    assert (refused.value.status, refused.value.param) == (400, param)


def test_what_changes_nothing_of_a_label_is_let_through() -> None:
    chat = (("system", "Judge."), ("user", "Review: x\nVerdict:"))
    more = {"top_p": 0.1, "presence_penalty": 1, "logit_bias": {"1": 2}, "tools": []}
    read(body(*chat, **more, response_format={"type": "text"}), LABELS, LABEL)
    read(body(*chat, tools=[{}], tool_choice="none"), LABELS, LABEL)
    schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}
    assert read(body(("user", "x"), response_format=schema)).json_schema == {"type": "object"}


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
KEYS = st.sampled_from(
    [
        "messages",
        "n",
        "seed",
        "stop",
        "stream",
        "logprobs",
        "top_logprobs",
        "max_tokens",
        "temperature",
        "top_p",
        "tools",
        "response_format",
        "stream_options",
        "modalities",
        "logit_bias",
        "presence_penalty",
    ]
)


@given(st.dictionaries(KEYS, ANY, max_size=6), st.booleans())
def test_any_json_is_read_or_refused(asked: dict[str, Any], with_messages: bool) -> None:
    if with_messages:
        asked = {**asked, "messages": [{"role": "user", "content": "x"}]}
    status = 200
    try:
        found = read(json.dumps(asked).encode())
    except ApiError as error:
        status = error.status
    else:
        assert found.n >= 1
        assert found.max_tokens >= 1
        assert found.sampling_temperature >= 0
    assert 200 <= status < 500


def test_samples_of_a_seed_are_the_same_and_differ_from_each_other() -> None:
    asked = read(body(("user", "x"), n=3, seed=5))
    seeds = [one.seed for one in writings_of(asked)]
    assert seeds == [one.seed for one in writings_of(asked)]
    assert len(set(seeds)) == 3
    free = read(body(("user", "x"), n=1))
    assert writings_of(free)[0].seed != writings_of(free)[0].seed


# --- pieces of text ---


def cut(text: str, sizes: Sequence[int]) -> list[str]:
    found = []
    for size in sizes:
        found.append(text[:size])
        text = text[size:]
    return [*found, text]


@given(st.text(alphabet=" ab\n", max_size=20), st.lists(st.integers(0, 5), max_size=8))
def test_trimmed_pieces_are_the_trimmed_whole(text: str, sizes: list[int]) -> None:
    trimmer = Trimmer()
    assert "".join(trimmer.feed(piece) for piece in cut(text, sizes)) == text.strip()


@given(
    st.text(alphabet="abc", max_size=20),
    st.lists(st.text(alphabet="abc", min_size=1, max_size=3), max_size=3),
    st.lists(st.integers(0, 5), max_size=8),
)
def test_text_ends_before_the_first_stop_however_it_is_cut(
    text: str, stops: list[str], sizes: list[int]
) -> None:
    stopper = Stopper(stops)
    said = "".join(stopper.feed(piece) for piece in cut(text, sizes)) + stopper.end()
    # The naive way: letter by letter, until a stop text stands at the end.
    wanted, stopped = "", False
    for letter in text:
        wanted += letter
        ended = [stop for stop in stops if wanted.endswith(stop)]
        if ended:
            wanted, stopped = wanted[: len(wanted) - max(map(len, ended))], True
            break
    assert stopper.stopped == stopped
    assert said == wanted


# --- answers ---


def heard(frames: list[bytes]) -> list[Frame]:
    return Frames().feed(b"".join(frames))


def answering(sent: list[bytes], gone: bool = False, **more: Any) -> Answering:
    asked = read(body(("user", "x"), **more))
    return Answering(4, asked, VOICE, sent.append, lambda _: gone)


TOKENS = [(" a", -0.5), (" bc", -0.25), ("", -2.0), ("d ", -0.125)]


def say_all(one: Answering, index: int = 0) -> None:
    for text, logprob in TOKENS:
        one.say(index)(Piece(text, (TokenLogprob(token=text, logprob=logprob),)))
    one.ended(index, Written("length", 5, 4))


def test_a_streamed_answer_joins_to_the_whole_one() -> None:
    more = {"logprobs": True, "top_logprobs": 0, "n": 2}
    whole: list[bytes] = []
    streamed: list[bytes] = []
    first = answering(whole, **more)
    second = answering(streamed, **more, stream=True, stream_options={"include_usage": True})
    for index in (0, 1):
        say_all(first, index)
        say_all(second, index)
    (frame,) = heard(whole)
    status, raw = status_of(frame.payload)
    answer = json.loads(raw)
    assert status == 200
    frames = heard(streamed)
    assert [one.kind for one in frames] == [PIECE] * (len(frames) - 1) + [END]
    assert {one.number for one in frames} == {4}
    stream = joined(Events().feed(b"".join(one.payload for one in frames)))
    for one, other in zip(answer["choices"], stream["choices"], strict=True):
        assert one["message"]["content"] == other["message"]["content"] == "a bcd"
        assert one["finish_reason"] == other["finish_reason"] == "length"
        tokens = [entry["logprob"] for entry in one["logprobs"]["content"]]
        assert tokens == [logprob for _, logprob in TOKENS]
        assert [entry["logprob"] for entry in other["logprobs"]["content"]] == tokens
    assert answer["usage"] == stream["usage"]
    assert answer["usage"] == {"prompt_tokens": 5, "completion_tokens": 8, "total_tokens": 13}


def test_an_answer_that_breaks_its_schema_is_refused() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    for text, finish, status in (
        ('{"a": "b"}', "stop", 200),
        ("{}", "stop", 422),
        ("{", "length", 200),
    ):
        sent: list[bytes] = []
        one = answering(sent, response_format=form)
        one.say(0)(Piece(text))
        one.ended(0, Written(finish, 1, 1))  # type: ignore[arg-type]
        assert status_of(heard(sent)[0].payload)[0] == status


def test_nobody_waits_and_nothing_more_is_written() -> None:
    sent: list[bytes] = []
    assert answering(sent, gone=True).say(0)(Piece("a")) is False
    assert answering(sent, stop="a").say(0)(Piece("bab")) is False
    failed = answering(sent)
    failed.fail(ApiError(500, "no"))
    failed.fail(ApiError(500, "no"))
    assert failed.say(0)(Piece("a")) is False
    failed.ended(0, Written("stop", 1, 1))
    assert [status_of(one.payload)[0] for one in heard(sent)] == [500]


def test_a_label_is_one_token_among_all_classes() -> None:
    said = Completion(
        query_id="q",
        text="b",
        model="m",
        revision="r",
        label_logprobs={"a": -3.0, "b": -0.1, "c": float("-inf")},
    )
    found = label_logprob(said, 2)
    assert (found.token, found.logprob) == ("b", -0.1)
    assert [token for token, _ in found.top] == ["b", "a"]


# --- batches ---


class Counting:
    """A brain that notes its batches, and answers each request with its number."""

    voice, runtime = VOICE, LABEL

    def __init__(self, threads: int = 0) -> None:
        self.threads = threads
        self.batches: list[list[int]] = []
        self.hold = threading.Event()
        self.begun = threading.Event()

    def answer(self, jobs: Sequence[Frame], around: Around) -> None:
        self.batches.append([job.number for job in jobs])
        self.begun.set()
        assert self.hold.wait(10)
        for job in jobs:
            around.send(answered(job.number, 200, b""))


@pytest.mark.parametrize("threads", [0, 2])
def test_what_waits_is_taken_at_once_and_what_is_cancelled_never(threads: int) -> None:
    ours, theirs = socket.socketpair()
    ours.settimeout(10)
    brain: Any = Counting(threads)
    inbox, outbox = Inbox(theirs), Outbox(theirs)
    ended: list[type[BaseException]] = []

    def work() -> None:
        try:
            if threads:
                answer_threads(brain, inbox, outbox)
            else:
                answer_batches(brain, inbox, outbox, 3, 0.0)
        except GatewayGoneError as error:
            ended.append(type(error))

    worker = threading.Thread(target=work)
    worker.start()
    first = range(1, 2 if threads == 0 else 3)
    ours.sendall(b"".join(framed(ASK, number) for number in first))
    assert brain.begun.wait(10)
    until = time.monotonic() + 10
    while sum(map(len, brain.batches)) < len(first) and time.monotonic() < until:
        time.sleep(0.01)
    # These wait while the first is at work.
    ours.sendall(b"".join(framed(ASK, number) for number in range(10, 15)))
    ours.sendall(framed(CANCEL, 11) + framed(CANCEL, 1))
    time.sleep(0.1)
    brain.hold.set()
    frames, found = Frames(), []
    while len(found) < len(first) + 4:
        found += frames.feed(ours.recv(1000))
    assert sorted(one.number for one in found) == [*first, 10, 12, 13, 14]
    if threads == 0:
        assert brain.batches == [[1], [10, 12, 13], [14]]
    else:
        assert all(len(batch) == 1 for batch in brain.batches)
    ours.close()
    worker.join(10)
    assert ended == [GatewayGoneError]
    theirs.close()


def test_a_lone_request_is_not_held_up_and_a_burst_is_gathered() -> None:
    ours, theirs = socket.socketpair()
    inbox = Inbox(theirs)
    ours.sendall(framed(ASK, 1))
    inbox.read(None)
    inbox.gather(1, 60)  # the size of the last batch: nothing to wait for
    assert len(inbox) == 1
    threading.Timer(0.05, lambda: ours.sendall(framed(ASK, 2))).start()
    inbox.gather(2, 60)
    assert [job.number for job in inbox.take(5)] == [1, 2]
    inbox.gather(3, 0.01)
    assert len(inbox) == 0
    ours.close()
    theirs.close()


# --- folders ---


def section(path: Path, **more: Any) -> StudentSection:
    return StudentSection.model_validate({"kind": "student", "path": path, **more})


def test_a_student_is_known_by_the_run_that_it_lies_in(tmp_path: Path) -> None:
    student = tmp_path / "run" / "train" / "student"
    student.mkdir(parents=True)
    (student / "config.json").write_text('{"architectures": ["BertForSequenceClassification"]}')
    with pytest.raises(UserError, match=r"upstreams.small.task: is missing"):
        setup_of("small", section(student))
    recipe = {"task": LABELS.model_dump(mode="json")}
    (tmp_path / "run" / "recipe.json").write_text(json.dumps(recipe))
    found = setup_of("small", section(student, model="films"))
    assert (found["head"], found["model"]) == ("label", "films")
    assert ClassificationTask.model_validate(found["task"]) == LABELS
    json.dumps(found)
    link = tmp_path / "elsewhere"
    link.symlink_to(student, target_is_directory=True)
    assert notes_of(link, "path").task == LABELS
    other = {"kind": "extraction", "json_schema": {"type": "object", "properties": {"a": {}}}}
    with pytest.raises(UserError, match="of a label student is a classification"):
        setup_of("small", section(student, task=other))
    assert setup_of("small", section(student, task=other, head="text"))["head"] == "text"
    (student / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"upstreams.small.path: cannot be read"):
        setup_of("small", section(student))
    (student / "config.json").unlink()
    with pytest.raises(UserError, match="holds no student"):
        setup_of("small", section(student))


def test_the_example_is_a_gateway_with_a_student() -> None:
    path = Path(__file__).parents[2] / "examples" / "gateway_student.yaml"
    student = load_gateway(path).upstreams["student"]
    assert isinstance(student, StudentSection)
    assert student.path == path.parent / "../runs/smallest/compress/best"


def test_a_query_needs_no_student() -> None:
    query = query_of([{"role": "user", "content": "x"}], TEXTS)
    assert query.messages == (Message(role="user", content="x"),)
    assert isinstance(query, Query)
