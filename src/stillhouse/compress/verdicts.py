"""The gate of compressed students: not worse than the teacher, nor than the float student, nor
slower than it, nor too big.

Both quality tests are `evaluate.gate`'s own: a one-sided bound against a margin. Each artefact gets
one line that says what it keeps or why it is refused, with the figures. Knows results; measures
nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from stillhouse.compress.retrained import plain_name
from stillhouse.core.recipe_compress import CompressSection
from stillhouse.evaluate import summary
from stillhouse.evaluate.compressed import CompressedRow
from stillhouse.evaluate.results import CandidateSpeed, GateResult


class Speedup(NamedTuple):
    """Times the float student's speed; `None` where one of the two is not known."""

    latency: float | None
    throughput: float | None


class Ruling(NamedTuple):
    """Pass or fail, in one line."""

    verdict: Literal["pass", "fail"]
    sentence: str


def speedup(own: CandidateSpeed, parent: CandidateSpeed) -> Speedup:
    """How many times as fast as its parent, by median latency and by throughput."""
    return Speedup(_over(parent.latency_p50_ms, own.latency_p50_ms), _over(own.qps, parent.qps))


def rule(
    name: str,
    section: CompressSection,
    *,
    against_teacher: GateResult,
    against_student: GateResult,
    own: CandidateSpeed,
    parent: CandidateSpeed,
    size_bytes: int,
) -> Ruling:
    """Judge one artefact."""
    faster = speedup(own, parent)
    wanted = faster.latency if section.speed_by == "latency" else faster.throughput
    faults: list[str] = []
    if against_student.verdict == "fail":
        faults.append(f"worse than the float student: {_bound(against_student)}")
    if against_teacher.verdict == "fail":
        faults.append(f"worse than the teacher: {_bound(against_teacher)}")
    if section.max_size_mb is not None and size_bytes > section.max_size_mb * 1e6:
        faults.append(
            f"bigger than compress.max_size_mb: {megabytes(size_bytes)} on disk, "
            f"{section.max_size_mb:g} MB is allowed"
        )
    if wanted is None:
        faults.append("its speed is not known")
    elif wanted < section.min_speedup:
        faults.append(
            f"slower than the float student: {_speeds(own, parent, section)} "
            f"({wanted:.2f}x, {section.min_speedup:g}x is needed)"
        )
    if faults:
        return Ruling("fail", f"{name} is refused: {'; '.join(faults)}")
    assert wanted is not None
    return Ruling(
        "pass",
        f"{name} passes: {summary.points(against_student.difference)} against the float student, "
        f"{summary.points(against_teacher.difference)} against the teacher, "
        f"{_speeds(own, parent, section)} ({wanted:.2f}x)",
    )


def choose(rows: Sequence[CompressedRow]) -> CompressedRow | None:
    """The smallest that passes; of equal sizes the fastest; `None` where none passes."""
    passing = [row for row in rows if row.verdict == "pass"]
    return min(
        passing,
        key=lambda row: (row.size_bytes, row.speed.latency_p50_ms or float("inf"), row.name),
        default=None,
    )


def remarks(rows: Sequence[CompressedRow], student: CompressedRow) -> list[str]:
    """What a reader should know of artefacts that pass: a sentence each."""
    by_name: Mapping[str, CompressedRow] = {row.name: row for row in rows}
    found: list[str] = []
    if student.against_teacher.verdict == "fail":
        found.append(
            "the float student itself does not pass the gate against the teacher: "
            + _bound(student.against_teacher)
        )
    for row in rows:
        if row.gain is not None:
            found.append(
                f"{row.name} is {plain_name(row.name)} of the student distilled further with "
                f"rounded weights and activations: {summary.points(row.gain)} over "
                f"{plain_name(row.name)}"
            )
        if row.size_ratio >= 1:
            found.append(
                f"{row.name} is no smaller than the float student: {megabytes(row.size_bytes)} "
                f"against {megabytes(student.size_bytes)}"
            )
        float_form = by_name.get(row.name.partition("-")[0])
        if float_form is None or float_form.name == row.name:
            continue
        own, other = row.speed.latency_p50_ms, float_form.speed.latency_p50_ms
        if own is not None and other is not None and own > other:
            found.append(
                f"{row.name} is slower than {float_form.name} on this machine: p50 {own:.3g} ms "
                f"against {other:.3g} ms"
            )
    return found


def megabytes(size: int) -> str:
    """`12.3 MB`, of 10^6 bytes."""
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size / 1e3:,.1f} kB"


def _bound(gate: GateResult) -> str:
    d = gate.difference
    return (
        f"{100 * d.estimate:+.1f} points, lower bound {100 * d.low:+.1f}, margin "
        f"-{100 * gate.margin:g} (n = {d.n:,})"
    )


def _speeds(own: CandidateSpeed, parent: CandidateSpeed, section: CompressSection) -> str:
    if section.speed_by == "latency":
        return f"p50 {own.latency_p50_ms:.3g} ms against {parent.latency_p50_ms:.3g} ms"
    return f"{own.qps:,.3g} against {parent.qps:,.3g} queries/s"


def _over(top: float | None, bottom: float | None) -> float | None:
    return top / bottom if top is not None and bottom else None
