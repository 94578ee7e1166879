"""The traffic stage: check all the user's files, then write the queries that the run works on.

Writes queries.jsonl, labelled.jsonl and golden.jsonl (where the recipe has them), rejections.jsonl
with each query that was left out for its content or not chosen, and coverage.json where the recipe
chooses. Near-duplicates of golden texts leave the labelled set here, since it tunes the teacher;
all others are found by the dataset stage.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from stillhouse.core.duplicates import bare, matches
from stillhouse.core.errors import DataError
from stillhouse.core.jsonl import write_json, write_records
from stillhouse.core.progress import Progress
from stillhouse.core.recipe import Recipe
from stillhouse.core.records import LabelledQuery, Query, Rejection, message_key
from stillhouse.core.runfolder import Outcome
from stillhouse.core.split import unit_hash
from stillhouse.core.tasks import Task
from stillhouse.traffic.read import read_labelled, read_queries
from stillhouse.traffic.redact import Redactor, pseudonym
from stillhouse.traffic.select import select_queries

Q = TypeVar("Q", bound=Query)


class Kept(NamedTuple):
    """Queries kept, and those left out with the reason."""

    queries: list[Query]
    rejections: list[Rejection]


class LabelledSet(NamedTuple):
    """A labelled or golden set without repeats.

    `contradictions` counts repeats whose true answer differs from the first one's.
    """

    queries: list[LabelledQuery]
    duplicates: int
    contradictions: int
    in_golden: int


def run_traffic(
    recipe: Recipe, work: Path, progress: Progress, forgotten: Container[str] = ()
) -> Outcome:
    """Read, check, deduplicate and sample the traffic; see the module.

    Args:
        recipe: the whole recipe.
        work: where the files go.
        progress: bars.
        forgotten: users whose queries are passed over, wherever they stand.

    Raises:
        DataError: a file is missing or malformed, or fewer queries are left than
            `dataset.min_examples`. Nothing is written then.
    """
    task, section = recipe.task, recipe.traffic
    # Made first: where personal data cannot be looked for, no file is read.
    redactor = Redactor(section.redact)
    with progress.bar("reading traffic", None, "files") as bar:
        traffic = read_queries(Path(section.path), task)
        passed_over = len(traffic.queries)
        others = _of_others(traffic.queries, forgotten)
        passed_over -= len(others)
        traffic = traffic._replace(queries=redacted(others, redactor))
        bar.advance()
        golden = labelled = None
        if section.golden is not None:
            of_golden = _of_others(read_labelled(Path(section.golden), task).queries, forgotten)
            golden = distinct(redacted(of_golden, redactor), task)
            bar.advance()
        if section.labelled is not None:
            of_labelled = read_labelled(Path(section.labelled), task).queries
            labelled = distinct(
                redacted(_of_others(of_labelled, forgotten), redactor),
                task,
                golden.queries if golden else (),
                recipe.dataset.near_duplicate,
            )
            bar.advance()
        if labelled is not None and not labelled.queries:
            raise DataError(
                section.labelled or "traffic.labelled",
                "all labelled examples are in the golden set, or nearly, which is never trained on",
                action="give two sets without common texts",
            )
    kept = keep_distinct(
        traffic.queries,
        task,
        labelled.queries if labelled else (),
        golden.queries if golden else (),
    )
    sample = hash_sample(kept.queries, section.limit, recipe.seed)
    over_limit = len(kept.queries) - len(sample)
    _enough(recipe, len(traffic.queries), len(kept.queries), len(sample))

    joined = labelled.queries if labelled is not None and section.use_labelled else []
    asked = [query.as_traffic() for query in joined]
    chosen: dict[str, object] = {}
    if section.select is not None:
        selected = select_queries(sample, asked, task, section.select, recipe.seed, progress)
        _enough_selected(recipe, len(selected.queries))
        sample, asked = selected.queries, selected.joined
        kept.rejections.extend(selected.rejections)
        chosen = selected.summary
        write_json(work / "coverage.json", selected.report)
    write_records(work / "queries.jsonl", [*sample, *asked])
    write_records(work / "rejections.jsonl", kept.rejections)
    if labelled is not None:
        write_records(work / "labelled.jsonl", labelled.queries)
    if golden is not None:
        write_records(work / "golden.jsonl", golden.queries)
    reasons = [rejection.reason for rejection in kept.rejections]
    summary: dict[str, object] = {
        "read": len(traffic.queries),
        "other_task": traffic.other_task,
        "duplicates": reasons.count("duplicate"),
        "in_golden": reasons.count("contamination_golden"),
        "in_labelled": reasons.count("contamination_labelled"),
        "over_limit": over_limit,
        "queries": len(sample) + len(asked),
        **chosen,
    }
    if passed_over:
        summary["of_forgotten_users"] = passed_over
    for name, found in (("labelled", labelled), ("golden", golden)):
        if found is not None:
            summary[name] = len(found.queries)
            summary[f"{name}_duplicates"] = found.duplicates
            summary[f"{name}_contradictions"] = found.contradictions
            if name == "labelled":
                summary["labelled_in_golden"] = found.in_golden
    return Outcome(summary=summary)


def redacted(queries: list[Q], redactor: Redactor) -> list[Q]:
    """The queries with their personal data replaced; as they are where nothing is looked for."""
    return [redactor.query(query) for query in queries] if redactor.kinds else queries


def _of_others(queries: Sequence[Q], forgotten: Container[str]) -> list[Q]:
    """Without those of forgotten users, who may be known by the name that redaction gave them."""
    return [
        query
        for query in queries
        if query.user is None or not (query.user in forgotten or pseudonym(query.user) in forgotten)
    ]


def distinct(
    queries: Sequence[LabelledQuery],
    task: Task,
    golden: Sequence[LabelledQuery] = (),
    near_duplicate: float = 1.0,
) -> LabelledSet:
    """The set without repeated texts (the first stays) and without texts of the golden set.

    Case, white space and punctuation do not tell a text from a golden one, and neither does a
    similarity of `near_duplicate`.
    """
    held_back = matches(
        [bare(task.varying_text(query)) for query in queries],
        [bare(task.varying_text(query)) for query in golden],
        near_duplicate,
    )
    first: dict[str, LabelledQuery] = {}
    in_golden = contradictions = 0
    for index, query in enumerate(queries):
        if index in held_back:
            in_golden += 1
            continue
        earlier = first.setdefault(message_key(query.messages), query)
        contradictions += earlier.reference != query.reference
    return LabelledSet(
        list(first.values()), len(queries) - in_golden - len(first), contradictions, in_golden
    )


def keep_distinct(
    queries: Sequence[Query],
    task: Task,
    labelled: Sequence[LabelledQuery],
    golden: Sequence[LabelledQuery],
) -> Kept:
    """Leave out chats that occur before, and texts that are in the golden or the labelled set.

    Case, white space and punctuation do not tell a text from one of the two sets.
    """
    taken = {bare(task.varying_text(query)): ("labelled", query.id) for query in labelled}
    taken.update({bare(task.varying_text(query)): ("golden", query.id) for query in golden})
    first: dict[str, str] = {}  # content of a chat -> id of the first query that asks it
    kept = Kept([], [])
    for query in queries:
        found = taken.get(bare(task.varying_text(query)))
        content = message_key(query.messages)
        if found is not None:
            name, other = found
            reason, detail = f"contamination_{name}", f"its text is in the {name} set ({other})"
        elif content in first:
            reason, detail = "duplicate", f"the same chat as {first[content]}"
        else:
            first[content] = query.id
            kept.queries.append(query)
            continue
        kept.rejections.append(
            Rejection(
                query_id=query.id,
                reason=reason,
                detail=detail,
                messages=query.messages,
                user=query.user,
            )
        )
    return kept


def hash_sample(queries: Sequence[Q], limit: int | None, seed: int) -> list[Q]:
    """At most `limit` queries, drawn by the hash of seed and id, in the order of the input."""
    if limit is None or len(queries) <= limit:
        return list(queries)
    order = sorted(queries, key=lambda query: (unit_hash(query.id, seed), query.id))
    chosen = {query.id for query in order[:limit]}
    return [query for query in queries if query.id in chosen]


def _enough(recipe: Recipe, read: int, distinct_count: int, sampled: int) -> None:
    """Stop before money is spent on a traffic that cannot give enough examples."""
    wanted = recipe.dataset.min_examples
    if sampled >= wanted:
        return
    if distinct_count >= wanted:
        raise DataError(
            "traffic.limit",
            f"is below dataset.min_examples ({wanted})",
            value=recipe.traffic.limit,
            action="raise traffic.limit",
        )
    raise DataError(
        recipe.traffic.path,
        f"holds {distinct_count} distinct queries ({read} lines), fewer than "
        f"dataset.min_examples ({wanted})",
        action="give more traffic or lower dataset.min_examples",
    )


def _enough_selected(recipe: Recipe, selected: int) -> None:
    wanted = recipe.dataset.min_examples
    if selected < wanted:
        raise DataError(
            "traffic.select",
            f"leaves {selected} queries, fewer than dataset.min_examples ({wanted})",
            action="raise traffic.select.n or traffic.select.semantic_duplicate",
        )
