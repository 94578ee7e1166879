"""Sort requests into tasks: by shape, tools and system prompt first, then by the user's text.

Requests that are one task are written by one piece of a program: it offers the same tools, sends
the same system prompt (but for dates, names and numbers in it), perhaps the same example turns, and
puts its input into the same template. Knows requests; answers are looked at by `refine`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from stillhouse.traffic.spool import Columns, Context, Spool, mask
from stillhouse.traffic.template import FREE, Template, find_templates, fitting

SAMPLE: Final = 4000  # distinct texts that templates are found in, per group
OTHER: Final = -1  # number of the task that is none

Numbers = npt.NDArray[np.int64]


class Found(NamedTuple):
    """A task as its requests show it.

    `group` numbers the tasks that only their templates tell apart; `few_shot`: the turns before the
    last one are the same in all; `varied`: the system prompt is not one text but for numbers, dates
    and the like. `calls` are the numbers of its requests, in order.
    """

    group: int
    shape: str
    tools: tuple[str, ...]
    schemas: tuple[str, ...]
    few_shot: bool
    varied: bool
    template: Template
    calls: Numbers


def find_tasks(spool: Spool, columns: Columns, least: int) -> list[Found]:
    """All tasks of at least `least` requests, those of one group together.

    Raises:
        ValueError: `least` is below 1.
    """
    if least < 1:
        raise ValueError(f"least: must be at least 1 (got {least})")
    tasks: list[Found] = []
    for group, (contexts, few_shot, members) in enumerate(_groups(spool, columns, least)):
        first = contexts[0]
        schemas = Counter(context.schema for context in contexts if context.schema)
        for template, calls in _by_template(spool, columns, members, least):
            tasks.append(
                Found(
                    group,
                    first.shape,
                    first.tools,
                    tuple(schema for schema, _ in schemas.most_common(3)),
                    few_shot,
                    len({context.system for context in contexts}) > 1,
                    template,
                    calls,
                )
            )
    return tasks


def sample_of(columns: Columns, members: Numbers, size: int) -> Numbers:
    """At most `size` of these calls with distinct inputs, drawn by the hash of the input."""
    _, first = np.unique(columns.input[members], return_index=True)  # in the order of the hashes
    return np.sort(members[first[:size]])


def _groups(
    spool: Spool, columns: Columns, least: int
) -> Iterator[tuple[list[Context], bool, Numbers]]:
    """Calls of one shape, set of tools and system prompt: (contexts, few-shot, call numbers)."""
    clusters = _clusters(spool, columns, least)
    cluster_of = np.zeros(len(spool.contexts), dtype=np.int64)
    for number, contexts in enumerate(clusters):
        cluster_of[contexts] = number
    labels = cluster_of[columns.context]
    order = np.argsort(labels, kind="stable")
    edges = np.searchsorted(labels[order], np.arange(len(clusters) + 1))
    for number, contexts in enumerate(clusters):
        members = order[edges[number] : edges[number + 1]]
        named = [spool.contexts[index] for index in contexts]
        if named[0].shape == "dialogue":
            values, counts = np.unique(columns.earlier[members], return_counts=True)
            fixed = values[counts >= least]
            for value in fixed.tolist():
                yield named, True, members[columns.earlier[members] == value]
            members = members[~np.isin(columns.earlier[members], fixed)]
        if len(members):
            yield named, False, members


def _clusters(spool: Spool, columns: Columns, least: int) -> list[list[int]]:
    """Contexts of one shape and set of tools whose system prompts are one text or one template."""
    counts = np.bincount(columns.context, minlength=len(spool.contexts))
    first = np.zeros(len(spool.contexts), dtype=np.int64)
    seen, where = np.unique(columns.context, return_index=True)
    first[seen] = where
    # One system prompt may be asked with several answer formats: these differ in the task.
    keyed: dict[tuple[str, tuple[str, ...], str, int], list[int]] = {}
    rare: dict[tuple[str, tuple[str, ...], str], list[int]] = {}
    for index, context in enumerate(spool.contexts):
        if counts[index] >= least:
            keyed.setdefault((*context[:3], context.system), []).append(index)
        else:
            rare.setdefault(context[:3], []).append(index)
    clusters = list(keyed.values())
    for contexts in rare.values():
        chosen = contexts[:SAMPLE]
        texts = [mask(call.system) for call in spool.read(first[chosen])]
        templates = find_templates(texts)
        by_template: dict[int, list[int]] = {}
        if len(templates) > 1:
            rest = contexts[len(chosen) :]
            texts += [mask(call.system) for call in spool.read(first[rest])]
            for index, text in zip([*chosen, *rest], texts, strict=True):
                by_template.setdefault(fitting(templates, text), []).append(index)
        else:
            by_template[0] = contexts
        clusters.extend(by_template[number] for number in sorted(by_template))
    return clusters


def _by_template(
    spool: Spool, columns: Columns, members: Numbers, least: int
) -> list[tuple[Template, Numbers]]:
    """The group's calls by the template of their last turn; too few for a task join a wider one."""
    if len(members) < least:
        return []
    texts = [call.last for call in spool.read(sample_of(columns, members, SAMPLE))]
    templates = find_templates(texts, max(2, min(20, least // 2)))
    if len(templates) == 1:
        return [(FREE, members)]
    fits = np.fromiter(
        (fitting(templates, call.last) for call in spool.read(members)), np.int64, len(members)
    )
    free = len(templates) - 1
    sizes = np.bincount(fits, minlength=len(templates))
    # A text that fits a rare template also fits a wider one: it goes to the widest that is a task.
    for index in range(free):
        if not 0 < sizes[index] < least:
            continue
        wider = next(
            other
            for other in range(index + 1, free + 1)
            if other == free
            or (sizes[other] >= least and _within(templates[index], templates[other]))
        )
        fits[fits == index] = wider
    found: list[tuple[Template, Numbers]] = []
    for index, template in enumerate(templates):
        calls = members[fits == index]
        if len(calls) >= least:
            found.append((template, calls))
    return found


def _within(narrow: Template, wide: Template) -> bool:
    return narrow.head.startswith(wide.head) and narrow.tail.endswith(wide.tail)


def assignment(count: int, tasks: Sequence[Numbers]) -> npt.NDArray[np.int32]:
    """The task number of each of `count` calls, [count]; `OTHER` for calls of none."""
    labels = np.full(count, OTHER, dtype=np.int32)
    for number, calls in enumerate(tasks):
        labels[calls] = number
    return labels
