"""The student's side of `stillhouse plan`: parameters, memory, time and USD of its training.

Device by device, from published shapes: nothing is downloaded and no weight is read. Knows the
recipe, the traffic and what a sample of answers says of their length; the arithmetic is in
`train.footprint`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from stillhouse.core.devices import Device, devices
from stillhouse.core.money import machine_usd_per_hour
from stillhouse.core.optional import require
from stillhouse.core.recipe import Recipe
from stillhouse.core.records import Query
from stillhouse.core.runfolder import RunFolder
from stillhouse.core.shapes import FAMILIES, Shape, shape_of
from stillhouse.core.tagging import tag_fields, tag_names
from stillhouse.core.tasks import ClassificationTask, ExtractionTask
from stillhouse.teacher.estimate import Estimate
from stillhouse.teacher.plan_records import DevicePlan, MemoryPlan, StudentPlan, TrainingPlan
from stillhouse.teacher.sample import Sample, size_of
from stillhouse.train.footprint import (
    GIB,
    Job,
    Memory,
    Work,
    memory_of,
    operations,
    read_rows,
    student_shape,
)

BYTES_PER_TOKEN: Final = 4  # English text, by the providers' own rule of thumb
MARKUP_TOKENS: Final = 8  # a chat template's, a message
# Share of a device's peak that training reaches: an assumption. Large models with long rows are
# near the upper end, a 135M one below the lower.
BUSY: Final = (0.20, 0.45)
HOUR_S: Final = 3600.0


class Lengths(NamedTuple):
    """Mean tokens of a prompt and of an answer; `known` where a sample of answers says so."""

    prompt: float
    answer: float
    known: bool


def plan_student(
    recipe: Recipe, run: RunFolder, traffic: Sequence[Query], sample: Sample, examples: Estimate
) -> StudentPlan:
    """What is known of the student before anything is paid.

    Args:
        recipe: its `student`, `train` and `prices`.
        run: an earlier training in it says how long one took here.
        traffic: what the examples will be made of.
        sample: answers, for their length.
        examples: how many there will be.

    Raises:
        UserError: adapters on layers that the model does not have.
    """
    machine = machine_usd_per_hour(recipe.prices)
    trained, dataset = run.manifest("train"), run.manifest("dataset")
    count = dataset.summary.get("train") if dataset is not None else None
    lines: tuple[str, ...] = ()
    after: Any = None
    if recipe.student.size is not None:
        module = require("stillhouse.train.preflight", "train", "planning a student of a size")
        lines, after = module.planned_cut(recipe)
    training, how = _training(recipe, traffic, sample, examples, after)
    if trained is None or not isinstance(count, int):
        return StudentPlan(
            machine_usd_per_hour=machine.usd_per_hour,
            machine=machine.name,
            training=training,
            shape=lines,
            how=f"{recipe.train.epochs:g} passes over the training examples; {how}",
        )
    return StudentPlan(
        machine_usd_per_hour=machine.usd_per_hour,
        machine=machine.name,
        train_seconds=trained.seconds,
        train_usd=trained.seconds / HOUR_S * machine.usd_per_hour,
        training=training,
        shape=lines,
        how=f"the last training in this folder, on {count:,} examples; time grows with examples",
    )


def job_of(recipe: Recipe, after: Any = None) -> Job | None:
    """What will be trained, as shapes; `None` where a shape is not known.

    `after` is the shape of a student of a size (`train.cut_shapes.Shape`).
    """
    source = recipe.student.source
    shape = shape_of(recipe.teacher.model if source == "teacher" else source)
    if shape is None or (after is not None and after.embedding):
        return None
    reads = recipe.student.head == "text" and recipe.train.alpha > 0
    live = reads and recipe.train.signals == "live" and recipe.train.teachers is None
    teacher: Shape | None = None
    if (live and recipe.teacher.trainable) or recipe.train.insides:
        teacher = shape_of(recipe.teacher.model)
        if teacher is None:
            return None
    labels = _classes(recipe)
    shape = student_shape(recipe.student, shape) if after is None else _cut(shape, after)
    if teacher is not None and live:
        teacher = read_rows(recipe.student, shape, teacher)
    return Job(shape, recipe.train, recipe.student.head, labels, teacher)


def _classes(recipe: Recipe) -> int:
    """Outputs of the student's head."""
    task = recipe.task
    if isinstance(task, ExtractionTask) and recipe.student.head == "tags":
        return len(tag_names(tag_fields(task.json_schema)))
    return len(task.labels) if isinstance(task, ClassificationTask) else 0


