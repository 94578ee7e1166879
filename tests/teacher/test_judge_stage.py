"""The judge stage, from files to files, against a real server on loopback and doubles."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from progress_lines import Lines

import judge_doubles as doubles
from stillhouse.core.errors import BudgetError, DataError, UserError
from stillhouse.core.jsonl import read_json, read_records, write_records
from stillhouse.core.judge_gold import gold_pairs, read_gold
from stillhouse.core.judgements import JUDGE, JUDGEMENTS, Judgement
from stillhouse.core.recipe import Recipe
from stillhouse.core.records import Completion, LabelledQuery, Query
from stillhouse.core.runfolder import Outcome, hash_folder
from stillhouse.core.statistics import wilson
from stillhouse.core.tasks import ClassificationTask, ExtractionTask, GenerationTask
from stillhouse.teacher import judge_stage
from stillhouse.teacher.judge_stage import run_judge
from teacher_servers import KEY, error, openai_answer, serve

TASK = GenerationTask(kind="generation", prompt="Summarise: {text}")


def recipe(**judge: Any) -> Recipe:
    dataset = {"judge": {"model": "openai:gpt-4.1", "gold": "unset"} | judge}
    if judge.get("mode") == "pairwise":
        dataset["best_of"] = "judge"
    return Recipe.model_validate(
        {
            "name": "r",
            "task": {"kind": "generation", "prompt": "Summarise: {text}"},
            "traffic": {"path": "t.jsonl"},
            "teacher": {"model": "embedded", "samples": 2, "sampling_temperature": 1.0},
            "dataset": dataset,
            "student": {"head": "text", "from": "hf:x"},
        }
    )


class House:
    """Folders of one run: 20 queries with two answers each, `right` where `good(i, sample)`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lines = Lines()
        self.gold = root / "gold.jsonl"
        self.write_gold(30)
        self.ids = [f"q{i}" for i in range(20)]
        self.answer = lambda i, sample: f"{'right' if (i + sample) % 2 else 'wrong'} {i} {sample}"

    def write_gold(self, each: int) -> None:
        rows = [
            {
                "text": f"gold {i}",
                "answer": f"{'right' if good else 'wrong'} gold {i}",
                "good": good,
            }
            for i in range(each)
            for good in (True, False)
        ]
        self.gold.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(self, made: Recipe) -> Outcome:
        queries = [
            Query(id=name, messages=TASK.messages_for(f"text {i}"))
            for i, name in enumerate(self.ids)
        ]
        write_records(self.root / "traffic" / "queries.jsonl", queries)
        write_records(
            self.root / "ask" / "completions.jsonl",
            [
                Completion(query_id=q.id, text=self.answer(i, s), model="t", revision="r", sample=s)
                for i, q in enumerate(queries)
                for s in (0, 1)
            ],
        )
        section = made.dataset.judge
        assert section is not None
        section = section.model_copy(update={"gold": str(self.gold)})
        dataset = made.dataset.model_copy(update={"judge": section})
        work = self.root / "judge"
        work.mkdir(exist_ok=True)
        return run_judge(
            made.model_copy(update={"dataset": dataset}),
            self.root / "traffic",
            self.root / "ask",
            self.root / "store",
            work,
            self.lines,
            lambda query, completion: (
                None if "invalid" in completion.text else completion.text.strip().rstrip(".")
            ),
        )

    @property
    def report(self) -> dict[str, Any]:
        return read_json(self.root / "judge" / JUDGE)

    @property
    def judgements(self) -> list[Judgement]:
        return list(read_records(self.root / "judge" / JUDGEMENTS, Judgement))


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    return House(tmp_path)


