"""`stillhouse plan`: free and sampled, against a server on loopback and local doubles."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web
from typer.testing import CliRunner

from doubles import double, recipe_of, write_rows
from stillhouse import plan as plan_module
from stillhouse.cli import app
from stillhouse.core.errors import RecipeError, UserError
from stillhouse.core.jsonl import read_json
from stillhouse.core.money import model_price
from stillhouse.core.progress import Silent
from stillhouse.core.recipe import Recipe
from stillhouse.pipeline import run_stages
from stillhouse.plan import make_plan, plan_lines
from stillhouse.teacher.batch_journal import FOLDER, BatchJournal, Intended
from stillhouse.teacher.build import open_teacher, teacher_info
from teacher_servers import KEY, Loopback, openai_answer, serve

WAIVED = {"waived_by": "the tests", "reason": "a server on loopback"}
LIMITS = {"x-ratelimit-limit-requests": "600", "x-ratelimit-limit-tokens": "1000000"}
QUERIES = 120


class Lines(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def tokens(text: str) -> int:
    return max(1, len(text.encode()) // 4)


def answer(body: dict[str, Any], _: int) -> web.Response:
    """Tokens in proportion to bytes; every tenth query gets no label."""
    content = body["messages"][-1]["content"]
    number = int(content.split()[-1])
    text = "perhaps" if number % 10 == 0 else "good" if number % 2 else "bad"
    made = openai_answer(text, usage=(tokens(content), 3 + number % 5))
    made.headers.update(LIMITS)
    return made


@contextmanager
def at_work(folder: Path, **teacher: Any) -> Iterator[tuple[Loopback, Recipe]]:
    write_rows(
        folder / "traffic.jsonl",
        [{"text": f"{'word ' * (3 + n % 17)}number {n}"} for n in range(QUERIES)],
    )
    with serve(answer) as server:
        yield (
            server,
            recipe_of(
                folder,
                teacher={
                    "model": "openai:gpt-4.1",
                    "base_url": server.url + "/v1",
                    "terms": WAIVED,
                    "max_tokens": 50,
                    **teacher,
                },
                dataset={"near_duplicate": 1.0},
                train={"alpha": 0},
                # five truths are looked for in their intervals, once: 1 in 200 goes amiss
                evaluate={"confidence": 0.999},
            ),
        )


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def test_a_free_plan_asks_nothing_and_needs_no_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    with at_work(tmp_path) as (server, recipe):
        plan = make_plan(recipe, tmp_path / "run", None, Silent()).plan
        assert server.bodies == []
    assert plan.sample is None
    assert (plan.queries, plan.answered, plan.open) == (QUERIES, 0, QUERIES)
    assert plan.prompt_tokens.basis == plan.completion_tokens.basis == "bound"
    assert plan.completion_tokens.high == QUERIES * 50
    assert plan.usd_list is not None
    assert plan.usd_list.estimate is None
    price = model_price(recipe.prices, "openai:gpt-4.1")
    assert price is not None
    assert plan.prompt_tokens.high is not None
    assert plan.usd_list.high == pytest.approx(
        (plan.prompt_tokens.high * price.input + QUERIES * 50 * price.output) / 1e6
    )
    assert plan.usd_batch is not None
    assert plan.usd_batch.high == pytest.approx(plan.usd_list.high / 2)
    assert "4 bytes a token" in plan.notes[0]
    assert read_json(tmp_path / "run" / "plan.json")["teacher"] == "openai:gpt-4.1"


def test_a_sample_is_paid_once_and_foretells_the_run(tmp_path: Path) -> None:
    lines = Lines()
    with at_work(tmp_path, budget_usd=1.0) as (server, recipe):
        plan = make_plan(recipe, tmp_path / "run", 40, lines).plan
        assert len(server.bodies) == 40
        assert "at most $" in next(line for line in lines.said if "sample: asking 40" in line)
        assert plan.sample is not None
        assert (plan.sample.n, plan.sample.asked, plan.open) == (40, 40, QUERIES - 40)
        again = make_plan(recipe, tmp_path / "run", 40, Silent()).plan
        assert len(server.bodies) == 40
        assert again.sample is not None
        assert (again.sample.asked, again.sample.reused, again.sample.usd) == (0, 40, 0)
        assert again.prompt_tokens == plan.prompt_tokens
        asked = {body["messages"][-1]["content"] for body in server.bodies}
        run_stages(recipe, tmp_path / "run", Silent(), last="dataset")
        assert len(server.bodies) == QUERIES
        assert max(server.asked.values()) == 1
        done = make_plan(recipe, tmp_path / "run", None, Silent()).plan
        assert (done.open, done.cheapest) == (0, "nothing: every answer is in the store")
        assert done.budget is not None
        assert done.budget.suffices == "yes"
        assert done.targets[0].usd_list is None
    rest = [b["messages"][-1]["content"] for b in server.bodies]
    rest = [content for content in rest if content not in asked]
    prompt, output = sum(map(tokens, rest)), sum(3 + int(c.split()[-1]) % 5 for c in rest)
    price = model_price(recipe.prices, "openai:gpt-4.1")
    assert price is not None
    usd = (prompt * price.input + output * price.output) / 1e6
    examples = len((tmp_path / "run/dataset/train.jsonl").read_text().splitlines()) + len(
        (tmp_path / "run/dataset/held_out.jsonl").read_text().splitlines()
    )
    for found, true in (
        (plan.prompt_tokens, prompt),
        (plan.completion_tokens, output),
        (plan.usd_list, usd),
        (plan.accepted, examples),
        (plan.examples, examples),
    ):
        assert found is not None
        assert found.basis == "sample"
        assert found.low is not None
        assert found.high is not None
        assert found.low <= true <= found.high
    assert plan.budget is not None
    assert plan.budget.suffices == "yes"


def test_rate_limits_of_the_provider_bound_the_time(tmp_path: Path) -> None:
    with at_work(tmp_path, concurrency=64) as (_, recipe):
        plan = make_plan(recipe, tmp_path / "run", 20, Silent()).plan
    assert plan.seconds is not None
    assert plan.seconds.estimate == pytest.approx((QUERIES - 20) / 10)  # 600 a minute
    assert plan.seconds_limited_by == "the provider's requests per minute"


def test_a_sample_that_may_cross_the_budget_is_not_begun(tmp_path: Path) -> None:
    with at_work(tmp_path, budget_usd=0.01) as (server, recipe):
        with pytest.raises(UserError, match=r"--sample: 100 new queries .* give --sample \d+"):
            make_plan(recipe, tmp_path / "run", 100, Silent())
        assert server.bodies == []
        plan = make_plan(recipe, tmp_path / "run", 10, Silent()).plan
    assert plan.budget is not None
    assert plan.budget.left_usd < 0.01


@pytest.mark.parametrize(
    ("model", "said"), [("openai:gpt-4.1", "paid for twice"), ("openai:other", "--sample: 20 new")]
)
def test_what_batches_hold_is_no_longer_there_for_a_sample(
    tmp_path: Path, model: str, said: str
) -> None:
    with at_work(tmp_path, budget_usd=1.0) as (server, recipe):
        with BatchJournal(tmp_path / "run" / "store" / FOLDER) as journal:
            journal.intend(
                Intended(
                    batch="b", teacher=f"{model}@r", at=1.0, requests=1, size=1, worst_usd=0.999
                ),
                [],
            )
        with pytest.raises(UserError, match=said):
            make_plan(recipe, tmp_path / "run", 20, Silent())
        assert server.bodies == []
        plan = make_plan(recipe, tmp_path / "run", None, Silent()).plan
    assert plan.budget is not None
    assert plan.budget.left_usd == pytest.approx(0.001)


def test_a_budget_too_small_says_for_how_many(tmp_path: Path) -> None:
    with at_work(tmp_path) as (_, recipe):
        plan = make_plan(recipe, tmp_path / "run", 30, Silent()).plan
        assert plan.usd_list is not None
        assert plan.usd_list.estimate is not None
        assert plan.sample is not None
        small = plan.sample.usd + plan.usd_list.estimate / 3
        teacher = recipe.teacher.model_copy(update={"budget_usd": small})
        tight = make_plan(
            recipe.model_copy(update={"teacher": teacher}), tmp_path / "run", 30, Silent()
        ).plan
    assert tight.budget is not None
    assert tight.budget.suffices == "no"
    assert tight.budget.queries is not None
    assert tight.budget.queries.estimate == pytest.approx((QUERIES - 30) / 3, rel=0.01)
    assert [target.examples for target in tight.targets] == [10_000, 50_000, 100_000]
    first = tight.targets[0]
    assert not first.within_traffic
    assert first.queries.estimate is not None
    assert first.queries.estimate > 10_000, "some answers are rejected"
    assert first.usd_batch is not None
    assert first.usd_list is not None
    assert first.usd_batch.estimate == pytest.approx((first.usd_list.estimate or 0) / 2)
    assert "batches" in tight.cheapest


def test_a_budget_is_held_against_the_price_that_is_asked_at(tmp_path: Path) -> None:
    with at_work(tmp_path) as (_, recipe):
        plan = make_plan(recipe, tmp_path / "run", 30, Silent()).plan
    assert plan.usd_list is not None
    assert plan.usd_list.estimate is not None
    assert plan.sample is not None
    waiting = QUERIES - 30
    budget = plan.sample.usd + 0.3 * plan.usd_list.estimate
    bought = []
    for batch in (None, {"pilot": 1}, {"pilot": waiting // 2}, {"pilot": 10 * waiting}):
        raw = recipe.model_dump(mode="json", by_alias=True)
        raw["teacher"] |= {"batch": batch, "budget_usd": budget}
        planned = make_plan(Recipe.model_validate(raw), tmp_path / "run", None, Silent()).plan
        assert planned.budget is not None
        assert planned.budget.queries is not None
        bought.append((planned.budget.queries.estimate or 0) / waiting)
        if batch is not None:
            assert planned.seconds is None
            assert "within 24 hours" in planned.seconds_limited_by
    # Half live, half at half price is three quarters.
    assert bought == pytest.approx([0.3, 0.6, 0.4, 0.3], rel=0.02)


def test_a_price_not_known_is_asked_for_and_nothing_is_paid(tmp_path: Path) -> None:
    with at_work(tmp_path, model="openai:nobody-knows") as (server, recipe):
        planned = make_plan(recipe, tmp_path / "run", 20, Silent())
        assert server.bodies == []
        assert planned.sample_refused
        assert planned.plan.usd_list is None
        assert planned.plan.prompt_tokens.high
        assert "prices.models.nobody-knows" in str(planned.plan.price_wanted)
        shown = "\n".join(f"{name} {value}" for name, value in plan_lines(planned))
        assert "prices.models.nobody-knows" in shown
        raw = recipe.model_dump(mode="json", by_alias=True)
        (tmp_path / "r.yaml").write_text(yaml.safe_dump(raw))
        command = ["plan", str(tmp_path / "r.yaml"), "--run-dir", str(tmp_path / "run")]
        free = CliRunner().invoke(app, command)
        paid = CliRunner().invoke(app, [*command, "--sample", "5", "--json"])
        assert (free.exit_code, paid.exit_code) == (0, 2)
        assert "tokens in" in free.output
        assert json.loads(paid.stdout)["usd_list"] is None
        assert server.bodies == []
        raw["prices"] = {
            "models": {
                "nobody-knows": {
                    "input_usd_per_mtok": 1,
                    "output_usd_per_mtok": 2,
                    "batch_discount": 0.25,
                }
            }
        }
        priced = make_plan(Recipe.model_validate(raw), tmp_path / "run", 5, Silent()).plan
    assert priced.usd_list is not None
    assert priced.usd_batch is not None
    assert priced.usd_batch.estimate == pytest.approx(0.75 * (priced.usd_list.estimate or 0))


def test_terms_come_before_the_plan(tmp_path: Path) -> None:
    with at_work(tmp_path, terms=None) as (server, recipe):
        with pytest.raises(RecipeError, match=r"teacher\.terms: is not set"):
            make_plan(recipe, tmp_path / "run", 5, Silent())
        assert server.bodies == []
    assert not (tmp_path / "run").exists()


def test_a_plan_that_asks_nobody_needs_no_terms(tmp_path: Path) -> None:
    with at_work(tmp_path, terms=None) as (server, recipe):
        assert make_plan(recipe, tmp_path / "run", None, Silent()).plan.open == QUERIES
        assert server.bodies == []


def test_an_ensemble_of_local_models_is_planned_and_one_that_is_paid_is_not(tmp_path: Path) -> None:
    write_rows(tmp_path / "traffic.jsonl", [{"text": f"lovely number {n}"} for n in range(60)])
    members = [{"model": f"hf:{tmp_path / name}"} for name in "abc"]
    teacher = {"model": "ensemble:three", "members": members, "terms": WAIVED}
    recipe = recipe_of(tmp_path, teacher=teacher, train={"alpha": 0})
    plan = make_plan(recipe, tmp_path / "run", None, Silent()).plan
    alone = recipe_of(tmp_path, teacher={**members[0], "terms": WAIVED}, train={"alpha": 0})
    one = make_plan(alone, tmp_path / "alone", None, Silent()).plan
    assert plan.teacher == "ensemble:three"
    assert plan.queries == one.queries == 60
    assert plan.usd_list is not None
    assert plan.usd_list.estimate == 0
    assert plan.prompt_tokens.high == 3 * (one.prompt_tokens.high or 0)
    assert "each of 3 members" in plan.notes[0]
    with pytest.raises(RecipeError, match=r"without --sample, one of local models is planned"):
        make_plan(recipe, tmp_path / "run", 5, Silent())


def test_a_local_teacher_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_rows(tmp_path / "traffic.jsonl", [{"text": f"lovely number {n}"} for n in range(60)])
    recipe = recipe_of(tmp_path)
    free = make_plan(recipe, tmp_path / "run", None, Silent()).plan
    assert free.seconds is None
    assert "--sample" in free.seconds_limited_by
    monkeypatch.setattr(plan_module, "open_teacher", lambda *_: double())
    plan = make_plan(recipe, tmp_path / "run", 30, Silent()).plan
    assert plan.usd_list is not None
    assert plan.usd_list.estimate == 0
    assert plan.seconds is not None
    assert plan.seconds.low is not None
    assert plan.seconds.estimate is not None
    assert 0 <= plan.seconds.low <= plan.seconds.estimate
    assert plan.seconds_limited_by == "this machine"
    assert "this machine" in plan.cheapest
    assert plan.budget is None


@pytest.mark.parametrize("model", ["openai:gpt-4.1", "anthropic:m", "openai-compatible:m"])
def test_what_is_known_without_a_key_is_what_the_client_says(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    section = recipe_of(
        tmp_path, teacher={"model": model, "base_url": "http://127.0.0.1:9/v1"}, train={"alpha": 0}
    ).teacher
    assert teacher_info(section) == open_teacher(section, recipe_of(tmp_path).prices).info


@pytest.mark.parametrize(
    "teacher",
    [
        {"model": "replay:answers.jsonl", "terms": WAIVED},
        {
            "model": "ensemble",
            "members": [{"model": "embedded"}, {"model": "openai:gpt-4.1"}],
            "terms": WAIVED,
        },
    ],
)
def test_what_cannot_be_planned_is_said(tmp_path: Path, teacher: dict[str, Any]) -> None:
    write_rows(tmp_path / "traffic.jsonl", [{"text": f"number {n}"} for n in range(QUERIES)])
    recipe = recipe_of(tmp_path, teacher=teacher, train={"alpha": 0})
    with pytest.raises(RecipeError, match="only a single teacher that is asked can be planned"):
        make_plan(recipe, tmp_path / "run", None, Silent())
