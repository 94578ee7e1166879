"""What was found of a draft and its target: records for speculate.json, and lines for people.

Knows figures only.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from stillhouse.compress.speculate_counts import Acceptance
from stillhouse.compress.speculate_lossless import GreedyCheck, SampledCheck
from stillhouse.core.records import Record
from stillhouse.core.statistics import Interval
from stillhouse.evaluate.drafted import Drafted

ALONE = "alone"
DRAFT = "draft"
UNDISTILLED = "undistilled"
LOOKUP = "prompt lookup"


class Tried(Record):
    """One way at one length, while the length was chosen."""

    way: str
    length: int
    tokens_per_second: float
    speedup: float
    tokens_a_pass: float | None = None
    expected: float | None = None  # speed-up by the formula, from the rate and the measured c


class Cost(Record):
    """c, the time of a draft step over one of the target, three ways.

    `measured` is of single steps; `fixed` and `per_token` are fitted to the cost of whole rounds,
    in target steps: fixed + per_token * length. `verify` is what a pass of the target over so many
    tokens costs, over one token.
    """

    measured: float | None
    fixed: float | None = None
    per_token: float | None = None
    verify: Mapping[int, float] = Field(default_factory=dict)


class Way(Record):
    """How fast answers come, on prompts on which nothing was chosen. Length 0 is without draft."""

    length: int
    tokens_per_second: float
    tokens_a_pass: float | None
    speedup: Interval | None  # over the target alone


class RuntimeReport(Record):
    """One runtime: lengths tried, the best of each way, and how fast they are."""

    runtime: str
    prompts: int
    tried: tuple[Tried, ...]
    ways: Mapping[str, Way]
    over_lookup: Interval | None
    over_undistilled: Interval | None
    identical: int  # of the prompts below, answers that are the target's alone
    compared: int
    cost: Cost | None = None
    share: float | None = None  # accepted over drafted, where the runtime counts only that

    @property
    def lossless(self) -> bool:
        """Whether greedy answers were compared, and all are the target's alone."""
        return 0 < self.compared == self.identical


class DraftReport(Record):
    """One draft: its acceptance on all prompts, at one length for all drafts."""

    source: str
    parameters: int
    mapped: bool  # its ids are not the target's
    length: int
    acceptance: Acceptance | None
    by_task: Mapping[str, Acceptance]
    by_segment: Mapping[str, Acceptance]
    break_even: float | None  # the least rate that does not slow down at this length and cost
    draft_gains: Interval | None = None  # rate of `draft` less this one's, on the same prompts


class SpeculateReport(Record):
    """speculate.json."""

    target: str
    target_parameters: int
    prompts: int
    drafts: Mapping[str, DraftReport]
    greedy: GreedyCheck
    sampled: SampledCheck | None
    runtimes: tuple[RuntimeReport, ...]
    serve: Mapping[str, object]

    @property
    def faults(self) -> tuple[str, ...]:
        """Where answers are not the target's own: in which runtime, and how many."""
        measured = {one.runtime: (one.identical, one.compared) for one in self.runtimes}
        own = {"transformers": (self.greedy.identical, self.greedy.prompts)}
        found = [
            f"{name}: {compared - same:,} of {compared:,} greedy answers differ from the target's"
            for name, (same, compared) in (own | measured).items()
            if same < compared
        ]
        found += [f"{one.runtime}: nothing compared" for one in self.runtimes if not one.compared]
        if self.sampled is not None and not self.sampled.lossless:
            found.append("transformers: sampled answers are not distributed as the target's")
        return tuple(found)

    @property
    def lossless(self) -> bool:
        """Whether all answers are the target's own, in each runtime that was measured."""
        return not self.faults

    @property
    def faster(self) -> bool:
        """Whether the draft gains in some runtime: its interval lies above the target alone."""
        return _shown(self.best)

    @property
    def passed(self) -> bool:
        """The gate: lossless in each runtime, and faster in one."""
        return self.lossless and self.faster

    @property
    def best(self) -> RuntimeReport:
        """The runtime in which the draft gains most; one that shows a gain before one that does
        not."""
        return max(self.runtimes, key=lambda one: (_shown(one), _gain(one)))

    @property
    def verdict(self) -> str:
        """The gate's verdict in a line: by what it passes, or all that it fails on."""
        found = self.best.ways[DRAFT].speedup
        gain = "" if found is None else f" {_interval(found, '.2f')} x the target alone"
        if self.passed:
            where = " and ".join(one.runtime for one in self.runtimes)
            return f"pass: lossless in {where}; in {self.best.runtime}{gain}"
        why = list(self.faults)
        if not self.faster:
            said = f" (best: {self.best.runtime},{gain})" if gain else ""
            why.append(f"no runtime shows that the draft is faster than the target alone{said}")
        return f"FAIL: {'; '.join(why)}"