@pytest.fixture
def doubled(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """`doubled[:] = [reply]` sets what the judge says."""
    replies: list[Any] = [doubles.perfect]
    monkeypatch.setattr(
        judge_stage, "open_teacher", lambda section, prices: doubles.double(replies[0])
    )
    return replies


def reply(body: Mapping[str, Any], said: doubles.Reply = doubles.perfect) -> Any:
    return openai_answer(said(body["messages"][-1]["content"]), usage=(100, 1))


def test_a_real_server_judges_and_is_paid_once(house: House) -> None:
    with serve(lambda body, number: reply(body)) as server:
        made = recipe(base_url=server.url + "/v1", noise_pairs=5)
        outcome = house.run(made)
        asked = len(server.bodies)
        first = hash_folder(house.root / "judge")
        again = house.run(made)
        assert len(server.bodies) == asked == max(server.asked.values()) * asked
        # 60 gold answers, 40 answers, 5 pairs in both orders.
        assert asked == 60 + 40 + 10
    assert hash_folder(house.root / "judge") == first
    assert outcome.cost_usd == again.cost_usd > 0
    for body in server.bodies:
        text = json.dumps(body)
        assert "embedded" not in text, "the judge is blind to who answered"
        assert body["messages"][0]["role"] == "user"
    report = house.report
    assert report["judge"] == "openai:gpt-4.1"
    assert report["gold"]["youden"]["estimate"] == 1
    assert report["rate"]["raw"] == wilson(10, 20).to_json()
    assert report["rate"]["corrected"]["estimate"] == 0.5
    assert report["rate"]["corrected"]["low"] < report["rate"]["raw"]["low"]
    assert [t["sensitivity"] for t in report["gold"]["thresholds"]] == [1, 1, 1, 1]
    assert (report["judged"], report["unreadable"]) == (40, 0)
    # One of each query's two answers is right: a perfect judge prefers it every time.
    assert report["noise_floor"]["estimate"] == 1
    assert report["position_bias"]["followed"]["estimate"] == 0
    good = {(j.query_id, j.sample) for j in house.judgements if j.good}
    assert good == {(f"q{i}", s) for i in range(20) for s in (0, 1) if (i + s) % 2}


def test_answers_that_a_true_one_replaces_are_not_paid_for(
    house: House, doubled: list[Any]
) -> None:
    truth = [
        LabelledQuery(id=f"q{i}", messages=TASK.messages_for(f"text {i}"), reference="right")
        for i in range(5)
    ]
    house.ids = [truth[i].as_traffic().id if i < 5 else f"q{i}" for i in range(20)]
    made = recipe()
    house.run(made)
    assert len(house.judgements) == 40, "a text student learns the teacher's words"
    labels = ClassificationTask(kind="classification", labels=("right", "wrong"))
    house.run(made.model_copy(update={"task": labels}))
    assert len(house.judgements) == 30
    assert house.report["rate"]["raw"]["n"] == 15


def test_invalid_answers_are_not_paid_for(house: House, doubled: list[Any]) -> None:
    house.answer = lambda i, sample: "invalid" if sample else f"right {i}"
    house.run(recipe())
    assert [(j.query_id, j.sample) for j in house.judgements] == [(f"q{i}", 0) for i in range(20)]
    assert house.report["noise_floor"] is None


@pytest.mark.parametrize("word", ["5", "4", "1"])
def test_a_judge_that_always_says_one_thing_is_one_clear_line(
    house: House, doubled: list[Any], word: str
) -> None:
    doubled[:] = [doubles.always(word)]
    with pytest.raises(UserError) as caught:
        house.run(recipe())
    text = str(caught.value)
    kind = "bad" if word == "1" else "good"
    assert f"dataset.judge judge: says {kind} whatever it is shown" in text
    assert "\n" not in text
    assert not (house.root / "judge" / JUDGE).exists()


@pytest.mark.parametrize("word", ["A", "B"])
def test_a_judge_that_always_says_a_is_refused_before_it_is_paid(house: House, word: str) -> None:
    with serve(lambda body, number: openai_answer(word)) as server:
        made = recipe(base_url=server.url + "/v1", mode="pairwise")
        gold = [json.loads(line) for line in house.gold.read_text().splitlines()]
        with pytest.raises(UserError, match=f"says {word} whatever stands there"):
            house.run(made)
        assert len(server.bodies) == len(gold), "the gold pairs in both orders, and no more"


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("tie", "says tie to 30 of 30 pairs"),
        ("who knows", "30 of its 30 comparisons on the gold set cannot be read"),
    ],
)
def test_pairwise_judges_of_no_use(
    house: House, doubled: list[Any], said: str, expected: str
) -> None:
    doubled[:] = [doubles.always(said)]
    with pytest.raises(UserError, match=expected):
        house.run(recipe(mode="pairwise"))


def test_a_judge_no_better_than_chance_is_refused(house: House, doubled: list[Any]) -> None:
    doubled[:] = [doubles.noisy(0.5, 0.5)]
    with pytest.raises(UserError, match="is no better than chance on the gold set: Youden index"):
        house.run(recipe())


