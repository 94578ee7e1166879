"""The judge stage: a model judges the teacher's answers, after the gold set shows that it can.

Reads the traffic's and the ask stage's files, writes judgements.jsonl (one line an answer) and
judge.json: `judge`, `mode`, `min_score`; `gold` (see `judge_trial`); `rate`, `raw` and `corrected`
share of good answers, counted on each query's first valid answer; `noise_floor` and
`position_bias`; `judged`, `unreadable`. Every verdict is paid once. Knows file names and the order
of work; which answers are valid is a function it is given.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from itertools import combinations
from pathlib import Path
from typing import Final, NamedTuple

from stillhouse.core.errors import BudgetError, StillhouseError, TeacherError, UserError
from stillhouse.core.jsonl import read_records, write_json, write_records
from stillhouse.core.judge_gold import GoldAnswer, gold_pairs, read_gold
from stillhouse.core.judgements import JUDGE, JUDGEMENTS, Judgement
from stillhouse.core.judging import (
    PairOutcome,
    corrected_rate,
    noise_floor,
    position_bias,
)
from stillhouse.core.progress import Progress
from stillhouse.core.recipe import Recipe
from stillhouse.core.recipe_quality import JudgeSection
from stillhouse.core.records import LABELLED, Completion, Query
from stillhouse.core.runfolder import Outcome
from stillhouse.core.statistics import wilson
from stillhouse.core.tasks import GenerationTask
from stillhouse.models.completer import Completer, Sampling
from stillhouse.models.judge import Answer, Judge, JudgeForm, Pair, win_shares
from stillhouse.teacher.ask_as import ask_as
from stillhouse.teacher.build import open_teacher
from stillhouse.teacher.judge_trial import (
    PairTrial,
    PointTrial,
    require_useful,
    try_pairs,
    try_points,
)
from stillhouse.teacher.store import AnswerKey, AnswerStore

STORE_FILE: Final = "judge.jsonl"
# What is kept of an answer, in its canonical form; `None` where the checks reject it.
Kept = Callable[[Query, Completion], str | None]


class Candidates(NamedTuple):
    """The valid answers to one query, by sample, and what is kept of each: that is judged."""

    query: Query
    completions: list[Completion]
    texts: list[str]

    @property
    def distinct(self) -> dict[str, int]:
        """Text -> number, of the answers that differ."""
        return {text: number for number, text in enumerate(dict.fromkeys(self.texts))}


def run_judge(  # noqa: PLR0917 - one signature for all stages
    recipe: Recipe,
    traffic_dir: Path,
    ask_dir: Path,
    store_path: Path,
    work: Path,
    progress: Progress,
    kept: Kept,
) -> Outcome:
    """Test the judge, then judge every valid answer.

    Args:
        recipe: the whole recipe, with a judge.
        traffic_dir: the traffic stage's folder.
        ask_dir: the ask stage's folder.
        store_path: the run's folder of paid answers.
        work: where the judgements go.
        progress: bars and lines.
        kept: what is kept of an answer that passes the checks; others are not worth a verdict.
            Answers that differ in form alone are one, and paid once.

    Raises:
        UserError: the gold set cannot be used, or the judge is no better than chance on it.
        BudgetError: judging on would cross `dataset.judge.budget_usd`.
    """
    section = recipe.dataset.judge
    assert section is not None
    gold = read_gold(Path(section.gold), recipe.task)
    candidates = _candidates(recipe, traffic_dir, ask_dir, kept)
    with _named_for_the_judge():
        completer = open_teacher(section.as_teacher(), recipe.prices)
        sitting = asyncio.run(
            _sit(recipe, section, completer, store_path / STORE_FILE, gold, candidates, progress)
        )
    write_records(work / JUDGEMENTS, sitting.judgements)
    report = _report(section, completer.info.name, candidates, sitting)
    write_json(work / JUDGE, report)
    return Outcome(
        summary={
            "judged": len(sitting.judgements),
            "unreadable": report["unreadable"],
            **_said(report, progress),
        },
        cost_usd=sum(sitting.usd_by_key.values()),
    )


class _Sitting(NamedTuple):
    """`noise` are outcomes of pairs of answers of one model to one query."""

    trial: PointTrial | PairTrial
    judgements: list[Judgement]
    noise: list[PairOutcome]
    usd_by_key: Mapping[AnswerKey, float]


async def _sit(  # noqa: PLR0917 - what a sitting needs
    recipe: Recipe,
    section: JudgeSection,
    completer: Completer,
    store_path: Path,
    gold: list[GoldAnswer],
    candidates: Sequence[Candidates],
    progress: Progress,
) -> _Sitting:
    async with aclosing(completer):
        with AnswerStore(store_path) as store:
            desk = _Desk(recipe, section, completer, store, progress)
            judge = Judge(
                desk.ask,
                completer.info,
                JudgeForm(
                    recipe.task,
                    section.criteria,
                    section.explain,
                    section.sampling_temperature,
                    section.answer_tokens,
                    recipe.seed,
                ),
            )
            desk.title = "testing the judge on the gold set"
            trial: PointTrial | PairTrial
            if section.mode == "pointwise":
                trial = await try_points(judge, gold, section.min_score)
            else:
                trial = await try_pairs(judge, gold_pairs(gold))
            require_useful(completer.info.name, trial)
            desk.title = "judging"
            if section.mode == "pointwise":
                judgements = await _score(judge, candidates, section.min_score)
                desk.title = "comparing the teacher with itself"
                pairs = [p.pair for p in _own_pairs(candidates)[: section.noise_pairs]]
                noise = await judge.compare(pairs) if pairs else []
            else:
                judgements, noise = await _rank(judge, candidates)
            return _Sitting(trial, judgements, noise, desk.usd_by_key)


class _Desk:
    """Puts a judge's questions through the store: paid once, under its own budget."""

    def __init__(
        self,
        recipe: Recipe,
        section: JudgeSection,
        completer: Completer,
        store: AnswerStore,
        progress: Progress,
    ) -> None:
        self._recipe = recipe
        self._section = section
        self._completer = completer
        self._store = store
        self._progress = progress
        self.title = "judging"
        self.usd_by_key: dict[AnswerKey, float] = {}

    async def ask(
        self, queries: Sequence[Query], sampling: Sampling
    ) -> Mapping[str, Sequence[Completion]]:
        result = await ask_as(
            self._section.as_teacher(),
            self._completer,
            queries,
            sampling,
            self._store,
            budget_usd=self._section.budget_usd,
            prices=self._recipe.prices,
            progress=self._progress,
            title=self.title,
        )
        if queries and not result.completions_by_query:
            raise TeacherError(
                f"no verdict could be had from {self._completer.info.name}; the first failure: "
                f"{result.failures[0].detail}"
            )
        self.usd_by_key |= result.usd_by_key
        return result.completions_by_query


