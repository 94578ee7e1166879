"""Try one student after the other, until the trials, the time or the money are used up.

Each trial is a training run in a folder of its own, with checkpoints: killed at any moment, the
next call goes on inside it. A trial that the budget ends stays open, and goes on when the budget is
raised. Weights are kept of the recipe as it is and of the best trial so far. Knows examples,
students and the study; never sees what is held out.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from stillhouse.core.errors import (
    BudgetError,
    DataError,
    RunFolderError,
    StillhouseError,
    UserError,
)
from stillhouse.core.jsonl import read_records
from stillhouse.core.progress import Progress
from stillhouse.core.recipe import Recipe
from stillhouse.core.recipe_tune import SearchSection
from stillhouse.core.records import Example
from stillhouse.core.rights import require_may_train
from stillhouse.core.split import split_by_group
from stillhouse.train.checkpoints import weight_errors
from stillhouse.train.distil import (
    ADAPTER,
    CHECKPOINTS,
    HISTORY,
    STUDENT,
    Data,
    Job,
    distil,
)
from stillhouse.train.objectives import check_beliefs, check_finite
from stillhouse.train.search_space import Parameter, with_values
from stillhouse.train.search_study import Search, Trial, Tried
from stillhouse.train.students import CUT_BASE
from stillhouse.train.trainer import AGREEMENT, CROSS_ENTROPY, DIVERGENCE, metric
from stillhouse.train.wiring import divergence_in

FEWEST: Final = 20  # examples of a tuning split that can tell two students apart at all
KEPT_FACTS: Final = ("steps", "best_step", "stopped_early", "precision", "device")


@dataclass(frozen=True, slots=True)
class Ground:
    """What all trials share. `folder` gets a folder a trial; `seconds` is the budget of all calls
    together; `clock` gives seconds."""

    recipe: Recipe
    space: Sequence[Parameter]
    section: SearchSection
    data: Data
    tuned: Path | None
    signals: Path | None
    folder: Path
    seconds: float | None
    clock: Callable[[], float] = time.monotonic


class _Pruned(Exception):
    """The trial is not worth its end."""


class _OverBudget(Exception):
    """The time is used up."""


def tuning_data(dataset_dir: Path, section: SearchSection, recipe: Recipe) -> Data:
    """The training examples in two: what trials learn from, and what they are judged on.

    Near-duplicates stay on one side. The held-out file is not opened.

    Raises:
        DataError: too few examples, or one class only, on a side.
    """
    examples = list(read_records(dataset_dir / "train.jsonl", Example))
    groups = [example.group for example in examples]
    split = split_by_group(examples, groups, section.split, recipe.seed)
    labelled = recipe.student.head == "label"
    one_class = labelled and len({example.label for example in split.first}) < 2
    if len(split.second) < FEWEST or one_class:
        raise DataError(
            "tune.split",
            f"{len(examples):,} training examples in {len(set(groups)):,} groups give "
            f"{len(split.first):,} to train on and {len(split.second):,} to judge by"
            + (", all of one class" if one_class else f"; {FEWEST} are needed to judge by"),
            value=section.split,
            action="give more traffic, or another tune.split",
        )
    return Data(split.first, split.second)


class Searched(NamedTuple):
    """All trials so far, and what ended the search: an unfinished trial was ended by the budget."""

    tried: list[Tried]
    stopped_by: Literal["trials", "budget"]


def run_search(search: Search, ground: Ground, progress: Progress) -> Searched:
    """Go on until `tune.trials` trials are done or the budget is.

    Raises:
        BudgetError: the budget ended before one trial was finished.
        UserError: the recipe as it is cannot be trained.
        RunFolderError: the disk is full; nothing of the search is lost.
    """
    _check_examples(ground)
    while True:
        tried = search.begun()
        _keep_the_best(ground.folder, tried)
        unfinished = tried and tried[-1].state == "unfinished"
        if len(tried) >= ground.section.trials and not unfinished:
            return Searched(tried, "trials")
        spent = sum(one.seconds for one in tried)
        over = ground.seconds is not None and spent >= ground.seconds
        if over or not _run_trial(search.next(), ground, spent, tried, progress):
            tried = search.begun()
            if not any(one.state == "complete" for one in tried):
                raise BudgetError(
                    f"tune: the budget of {ground.seconds:,.0f} s of training ended before one "
                    "trial was finished; raise tune.budget_s or tune.budget_usd and run the same "
                    "command: it goes on"
                )
            return Searched(tried, "budget")


def best_of(tried: Sequence[Tried]) -> Tried | None:
    """The finished trial with the lowest value; the earliest of equals."""
    done = [one for one in tried if one.state == "complete" and one.value is not None]
    return min(done, key=lambda one: (one.value, one.number)) if done else None


def own_of(tried: Sequence[Tried]) -> Tried | None:
    """The recipe as it is, where that trial was finished."""
    return next((one for one in tried if one.own and one.state == "complete"), None)


def trial_folder(folder: Path, number: int) -> Path:
    """Where a trial is trained."""
    return folder / f"{number:04d}"


def measure_of(recipe: Recipe, section: SearchSection) -> str:
    """The held-out measure of the trainer's log that decides."""
    if section.choose_by == "agreement" or recipe.student.head == "tags":
        return AGREEMENT  # by which a tagger's weights are kept too
    return DIVERGENCE if recipe.train.alpha > 0 else CROSS_ENTROPY