def _cut(shape: Shape, after: Any) -> Shape:
    """The source's shape after a cut to a size."""
    same = ("hidden", "layers", "heads", "kv_heads", "head_dim", "vocabulary", "positions", "tied")
    sizes = {name: getattr(after, name) for name in same}
    return shape.model_copy(update={**sizes, "intermediate": after.neurons, "parameters": None})


def _training(
    recipe: Recipe, traffic: Sequence[Query], sample: Sample, examples: Estimate, after: Any
) -> tuple[TrainingPlan | None, str]:
    job = job_of(recipe, after)
    if job is None:
        return None, (
            f"the shape of {recipe.student.source} is not known, so neither are its memory and "
            f"time: give a folder with its config.json (of {', '.join(FAMILIES)})"
        )
    lengths = _lengths(recipe, traffic, sample)
    count = examples.estimate if examples.estimate is not None else examples.high or 0.0
    learnt = count * (1 - recipe.dataset.held_out)
    prompt = min(lengths.prompt, max(1.0, recipe.student.max_tokens - lengths.answer))
    answer = lengths.answer if recipe.student.head == "text" else 0.0
    row = prompt + answer
    done = operations(
        job, Work(learnt * prompt, learnt * answer), row, count * recipe.dataset.held_out * row
    )
    if recipe.train.hard_label_twin:
        done *= 2
    longest = min(job.shape.positions, recipe.student.max_tokens)
    micro = recipe.train.micro_batch_size or recipe.train.batch_size
    memory = memory_of(job, micro, longest)
    plan = TrainingPlan(
        parameters=job.parameters,
        trained_parameters=job.trained,
        examples=learnt,
        tokens=recipe.train.epochs * learnt * row,
        tokens_known=lengths.known and examples.basis == "sample",
        operations=done,
        micro_batch=micro,
        row_tokens=longest,
        memory=_memory(memory),
        devices=tuple(_on(device, recipe, job, longest, done) for device in devices()),
        assumed=f"{BUSY[0]:.0%} to {BUSY[1]:.0%} of a device's bf16 peak, not measured here",
    )
    return plan, f"rows of at most {longest:,} tokens, {micro} at a time"


def _lengths(recipe: Recipe, traffic: Sequence[Query], sample: Sample) -> Lengths:
    """From a sample's token counts, which are of the teacher's tokenizer; else by rule of thumb."""
    counted = [
        (c.prompt_tokens, c.completion_tokens)
        for one in sample.answered
        for c in one.completions[:1]
        if c.prompt_tokens is not None and c.completion_tokens is not None
    ]
    if len(counted) >= 2:
        n = len(counted)
        return Lengths(sum(p for p, _ in counted) / n, sum(a for _, a in counted) / n, True)
    if recipe.student.head != "text":
        texts = [len(recipe.task.varying_text(query).encode("utf-8")) for query in traffic]
        return Lengths(2 + sum(texts) / BYTES_PER_TOKEN / len(texts), 0.0, False)
    sizes = [size_of(q) / BYTES_PER_TOKEN + MARKUP_TOKENS * len(q.messages) for q in traffic]
    return Lengths(sum(sizes) / len(sizes), float(recipe.teacher.max_tokens), False)