def _candidates(recipe: Recipe, traffic_dir: Path, ask_dir: Path, kept: Kept) -> list[Candidates]:
    """Valid answers by query; not of queries whose true answer takes the place of the teacher's."""
    replaced = not isinstance(recipe.task, GenerationTask)
    by_query: dict[str, list[Completion]] = {}
    for completion in read_records(ask_dir / "completions.jsonl", Completion):
        by_query.setdefault(completion.query_id, []).append(completion)
    found = []
    for query in read_records(traffic_dir / "queries.jsonl", Query):
        if replaced and query.id.startswith(LABELLED):
            continue
        samples = sorted(by_query.get(query.id, ()), key=lambda c: c.sample)
        good = [(one, text) for one in samples if (text := kept(query, one)) is not None]
        if good:
            found.append(Candidates(query, *map(list, zip(*good, strict=True))))
    return found


async def _score(
    judge: Judge, candidates: Sequence[Candidates], min_score: float
) -> list[Judgement]:
    answers = [Answer(one.query, text) for one in candidates for text in one.texts]
    scores = iter(await judge.score(answers))
    return [
        _judgement(completion, "pointwise", score, score is not None and score >= min_score)
        for one in candidates
        for completion in one.completions
        for score in [next(scores)]
    ]


async def _rank(
    judge: Judge, candidates: Sequence[Candidates]
) -> tuple[list[Judgement], list[PairOutcome]]:
    """Every two differing answers to a query against each other."""
    pairs: list[Pair] = []
    places: list[tuple[int, tuple[int, int]]] = []
    for index, one in enumerate(candidates):
        texts = list(one.distinct)
        for first, second in combinations(range(len(texts)), 2):
            pairs.append(Pair(one.query, texts[first], texts[second]))
            places.append((index, (first, second)))
    outcomes = await judge.compare(pairs)
    tables: list[dict[tuple[int, int], PairOutcome]] = [{} for _ in candidates]
    for (index, place), outcome in zip(places, outcomes, strict=True):
        tables[index][place] = outcome
    judgements: list[Judgement] = []
    for one, table in zip(candidates, tables, strict=True):
        distinct = one.distinct
        shares = win_shares(table, len(distinct)) if table else [0.5] * len(distinct)
        for completion, text in zip(one.completions, one.texts, strict=True):
            share = shares[distinct[text]]
            judgements.append(_judgement(completion, "pairwise", share, None))
    noise: list[PairOutcome] = []
    where = {id(one): index for index, one in enumerate(candidates)}
    for own in _own_pairs(candidates):
        first, second = (own.of.distinct[text] for text in (own.pair.first, own.pair.second))
        if first == second:
            noise.append("tie")
        else:  # distinct answers are numbered in the order of the samples, as the pair is
            noise.append(tables[where[id(own.of)]][min(first, second), max(first, second)])
    return judgements, noise


