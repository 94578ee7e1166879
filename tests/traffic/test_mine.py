"""Mining a log with known tasks: kinds, labels, prompts and rank; nothing raw is stored."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score

from planted_log import Planted, requests, write_logs
from stillhouse.core.errors import DataError, UserError
from stillhouse.core.progress import Silent
from stillhouse.core.recipe_file import load_recipe
from stillhouse.core.runfolder import hash_folder
from stillhouse.core.tasks import ClassificationTask
from stillhouse.traffic import redact
from stillhouse.traffic.mine import (
    Mined,
    MineOptions,
    mine,
    mine_options,
    parse_kinds,
    parse_prices,
)
from stillhouse.traffic.read import read_queries
from stillhouse.traffic.redact import RedactionError
from stillhouse.traffic.stage import run_traffic
from stillhouse.traffic.task_recipe import canonical_model, teacher_of
from stillhouse.traffic.tasks_page import show_tasks
from stillhouse.traffic.tasks_report import MinedTask, TasksReport

COUNT = 20_000
BAD = ["{broken someone@example.org", "\x00\x01", "[1, 2]", '{"nothing": 1}']


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    folder = tmp_path_factory.mktemp("logs")
    made = write_logs(folder, COUNT)
    path = next(file for file in made.files if file.name == "openai.jsonl")
    lines = path.read_text().splitlines()
    for place, bad in enumerate(BAD):
        lines.insert(1000 * place + 500, bad)
    path.write_text("\n".join(lines) + "\n")
    return made


@pytest.fixture(scope="module")
def out(planted: Planted) -> Path:
    return planted.files[0].parent / "found" / "tasks"


@pytest.fixture(scope="module")
def mined(planted: Planted, out: Path) -> Mined:
    return mine(MineOptions(tuple(planted.files), out), Silent())


@pytest.fixture(scope="module")
def by_truth(planted: Planted, mined: Mined) -> dict[str, MinedTask]:
    """The found task that holds most requests of each planted one."""
    counts = Counter(zip(planted.truth, mined.labels.tolist(), strict=True))
    best: dict[str, tuple[int, int]] = {}
    for (truth, label), count in counts.items():
        if label >= 0 and count > best.get(truth, (0, 0))[0]:
            best[truth] = count, label
    return {truth: mined.report.tasks[label] for truth, (_, label) in best.items()}


def test_every_request_is_in_its_task(planted: Planted, mined: Mined) -> None:
    assert adjusted_rand_score(planted.truth, mined.labels) >= 0.99
    assert len(mined.report.tasks) == len(set(planted.truth))
    assert mined.report.calls == COUNT
    assert mined.report.rejected == {"json": 3, "format": 1} or sum(
        mined.report.rejected.values()
    ) == len(BAD)


@pytest.mark.parametrize(
    ("truth", "kind", "prompt"),
    [
        ("routing", "classification", "{text}"),
        ("sentiment", "classification",
         "Classify the sentiment of this review.\n\nReview: {text}\n\nSentiment:"),
        ("moderation", "classification",
         "Does the text below insult anyone?\nText: <<<{text}>>>\nAnswer yes or no."),
        ("intent", "classification", "{text}"),
        ("order", "extraction", "{text}"),
        ("contact", "extraction", "{text}"),
        ("summary", "generation", "Summarise the following article in one sentence:\n\n{text}"),
        ("french", "generation", "Translate to French: {text}"),
        ("chat", "generation", "{text}"),
        ("grounded", "generation", "{text}"),
        ("ping", "generation", "{text}"),
        ("agent", "generation", "{text}"),
    ],
)  # fmt: skip
def test_kind_and_prompt_of_each(
    by_truth: dict[str, MinedTask], truth: str, kind: str, prompt: str
) -> None:
    assert (by_truth[truth].kind, by_truth[truth].prompt.prompt) == (kind, prompt)


def test_label_sets_and_schemas(by_truth: dict[str, MinedTask]) -> None:
    def labels(truth: str) -> set[str]:
        return {one.label for one in by_truth[truth].answers.labels}

    assert labels("routing") == {"billing", "bug", "account", "other"}
    assert labels("sentiment") == {"Positive", "Negative", "Neutral"}
    assert labels("moderation") == {"Yes", "No"}
    assert labels("intent") == {"track", "refund", "cancel", "greet", "human"}
    order = by_truth["order"].answers.json_schema
    assert order is not None
    assert set(order["properties"]) == {"order_number", "product", "quantity", "urgent"}  # type: ignore[arg-type]
    contact = by_truth["contact"].answers.json_schema
    assert contact is not None
    assert contact["additionalProperties"] is False, "the schema that was asked for"


def test_what_is_known_of_the_requests(by_truth: dict[str, MinedTask]) -> None:
    assert by_truth["moderation"].prompt.system == "You are a helpful assistant."
    assert by_truth["routing"].prompt.system is None, "its date differs"
    assert "route support tickets" in (by_truth["routing"].prompt.system_like or "")
    assert by_truth["intent"].prompt.few_shot
    assert by_truth["chat"].prompt.dialogue
    assert by_truth["agent"].tools == ("search_orders",)
    assert not by_truth["agent"].distillability.text_only
    assert by_truth["ping"].distinct_inputs == 1
    assert by_truth["moderation"].models == {
        "openai:gpt-4.1-mini": by_truth["moderation"].requests
    }, "one model in three spellings"


def test_self_agreement_is_the_planted_one(by_truth: dict[str, MinedTask]) -> None:
    made = requests(COUNT, 0)
    for truth in ("sentiment", "moderation"):
        inputs: dict[str, list[str]] = {}
        for request in made:
            if request.task == truth:
                said = request.answer.strip(".").casefold()
                inputs.setdefault(repr(request.messages), []).append(said)
        pairs = [
            [a == b for i, a in enumerate(said[:8]) for b in said[:8][i + 1 :]]
            for said in inputs.values()
            if len(said) > 1
        ]
        expected = sum(sum(p) / len(p) for p in pairs) / len(pairs)
        found = by_truth[truth].self_agreement
        assert found is not None
        assert found.low <= expected <= found.high
        assert found.n <= len(pairs)


def test_rank_is_by_spend_times_distillability(
    mined: Mined, by_truth: dict[str, MinedTask]
) -> None:
    values = [task.value for task in mined.report.tasks]
    assert values == sorted(values, key=lambda value: -(value or 0))
    best = mined.report.tasks[0]
    assert best == by_truth["routing"]
    assert best.recommended
    for truth in ("ping", "agent", "chat"):
        assert not by_truth[truth].recommended, truth
    assert sum(task.recommended for task in mined.report.tasks) == 3


def test_spend_is_tokens_at_their_price(mined: Mined, by_truth: dict[str, MinedTask]) -> None:
    task = by_truth["routing"]
    expected = (task.prompt_tokens * 2.0 + task.completion_tokens * 8.0) / 1e6
    assert task.usd == pytest.approx(expected)
    assert mined.report.window.days == pytest.approx(10.0, rel=0.01)
    assert task.usd_per_month == pytest.approx(expected / 10.0 * 365.25 / 12, rel=0.01)
    assert task.requests_per_day == pytest.approx(task.requests / 10.0, rel=0.01)


@pytest.mark.parametrize("truth", ["routing", "order", "summary"])
def test_recipe_and_traffic_work_as_they_stand(
    by_truth: dict[str, MinedTask], out: Path, tmp_path: Path, truth: str
) -> None:
    task = by_truth[truth]
    assert task.recipe is not None
    recipe = load_recipe(out / task.recipe)
    assert recipe.teacher.model == "openai:gpt-4.1"
    assert recipe.teacher.budget_usd is not None
    assert recipe.task.kind == task.kind
    assert recipe.train.alpha == 0, "an API may give no log-probabilities"
    queries = read_queries(Path(recipe.traffic.path), recipe.task).queries
    assert len(queries) == task.distinct_inputs
    outcome = run_traffic(recipe, tmp_path, Silent())
    assert outcome.summary["duplicates"] == 0
    first = next(r for r in requests(COUNT, 0) if r.task == truth and "@" not in str(r.messages)
                 and "+49" not in str(r.messages))  # fmt: skip
    assert [m["content"] for m in first.messages] in [
        [m.content for m in query.messages] for query in queries
    ]
    if isinstance(recipe.task, ClassificationTask):
        assert set(recipe.task.labels) == {"billing", "bug", "account", "other"}


def test_no_personal_data_is_in_any_file(mined: Mined, out: Path) -> None:
    files = [path for path in out.rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"tasks.json", "tasks.html", "rejects.jsonl"}
    assert not [path for path in files if "spool" in path.name]
    for path in files:
        text = path.read_text(encoding="utf-8")
        assert "@example.org" not in text, path
        assert not re.search(r"\+49 30 \d", text), path
    assert mined.report.redacted["email"] > 1000
    assert mined.report.redacted["phone"] > 500


def test_rejects_are_kept_with_line_and_reason(mined: Mined, out: Path) -> None:
    rows = [json.loads(line) for line in (out / "rejects.jsonl").read_text().splitlines()]
    assert [(row["line"], row["reason"]) for row in rows] == [
        (501, "json"), (1501, "json"), (2501, "json"), (3501, "shape"),
    ]  # fmt: skip
    assert rows[0]["text"] == "{broken <EMAIL_1>"
    assert all(row["file"].endswith("openai.jsonl") for row in rows)


def test_tasks_json_is_the_report(mined: Mined, out: Path) -> None:
    assert TasksReport.model_validate_json((out / "tasks.json").read_text()) == mined.report


def small(folder: Path, count: int = 1500) -> Planted:
    folder.mkdir(exist_ok=True)
    return write_logs(folder, count, seed=5)


def test_equal_logs_give_equal_files(tmp_path: Path) -> None:
    made = small(tmp_path / "logs")
    for name in ("one", "two", "two"):  # the second time over an earlier result
        mine(MineOptions(tuple(made.files), tmp_path / name), Silent())
    assert hash_folder(tmp_path / "one") == hash_folder(tmp_path / "two")
    assert {p.name for p in tmp_path.iterdir()} == {"logs", "one", "two"}


def test_where_redaction_fails_nothing_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = small(tmp_path / "logs")
    calls = 0

    def breaks(text: str) -> list[Any]:
        nonlocal calls
        calls += 1
        if calls > 200:
            raise OSError("the model went away")
        return list(original(text))

    original = redact._FINDERS["phone"]
    monkeypatch.setitem(redact._FINDERS, "phone", breaks)
    with pytest.raises(RedactionError, match="nothing is stored"):
        mine(MineOptions(tuple(made.files), tmp_path / "out"), Silent())
    assert {p.name for p in tmp_path.iterdir()} == {"logs"}


def test_other_peoples_files_are_not_overwritten(tmp_path: Path) -> None:
    made = small(tmp_path / "logs", 200)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="no earlier result of mining"):
        mine(MineOptions(tuple(made.files), tmp_path / "out"), Silent())
    assert (tmp_path / "out" / "thesis.txt").read_text() == "precious"


def spoil(out: Path, what: str) -> Path:
    """What a user does in the folder of a result: each is work that mining again must not lose."""
    folder = next(path for path in sorted(out.iterdir()) if path.is_dir())
    path = {
        "recipe": folder / "recipe.yaml",
        "labels": folder / "labelled.jsonl",
        "answers": out / "runs" / "x" / "store" / "answers.jsonl",
        "link": out / "link",
    }[what]
    path.parent.mkdir(parents=True, exist_ok=True)
    if what == "link":
        path.symlink_to("nowhere")
    else:
        with path.open("a") as handle:
            handle.write("  terms: {waived_by: me, reason: a test}\n")
    return path


@pytest.mark.parametrize("what", ["recipe", "labels", "answers", "link"])
def test_what_was_done_in_an_earlier_result_is_not_replaced(tmp_path: Path, what: str) -> None:
    made = small(tmp_path / "logs", 600)
    options = MineOptions(tuple(made.files), tmp_path / "out", min_requests=30)
    mine(options, Silent())
    mine(options, Silent())  # untouched, it is replaced
    path = spoil(tmp_path / "out", what)
    before = hash_folder(path.parent) if what != "link" else ""
    with pytest.raises(UserError, match=f"{path.name}; a new result would delete them"):
        mine(options, Silent())
    assert path.is_symlink() or hash_folder(path.parent) == before
    assert {p.name for p in tmp_path.iterdir()} == {"logs", "out"}


def test_an_earlier_result_that_cannot_be_read_counts_as_changed(tmp_path: Path) -> None:
    made = small(tmp_path / "logs", 600)
    options = MineOptions(tuple(made.files), tmp_path / "out", min_requests=30)
    mine(options, Silent())
    (tmp_path / "out" / "tasks.json").write_text("{")
    with pytest.raises(UserError, match=r"and [0-9]+ more; a new result would delete them"):
        mine(options, Silent())


def test_no_recipe_at_most_is_an_error_and_no_verdict(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--top: must be at least 1"):
        mine(MineOptions((tmp_path,), tmp_path / "out", top=0), Silent())


def chat(text: str, answer: str | None, **more: Any) -> dict[str, Any]:
    said = (
        None
        if answer is None
        else {"choices": [{"message": {"role": "assistant", "content": answer}}]}
    )
    return {
        "request": {"model": "acme-large", "messages": [{"role": "user", "content": text}]},
        "response": said,
        "usage": {"prompt_tokens": 100, "completion_tokens": 10},
        **more,
    }


def rows_of(folder: Path, rows: list[dict[str, Any]], name: str = "log.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_an_unknown_price_is_asked_for_by_name_and_then_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        chat(f"Is this spam?\n\ntext {i} of {i * 7}", "yes" if i % 2 else "no") for i in range(200)
    ]
    path = rows_of(tmp_path, rows)
    report = mine(MineOptions((path,), tmp_path / "out"), Silent()).report
    assert report.usd is None
    assert [(one.model, one.requests) for one in report.unpriced] == [("acme-large", 200)]
    assert "--price 'acme-large=INPUT,OUTPUT'" in report.notes[0]
    assert "--days" in report.notes[1]
    (task,) = report.tasks
    assert (task.usd, task.value, task.prompt_tokens) == (None, None, 20_000)
    assert task.recommended, "it is worth it at any price"
    show_tasks(report, tmp_path / "out", False)
    shown = capsys.readouterr().out
    assert "20K" in shown
    assert "unknown" in shown
    assert "stillhouse run" in shown

    options = mine_options(
        [path], tmp_path / "out", log_format=None, redact="email", price=["acme-large=10,20"],
        days=2.0, min_requests=50, top=3, teacher="openai-compatible:acme-large", repeats=[],
    )  # fmt: skip
    report = mine(options, Silent()).report
    assert report.usd == pytest.approx(200 * (100 * 10 + 10 * 20) / 1e6)
    assert report.usd_per_month == pytest.approx(report.usd / 2 * 365.25 / 12)
    recipe = load_recipe(tmp_path / "out" / str(report.tasks[0].recipe))
    assert recipe.teacher.model == "openai-compatible:acme-large"
    assert recipe.prices.models["openai-compatible:acme-large"].input_usd_per_mtok == 10


def test_a_teacher_without_a_price_gets_no_budget(tmp_path: Path) -> None:
    texts = [f"Is this spam?\n\ntext {i} of {i * 7}" for i in range(90)]
    rows = [chat(text, "no" if i % 2 else "yes", cost_usd=0.01) for i, text in enumerate(texts)]
    out = tmp_path / "out"
    (task,) = mine(MineOptions((rows_of(tmp_path, rows),), out), Silent()).report.tasks
    assert task.usd == pytest.approx(0.9)
    recipe = load_recipe(out / str(task.recipe))
    assert recipe.teacher.model == "openai-compatible:acme-large"
    assert recipe.teacher.budget_usd is None


def test_a_paid_sample_gives_the_self_agreement(tmp_path: Path) -> None:
    rows = [
        chat(f"Is this spam?\n\ntext {i} of {i * 7}", "yes" if i % 2 else "no") for i in range(200)
    ]
    again = [chat(f"Is this spam?\n\ntext {i} of {i * 7}", "no") for i in range(40)]
    path, paid = rows_of(tmp_path, rows), rows_of(tmp_path, again, "again.jsonl")
    report = mine(MineOptions((path,), tmp_path / "a", repeats=(paid,)), Silent()).report
    found = report.tasks[0].self_agreement
    assert found is not None
    assert (found.estimate, found.n, report.calls) == (0.5, 40, 200)
    assert (
        mine(MineOptions((path,), tmp_path / "b"), Silent()).report.tasks[0].self_agreement is None
    )


def test_answers_from_a_cache_say_nothing_of_agreement(tmp_path: Path) -> None:
    rows = [chat(f"Is this spam?\n\ntext {i % 100} x", "yes" if i % 2 else "no", log="stillhouse",
                 id=str(i), cached=i >= 100) for i in range(200)]  # fmt: skip
    (task,) = mine(MineOptions((rows_of(tmp_path, rows),), tmp_path / "o"), Silent()).report.tasks
    assert task.self_agreement is None
    assert task.cached == 100


def test_one_template_that_hides_several_tasks_is_parted(tmp_path: Path) -> None:
    """Free instructions to one assistant: labels for some, objects or prose for others."""
    rows: list[dict[str, Any]] = []
    for i in range(900):
        noise = f"{i * 37 % 1000} parcels, {i * 91 % 777} boxes"
        if i % 3 == 0:
            asked = f"{noise}: is the customer angry or calm, judge the mood in a word"
            rows.append(chat(asked, "angry" if i % 2 else "calm"))
        elif i % 3 == 1:
            asked = f"{noise}: give weight and colour fields of the shipment as JSON object"
            rows.append(chat(asked, json.dumps({"weight": i, "colour": f"c{i}"})))
        else:
            asked = f"{noise}: write a long friendly poem about autumn rain and rivers"
            rows.append(chat(asked, f"The rain number {i} falls on the long river " * 5))
    for i, row in enumerate(rows):  # nothing is fixed at either end
        row["request"]["messages"][0]["content"] += f" {i * 53 % 911}"
    mined = mine(MineOptions((rows_of(tmp_path, rows),), tmp_path / "o"), Silent())
    truth = [i % 3 for i in range(900)]
    assert adjusted_rand_score(truth, mined.labels) > 0.95
    assert {task.kind for task in mined.report.tasks} == {
        "classification", "extraction", "generation",
    }  # fmt: skip


def test_a_log_without_any_task_is_said_so(tmp_path: Path) -> None:
    path = rows_of(tmp_path, [chat(f"text {i}", None) for i in range(5)])
    report = mine(MineOptions((path,), tmp_path / "o"), Silent()).report
    assert report.tasks == ()
    assert report.other == 5
    assert "No task" in (tmp_path / "o" / "tasks.html").read_text()


def test_requests_without_answers_are_a_task_but_not_a_recommended_one(tmp_path: Path) -> None:
    path = rows_of(tmp_path, [chat(f"Sum up:\n\n{i} and {i * 3}", None) for i in range(90)])
    (task,) = mine(MineOptions((path,), tmp_path / "o"), Silent()).report.tasks
    assert not task.recommended
    assert "no answers" in task.reasons[1]


def test_nothing_readable_leaves_no_folder(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text("nonsense\n")
    with pytest.raises(DataError, match="no request that can be read"):
        mine(MineOptions((path,), tmp_path / "o"), Silent())
    assert [p.name for p in tmp_path.iterdir()] == ["log.jsonl"]


def test_a_result_inside_the_folder_of_logs_is_not_read_again(tmp_path: Path) -> None:
    rows_of(
        tmp_path, [chat(f"Spam?\n\n{i} and {i * 3}", "yes" if i % 2 else "no") for i in range(90)]
    )
    options = MineOptions((tmp_path,), tmp_path / "tasks")
    first = mine(options, Silent()).report
    assert mine(options, Silent()).report == first
    assert first.calls == 90


def test_a_damaged_file_among_others_is_a_reject(tmp_path: Path) -> None:
    path = rows_of(tmp_path, [chat(f"Spam?\n\n{i}", "yes") for i in range(60)])
    (tmp_path / "broken.jsonl.gz").write_bytes(b"\x1f\x8b\x08\x00" + b"\xff" * 99)
    (tmp_path / "plain.jsonl.gz").write_bytes(path.read_bytes())
    report = mine(MineOptions((tmp_path,), tmp_path / "o"), Silent()).report
    assert (report.calls, report.rejected) == (60, {"damaged": 2})


CONTENT = st.one_of(st.none(), st.text(max_size=12), st.sampled_from(["a b c", "{text}"]))
ROLE = st.sampled_from(["system", "user", "user", "assistant", "tool"])
ANSWER = st.sampled_from([None, "", "yes", "no", '{"a": 1}', '{"a": "x"}', "<EMAIL_1>"])
CHOICE = st.fixed_dictionaries({"message": st.fixed_dictionaries({"content": ANSWER})})
COUNT_OR_NOT = st.one_of(st.integers(), st.text(max_size=2))
TURN = st.fixed_dictionaries({"role": ROLE, "content": CONTENT})
ROW = st.fixed_dictionaries(
    {"messages": st.lists(TURN, min_size=1, max_size=4)},
    optional={
        "choices": st.lists(CHOICE, max_size=1),
        "usage": st.fixed_dictionaries({"prompt_tokens": COUNT_OR_NOT}),
        "created": st.one_of(st.integers(), st.floats()),
        "model": st.text(max_size=6),
        "id": st.text(max_size=2),
        "tools": st.lists(st.dictionaries(st.text(max_size=3), st.text(max_size=3)), max_size=2),
        "user": st.text(max_size=3),
    },
)
SAME_FOLDER = [HealthCheck.function_scoped_fixture]


@settings(max_examples=60, deadline=None, suppress_health_check=SAME_FOLDER)
@given(st.lists(ROW, min_size=1, max_size=12), st.integers(1, 30))
def test_any_requests_are_mined_without_a_fault(
    tmp_path: Path, rows: list[dict[str, Any]], times: int
) -> None:
    path = rows_of(tmp_path, [{**row, "n": n} for n in range(times) for row in rows])
    options = MineOptions((path,), tmp_path / "o", min_requests=2)
    try:
        mined = mine(options, Silent())
    except DataError:
        return
    report = mined.report
    assert len(mined.labels) == report.calls
    assert sum(task.requests for task in report.tasks) + report.other == report.calls
    for number, task in enumerate(report.tasks):
        assert task.requests == int((mined.labels == number).sum())
        if task.recipe is not None:
            recipe = load_recipe(tmp_path / "o" / task.recipe)
            read_queries(Path(recipe.traffic.path), recipe.task)


def test_options_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    assert parse_kinds("none") == ()
    assert parse_kinds("email, ip") == ("email", "ip")
    with pytest.raises(UserError, match="--redact"):
        parse_kinds(",")
    for item in ("gpt", "gpt=1", "=1,2", "m=a,b", "m=1,2,3", "m=-1,2"):
        with pytest.raises(UserError, match="--price"):
            parse_prices([item])
    assert parse_prices(["a=b=1,2"]).models["a=b"].output_usd_per_mtok == 2
    log = rows_of(tmp_path, [chat("x", "y")])
    for bad in ({"min_requests": 0}, {"days": 0.0}):
        with pytest.raises(UserError, match="--"):
            mine(MineOptions((log,), tmp_path / "o")._replace(**bad), Silent())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("model", "base", "teacher", "server", "guessed"),
    [
        ("openai:gpt-4.1", None, "openai:gpt-4.1", None, False),
        ("openai/gpt-4o", None, "openai:gpt-4o", None, False),
        ("claude-haiku-4-5", None, "anthropic:claude-haiku-4-5", None, False),
        ("gpt-99", None, "openai:gpt-99", None, False),
        ("llama-70b", "http://10.0.0.1:8000/v1", "openai-compatible:llama-70b",
         "http://10.0.0.1:8000/v1", False),
        ("azure/prod", None, "openai-compatible:azure/prod", "http://localhost:8000/v1", True),
        ("", None, "openai-compatible:MODEL", "http://localhost:8000/v1", True),
    ],
)  # fmt: skip
def test_who_answered_is_the_teacher(
    model: str, base: str | None, teacher: str, server: str | None, guessed: bool
) -> None:
    assert teacher_of(model, base, parse_prices(())) == (teacher, server, guessed)


def test_spellings_of_one_model_are_one() -> None:
    prices = parse_prices(())
    names = ("gpt-4.1", "openai/gpt-4.1", "openai:gpt-4.1", "gpt-4.1-2025-04-14")
    assert {canonical_model(name, prices) for name in names} == {"openai:gpt-4.1"}
    assert canonical_model("acme", prices) == "acme"
