"""Whether a student was sure enough of an answer: what must be asked for it, and the verdict.

Between the exchange of a request and the gate. Knows requests and answers; the gate knows the
thresholds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from stillhouse.serve.anthropic_shapes import openai_request
from stillhouse.serve.ask import Ask, path_of, sent_body
from stillhouse.serve.features import answer_features, first_text, texts_of
from stillhouse.serve.relay import Unsure
from stillhouse.serve.roster import Roster
from stillhouse.serve.seams import Gate, GatePlan
from stillhouse.serve.upstream import Reply, Upstream


class Sureness:
    """What the exchange asks of the gate of a request's student."""

    def __init__(self, roster: Roster) -> None:
        self._roster = roster

    def plan(self, ask: Ask, kind: str) -> GatePlan | None:
        """What is needed to judge the answer of a student of a kind; `None`: it is not judged."""
        gate = _gate(ask)
        if gate is None or ask.route not in ("chat", "messages") or kind == "anthropic":
            return None
        return gate.plan(ask.name)

    def gates(self, ask: Ask, kind: str) -> GatePlan | None:
        """`plan`, where an answer that is not sure enough is not shown."""
        if self._roster.threshold(ask) is None:
            return None
        return self.plan(ask, kind)

    async def about(self, ask: Ask) -> None:
        """Note what the request itself says of how sure a student can be."""
        gate = _gate(ask)
        if gate is not None:
            body = openai_request(ask.body) if ask.route == "messages" else ask.body
            ask.features.update(await gate.about(ask.name, body))

    async def ask_often(
        self, ask: Ask, upstream: Upstream, plan: GatePlan, ends: float
    ) -> tuple[Reply, list[str]]:
        """The answer, and the texts of several more: a stream is whole before it is shown."""
        section, path = upstream.section, path_of(ask, upstream.section.kind)
        drawn = {"n": plan.samples, "temperature": plan.sampling_temperature, "logprobs": None}
        more = sent_body(ask, section.kind, section.model, whole=True, more=drawn)
        own = sent_body(
            ask, section.kind, section.model, whole=True, alternatives=plan.alternatives
        )
        headers = ask.beside(section.kind)
        sampling = asyncio.create_task(upstream.ask(path, more, ends, headers))
        try:
            reply = await upstream.ask(path, own, ends, headers)
            sampled = await sampling
        finally:
            sampling.cancel()
            await asyncio.gather(sampling, return_exceptions=True)
        texts, ask.sampled_tokens = texts_of(sampled.body)
        return reply, texts

    def judge(
        self,
        plan: GatePlan,
        ask: Ask,
        answer: Mapping[str, Any],
        *,
        whole: bool,
        others: Sequence[str] = (),
    ) -> None:
        """Note how sure the student was; of an asker's own adapter a calibrated gate knows nothing.

        Args:
            whole: not the head of a stream.
            others: texts of several more answers.

        Raises:
            Unsure: not enough.
        """
        gate = _gate(ask)
        assert gate is not None
        ask.features.update(answer_features(answer, None if whole else plan.window))
        if others:
            ask.features.update(gate.agreement(ask.name, [first_text(answer), *others]))
        if plan.calibrated and ask.own_adapter is not None:
            # What was fitted to the shared student's answers says nothing of an adapter's.
            if ask.task.fallback.adapters == "shown":
                return
            raise Unsure
        verdict = gate.confident(ask.name, ask.features, whole=whole)
        ask.confidence = verdict.probability
        if not verdict.accept:
            raise Unsure


def _gate(ask: Ask) -> Gate | None:
    return None if ask.seat is None else ask.seat.gate
