"""The dataset stage: reads the traffic's and the ask stage's files, writes the dataset.

Writes train.jsonl and held_out.jsonl (chat JSONL with the answer last), rejections.jsonl and
dataset.json (see `report`). Knows files; the decisions are in `build`.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from stillhouse.core.errors import DataError
from stillhouse.core.jsonl import read_records, write_json, write_records
from stillhouse.core.progress import Progress
from stillhouse.core.recipe import Recipe
from stillhouse.core.records import Completion, Example, LabelledQuery, Query, Rejection
from stillhouse.core.runfolder import Outcome, hash_file
from stillhouse.core.split import Split
from stillhouse.core.tasks import ClassificationTask
from stillhouse.dataset.build import Dataset, build_dataset
from stillhouse.dataset.provenance import filters_passed, with_provenance
from stillhouse.dataset.report import dataset_report


def run_dataset(
    recipe: Recipe, traffic_dir: Path, ask_dir: Path, work: Path, progress: Progress
) -> Outcome:
    """Build the dataset and write it; see the module.

    Raises:
        DataError: fewer than `dataset.min_examples` accepted examples, all of one class, or none
            that may be held out. The rejections are written all the same.
    """
    queries = list(read_records(traffic_dir / "queries.jsonl", Query))
    completions = _completions(ask_dir / "completions.jsonl", {query.id for query in queries})
    failures_path = ask_dir / "failures.jsonl"
    failures = list(read_records(failures_path, Rejection)) if failures_path.exists() else []
    golden = _labelled(traffic_dir / "golden.jsonl")
    with progress.bar("building the dataset", None, "examples") as bar:
        dataset = build_dataset(
            recipe.task,
            recipe.dataset,
            recipe.teacher.signals,
            queries=queries,
            completions=completions,
            failures=failures,
            labelled=_labelled(traffic_dir / "labelled.jsonl"),
            golden=golden,
            beliefs=needs_beliefs(recipe),
        )
        filters = filters_passed(recipe.dataset, golden=bool(golden), beliefs=needs_beliefs(recipe))
        dataset = dataset._replace(
            examples=with_provenance(
                dataset.examples, queries, filters, hash_file(traffic_dir / "queries.jsonl")
            )
        )
        bar.advance(len(dataset.examples))
    rejections_path = work / "rejections.jsonl"
    write_records(rejections_path, dataset.rejections)
    _usable(recipe, len(queries), dataset, rejections_path)
    split = dataset.split(recipe.dataset.held_out, recipe.seed)
    _splits_are_usable(recipe, dataset, split)

    write_records(work / "train.jsonl", split.first)
    write_records(work / "held_out.jsonl", split.second)
    report = dataset_report(recipe.task, len(queries), dataset, split)
    report["teacher_revisions"] = dict(
        sorted(Counter(example.teacher_revision for example in dataset.examples).items())
    )
    report["filters"] = list(filters)
    report["users"] = len({e.user for e in dataset.examples if e.user is not None})
    write_json(work / "dataset.json", report)
    keys = ("queries", "examples", "train", "held_out", "acceptance", "rejections", "contamination")
    return Outcome(summary={key: report[key] for key in keys})


def needs_beliefs(recipe: Recipe) -> bool:
    """Whether the student's training needs the teacher's class probabilities."""
    return recipe.train.alpha > 0 and recipe.student.head == "label"


def _completions(path: Path, known: set[str]) -> dict[str, list[Completion]]:
    found: dict[str, list[Completion]] = {}
    for completion in read_records(path, Completion):
        if completion.query_id not in known:
            raise DataError(
                str(path), "answers a query that is not in the traffic", value=completion.query_id
            )
        found.setdefault(completion.query_id, []).append(completion)
    return found


def _labelled(path: Path) -> list[LabelledQuery]:
    return list(read_records(path, LabelledQuery)) if path.exists() else []


def _usable(recipe: Recipe, queries: int, dataset: Dataset, rejections: Path) -> None:
    count, wanted = len(dataset.examples), recipe.dataset.min_examples
    if count < wanted:
        raise DataError(
            "dataset",
            f"{count} of {queries} queries gave an accepted example, dataset.min_examples is "
            f"{wanted}{_top_reason(dataset)}",
            action=f"see {rejections}; mend the prompt or the teacher, or give more traffic",
        )
    labels = {example.label for example in dataset.examples}
    if isinstance(recipe.task, ClassificationTask) and len(labels) == 1:
        raise DataError(
            "dataset",
            f"all {count} accepted examples are of one class{_top_reason(dataset)}",
            value=labels.pop(),
            action="check that the traffic holds all classes and that the teacher tells them apart",
        )
    if not dataset.free:
        raise DataError(
            "dataset",
            f"all {count} accepted examples are of the labelled set, or nearly equal to one of it: "
            "none can be held out",
            action="give traffic beyond the labelled set, or traffic.use_labelled: false",
        )


def _splits_are_usable(recipe: Recipe, dataset: Dataset, split: Split[Example]) -> None:
    if not split.second:
        raise DataError(
            "dataset",
            f"all {len(dataset.free)} examples without a true answer are near-duplicates of each "
            "other: none can be held out",
            action="give more varied traffic, or raise dataset.near_duplicate",
        )
    labels = {example.label for example in split.first}
    if isinstance(recipe.task, ClassificationTask) and len(labels) == 1:
        raise DataError(
            "dataset",
            f"all {len(split.first)} training examples are of one class",
            value=labels.pop(),
            action="give more traffic of the other classes",
        )


def _top_reason(dataset: Dataset) -> str:
    """`; most were rejected as REASON (COUNT, for example: DETAIL)`, or nothing."""
    rejections = dataset.rejections
    if not rejections:
        return ""
    reason, count = Counter(rejection.reason for rejection in rejections).most_common(1)[0]
    detail = next(rejection.detail for rejection in rejections if rejection.reason == reason)
    return f"; the most frequent reason for rejection is {reason} ({count}, such as: {detail})"
