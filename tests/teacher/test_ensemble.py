"""Ensembles asked: who is asked how often, what it costs, and what happens where one is silent."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from progress_lines import Lines

from stillhouse.core.errors import BudgetError, StillhouseError, TeacherError, UserError
from stillhouse.core.jsonl import read_records, write_records
from stillhouse.core.recipe import Recipe
from stillhouse.core.recipe_teacher import TeacherSection
from stillhouse.core.records import Completion, LabelledQuery, Message, Query, Rejection
from stillhouse.core.tasks import ClassificationTask
from stillhouse.models.completer import Sampling
from stillhouse.models.fake import FakeCompleter, keyword_belief
from stillhouse.teacher.ask import AskResult, ask
from stillhouse.teacher.ensemble import (
    Ensemble,
    EnsembleCompleter,
    Member,
    combine_results,
    together_per_second,
)
from stillhouse.teacher.stage import run_ask, run_check
from stillhouse.teacher.store import AnswerStore
from teacher_servers import KEY, Loopback, error, openai_answer, serve

LABELS = ("good", "bad")
TASK = ClassificationTask(kind="classification", labels=LABELS)
LOCAL = TeacherSection(model="embedded")
SAMPLING = Sampling(labels=LABELS)


def queries(count: int) -> list[Query]:
    words = ("lovely", "awful", "odd")
    return [
        Query(id=f"q{i}", messages=(Message(role="user", content=f"{words[i % 3]} {i}"),))
        for i in range(count)
    ]


def double(name: str, strength: float, **words: str) -> FakeCompleter:
    return FakeCompleter(name, belief=keyword_belief(LABELS, words, strength))


def ensemble(*doubles: FakeCompleter, how: Any = "mean_probabilities", **more: Any) -> Ensemble:
    weights = more.get("weights", (1.0,) * len(doubles))
    members = zip(doubles, weights, strict=True)
    return Ensemble("ensemble", TASK, how, tuple(Member(LOCAL, w, d.info) for d, w in members))


def asked(folder: Path, some: list[Query], *doubles: FakeCompleter) -> list[AskResult]:
    async def every() -> list[AskResult]:
        with AnswerStore(folder / "answers.jsonl") as store:
            return [await ask(d, some, SAMPLING, store, concurrency=4) for d in doubles]

    return asyncio.run(every())


ONE = {"lovely": "good", "awful": "bad", "odd": "bad"}
TWO = {"lovely": "good", "awful": "good", "odd": "bad"}


def test_members_are_asked_once_each_and_their_beliefs_are_mixed(tmp_path: Path) -> None:
    a, b = double("a", 0.9, **ONE), double("b", 0.6, **TWO)
    made, some = ensemble(a, b), queries(6)
    found = combine_results(made, asked(tmp_path, some, a, b), some)
    assert list(found.completions_by_query) == [query.id for query in some]
    assert (len(a.asked), len(b.asked)) == (6, 6)
    completion = found.completions_by_query["q1"][0]  # a: bad 0.9, b: good 0.6
    assert completion.text == "bad"
    assert completion.label_logprobs == pytest.approx(
        {"good": math.log(0.35), "bad": math.log(0.65)}
    )
    assert (completion.model, completion.revision) == ("ensemble", made.info.revision)
    assert completion.completion_tokens == 2
    assert completion.prompt_tokens == 4
    assert (found.asked, found.reused, found.failures) == (6, 0, ())
    again = asked(tmp_path, some, a, b)
    assert combine_results(made, again, some).reused == 6


def test_the_revision_says_who_and_how() -> None:
    a, b = double("a", 0.9), double("b", 0.9)
    base = ensemble(a, b)
    others = [
        ensemble(b, a),
        ensemble(a, a),
        ensemble(a, b, weights=(2.0, 1.0)),
        ensemble(a, b, how="mean_logits"),
    ]
    assert len({one.info.revision for one in (base, *others)}) == 5
    assert base.info.revision == ensemble(a, b).info.revision
    assert base.revision(["1", "2"]) != base.revision(["1", "3"])


def test_asked_live_it_says_the_same(tmp_path: Path) -> None:
    a, b = double("a", 0.9, **ONE), double("b", 0.6, **TWO)
    made, some = ensemble(a, b, how="mean_logits"), queries(6)
    kept = combine_results(made, asked(tmp_path, some, a, b), some).completions_by_query
    live = EnsembleCompleter(made, [a, b], [SAMPLING, SAMPLING])

    async def every() -> list[Completion]:
        found = [(await live.complete(query, Sampling()))[0] for query in some]
        await live.aclose()
        return found

    assert asyncio.run(every()) == [kept[query.id][0] for query in some]
    assert live.info.local
    assert live.info.gives_label_logprobs


def test_live_without_a_quorum_it_has_no_answer() -> None:
    a, b = double("a", 0.9), FakeCompleter("b", answer=lambda query, sample: "dunno")
    live = EnsembleCompleter(ensemble(a, b), [a, b], [SAMPLING, SAMPLING])
    with pytest.raises(TeacherError, match="1 of 2 members"):
        asyncio.run(live.complete(queries(1)[0], SAMPLING))


def test_a_member_that_never_has_a_vote_is_named(tmp_path: Path) -> None:
    a = double("a", 0.9)
    blind = FakeCompleter("blind")  # labels, but no beliefs
    some = queries(4)
    results = asked(tmp_path, some, a, blind)
    with pytest.raises(UserError, match=r"members blind: none of its 4 answers .*majority"):
        combine_results(ensemble(a, blind), results, some)


def test_one_silent_member_of_three_costs_no_answer_and_of_two_says_why(tmp_path: Path) -> None:
    a, b, c = (double(name, 0.9, **ONE) for name in "abc")
    some = queries(4)
    results = asked(tmp_path, some, a, b, c)
    failed = Rejection(query_id="q2", reason="no_answer", detail="the server broke")
    said = {k: v for k, v in results[1].completions_by_query.items() if k != "q2"}
    results[1] = results[1]._replace(completions_by_query=said, failures=(failed,))
    three = combine_results(ensemble(a, b, c, how="majority"), results, some)
    assert len(three.completions_by_query) == 4
    revisions = {c[0].revision for c in three.completions_by_query.values()}
    assert len(revisions) == 1, "a silent member is still one of the ensemble"
    two = combine_results(ensemble(a, b), results[:2], some)
    assert set(two.completions_by_query) == {"q0", "q1", "q3"}
    assert [(f.query_id, f.reason) for f in two.failures] == [("q2", "no_answer")]
    assert two.failures[0].detail.endswith("member 1: the server broke")


def test_rates_of_members_asked_in_turn() -> None:
    assert together_per_second([10.0, 10.0]) == pytest.approx(5.0)
    assert together_per_second([10.0, None]) is None


def recipe(teacher: Mapping[str, Any], **more: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "r",
            "task": {"kind": "classification", "labels": list(LABELS)},
            "traffic": {"path": "t.jsonl", "labelled": "l.jsonl"},
            "teacher": teacher,
            "student": {"head": "label", "from": "embedded-encoder"},
            **more,
        }
    )


class Place:
    """Folders of one run, with traffic in them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lines = Lines()
        write_records(root / "traffic" / "queries.jsonl", queries(12))
        labelled = [
            LabelledQuery(
                id=f"l{i}", messages=query.messages, reference="good" if i % 3 == 0 else "bad"
            )
            for i, query in enumerate(queries(9))
        ]
        write_records(root / "traffic" / "labelled.jsonl", labelled)

    def run(self, stage: Callable[..., Any], made: Recipe) -> Any:
        work = self.root / stage.__name__
        work.mkdir(exist_ok=True)
        return stage(made, self.root / "traffic", None, self.root / "store", work, self.lines)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    return Place(tmp_path)


