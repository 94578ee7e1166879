"""The dataset stage: reads the traffic's and the ask stage's files, writes the dataset.

Writes train.jsonl and held_out.jsonl (chat JSONL with the answer last), watch.jsonl where labelled
examples are watched (see `watch`), rejections.jsonl and dataset.json (see `report`). Knows files;
the decisions are in `build`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from stillhouse.core.errors import DataError
from stillhouse.core.jsonl import read_json, read_records, write_json, write_records
from stillhouse.core.judgements import JUDGE, JUDGEMENTS, Judgement
from stillhouse.core.progress import Progress
from stillhouse.core.recipe import Recipe
from stillhouse.core.records import Completion, Example, LabelledQuery, Query, Rejection
from stillhouse.core.runfolder import Outcome
from stillhouse.core.split import Split, tune_check_split
from stillhouse.core.stage_files import hash_file
from stillhouse.core.tasks import ClassificationTask
from stillhouse.dataset.build import Dataset, build_dataset
from stillhouse.dataset.contamination import REASON
from stillhouse.dataset.floors import ClusterAcceptance, low_clusters
from stillhouse.dataset.provenance import filters_passed, with_provenance
from stillhouse.dataset.report import dataset_report
from stillhouse.dataset.select import JudgementKey
from stillhouse.dataset.watch import WATCH

SHOWN_CLUSTERS: Final = 3
WARNED_CLUSTERS: Final = 10


def run_dataset(  # noqa: PLR0917 - one signature for all stages
    recipe: Recipe,
    traffic_dir: Path,
    ask_dir: Path,
    work: Path,
    progress: Progress,
    judge_dir: Path | None = None,
) -> Outcome:
    """Build the dataset and write it; see the module.

    `judge_dir` is the judge stage's folder, where the recipe has a judge.

    Raises:
        DataError: fewer than `dataset.min_examples` accepted examples, all of one class, or none
            that may be held out. The rejections are written all the same.
    """
    queries = list(read_records(traffic_dir / "queries.jsonl", Query))
    known = {query.id for query in queries}
    completions = _completions(ask_dir / "completions.jsonl", known)
    members = ask_dir / "member_completions.jsonl"
    failures_path = ask_dir / "failures.jsonl"
    failures = list(read_records(failures_path, Rejection)) if failures_path.exists() else []
    golden = _labelled(traffic_dir / "golden.jsonl")
    labelled = _labelled(traffic_dir / "labelled.jsonl")
    with progress.bar("building the dataset", None, "examples") as bar:
        dataset = build_dataset(
            recipe.task,
            recipe.dataset,
            recipe.teacher.answer_signals,
            queries=queries,
            completions=completions,
            failures=failures,
            labelled=labelled,
            golden=golden,
            judgements=_judgements(judge_dir),
            members=_completions(members, known) if members.exists() else None,
            beliefs=recipe.needs_beliefs,
            seed=recipe.seed,
        )
        filters = filters_passed(recipe.dataset, golden=bool(golden), beliefs=recipe.needs_beliefs)
        dataset = dataset._replace(
            examples=with_provenance(
                dataset.examples, queries, filters, hash_file(traffic_dir / "queries.jsonl")
            )
        )
        bar.advance(len(dataset.examples))
    rejections_path = work / "rejections.jsonl"
    write_records(rejections_path, dataset.rejections)
    _say_coverage(recipe, dataset, progress)
    _usable(recipe, len(queries), dataset, rejections_path)
    watch = _watch(recipe, dataset, labelled)
    split = dataset.split(recipe.dataset.held_out, recipe.seed, watch)
    _splits_are_usable(recipe, dataset, split)

    write_records(work / "train.jsonl", split.first)
    write_records(work / "held_out.jsonl", split.second)
    if watch:
        write_records(work / WATCH, watch)
        progress.say(
            f"      {len(watch):,} labelled examples are looked at in training, not learned from "
            "(dataset.watch)"
        )
    judged = None if judge_dir is None else read_json(judge_dir / JUDGE)
    report = dataset_report(recipe, len(queries), dataset, split, judged)
    report["watch"] = len(watch)
    report["filters"] = list(filters)
    report["users"] = len({e.user for e in dataset.examples if e.user is not None})
    write_json(work / "dataset.json", report)
    keys = ("queries", "examples", "train", "held_out", "acceptance", "rejections", "contamination")
    summary = {key: report[key] for key in keys}
    back = sum(example.readmitted is not None for example in dataset.judged.examples)
    summary |= {"watch": len(watch)} if watch else {}
    return Outcome(summary=summary | ({"readmitted": back} if back else {}))


def _watch(recipe: Recipe, dataset: Dataset, labelled: Sequence[LabelledQuery]) -> list[Example]:
    """The watch set; none for a text student, whose answers training does not read."""
    if recipe.student.head != "label":
        return []
    tune, tuned = recipe.teacher.tune, set[str]()
    if tune is not None and labelled:
        parts = tune_check_split(labelled, tune.check_fraction, recipe.seed)
        tuned = {query.as_traffic().id for query in parts.first}
    return dataset.watch(recipe.dataset.watch, recipe.seed, tuned)


def _completions(path: Path, known: set[str]) -> dict[str, list[Completion]]:
    found: dict[str, list[Completion]] = {}
    for completion in read_records(path, Completion):
        if completion.query_id not in known:
            raise DataError(
                str(path), "answers a query that is not in the traffic", value=completion.query_id
            )
        found.setdefault(completion.query_id, []).append(completion)
    return found


def _judgements(judge_dir: Path | None) -> dict[JudgementKey, Judgement]:
    if judge_dir is None:
        return {}
    return {
        JudgementKey(one.query_id, one.model, one.sample): one
        for one in read_records(judge_dir / JUDGEMENTS, Judgement)
    }


def _say_coverage(recipe: Recipe, dataset: Dataset, progress: Progress) -> None:
    """The worst clusters and the hardest queries, in a line each; a warning where some vanish."""
    coverage, floor = dataset.coverage, recipe.dataset.floor
    total = sum(row.queries for row in coverage.clusters)
    kept = sum(row.accepted for row in coverage.clusters)
    if kept < total and len(coverage.clusters) > 1:
        worst = "; ".join(_told(row) for row in coverage.clusters[:SHOWN_CLUSTERS])
        progress.say(
            f"      acceptance {kept / total:.0%} of {total:,} queries; the lowest of "
            f"{len(coverage.clusters)} clusters: {worst}"
        )
    if kept < total and len(coverage.by_difficulty) > 1:
        first, last = (_share_of(coverage.by_difficulty[i]) for i in (0, -1))
        unknown = coverage.unmeasured
        progress.say(
            f"      acceptance by difficulty ({coverage.difficulty}): {first:.0%} of the easiest "
            f"part, {last:.0%} of the hardest"
            + (
                ""
                if unknown is None
                else f", {_share_of(unknown):.0%} of {unknown['queries']:,} of unknown difficulty"
            )
        )
    low = low_clusters(coverage.clusters, floor)
    if not low:
        return
    names = "; ".join(_told(row) for row in low[:WARNED_CLUSTERS])
    more = f"; and {len(low) - WARNED_CLUSTERS} more" if len(low) > WARNED_CLUSTERS else ""
    if floor is None:
        progress.say(
            f"warning: clusters with less than half the acceptance of the whole: {names}{more}; "
            "dataset.floor keeps some of their answers"
        )
        return
    back = sum(row.readmitted for row in low)
    short = sum(row.share < floor - 1e-9 for row in low)
    progress.say(
        f"warning: clusters below dataset.floor {floor:.0%}: {names}{more}; {back} answers that "
        "only agreement or the judge had rejected are back, marked"
        + (f"; {short} of the clusters stay below: the checks rejected the rest" if short else "")
    )


def _told(row: ClusterAcceptance) -> str:
    why = f", mostly {row.top_reason}" if row.top_reason else ""
    return f"{row.name!r} {row.accepted} of {row.queries}{why}"


def _share_of(part: Mapping[str, object]) -> float:
    return int(str(part["accepted"])) / int(str(part["queries"]))


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
    kept = {example.id for example in dataset.judged.examples}
    lost = {"duplicate", "near_duplicate", REASON}  # after the filters
    rejections = [r for r in dataset.rejections if r.query_id not in kept or r.reason in lost]
    if not rejections:
        return ""
    reason, count = Counter(rejection.reason for rejection in rejections).most_common(1)[0]
    detail = next(rejection.detail for rejection in rejections if rejection.reason == reason)
    return f"; the most frequent reason for rejection is {reason} ({count}, such as: {detail})"
