"""Look at the answers: name each task's kind, part what a template hides, join what it parted.

A template may hide several tasks (free instructions to one assistant); where its answers are of
several forms, or nothing of its requests is fixed, the texts are clustered by an embedder and the
clusters become tasks where their answers bear them out. And one task may have several templates (a
prompt's versions, a phrase that many users begin with): tasks of like prompts and like answers
become one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from sklearn.metrics import silhouette_score

from stillhouse.core.duplicates import jaccard, shingles
from stillhouse.core.tasks import fold
from stillhouse.models.clusters import Clusters, cluster, nearest
from stillhouse.models.embedders import HASHING, Embedder, open_embedder
from stillhouse.traffic.group import Found, Numbers
from stillhouse.traffic.kinds import MAX_LABEL_CHARS, KindFound, kind_of, object_of
from stillhouse.traffic.spool import ANSWERED, Columns, Spool, Spooled
from stillhouse.traffic.template import FREE, Template

ANSWERS: Final = 2000  # answers of a task that its kind is told by
MIXED: Final = 0.1  # of the answers must be of a second form for the task to be looked into
MOST_CLUSTERS: Final = 8
APART: Final = 0.08  # mean silhouette (cosine) at which clusters of free requests are tasks
SILHOUETTE: Final = 800
BLOCK: Final = 4096
ALIKE_LITERALS: Final = 0.5
ALIKE_INSTRUCTIONS: Final = 0.8
ALIKE_ANSWERS: Final = 0.8
SOFT: Final = 40  # a shorter phrase without a sign of an instruction may be the users' own


class Refined(NamedTuple):
    """A task with its kind, the sample of its calls the kind was told by, and a common prompt."""

    found: Found
    kind: KindFound
    sample: list[Spooled]
    system: str | None
    parted: bool


def refine(
    spool: Spool, columns: Columns, tasks: Sequence[Found], least: int, embedder: str = HASHING
) -> list[Refined]:
    """The tasks with their kinds, parted and joined; largest first."""
    refined: list[Refined] = []
    for found in tasks:
        whole = _looked_at(spool, columns, found, False)
        parts = _parted(spool, columns, whole, least, embedder)
        refined.extend(parts or [whole])
    joined = _joined(spool, columns, refined)
    return sorted(joined, key=lambda task: (-len(task.found.calls), int(task.found.calls[0])))


def _looked_at(spool: Spool, columns: Columns, found: Found, parted: bool) -> Refined:
    usable = found.calls[(columns.flags[found.calls] & ANSWERED) > 0]
    chosen = _spread(usable if len(usable) else found.calls, ANSWERS)
    sample = list(spool.read(chosen))
    pairs = [(call.last, call.answer) for call in sample if call.answer] if len(usable) else []
    requested = found.schemas[0] if len(found.schemas) == 1 else None
    kind = KindFound("generation", 0.0, 0.0)
    if pairs:
        kind = kind_of([said for _, said in pairs], requested, [asked for asked, _ in pairs])
    systems = Counter(call.system for call in sample)
    system, count = systems.most_common(1)[0]
    # A system prompt that differs between requests stays in their messages.
    shared = system if system and count >= 0.9 * len(sample) else None
    return Refined(found, kind, sample, shared, parted)


def _spread(numbers: Numbers, size: int) -> Numbers:
    """At most `size` of the numbers, evenly spread."""
    if len(numbers) <= size:
        return numbers
    return numbers[np.linspace(0, len(numbers) - 1, size).astype(np.int64)]


def _form(text: str, repeated: Counter[str]) -> str:
    if isinstance(object_of(text), dict):
        return "object"
    short = len(text) <= MAX_LABEL_CHARS and repeated[fold(text)] > 2
    return "label" if short else "text"


def _is_mixed(answers: Sequence[str]) -> bool:
    """Whether the answers are of two forms or more (object, repeated label, text)."""
    repeated = Counter(fold(text) for text in answers)
    forms = Counter(_form(text, repeated) for text in answers)
    return len(forms) > 1 and forms.most_common(2)[1][1] >= MIXED * len(answers)


def _parted(
    spool: Spool, columns: Columns, whole: Refined, least: int, embedder: str
) -> list[Refined] | None:
    """The tasks hidden in this one, or `None` where there is one."""
    found = whole.found
    answers = [call.answer for call in whole.sample if call.answer is not None]
    free = found.template == FREE and whole.system is None and not found.few_shot
    if whole.kind.kind != "generation" or len(found.calls) < 4 * least or len(answers) < 40:
        return None
    mixed = _is_mixed(answers)
    if not (mixed or free):
        return None
    texts = [found.template.slot(call.last) or call.last for call in whole.sample]
    opened = open_embedder(embedder, texts)
    clusters = _best_clusters(opened, texts, whole, mixed)
    if clusters is None:
        return None
    labels = _assigned(spool, found, opened, clusters)
    parts = [
        _looked_at(spool, columns, found._replace(calls=found.calls[labels == number]), True)
        for number in range(len(clusters.centres))
        if int((labels == number).sum()) >= least
    ]
    return parts if len(parts) > 1 else None


def _best_clusters(
    embedder: Embedder, texts: Sequence[str], whole: Refined, mixed: bool
) -> Clusters | None:
    """The clustering whose clusters' answers are most closed, then best apart."""
    vectors = embedder.embed(texts)
    best: tuple[float, float] = (0.0, 0.0)
    chosen: Clusters | None = None
    for k in range(2, MOST_CLUSTERS + 1):
        made = cluster(vectors, k)
        if len(made.centres) < 2:
            continue
        some = slice(0, None, max(1, len(vectors) // SILHOUETTE))
        if len(set(made.labels[some])) < 2:
            continue
        apart = float(silhouette_score(vectors[some], made.labels[some], metric="cosine"))
        closed = _closed_share(whole, made) if mixed else 0.0
        if (closed >= MIXED or apart >= APART) and (round(closed, 2), apart) > best:
            best, chosen = (round(closed, 2), apart), made
    return chosen


def _closed_share(whole: Refined, clusters: Clusters) -> float:
    """The share of answers in clusters whose answers are labels or objects."""
    closed = total = 0
    for number in range(len(clusters.centres)):
        answers = [
            call.answer
            for call, label in zip(whole.sample, clusters.labels, strict=True)
            if label == number and call.answer is not None
        ]
        total += len(answers)
        if answers and kind_of(answers).kind != "generation":
            closed += len(answers)
    return closed / total if total else 0.0


def _assigned(spool: Spool, found: Found, embedder: Embedder, clusters: Clusters) -> Numbers:
    labels = np.empty(len(found.calls), dtype=np.int64)
    for start in range(0, len(found.calls), BLOCK):
        calls = spool.read(found.calls[start : start + BLOCK])
        texts = [found.template.slot(call.last) or call.last for call in calls]
        labels[start : start + len(texts)] = nearest(embedder.embed(texts), clusters.centres).labels
    return labels


def _joined(spool: Spool, columns: Columns, tasks: Sequence[Refined]) -> list[Refined]:
    """Tasks of like prompts and like answers become one; the largest gives its template."""
    order = sorted(tasks, key=lambda task: -len(task.found.calls))
    literals = {id(task): shingles(_literal(task)) for task in order}
    kept: list[Refined] = []
    added: dict[int, list[Refined]] = {}
    for task in order:
        home = next(
            (
                other
                for other in kept
                if _are_one(other, task, jaccard(literals[id(other)], literals[id(task)]))
            ),
            None,
        )
        if home is None:
            kept.append(task)
        else:
            added.setdefault(id(home), []).append(task)
    return [_with(spool, columns, task, added.get(id(task), [])) for task in kept]


def _with(spool: Spool, columns: Columns, task: Refined, more: Sequence[Refined]) -> Refined:
    if not more:
        return task
    calls = np.sort(np.concatenate([task.found.calls, *(other.found.calls for other in more)]))
    templates = [task.found.template, *(other.found.template for other in more)]
    whole = task.found._replace(calls=calls, template=common_template(templates, len(calls), task))
    return _looked_at(spool, columns, whole, task.parted)


def common_template(templates: Sequence[Template], total: int, largest: Refined) -> Template:
    """The widest of the templates where it holds all the others; else that of the largest task.

    A phrase of the users that was taken for a template must not stay in the prompt.
    """
    wide = min(templates, key=lambda template: template.literal)
    if all(t.head.startswith(wide.head) and t.tail.endswith(wide.tail) for t in templates):
        return wide
    return largest.found.template


def _literal(task: Refined) -> str:
    template = task.found.template
    return "\n".join((task.sample[0].system, template.head, template.tail))


def _are_one(one: Refined, other: Refined, alike: float) -> bool:
    same_place = one.found.group == other.found.group
    if (one.found.shape, one.found.tools) != (other.found.shape, other.found.tools):
        return False
    if one.kind.kind != other.kind.kind or one.parted or other.parted:
        return False
    fixed = bool(one.system) or bool(one.found.template.head and other.found.template.head)
    if one.kind.kind == "generation":
        if same_place and fixed and (_soft(one) or _soft(other)):
            return True
        return not same_place and alike >= ALIKE_INSTRUCTIONS
    answers = _alike_answers(one.kind, other.kind, within=same_place)
    return answers >= ALIKE_ANSWERS and (
        alike >= ALIKE_LITERALS or (same_place and (_soft(one) or _soft(other)))
    )


def _soft(task: Refined) -> bool:
    """Whether the template may be how users begin and not what a program writes."""
    template = task.found.template
    signs = template.head.rstrip().endswith((":", ">", "`")) or template.head.endswith("\n")
    return template.literal < SOFT and not signs and not template.tail.rstrip().endswith(":")


def _alike_answers(one: KindFound, other: KindFound, within: bool) -> float:
    """Overlap of the label sets or of the objects' keys, in [0, 1]."""
    if one.kind == "classification":
        left = {fold(label.label) for label in one.labels}
        right = {fold(label.label) for label in other.labels}
    else:
        left, right = (_keys(kind) for kind in (one, other))
    shared = len(left & right)
    return shared / (min(len(left), len(right)) if within else len(left | right))


def _keys(kind: KindFound) -> set[str]:
    properties = (kind.json_schema or {}).get("properties")
    return set(properties) if isinstance(properties, dict) else {""}