def drafted(report: SpeculateReport) -> Drafted:
    """The report in short."""
    best = report.best
    way, found = best.ways[DRAFT], report.drafts[DRAFT].acceptance
    return Drafted(
        target=report.target,
        runtime=best.runtime,
        length=way.length,
        acceptance=None if found is None else found.rate,
        tokens_per_s=way.tokens_per_second,
        tokens_per_s_alone=best.ways[ALONE].tokens_per_second,
        speedup=way.speedup,
        over_lookup=best.over_lookup,
        over_undistilled=best.over_undistilled,
        identical=best.identical,
        compared=best.compared,
        lossless=report.lossless,
        faster=report.faster,
    )


def _shown(runtime: RuntimeReport) -> bool:
    way = runtime.ways.get(DRAFT)
    return way is not None and way.speedup is not None and way.speedup.low > 1.0


def _gain(runtime: RuntimeReport) -> float:
    way = runtime.ways.get(DRAFT)
    return 0.0 if way is None or way.speedup is None else way.speedup.estimate


def report_lines(report: SpeculateReport) -> list[tuple[str, str]]:
    """The findings as (name, value)."""
    greedy = report.greedy
    rows = [
        ("target", f"{report.target} ({report.target_parameters:,} parameters)"),
        *((f"{name}", _draft_line(draft)) for name, draft in report.drafts.items()),
    ]
    for name, draft in report.drafts.items():
        if draft.draft_gains is not None:
            rows.append((f"draft's rate over {name}", f"{_interval(draft.draft_gains, '+.3f')}"))
        rows += [(f"{name}, {part}", _rate(a)) for part, a in _parts(draft)]
    rows.append(
        (
            "greedy answers",
            f"{greedy.identical} of {greedy.prompts} identical to the target's, token for token"
            + ("" if greedy.identical == greedy.prompts else _differences(greedy)),
        )
    )
    if report.sampled is not None:
        verdict = "no test rejects" if report.sampled.lossless else "REJECTED: not the target's"
        rows.append(("sampled answers", verdict))
        rows += [
            (f"  {t.name}", f"p {t.p_value:.3g} (Holm {t.adjusted:.3g}): {t.says}")
            for t in report.sampled.tests
        ]
    for runtime in report.runtimes:
        rows += _runtime_rows(runtime)
    rows.append(("verdict", report.verdict))
    return rows


def _parts(draft: DraftReport) -> list[tuple[str, Acceptance]]:
    tasks = list(draft.by_task.items()) if len(draft.by_task) > 1 else []
    return [*tasks, *draft.by_segment.items()]


def _runtime_rows(runtime: RuntimeReport) -> list[tuple[str, str]]:
    rows = []
    for name, way in runtime.ways.items():
        said = f"{way.tokens_per_second:.1f} tokens/s"
        if way.length:
            said += f", {way.length} a draft"
        if way.tokens_a_pass is not None:
            said += f", {way.tokens_a_pass:.2f} a pass"
        if way.speedup is not None:
            said += f", {_interval(way.speedup, '.2f')} x the target alone"
        rows.append((f"{runtime.runtime}: {name}", said))
    for name, found in (
        (LOOKUP, runtime.over_lookup),
        (UNDISTILLED, runtime.over_undistilled),
    ):
        if found is not None:
            rows.append((f"{runtime.runtime}: draft over {name}", f"{_interval(found, '.2f')} x"))
    if runtime.share is not None:
        said = f"{runtime.identical} of {runtime.compared} answers identical to the target's"
        rows.append((f"{runtime.runtime}: greedy", f"{said}; {runtime.share:.3f} of drafts kept"))
    if runtime.cost is not None and runtime.cost.measured is not None:
        said = f"c {runtime.cost.measured:.3f} by single steps"
        if runtime.cost.per_token is not None:
            said += f"; a round costs {runtime.cost.fixed:.2f} + {runtime.cost.per_token:.3f} g"
        rows.append((f"{runtime.runtime}: cost of a draft step", said))
    return rows


def _draft_line(draft: DraftReport) -> str:
    even = "" if draft.break_even is None else f", breaks even at {draft.break_even:.2f}"
    ids = ", ids mapped" if draft.mapped else ""
    return f"{draft.source} ({draft.parameters:,} parameters{ids}): {_rate(draft.acceptance)}{even}"


def _rate(found: Acceptance | None) -> str:
    if found is None:
        return "nothing was drafted"
    places = ", ".join(f"{p.rate.estimate:.2f}" for p in found.positions)
    return f"acceptance {_interval(found.rate, '.3f')}, by position {places}"


def _differences(greedy: GreedyCheck) -> str:
    ties = sum(d.tie for d in greedy.divergences)
    rest = len(greedy.divergences) - ties
    first = greedy.divergences[0]
    return (
        f"; {ties} ties within rounding, {rest} others; first: {first.id} at token {first.token}, "
        f"gap {first.gap:.2g} nats (rounding {first.rounding:.2g})"
    )


def _interval(found: Interval, form: str) -> str:
    return f"{found.estimate:{form}} [{found.low:{form}}, {found.high:{form}}]"
