"""From the recipe's `teacher` section to a completer that can be asked, and how it is asked.

What a teacher cannot do is said here, before anything is sent. Imports no torch and no client of an
API: local models come through the optional extras, a client when its teacher is opened. Knows the
section; does not ask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from stillhouse.core.errors import UserError
from stillhouse.core.optional import late, require
from stillhouse.core.recipe import Recipe
from stillhouse.core.recipe_teacher import PricesSection, TeacherSection
from stillhouse.core.records import Completion, Query
from stillhouse.core.tasks import Task
from stillhouse.models.completer import Completer, ModelInfo, Sampling
from stillhouse.teacher.api import (
    ANTHROPIC_URL,
    MOST_TOP_LOGPROBS,
    OPENAI_URL,
    ApiSettings,
    api_settings,
)
from stillhouse.teacher.replay import ReplayCompleter
from stillhouse.teacher.retry import Retrying

# Batches of a local model that wait at a time: sorted by length, they pad little.
LOCAL_WINDOW: int = 64


class NamedCompleter:
    """A completer under the name the recipe gives it, whatever its weights' folder is called."""

    def __init__(self, inner: Completer, name: str) -> None:
        self._inner = inner
        self._name = name

    @property
    def info(self) -> ModelInfo:
        """The inner model's, renamed."""
        return replace(self._inner.info, name=self._name)

    async def complete(self, query: Query, sampling: Sampling) -> Sequence[Completion]:
        """Answer one query; see `Completer`."""
        return [
            completion.model_copy(update={"model": self._name})
            for completion in await self._inner.complete(query, sampling)
        ]

    async def aclose(self) -> None:
        """Free the inner model."""
        await self._inner.aclose()


def open_teacher(
    section: TeacherSection, prices: PricesSection, tuned: Path | None = None
) -> Completer:
    """The completer that the recipe's teacher section names.

    Args:
        section: who answers.
        prices: the recipe's price overrides.
        tuned: folder of the tuned teacher, which then answers under the original's name.

    Raises:
        UserError: no key in the environment, no such model, or a URL that is none.
        MissingExtraError: the model needs an extra that is not installed.
    """
    assert not section.members, "the members of an ensemble are opened one by one"
    if tuned is not None or section.kind in ("hf", "embedded"):
        source = str(tuned) if tuned is not None else section.model
        opener = require("stillhouse.models.hf_completer", "train", f"teacher {section.model}")
        inner: Completer = opener.open_hf_teacher(
            source, section.batch_size, section.device, plain=not section.chat_template
        )
        return NamedCompleter(inner, section.model)
    if section.kind == "gguf":
        opener = require("stillhouse.models.gguf_completer", "gguf", f"teacher {section.model}")
        return NamedCompleter(opener.open_gguf(section.name, section.batch_size), section.model)
    if section.kind == "replay":
        return ReplayCompleter(Path(section.name).expanduser())
    if section.kind == "anthropic":
        settings = api_settings(
            section,
            prices,
            default_url=ANTHROPIC_URL,
            key_variable="ANTHROPIC_API_KEY",
            key_required=True,
        )
        claude: Completer = late("stillhouse.teacher.anthropic_client").AnthropicCompleter(settings)
        return claude
    compatible = section.kind == "openai-compatible"
    # OPENAI_API_KEY is OpenAI's own: another server is sent a key only where api_key_env names it.
    settings = api_settings(
        section,
        prices,
        default_url=OPENAI_URL,
        key_variable="" if compatible else "OPENAI_API_KEY",
        key_required=not compatible,
    )
    client = late("stillhouse.teacher.openai_client")
    opened: Completer = client.OpenAICompleter(settings, compatible=compatible)
    return opened


def teacher_info(section: TeacherSection) -> ModelInfo:
    """What is known of the recipe's teacher without a key, weights or a request.

    The revision of a local teacher is its weights' own, so it is left empty.

    Raises:
        UserError: the base URL is none.
    """
    if section.local:
        return ModelInfo(section.model, "", gives_label_logprobs=True, local=True)
    claude = section.kind == "anthropic"
    settings = ApiSettings(
        model=section.model,
        base_url=section.base_url or (ANTHROPIC_URL if claude else OPENAI_URL),
        timeout_s=section.timeout_s,
        retrying=Retrying(0),
        prices=PricesSection(),
        key_variable="",
    )
    try:
        revision = settings.revision
    except ValueError:
        raise UserError(
            "teacher.base_url", "is no URL", action="write it as http://HOST:PORT/v1"
        ) from None
    return ModelInfo(section.model, revision, gives_logprobs=not claude, takes_seed=not claude)


def teacher_sampling(recipe: Recipe, info: ModelInfo) -> Sampling:
    """How this recipe's teacher is asked.

    Raises:
        UserError: `teacher.signals: logprobs`, `teacher.token_logprobs` or
            `dataset.best_of: likelihood`, and the teacher gives none.
    """
    section, task = recipe.teacher, recipe.task
    labels: tuple[str, ...] = ()
    logprobs = _token_logprobs(section, task, info)
    if task.kind == "classification":
        gives = info.gives_label_logprobs or info.gives_logprobs
        if section.signals == "logprobs" and not gives:
            raise UserError(
                "teacher.signals",
                f"is logprobs, and {section.model} gives none",
                value=section.signals,
                action="use signals: samples with samples: 5 and sampling_temperature: 1",
            )
        if section.signals != "samples":  # votes need free answers, not the likeliest label
            labels = task.labels
        if section.signals in ("auto", "logprobs") and not info.gives_label_logprobs:
            logprobs = MOST_TOP_LOGPROBS if info.gives_logprobs else 0
    if recipe.dataset.best_of == "likelihood" and not (labels and info.gives_label_logprobs):
        if not info.gives_logprobs:
            raise UserError(
                "dataset.best_of",
                f"likelihood needs the answers' log-probabilities, and {section.model} gives none",
                value="likelihood",
                action="use best_of: judge or none",
            )
        logprobs = max(1, logprobs)
    return Sampling(
        n=section.samples,
        max_tokens=section.max_tokens,
        sampling_temperature=section.sampling_temperature,
        logprobs=logprobs,
        labels=labels,
        json_schema=task.json_schema if task.kind == "extraction" else None,
        seed=recipe.seed,
    )


def _token_logprobs(section: TeacherSection, task: Task, info: ModelInfo) -> int:
    """How many alternatives of each token of a text answer are kept."""
    count = section.token_logprobs
    if not count:
        return 0
    problem, action = "", "set token_logprobs: 0"
    if task.kind == "classification":
        problem, action = "is for text answers", "leave it out: teacher.signals is for labels"
    elif not info.gives_logprobs:
        problem = f"is set, and {section.model} gives no log-probabilities"
    elif not info.local and count > MOST_TOP_LOGPROBS:
        problem, action = "is more than an API gives", f"ask for at most {MOST_TOP_LOGPROBS}"
    if problem:
        raise UserError("teacher.token_logprobs", problem, value=count, action=action)
    return count


def queries_in_flight(section: TeacherSection, info: ModelInfo) -> int:
    """How many queries are asked at a time."""
    return LOCAL_WINDOW * section.batch_size if info.local else section.concurrency