class _OwnPair(NamedTuple):
    of: Candidates
    pair: Pair


def _own_pairs(candidates: Sequence[Candidates]) -> list[_OwnPair]:
    """The first two valid answers of one model to each query, where there are two."""
    found = []
    for one in candidates:
        same = [
            text
            for completion, text in zip(one.completions, one.texts, strict=True)
            if completion.model == one.completions[0].model
        ]
        if len(same) > 1:
            found.append(_OwnPair(one, Pair(one.query, same[0], same[1])))
    return found


def _judgement(
    completion: Completion, mode: str, score: float | None, good: bool | None
) -> Judgement:
    return Judgement.model_validate(
        {
            "query_id": completion.query_id,
            "sample": completion.sample,
            "model": completion.model,
            "mode": mode,
            "score": score,
            "good": good,
            "detail": "" if score is not None else "the judge's verdict could not be read or had",
        }
    )


def _report(
    section: JudgeSection, name: str, candidates: Sequence[Candidates], sitting: _Sitting
) -> dict[str, object]:
    trial, judgements = sitting.trial, sitting.judgements
    rate: dict[str, object] | None = None
    if isinstance(trial, PointTrial) and candidates:
        first = {
            (one.query.id, one.completions[0].model, one.completions[0].sample)
            for one in candidates
        }
        good = sum(bool(j.good) for j in judgements if (j.query_id, j.model, j.sample) in first)
        rate = {
            "raw": wilson(good, len(candidates)).to_json(),
            "corrected": corrected_rate(good, len(candidates), trial.counts).to_json(),
        }
    asked_both_ways = [*(trial.outcomes if isinstance(trial, PairTrial) else ()), *sitting.noise]
    bias, floor = position_bias(asked_both_ways), noise_floor(sitting.noise)
    return {
        "judge": name,
        "mode": section.mode,
        "min_score": section.min_score if section.mode == "pointwise" else None,
        "gold": trial.as_json(),
        "rate": rate,
        "noise_floor": floor.to_json() if floor is not None else None,
        "position_bias": {
            "followed": bias.followed.to_json(),
            "first": bias.first.to_json() if bias.first is not None else None,
            "p_value": bias.p_value,
        }
        if bias is not None
        else None,
        "judged": len(judgements),
        "unreadable": sum(j.score is None for j in judgements),
    }


def _said(report: Mapping[str, object], progress: Progress) -> dict[str, object]:
    """The figures of the stage's last line; a biased judge is named."""
    found: dict[str, object] = {}
    rate, floor, bias = report["rate"], report["noise_floor"], report["position_bias"]
    if isinstance(rate, dict):
        found["good"] = rate["raw"]["estimate"]
        found["good, corrected"] = rate["corrected"]["estimate"]
    if isinstance(floor, dict):
        found["noise floor"] = floor["estimate"]
    if isinstance(bias, dict) and bias["p_value"] < 0.05 and bias["first"] is not None:
        place = "first" if bias["first"]["estimate"] > 0.5 else "second"
        progress.say(
            f"      the judge leans to the answer shown {place}: "
            f"{bias['followed']['estimate']:.0%} of its pairs followed the position and count as "
            "ties"
        )
    return found


@contextmanager
def _named_for_the_judge() -> Iterator[None]:
    """Errors of asking speak of `teacher.KEY`; here the key is the judge's."""
    try:
        yield
    except UserError as error:
        error.args = (_renamed(str(error)),)
        raise
    except (BudgetError, TeacherError) as error:
        text = _renamed(str(error))
        kind: type[StillhouseError] = (
            BudgetError if isinstance(error, BudgetError) else TeacherError
        )
        raise kind(text) from None


def _renamed(text: str) -> str:
    if text.startswith("teacher: "):
        text = "dataset.judge: " + text.removeprefix("teacher: ")
    return text.replace("teacher.", "dataset.judge.")