def _run_trial(
    trial: Trial, ground: Ground, spent: float, before: Sequence[Tried], progress: Progress
) -> bool:
    """Train one student and tell the study; `False` where the budget ended it."""
    tried = trial.tried

    def use() -> float:
        used = ground.clock() - started
        trial.spent(tried.seconds + used)
        return used

    folder = trial_folder(ground.folder, tried.number)
    started = ground.clock()
    left = None if ground.seconds is None else ground.seconds - spent

    def on_look(number: int, entry: Mapping[str, Any]) -> None:
        used = use()
        value = metric(entry, name)
        if value is not None and trial.look(number, _lower(value, name)):
            raise _Pruned
        if left is not None and used >= left:
            raise _OverBudget

    title = f"trial {tried.number + 1}/{ground.section.trials}"
    name = ""
    try:
        recipe = with_values(ground.recipe, tried.values) if not tried.own else ground.recipe
        name = measure_of(recipe, ground.section)
        job = Job(
            recipe,
            ground.data,
            ground.tuned,
            recipe.train.alpha,
            title,
            ground.signals,
            callbacks=(_Looks(on_look),),
            split_of_train=True,
        )
        facts = distil(job, folder, progress)
    except _Pruned:
        trial.pruned("worse than the median of finished trials at this look")
        outcome = "pruned"
    except _OverBudget:
        progress.say(f"      {title}: the budget is used up; it goes on when that is raised")
        return False
    except RunFolderError:
        raise
    except UserError as error:
        if tried.own:
            raise
        use()
        trial.failed(str(error))
        outcome = f"cannot be run: {error}"
    except StillhouseError as error:
        use()
        trial.pruned(str(error))
        outcome = str(error)
    else:
        use()
        value = _value(folder, int(facts["best_step"]), name)
        trial.complete(value, {key: facts[key] for key in KEPT_FACTS} | _size(facts))
        best = best_of(before)
        better = best is None or best.value is None or value < best.value
        outcome = f"{_said(value, name)}{' (best so far)' if better else ''}"
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    shown = ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in tried.values.items())
    progress.say(f"      {title}: {outcome}: {'the recipe as it is' if tried.own else shown}")
    return True


def _check_examples(ground: Ground) -> None:
    """What the train stage asks of its examples, for every divergence that is searched."""
    recipe = ground.recipe
    require_may_train(recipe.teacher)
    if recipe.student.head == "text":
        return
    examples = [*ground.data.train, *ground.data.held_out]
    check_beliefs(examples, recipe.train.alpha)
    searched = [one for one in ground.space if one.key == "train.divergence"]
    kinds = [value for one in searched for value in one.tried]
    tried = [with_values(recipe, {"train.divergence": kind}) for kind in kinds] or [recipe]
    for one in tried:
        check_finite(ground.data.train, one.train.alpha, divergence_in(one.train))


def _value(folder: Path, step: int, name: str) -> float:
    """The measure at the step whose weights were kept; lower is better."""
    rows = json.loads((folder / HISTORY).read_text(encoding="utf-8"))
    row = next(row for row in rows if row["step"] == step)
    return _lower(float(row[name]), name)


def _lower(value: float, name: str) -> float:
    return 1.0 - value if name == AGREEMENT else value


def _said(value: float, name: str) -> str:
    if name == AGREEMENT:
        return f"agreement {1 - value:.1%}"
    return f"{name.removeprefix('held_out_').replace('_', '-')} {value:.4f} nats"


def _size(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {"parameters": facts["student"]["parameters"]}


def _keep_the_best(folder: Path, tried: Sequence[Tried]) -> None:
    """Remove the weights of trials that are neither the recipe's own nor the best."""
    best = best_of(tried)
    for one in tried:
        if one.state == "unfinished" or one.own or one is best:
            continue
        there = trial_folder(folder, one.number)
        with weight_errors(there):
            for part in (STUDENT, ADAPTER, CUT_BASE, CHECKPOINTS):
                shutil.rmtree(there / part, ignore_errors=True)


class _Looks(TrainerCallback):
    """Hands on each look at the tuning split, with its number from 1."""

    def __init__(self, on_look: Callable[[int, Mapping[str, Any]], None]) -> None:
        self._on_look = on_look

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """One look."""
        every = max(1, int(args.eval_steps or 1))
        self._on_look(-(-state.global_step // every), metrics or {})
