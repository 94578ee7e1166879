"""What training a student takes: memory in bytes, floating-point operations, from shapes alone.

Memory is counted from what autograd keeps when transformers' own blocks run under this trainer
(tests/train/test_footprint.py holds it against the saved tensors of real blocks). Operations: 2 a
weight and token forward, as many again for the gradient of the inputs, and as many for that of the
weights that are trained (Kaplan et al. 2020, arXiv:2001.08361, section 2.1). Knows shapes and the
recipe's sections; knows no device, and imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

from stillhouse.core.heads import Head
from stillhouse.core.recipe_train import StudentSection, TrainSection
from stillhouse.core.shapes import Shape

GIB: Final = 2**30
FP32, BF16 = 4, 2
OPTIMIZER: Final = 3 * FP32  # gradient and AdamW's two moments
RUNTIME: Final = int(1.5 * GIB)  # CUDA context, workspaces and what the allocator cannot reuse
FEWEST_ROWS, MOST_ROWS = 128, 2048  # of a chunk of the fused loss
FORWARD: Final = 2  # operations a weight and token


class Memory(NamedTuple):
    """Bytes, at the peak of a step."""

    weights: int
    trained: int
    activations: int
    logits: int
    teacher: int
    runtime: int

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self)


class Work(NamedTuple):
    """Tokens of one pass over the training set, and of the part of it that is learnt."""

    prompt: float
    answer: float

    @property
    def tokens(self) -> float:
        """Read by the body of the model."""
        return self.prompt + self.answer


@dataclass(frozen=True, slots=True)
class Job:
    """A student to be trained. `shape` is the student's after layers were cut; `teacher` is who
    reads along, if anyone does."""

    shape: Shape
    train: TrainSection
    head: Head
    labels: int = 0
    teacher: Shape | None = None

    @property
    def parameters(self) -> int:
        """Of the student."""
        return self.shape.count(head=self.head, labels=self.labels)

    @property
    def trained(self) -> int:
        """Parameters that get gradients."""
        lora = self.train.lora
        if lora is None:
            return self.parameters
        new_head = self.labels * self.shape.hidden if self.head != "text" else 0
        return self.shape.adapters(lora.r, lora.target_modules) + new_head


def student_shape(section: StudentSection, shape: Shape) -> Shape:
    """The source's shape with the layers and the number of tokens that the recipe keeps."""
    layers: int = shape.layers
    if isinstance(section.layers, int):
        layers = min(layers, section.layers)
    elif section.layers is not None:
        layers = len(section.layers)
    rows = shape.vocabulary
    if isinstance(section.vocabulary, int):
        rows = min(rows, section.vocabulary)
    positions = min(shape.positions, section.max_tokens)
    return shape.model_copy(
        update={"layers": layers, "vocabulary": rows, "positions": positions, "parameters": None}
    )


def read_rows(section: StudentSection, student: Shape, teacher: Shape) -> Shape:
    """The shape of a teacher that reads along: a text student with fewer rows than its source has
    it keep the same."""
    if section.head != "text" or section.vocabulary == "full":
        return teacher
    rows = min(student.vocabulary, teacher.vocabulary)
    return teacher.model_copy(update={"vocabulary": rows, "parameters": None})


def memory_of(job: Job, micro_batch: int, tokens: int, *, bf16: bool = True) -> Memory:
    """Bytes at the peak of a step.

    Args:
        job: what is trained.
        micro_batch: rows in a forward pass.
        tokens: of each row, padding included.
        bf16: whether products run in bfloat16, as on every device of the table.
    """
    shape, train = job.shape, job.train
    frozen = train.lora is not None
    half = bf16 and frozen and job.head == "text"  # frozen weights are kept in bf16
    weights = job.parameters * (BF16 if half else FP32)
    if bf16 and not half:
        weights += shape.layers * shape.block_weights * BF16  # autocast's copies, kept for backward
    trained = job.trained * (OPTIMIZER + (FP32 if frozen else 0))
    block = activation_bytes(job, bf16=bf16)
    passed = (BF16 if half else FP32) * shape.hidden  # what goes from block to block
    each = micro_batch * tokens
    if train.gradient_checkpointing:
        activations = each * (shape.layers * passed + block)
    else:
        activations = each * shape.layers * block
    logits = 0
    if job.head == "text":
        chunk = min(max(shape.hidden // 2, FEWEST_ROWS), MOST_ROWS)
        logits = 2 * chunk * shape.vocabulary * FP32 + each * shape.hidden * FP32
    teacher = 0
    if job.teacher is not None:
        teacher = job.teacher.count() * (BF16 if bf16 else FP32)
        teacher += each * BF16 * (4 * job.teacher.hidden + 3 * job.teacher.intermediate)
    return Memory(weights, trained, activations, logits, teacher, RUNTIME)


def activation_bytes(job: Job, *, bf16: bool = True) -> int:
    """Bytes that one block keeps a token for the backward pass, attention maps never held."""
    shape, lora = job.shape, job.train.lora
    h, q, i = shape.hidden, shape.queries, shape.intermediate
    size = BF16 if bf16 else FP32
    if not shape.causal:
        # what enters two norms, in fp32; inputs of the products, q k v and their result, the MLP's
        # middle before and after GELU; and where dropout struck, a byte each
        return 2 * FP32 * h + size * (2 * h + 4 * q + 2 * i) + 2 * h
    norms = 2 * FP32 * h  # fp32 copies that the norms square
    attention = size * 4 * q  # q, k and v repeated to all heads, and the result
    middle = size * 3 * i  # gate, its activation, up
    if lora is None:
        norms += 2 * FP32 * h + size * h * (4 if bf16 else 1)  # normalised, cast
        return norms + attention + middle + size * (q + i)  # inputs of the last products
    wanted = [p for n, p in shape.linear().items() if n in lora.target_modules]
    read = [product.inputs for product in wanted]  # under autocast each adapter has a copy
    down = size * sum(read if bf16 else set(read))
    return norms + attention + middle + down + len(wanted) * (size + FP32) * lora.r


def operations(job: Job, work: Work, row: float, looked_at: float) -> float:
    """Floating-point operations of a whole training.

    Args:
        job: what is trained.
        work: tokens of one pass over the training set.
        row: mean tokens of a row, for attention.
        looked_at: tokens of the held-out set, which is measured `train.evals` times.
    """
    train = job.train
    passes = 1 + (1 if train.lora is not None else 2)
    if train.gradient_checkpointing:
        passes += 1
    share = work.answer / work.tokens if work.tokens else 0.0
    one = _forward(job.shape, row, share if job.head == "text" else 0.0)
    teacher = _forward(job.teacher, row, share) if job.teacher is not None else 0.0
    learnt = train.epochs * work.tokens
    looked = train.evals * looked_at
    return learnt * (passes * one + teacher) + looked * (one + teacher)


def _forward(shape: Shape, row: float, share: float) -> float:
    """Operations of one token's forward pass; `share` of the positions go through the head."""
    mixed = (1 if shape.causal else 2) * FORWARD * row * shape.queries  # scores and their sums
    body = shape.layers * (FORWARD * shape.block_weights + mixed)
    return body + share * FORWARD * shape.hidden * shape.vocabulary
