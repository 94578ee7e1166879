"""The records of a plan: plan.json, and what `plan --json` prints. Knows no arithmetic."""

from __future__ import annotations

from pydantic import Field

from stillhouse.core.records import Record
from stillhouse.teacher.estimate import Estimate


class Target(Record):
    """What it takes to have so many examples."""

    examples: int
    queries: Estimate
    usd_list: Estimate | None
    usd_batch: Estimate | None
    within_traffic: bool = Field(description="Whether the traffic is expected to give so many.")


class BudgetPlan(Record):
    """What teacher.budget_usd is good for, at list price."""

    usd: float
    left_usd: float
    suffices: str = Field(description="yes, no, perhaps, or unknown.")
    queries: Estimate | None
    examples: Estimate | None


class MemoryPlan(Record):
    """GiB at the peak of a training step, by what holds them."""

    total_gib: float
    weights_gib: float
    trained_gib: float = Field(description="Adapters, gradients and AdamW's moments.")
    activations_gib: float
    logits_gib: float
    teacher_gib: float
    runtime_gib: float


class DevicePlan(Record):
    """Training on one kind of device. `usd_...` null: no price is known."""

    name: str
    memory_gib: float
    fits: bool = Field(description="With train.micro_batch_size as it is.")
    largest_micro_batch: int | None = Field(
        description="The most rows at a time that fit; null: none."
    )
    seconds_low: float
    seconds_high: float
    usd_low: float | None
    usd_high: float | None
    usd_per_hour: float | None
    price: str | None = Field(description="Where the price of an hour is from.")


class TrainingPlan(Record):
    """What training takes, from the published shape of the student."""

    parameters: int
    trained_parameters: int
    examples: float
    tokens: float = Field(description="Of all passes, without padding.")
    tokens_known: bool = Field(description="From a sample of answers; false: by rule of thumb.")
    operations: float = Field(description="Floating-point operations.")
    micro_batch: int
    row_tokens: int = Field(description="Longest row, which the memory is reckoned for.")
    memory: MemoryPlan
    devices: tuple[DevicePlan, ...]
    assumed: str = Field(description="What the seconds rest on.")


class StudentPlan(Record):
    """What is known of the student's side. Seconds are of an earlier training in this folder."""

    machine_usd_per_hour: float
    machine: str
    train_seconds: float | None = None
    train_usd: float | None = None
    training: TrainingPlan | None = Field(
        default=None, description="null: the student's shape is not known."
    )
    how: str
    shape: tuple[str, ...] = Field(
        default=(), description="A student of a size: what is kept of its source, line by line."
    )


class SamplePlan(Record):
    """The sample that the plan rests on."""

    n: int
    asked: int
    reused: int
    failures: int
    usd: float
    worst_usd: float
    drawn: bool = Field(description="false: the answers there happened to be, not a random draw.")


class Plan(Record):
    """plan.json. Quantities are of what is still to be asked, unless they say otherwise."""

    teacher: str
    queries: int = Field(description="Distinct chats of the run: traffic, labelled, golden.")
    answered: int
    open: int
    samples_per_query: int
    sample: SamplePlan | None
    prompt_tokens: Estimate
    completion_tokens: Estimate
    usd_list: Estimate | None
    usd_batch: Estimate | None
    price: str | None = Field(description="Where the price is from.")
    price_wanted: str | None = Field(description="The line that asks for a price not known.")
    seconds: Estimate | None
    seconds_limited_by: str
    batch_hours: int | None
    storage_bytes: Estimate
    disk_free_bytes: int
    accepted: Estimate = Field(description="Traffic queries with an accepted answer, of all.")
    examples: Estimate = Field(description="After near-duplicates are taken out.")
    budget: BudgetPlan | None
    targets: tuple[Target, ...]
    cheapest: str
    student: StudentPlan | None = Field(default=None, description="null: not looked at yet.")
    notes: tuple[str, ...] = ()
