"""What studies of one recipe find out, as strict records: curve.json and frontier.json.

A study trains several variants of a recipe: on more and more examples (curve), or students of
several sizes (frontier). Knows the shape of results; computes, draws and decides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from stillhouse.core.statistics import Interval
from stillhouse.evaluate.results import Result


class AnswerCost(Result):
    """What one more training example costs: its answer, and those that are not kept or held out."""

    usd_per_answer: float | None = Field(description="Of one query to the teacher; null: unknown.")
    answers_per_example: float = Field(description="Queries asked per training example that came.")
    source: str = Field(description="Where the price comes from.")

    @property
    def usd_per_example(self) -> float | None:
        """USD per training example."""
        if self.usd_per_answer is None:
            return None
        return self.usd_per_answer * self.answers_per_example


class Training(Result):
    """One of the trainings that differ in their seed."""

    seed: int
    folder: str = Field(description="Its run folder, relative to the study's.")
    score: Interval = Field(description="Of this training's student alone.")
    verdict: Literal["pass", "fail"] = Field(description="Of its own gate.")
    train_seconds: float


class CurveMean(Result):
    """The trainings of one size together."""

    examples: int = Field(ge=1)
    trainings: int = Field(ge=2)
    score: Interval = Field(
        description="Mean over the trainings; the interval is over samples, of each one's mean."
    )
    retention: Interval | None = Field(description="The same.")
    deviation: float = Field(description="Standard deviation of score between trainings.")


class CurvePoint(Result):
    """One student, trained on some of the examples."""

    examples: int = Field(ge=1)
    seed: int = Field(description="Of the training and of the choice of examples.")
    folder: str = Field(description="Its run folder, relative to the study's.")
    score: Interval
    agreement: Interval
    retention: Interval | None
    verdict: Literal["pass", "fail"]
    linear: Interval | None = Field(
        description="TF-IDF and logistic regression on the same examples; closed labels only."
    )
    train_seconds: float


class FitPoint(Result):
    """The fitted score at a number of examples."""

    examples: int
    score: Interval
    beyond: bool = Field(description="Beyond the largest number tried: extrapolated.")


class Fit(Result):
    """The fitted learning curve."""

    ceiling: Interval = Field(description="Where the curve ends with examples without end.")
    ceiling_known: bool = Field(description="Whether the scores bound it short of 1.")
    exponent: float = Field(description="b of score(n) = c - a n^-b.")
    amount: float = Field(description="a of score(n) = c - a n^-b.")
    drawn: tuple[FitPoint, ...]


class MoreAnswers(Result):
    """A step to more examples, from all there are now."""

    examples: int = Field(description="Training examples after the step.")
    answers: int = Field(description="Answers to pay for.")
    usd: float | None
    score: Interval = Field(description="Fitted; extrapolated.")
    gain: float = Field(description="Points that the fit says the step brings.")
    gain_low: float = Field(description="Lower bound of the gain itself; points.")
    gain_high: float = Field(description="Upper bound of it; points.")
    usd_per_point: float | None = Field(
        description="null where nothing is gained or the price is unknown."
    )


class Reach(Result):
    """What it takes to come within the margin of the teacher."""

    target: float = Field(description="Teacher's score less the margin.")
    examples: int | None = Field(description="By the fit; null: its ceiling is below.")
    soonest: int | None = Field(description="By the best curve that fits; null: never.")
    latest: int | None = Field(description="By the worst curve that fits; null: never.")
    answers: int | None
    usd: float | None


class Study(Result):
    """What both studies have in common."""

    format: Literal[1] = 1
    name: str
    task: str
    kind: Literal["classification", "extraction", "generation"]
    created: str = Field(description="UTC, ISO 8601.")
    metric: str
    reference: Literal["golden", "teacher"]
    n: int = Field(description="Samples that all students were judged on.")
    confidence: float
    margin: float
    teacher: Interval = Field(description="The teacher's score on the same samples.")
    teacher_name: str
    over: str = Field(default="", description="What the intervals of scores are over.")
    notes: tuple[str, ...] = ()
    versions: Mapping[str, str]


class CurveStudy(Study):
    """curve.json."""

    all_examples: int = Field(description="Training examples there are.")
    same_steps: bool = Field(description="Whether each size took as many steps as the whole.")
    points: tuple[CurvePoint, ...]
    means: tuple[CurveMean, ...] = Field(
        default=(), description="A size each, where it was trained several times."
    )
    fit: Fit | None = Field(description="null: too few points, or no curve fits them.")
    cost: AnswerCost
    more: tuple[MoreAnswers, ...] = ()
    reach: Reach | None = None
    point_usd: float | None = Field(
        default=None, description="What the user says a point is worth."
    )
    worth: MoreAnswers | None = Field(
        default=None, description="The step that is worth most, net; null: none is."
    )
    verdict: tuple[str, ...] = Field(description="The answer in sentences.")


class SizedStudent(Result):
    """One student of the frontier; of several trainings, their means."""

    name: str
    folder: str = Field(
        description="Its run folder, relative to the study's; the first training's."
    )
    parameters: int | None
    share: float | None = Field(description="Of the teacher's parameters.")
    size_bytes: int | None
    score: Interval
    retention: Interval | None
    agreement: Interval
    verdict: Literal["pass", "fail"] = Field(
        description="Of the gate; several trainings pass where their mean and the first one do."
    )
    difference: Interval = Field(description="Student minus teacher; two one-sided bounds.")
    corrected_low: float = Field(
        description="The same lower bound at a confidence corrected for the number of students."
    )
    passes_corrected: bool
    qps: float | None
    speedup: float | None = Field(description="Over the teacher, timed in turns.")
    latency_p50_ms: float | None
    latency_p95_ms: float | None
    usd_per_1k: float | None
    train_seconds: float = Field(description="Of one training, in the mean.")
    train_usd: float = Field(description="Training time at the machine's hourly price.")
    break_even_queries: int | None = Field(
        description="Queries that pay back answers and training; null: never or unknown."
    )
    efficient: bool = Field(description="No other student is both cheaper and better.")
    trainings: tuple[Training, ...] = Field(
        default=(), description="Those that scores are means of; empty: there is one."
    )
    deviation: float | None = Field(
        default=None, description="Standard deviation of score between trainings."
    )


class DraftedTeacher(Result):
    """The teacher with a student as its draft: the teacher's own answers, sooner.

    Drafts help one answer at a time; latency and cost are of that, students' cost is of a machine
    kept busy.
    """

    name: str
    folder: str = Field(description="Of its speculate stage, relative to the study's.")
    runtime: str = Field(description="In which the draft gains most.")
    length: int = Field(description="Tokens a draft.")
    acceptance: Interval | None = Field(description="Accepted over judged tokens.")
    speedup: Interval | None = Field(description="Over the teacher alone, one at a time.")
    lossless: bool = Field(
        description="Greedy answers are the teacher's in each runtime; no test tells sampled ones."
    )
    faster: bool = Field(description="The whole interval of the speed-up lies above 1.")
    latency_p50_ms: float | None = Field(description="The teacher's over the speed-up.")
    usd_per_1k: float | None = Field(description="At that latency, one query after the other.")


class Step(Result):
    """Two neighbours in size: the larger minus the smaller, on the same samples."""

    larger: str
    smaller: str
    difference: Interval


class SizePoint(Result):
    """The fitted score at a number of parameters."""

    parameters: int
    score: Interval
    beyond: bool = Field(description="Beyond the largest student trained: extrapolated.")


class SizeFit(Result):
    """The curve of score over parameters, through students of one source."""

    sizes: tuple[int, ...] = Field(description="Parameters of the trainings it goes through.")
    ceiling: Interval = Field(description="Where the curve ends with parameters without end.")
    ceiling_known: bool = Field(description="Whether the scores bound it short of 1.")
    exponent: float = Field(description="b of score(n) = c - a n^-b.")
    amount: float = Field(description="a of score(n) = c - a n^-b.")
    drawn: tuple[SizePoint, ...]
    on_curve: bool = Field(
        description="Whether the interval of each of three students holds the curve; of more, how "
        "they scatter about it is in its intervals."
    )
    largest: int = Field(description="Parameters of the largest student.")
    bigger: int = Field(description="Twice that; the teacher's parameters at most.")
    score: Interval = Field(description="Fitted, of the bigger one; extrapolated.")
    gain: float = Field(description="Points that the fit says the bigger one brings.")
    gain_low: float = Field(description="Lower bound of the gain itself; points.")
    gain_high: float = Field(description="Upper bound of it; points.")


class FrontierStudy(Study):
    """frontier.json."""

    teacher_parameters: int | None
    teacher_qps: float | None
    teacher_usd_per_1k: float | None
    answers_usd: float = Field(
        description="What the teacher's answers cost, once for all students."
    )
    machine_usd_per_hour: float
    students: tuple[SizedStudent, ...] = Field(description="Largest first.")
    drafted: tuple[DraftedTeacher, ...] = Field(
        default=(), description="Of recipes with a speculate section."
    )
    steps: tuple[Step, ...]
    fit: SizeFit | None = Field(
        default=None, description="null: fewer than three sizes of the recipe's source."
    )
    bigger: str = Field(default="", description="Whether a bigger student would still gain.")
    left_out: Mapping[str, str] = Field(default_factory=dict, description="Name: why.")
    chosen: str | None = Field(description="The cheapest that passes the gate; null: none does.")
    firm: bool = Field(description="It passes at the corrected confidence too.")
    verdict: tuple[str, ...]