def test_a_judge_that_cannot_be_read_is_refused(house: House, doubled: list[Any]) -> None:
    doubled[:] = [doubles.always("I think it is fine.")]
    with pytest.raises(UserError, match="60 of its 60 verdicts on the gold set cannot be read"):
        house.run(recipe())


def test_a_gold_set_too_small_to_show_anything(house: House, doubled: list[Any]) -> None:
    house.write_gold(3)
    with pytest.raises(UserError, match=r"too small to show anything \(3 good, 3 bad\)"):
        house.run(recipe())


def test_a_noisy_judge_is_corrected(house: House, doubled: list[Any]) -> None:
    doubled[:] = [doubles.noisy(0.9, 0.8)]
    house.write_gold(400)
    house.answer = lambda i, sample: f"right {i} {sample}"
    house.run(recipe())
    gold, rate = house.report["gold"], house.report["rate"]
    # Four standard errors of a share of 400.
    assert gold["sensitivity"]["estimate"] == pytest.approx(0.9, abs=4 * (0.09 / 400) ** 0.5)
    assert gold["specificity"]["estimate"] == pytest.approx(0.8, abs=4 * (0.16 / 400) ** 0.5)
    raw, found = rate["raw"]["estimate"], rate["corrected"]
    se, sp = gold["sensitivity"]["estimate"], gold["specificity"]["estimate"]
    assert found["estimate"] == pytest.approx(min(1.0, (raw + sp - 1) / (se + sp - 1)))
    assert found["high"] == 1.0


def test_pairwise_ranks_and_counts_its_noise(house: House, doubled: list[Any]) -> None:
    outcome = house.run(recipe(mode="pairwise"))
    shares = {(j.query_id, j.sample): j.score for j in house.judgements}
    assert shares["q0", 0] == 0.0
    assert shares["q0", 1] == 1.0
    assert all(j.good is None for j in house.judgements)
    assert house.report["rate"] is None
    assert house.report["min_score"] is None
    assert house.report["gold"]["net"]["estimate"] == 1
    assert outcome.summary["noise floor"] == 1


def test_a_leaning_judge_is_named(house: House, doubled: list[Any]) -> None:
    doubled[:] = [doubles.biased(0.5)]
    house.run(recipe(mode="pairwise"))
    (line,) = house.lines.said
    assert "leans to the answer shown first" in line
    assert house.report["position_bias"]["p_value"] < 0.05


def test_equal_answers_tie_and_are_noise_too(house: House, doubled: list[Any]) -> None:
    house.answer = lambda i, sample: "right" if i % 2 else f"wrong {sample}"
    house.run(recipe(mode="pairwise"))
    assert house.report["noise_floor"] == wilson(0, 20).to_json()
    assert {j.score for j in house.judgements} == {0.5}


def test_answers_that_differ_in_form_alone_are_one_and_paid_once(house: House) -> None:
    house.answer = lambda i, sample: f"right {i}" + "." * sample
    with serve(lambda body, number: reply(body)) as server:
        house.run(recipe(base_url=server.url + "/v1"))
        assert len(server.bodies) == 60 + 20, "nor is an answer compared with itself"
        asked = [doubles.material(b["messages"][-1]["content"])[1] for b in server.bodies]
    assert not any(text.endswith(".") for text in asked), "what is kept is judged"
    assert house.report["judged"] == 40
    assert house.report["noise_floor"] == wilson(0, 20).to_json()


@pytest.mark.parametrize("leaning", ["3", "5"])
def test_a_judge_that_says_4_and_means_it_says_good(house: House, leaning: str) -> None:
    """With logprobs the score is a fraction: a hair under 4 is no verdict against the answer."""

    def says(body: dict[str, Any], number: int) -> Any:
        good = doubles.good(doubles.material(body["messages"][-1]["content"])[1])
        text, other = ("4", leaning) if good else ("2", "3")
        content = [
            {
                "token": text,
                "logprob": math.log(0.95),
                "top_logprobs": [
                    {"token": text, "logprob": math.log(0.95)},
                    {"token": other, "logprob": math.log(0.05)},
                ],
            }
        ]
        return openai_answer(text, logprobs=content)

    with serve(says) as server:
        house.run(recipe(base_url=server.url + "/v1", noise_pairs=0))
    scores = {j.score for j in house.judgements if j.good}
    assert len(scores) == 1
    assert scores.pop() == pytest.approx(4.05 if leaning == "5" else 3.95, abs=0.001)
    assert house.report["gold"]["sensitivity"]["estimate"] == 1
    assert house.report["gold"]["specificity"]["estimate"] == 1
    assert [t["min_score"] for t in house.report["gold"]["thresholds"]] == [1.5, 2.5, 3.5, 4.5]


