"""A judge behind a gateway upstream: tested on its gold set, then asked which answer is better.

Both orders of every pair are asked (`models.judge`). Knows no log and no policy.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from typing import Final

from stillhouse.core.errors import StillhouseError, TeacherError
from stillhouse.core.judge_gold import gold_pairs, read_gold
from stillhouse.core.judging import PairOutcome, no_better_than_chance, pair_quality
from stillhouse.core.records import Completion, FinishReason, Query, message_key
from stillhouse.core.tasks import Task
from stillhouse.models.completer import ModelInfo, Sampling
from stillhouse.models.judge import Judge, JudgeForm, Pair, completer_asker
from stillhouse.serve.answer_text import answer_text
from stillhouse.serve.anthropic_shapes import anthropic_request, openai_answer
from stillhouse.serve.ask import PATHS
from stillhouse.serve.evidence_sections import JudgeSection
from stillhouse.serve.pairs import Answered, Preferred
from stillhouse.serve.policy import Blocked, JudgeTrust
from stillhouse.serve.upstream import Upstream, UpstreamFailed

UNTESTED: Final = JudgeTrust(net=1.0, tested=False)
_FINISHES: Final[dict[str, FinishReason]] = {
    "length": "length",
    "content_filter": "content_filter",
    "tool_calls": "tool_calls",
}


class UpstreamCompleter:
    """An upstream of gateway.yaml as a completer: chats without tools."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._info = ModelInfo(name=upstream.section.model, revision=upstream.section.model)

    @property
    def info(self) -> ModelInfo:
        """What is known of the model."""
        return self._info

    async def complete(self, query: Query, sampling: Sampling) -> Sequence[Completion]:
        """Ask once.

        Raises:
            TeacherError: no answer.
        """
        section = self._upstream.section
        body = {
            "model": section.model,
            "messages": [one.model_dump() for one in query.messages],
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.sampling_temperature,
        }
        if section.kind == "anthropic":
            body = anthropic_request(body)
        path = PATHS["messages" if section.kind == "anthropic" else "chat"]
        ends = asyncio.get_running_loop().time() + section.deadlines.total_s
        try:
            reply = await self._upstream.ask(path, json.dumps(body).encode("ascii"), ends)
            if reply.status >= 400:
                raise TeacherError(f"{self._upstream.name} answered {reply.status}")
            found = json.loads(reply.body)
            if section.kind == "anthropic":
                found = openai_answer(found, int(time.time()))
            text = answer_text(found)
            finish = found["choices"][0].get("finish_reason") or "stop"
        except UpstreamFailed as failed:
            raise TeacherError(f"{self._upstream.name}: {failed.why}") from None
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
            raise TeacherError(f"{self._upstream.name} gave no answer") from None
        return [
            Completion(
                query_id=query.id,
                text=text or "",
                model=self._info.name,
                revision=self._info.revision,
                finish_reason=_FINISHES.get(finish, "stop"),
            )
        ]

    async def aclose(self) -> None:
        """Nothing of its own to free."""


def preferred(outcome: PairOutcome) -> Preferred | None:
    """Scores of a comparison whose first answer is the student's; `None`: it was not read."""
    if outcome == "unreadable":
        return None
    if outcome in ("first", "second"):
        return Preferred(float(outcome == "first"), float(outcome == "second"))
    return Preferred(0.5, 0.5)


class PairJudge:
    """The judge of one task.

    Args:
        alpha: chance that its preferences are worth less than `tested` says.
    """

    def __init__(self, section: JudgeSection, task: Task, upstream: Upstream, alpha: float) -> None:
        self._section, self._task, self._alpha = section, task, alpha
        completer = UpstreamCompleter(upstream)
        form = JudgeForm(
            task=task,
            criteria=section.criteria,
            explain=section.explain,
            max_tokens=section.max_tokens,
        )
        self._judge = Judge(completer_asker(completer, section.concurrent), completer.info, form)

    async def compare(self, pairs: Sequence[Answered]) -> list[Preferred | None]:
        """Which of both answers is better; `None` where the judge was not read."""
        asked = [
            Pair(
                Query(id=message_key(one.messages), messages=one.messages),
                one.student or "",
                one.teacher,
            )
            for one in pairs
        ]
        return [preferred(outcome) for outcome in await self._judge.compare(asked)]

    async def tested(self) -> JudgeTrust | Blocked | None:
        """What its preferences are worth, by its gold set; `None`: it does not answer now."""
        if self._section.gold is None:
            return UNTESTED
        try:
            gold = await asyncio.to_thread(read_gold, self._section.gold, self._task)
            pairs = gold_pairs(gold)
        except StillhouseError as error:
            return Blocked(f"the judge's gold set: {error}")
        asked = [Pair(one.query, one.good, one.bad) for one in pairs]
        outcomes = await self._judge.compare(asked)
        if all(one == "unreadable" for one in outcomes):
            return None
        confidence = 1 - 2 * self._alpha
        quality = pair_quality(outcomes, confidence)
        if no_better_than_chance(quality, confidence) or quality.net.low <= 0:
            return Blocked(
                f"the judge does no better than chance on the {len(outcomes)} pairs of its gold "
                f"set (right {quality.right.estimate:.0%}, wrong {quality.wrong.estimate:.0%})"
            )
        return JudgeTrust(net=quality.net.low, tested=True)