def _memory(memory: Memory) -> MemoryPlan:
    return MemoryPlan(
        total_gib=memory.total / GIB,
        **{f"{name}_gib": value / GIB for name, value in memory._asdict().items()},
    )


def _on(device: Device, recipe: Recipe, job: Job, tokens: int, done: float) -> DevicePlan:
    """Whether it fits, with how many rows at a time, how long it takes, what it costs."""
    room = int(device.memory_gib * GIB)
    batch = recipe.train.batch_size
    micro = recipe.train.micro_batch_size or batch
    fits = memory_of(job, micro, tokens).total <= room
    most = max(
        (
            rows
            for rows in range(1, batch + 1)
            if batch % rows == 0 and memory_of(job, rows, tokens).total <= room
        ),
        default=None,
    )
    low, high = (done / (device.tflops * 1e12 * share) for share in reversed(BUSY))
    price = recipe.prices.machine_usd_per_hour
    hour = device.usd_per_hour if price is None else price
    costs = [None, None] if hour is None else [s / HOUR_S * hour for s in (low, high)]
    return DevicePlan(
        name=device.name,
        memory_gib=device.memory_gib,
        fits=fits,
        largest_micro_batch=most,
        seconds_low=low,
        seconds_high=high,
        usd_low=costs[0],
        usd_high=costs[1],
        usd_per_hour=hour,
        price=_price(device, price),
    )


def _price(device: Device, own: float | None) -> str | None:
    if own is not None:
        return "prices.machine_usd_per_hour"
    if device.usd_per_hour is None:
        return None
    return f"{device.machine}, {device.as_of}"


def student_lines(student: StudentPlan) -> Iterator[tuple[str, str]]:
    """The student's side as (name, value) rows for people."""
    known = "" if student.train_seconds is None else f"{student.train_seconds:,.0f} s, "
    known += "" if student.train_usd is None else f"${student.train_usd:,.4g}, "
    yield "student", f"{known}{student.how}; machine ${student.machine_usd_per_hour:g} an hour"
    for line in student.shape:
        yield "student cut", line
    plan = student.training
    if plan is None:
        return
    share = plan.trained_parameters / plan.parameters
    yield (
        "parameters",
        f"{plan.parameters:,}, of which {plan.trained_parameters:,} ({share:.2%}) are trained",
    )
    memory = plan.memory
    parts = [
        f"{value:.1f} {name}"
        for name, value in (
            ("weights", memory.weights_gib),
            ("trained, with AdamW", memory.trained_gib),
            ("activations", memory.activations_gib),
            ("logits", memory.logits_gib),
            ("teacher", memory.teacher_gib),
            ("runtime", memory.runtime_gib),
        )
        if value >= 0.05
    ]
    yield (
        "memory",
        f"about {memory.total_gib:.1f} GiB for {plan.micro_batch} rows of {plan.row_tokens:,} "
        f"tokens: {', '.join(parts)}",
    )
    basis = "" if plan.tokens_known else ", by rule of thumb and max_tokens"
    yield (
        "training",
        f"{plan.tokens / 1e6:,.2f}M tokens{basis}, {plan.operations:.2e} operations; "
        f"at {plan.assumed}:",
    )
    for device in plan.devices:
        yield f"on {device.name}", _device_line(device)


def _device_line(device: DevicePlan) -> str:
    if device.largest_micro_batch is None:
        return "does not fit, not even one row: train.gradient_checkpointing: true, or fewer tokens"
    room = "fits"
    if not device.fits:
        room = f"fits with train.micro_batch_size: {device.largest_micro_batch}"
    time = f"{_duration(device.seconds_low)} to {_duration(device.seconds_high)}"
    if device.usd_low is None or device.usd_high is None:
        return f"{room}; {time}; its price is not known: set prices.machine_usd_per_hour"
    return (
        f"{room}; {time}, ${device.usd_low:,.2f} to ${device.usd_high:,.2f} "
        f"(${device.usd_per_hour:g} an hour: {device.price})"
    )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / HOUR_S:.1f} h"