def test_the_judges_budget_is_its_own_and_named(house: House) -> None:
    with serve(lambda body, number: reply(body)) as server:
        made = recipe(base_url=server.url + "/v1", budget_usd=0.02, concurrency=1)
        with pytest.raises(BudgetError, match=r"^dataset\.judge\.budget_usd: .*raise budget_usd"):
            house.run(made)
        before = len(server.bodies)
        assert before > 0
        house.run(recipe(base_url=server.url + "/v1", noise_pairs=0))
        assert len(server.bodies) == 100, "what was judged before is not asked again"


def test_errors_of_the_server_name_the_judge(house: House) -> None:
    with (
        serve(lambda body, number: error(404, "no such model")) as server,
        pytest.raises(UserError, match=r"^dataset\.judge: .*check dataset\.judge\.model"),
    ):
        house.run(recipe(base_url=server.url + "/v1"))


def test_reasons_first_where_asked_for(house: House) -> None:
    def thinks(body: dict[str, Any], number: int) -> Any:
        assert body["max_completion_tokens"] == 1024
        assert "top_logprobs" not in body
        verdict = doubles.perfect(body["messages"][-1]["content"])
        return openai_answer(f"Let me see.\nScore: {verdict}")

    with serve(thinks) as server:
        house.run(recipe(base_url=server.url + "/v1", explain=True, noise_pairs=0))
    assert house.report["unreadable"] == 0


# --- the gold set ---------------------------------------------------------------------------------


def gold_file(folder: Path, *rows: object) -> Path:
    path = folder / "g.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


GOOD = {"text": "a", "answer": "x", "good": True}
BAD = {"text": "a", "answer": "y", "good": False}


def test_gold_lines(tmp_path: Path) -> None:
    chat = {"messages": [{"role": "user", "content": "Hi"}], "answer": "x", "good": True, "id": "1"}
    found = read_gold(gold_file(tmp_path, GOOD, BAD, GOOD, chat), TASK)
    assert [(one.text, one.good) for one in found] == [("x", True), ("y", False), ("x", True)]
    assert found[0].query.last_user_text == "Summarise: a"
    assert gold_pairs(found)[0][1:] == ("x", "y")


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([GOOD], "holds no answer with good: false"),
        ([BAD], "holds no answer with good: true"),
        ([GOOD, BAD | {"answer": "x"}], "line 2.*labels an answer otherwise"),
        ([GOOD | {"good": 1}], "line 1: good: must be true or false"),
        ([GOOD | {"answer": " "}], "line 1: answer"),
        ([GOOD | {"label": "x"}], "unknown key 'label'"),
        ([{"answer": "x", "good": True}], "needs text or messages"),
        ([GOOD | {"messages": []}], "needs text or messages"),
        ([{"messages": [{"role": "u"}], "answer": "x", "good": True}], "line 1: messages"),
        ([GOOD | {"text": 3}], "text: must be a text"),
    ],
)
def test_bad_gold_lines_are_named(tmp_path: Path, rows: list[Any], said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        read_gold(gold_file(tmp_path, *rows), TASK)
    assert "\n" not in str(caught.value)


def test_gold_answers_have_the_form_in_which_answers_are_judged(tmp_path: Path) -> None:
    fields = ExtractionTask(
        kind="extraction",
        json_schema={"type": "object", "properties": {"n": {"type": "integer"}}},
    )
    rows = [GOOD | {"answer": '```json\n{"n":1}\n```'}, BAD | {"answer": "no JSON "}]
    found = read_gold(gold_file(tmp_path, *rows), fields)
    assert [one.text for one in found] == ['{"n": 1}', "no JSON"]
    labels = ClassificationTask(kind="classification", labels=("x", "y"))
    found = read_gold(gold_file(tmp_path, GOOD | {"answer": " X."}, BAD), labels)
    assert [one.text for one in found] == ["x", "y"]


def test_pairs_need_both_answers_to_one_query(tmp_path: Path) -> None:
    found = read_gold(gold_file(tmp_path, GOOD, BAD | {"text": "b"}), TASK)
    with pytest.raises(DataError, match="no query has a good and a bad answer"):
        gold_pairs(found)