def sees(*words: str, usage: tuple[int, int] = (100, 10), fingerprint: str | None = "fp") -> Any:
    def reply(body: dict[str, Any], number: int) -> Any:
        text = body["messages"][-1]["content"]
        good = any(word in text for word in words)
        return openai_answer("good" if good else "bad", usage=usage, fingerprint=fingerprint)

    return reply


def at(server: Loopback, name: str, **more: Any) -> dict[str, Any]:
    return {"model": f"openai-compatible:{name}", "base_url": server.url + "/v1", **more}


def test_a_member_and_a_single_teacher_share_their_answers(place: Place) -> None:
    with serve(sees("lovely")) as a, serve(sees("lovely", "odd")) as b, serve(sees("odd")) as c:
        members = [at(a, "a"), at(b, "b"), at(c, "c")]
        place.run(run_ask, recipe(members[0]))
        made = recipe({"model": "ensemble:trio", "members": members, "combine": "majority"})
        place.run(run_check, made)
        place.run(run_ask, made)
        place.run(run_ask, recipe(members[2]))
        assert [max(server.asked.values()) for server in (a, b, c)] == [1, 1, 1]
    check = json.loads((place.root / "run_check" / "check.json").read_text())
    assert check["teacher"] == "ensemble:trio"
    assert check["accuracy"]["estimate"] == pytest.approx(6 / 9)  # odd ones: two of three err


def test_both_stages_write_what_each_member_said(place: Place) -> None:
    with serve(sees("lovely")) as a, serve(sees("lovely", "odd")) as b, serve(sees("odd")) as c:
        made = recipe(
            {
                "model": "ensemble:trio",
                "members": [at(a, "a"), at(b, "b"), at(c, "c")],
                "combine": "majority",
            }
        )
        outcome = place.run(run_ask, made)
    folder = place.root / "run_ask"
    said = list(read_records(folder / "completions.jsonl", Completion))
    assert [c.text for c in said[:3]] == ["good", "bad", "good"]
    assert all(c.model == "ensemble:trio" and c.prompt_tokens == 300 for c in said)
    alone = list(read_records(folder / "member_completions.jsonl", Completion))
    assert [c.model.partition(":")[2] for c in alone] == ["a"] * 12 + ["b"] * 12 + ["c"] * 12
    assert all(c.latency_ms is None and c.cost_usd is None for c in alone)
    timings = json.loads((folder / "timings.json").read_text())
    assert [one["asked"] for one in timings["members"]] == [12, 12, 12]
    assert (timings["asked"], timings["reused"]) == (12, 0)
    assert timings["latency_p95_ms"] >= timings["latency_p50_ms"] > 0
    assert outcome.summary["completions"] == 12


def test_a_provider_that_changes_a_member_changes_the_ensembles_revision(place: Place) -> None:
    def changing(body: dict[str, Any], number: int) -> Any:
        return sees("lovely", fingerprint="fp_1" if number < 6 else "fp_2")(body, number)

    with serve(changing) as a, serve(sees("lovely")) as b, serve(sees("odd")) as c:
        members = [at(a, "a", concurrency=1), at(b, "b"), at(c, "c")]
        place.run(run_ask, recipe({"model": "ensemble", "members": members, "combine": "majority"}))
    said = read_records(place.root / "run_ask" / "completions.jsonl", Completion)
    assert len({c.revision for c in said}) == 2


def test_one_budget_for_all_members(place: Place) -> None:
    price = {"input_usd_per_mtok": 1.0, "output_usd_per_mtok": 1.0}
    each, budget = 55e-6, 900e-6
    reply = sees("lovely", usage=(50, 5))
    with serve(reply) as a, serve(reply) as b, serve(reply) as c:
        made = recipe(
            {
                "model": "ensemble",
                "members": [at(server, name) for server, name in ((a, "a"), (b, "b"), (c, "c"))],
                "combine": "majority",
                "budget_usd": budget,
                "max_tokens": 10,
            },
            prices={"models": dict.fromkeys("abc", price)},
        )
        with pytest.raises(BudgetError):
            place.run(run_ask, made)
        assert len(a.bodies) == 12
        assert 0 < len(b.bodies) < 12
        assert each * (len(a.bodies) + len(b.bodies)) <= budget
        assert c.bodies == []


def test_a_member_whose_server_refuses_stops_the_run_with_its_name(place: Place) -> None:
    with serve(sees("lovely")) as a, serve(lambda body, number: error(404, "no such model")) as b:
        made = recipe({"model": "ensemble", "members": [at(a, "a"), at(b, "b")]})
        with pytest.raises(StillhouseError, match="openai-compatible:b"):
            place.run(run_ask, made)


def test_a_mean_over_a_server_without_logprobs_stops_early_and_a_vote_does_not(
    place: Place,
) -> None:
    write_records(place.root / "traffic" / "queries.jsonl", queries(60))
    with serve(sees("lovely")) as a, serve(sees("lovely")) as b, serve(sees("odd")) as c:
        members = [
            at(server, name, concurrency=1) for server, name in ((a, "a"), (b, "b"), (c, "c"))
        ]
        with pytest.raises(UserError, match="openai-compatible:a"):
            place.run(run_ask, recipe({"model": "ensemble", "members": members}))
        assert len(a.bodies) < 60
        assert b.bodies == []
        made = recipe({"model": "ensemble", "members": members, "combine": "majority"})
        assert place.run(run_ask, made).summary["completions"] == 60
        assert max(a.asked.values()) == 1
