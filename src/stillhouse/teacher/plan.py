"""What asking will cost, take and give, before it is done: the arithmetic of `stillhouse plan`.

With a sample of answers every quantity is extrapolated with an interval; without one it is bounded,
and says so: a token is 4 bytes by rule of thumb and at least 1 byte for certain, an answer at most
max_tokens. Knows queries, answers and prices; opens and asks nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from stillhouse.core.money import ModelPrice, batch_share, machine_usd_per_hour, model_price
from stillhouse.core.optional import late
from stillhouse.core.recipe import Recipe
from stillhouse.core.records import Completion, Query
from stillhouse.models.completer import ModelInfo, Sampling
from stillhouse.teacher.budget import MARKUP_TOKENS, REQUEST_TOKENS, SCHEMA_TOKENS
from stillhouse.teacher.estimate import Estimate, Rest
from stillhouse.teacher.plan_budget import Counts, plan_budget, plan_targets
from stillhouse.teacher.plan_records import Plan, SamplePlan
from stillhouse.teacher.sample import Sample, size_of

BYTES_PER_TOKEN: Final = 4  # English text, by the providers' own rule of thumb
ANSWER_BYTES: Final = 600  # a completion's line without its text
LOGPROB_BYTES: Final = 1500  # a token's alternatives, as JSON
BATCH_HOURS: Final = 24
BATCH_KINDS: Final = ("openai", "anthropic")
Accepts = Callable[[Query, Sequence[Completion]], bool]


@dataclass(frozen=True, slots=True)
class Known:
    """What the plan is made from.

    `traffic` are the queries that become examples, `waiting` all chats without an answer once the
    sample is asked; `near_repeats` is the most that near-duplicates can take out; `paid_usd` what
    the store has cost.
    """

    recipe: Recipe
    info: ModelInfo
    sampling: Sampling
    traffic: Sequence[Query]
    waiting: Sequence[Query]
    queries: int
    sample: Sample
    accepts: Accepts
    near_repeats: int
    paid_usd: float
    disk_free_bytes: int

    @property
    def rest(self) -> Rest:
        """What is not asked yet, by bytes of prompt."""
        return Rest(len(self.waiting), float(sum(map(size_of, self.waiting))))

    @property
    def sampled(self) -> bool:
        """Whether there are answers to extrapolate from."""
        return len(self.sample.answered) >= 2


def make(known: Known) -> Plan:
    """Put the plan together."""
    recipe, sample = known.recipe, known.sample
    price = None if known.info.local else model_price(recipe.prices, known.info.name)
    prompt, completion = _tokens(known)
    usd = _usd(known, price)
    batch = _batch(known, price, usd)
    accepted = _accepted(known)
    examples = _examples(accepted, known.near_repeats, len(known.traffic))
    seconds, limited_by = _seconds(known, prompt, completion)
    asked_at = _asked_at(known, usd)
    per_query, budgeted = (
        None if total is None or not known.waiting else total.times(1.0 / len(known.waiting))
        for total in (usd, asked_at)
    )
    counts = Counts(
        len(known.waiting),
        len(known.traffic),
        None if known.info.local else recipe.teacher.budget_usd,
        known.paid_usd,
    )
    return Plan(
        teacher=known.info.name,
        queries=known.queries,
        answered=known.queries - len(known.waiting),
        open=len(known.waiting),
        samples_per_query=known.sampling.n,
        sample=None
        if not sample.answered
        else SamplePlan(
            n=len(sample.answered),
            asked=sample.asked,
            reused=max(0, len(sample.answered) + sample.failures - sample.asked),
            failures=sample.failures,
            usd=sample.usd,
            worst_usd=sample.worst_usd,
            drawn=sample.drawn,
        ),
        prompt_tokens=prompt,
        completion_tokens=completion,
        usd_list=usd,
        usd_batch=batch,
        price=None if price is None else _source(price),
        price_wanted=price_wanted(known.info) if price is None and not known.info.local else None,
        seconds=seconds,
        seconds_limited_by=limited_by,
        batch_hours=BATCH_HOURS if recipe.teacher.kind in BATCH_KINDS else None,
        storage_bytes=_storage(known),
        disk_free_bytes=known.disk_free_bytes,
        accepted=accepted,
        examples=examples,
        budget=plan_budget(counts, asked_at, budgeted, examples),
        targets=plan_targets(counts, per_query, batch, examples),
        cheapest=_cheapest(known, usd, batch, seconds),
        notes=_notes(known),
    )


def price_wanted(info: ModelInfo) -> str:
    """The one line that asks for a price."""
    name = info.name.partition(":")[2] or info.name
    return (
        f"the price of {info.name} is not known: add it to the recipe as prices.models."
        f"{name}: {{input_usd_per_mtok: USD, output_usd_per_mtok: USD}}"
    )


def _source(price: ModelPrice) -> str:
    when = f", as of {price.as_of}" if price.as_of else ""
    return f"${price.input:g} in, ${price.output:g} out per million tokens ({price.source}{when})"


def _total(known: Known, values: Sequence[float], *, by_size: bool = True) -> Estimate:
    sizes = [float(size_of(one.query)) if by_size else 1.0 for one in known.sample.answered]
    rest = known.rest if by_size else Rest(len(known.waiting), float(len(known.waiting)))
    found: Estimate = late("stillhouse.teacher.extrapolation").total_of_rest(
        values,
        sizes,
        rest,
        confidence=known.recipe.evaluate.confidence,
        seed=known.recipe.seed,
    )
    return found


def worst_prompt_tokens(query: Query, sampling: Sampling) -> int:
    """The most tokens a prompt can have: one a byte, and room for what providers wrap around it."""
    count = REQUEST_TOKENS + sum(
        MARKUP_TOKENS + len(message.content.encode("utf-8")) for message in query.messages
    )
    if sampling.json_schema is not None:
        count += SCHEMA_TOKENS + len(json.dumps(sampling.json_schema).encode("utf-8"))
    return count


def _tokens(known: Known) -> tuple[Estimate, Estimate]:
    answered = known.sample.answered
    counted = all(
        c.prompt_tokens is not None and c.completion_tokens is not None
        for one in answered
        for c in one.completions
    )
    if known.sampled and counted:
        prompts = [one.requests * float(one.completions[0].prompt_tokens or 0) for one in answered]
        outputs = [float(sum(c.completion_tokens or 0 for c in o.completions)) for o in answered]
        return _total(known, prompts), _total(known, outputs, by_size=False)
    worst = sum(worst_prompt_tokens(query, known.sampling) for query in known.waiting)
    requests = known.sampling.n if not known.info.local else 1
    most = len(known.waiting) * known.sampling.n * known.sampling.max_tokens
    return (
        Estimate(
            estimate=known.rest.size / BYTES_PER_TOKEN, high=float(requests * worst), basis="bound"
        ),
        Estimate(high=float(most), basis="bound"),
    )


def _usd(known: Known, price: ModelPrice | None) -> Estimate | None:
    if known.info.local:
        return Estimate(estimate=0.0, low=0.0, high=0.0, basis="known")
    if price is None:
        return None
    if known.sampled:
        costs = [_cost(one.completions, one.requests, price) for one in known.sample.answered]
        if all(cost is not None for cost in costs):
            return _total(known, [cost or 0.0 for cost in costs])
    n, limit = known.sampling.n, known.sampling.max_tokens
    worst = 0.0
    for query in known.waiting:
        prompt = worst_prompt_tokens(query, known.sampling)
        worst += n * price.cost_usd(prompt, 0, prompt)
        worst += price.cost_usd(prompt, n * limit) - price.cost_usd(prompt, 0)
    return Estimate(high=worst, basis="bound")


def _cost(completions: Sequence[Completion], requests: int, price: ModelPrice) -> float | None:
    """List price of one query's answers: what was billed may be less, in a batch."""
    billed = sum(c.cost_usd or 0.0 for c in completions)
    if any(c.prompt_tokens is None or c.completion_tokens is None for c in completions):
        return billed if all(c.cost_usd is not None for c in completions) else None
    prompt = completions[0].prompt_tokens or 0
    output = sum(c.completion_tokens or 0 for c in completions)
    once = price.cost_usd(prompt, 0)
    return max(billed, requests * once + price.cost_usd(prompt, output) - once)


def _batch(known: Known, price: ModelPrice | None, usd: Estimate | None) -> Estimate | None:
    if known.recipe.teacher.kind not in BATCH_KINDS or price is None or usd is None:
        return None
    share = batch_share(known.recipe.prices, known.info.name)
    return None if share == 1.0 else usd.times(share)


def _asked_at(known: Known, usd: Estimate | None) -> Estimate | None:
    """USD of what is waiting as the recipe asks it: by batch, but for the pilot."""
    batch = known.recipe.teacher.batch
    if usd is None or batch is None or not known.waiting:
        return usd
    share = batch_share(known.recipe.prices, known.info.name)
    live = min(1.0, batch.pilot / len(known.waiting))
    return usd.times(live + (1.0 - live) * share)


def _seconds(known: Known, prompt: Estimate, completion: Estimate) -> tuple[Estimate | None, str]:
    sample = known.sample
    if known.recipe.teacher.batch is not None:
        return None, f"as long as the provider's batches take, within {BATCH_HOURS} hours each"
    if known.info.local:
        pieces = sample.pieces[1:] if len(sample.pieces) > 2 else sample.pieces
        if len(pieces) < 2:
            return None, "not timed: give --sample with more queries than are answered already"
        found: Estimate = late("stillhouse.teacher.extrapolation").total_of_rest(
            [piece.seconds for piece in pieces],
            [float(piece.size) for piece in pieces],
            Rest(
                max(1, round(len(known.waiting) * len(pieces) / max(1, sample.asked))),
                known.rest.size,
            ),
            confidence=known.recipe.evaluate.confidence,
            seed=known.recipe.seed,
        )
        return found, "this machine"
    latencies = [one.latency_s for one in sample.answered]
    if not known.sampled or any(latency is None for latency in latencies):
        return None, "not timed: give --sample"
    busy = _total(known, [latency or 0.0 for latency in latencies], by_size=False)
    workers = max(1, min(known.recipe.teacher.concurrency, len(known.waiting)))
    found = busy.times(1.0 / workers)
    requests = float(len(known.waiting) * sample.answered[0].requests)
    bounded: dict[str, float] = {}
    limited_by = f"teacher.concurrency {workers}"
    for name in ("estimate", "low", "high"):
        own = getattr(found, name) or 0.0
        least, limit = sample.limits.least_seconds(
            requests, getattr(prompt, name) or 0.0, getattr(completion, name) or 0.0
        )
        bounded[name] = max(own, least)
        if name == "estimate" and least > own:
            limited_by = f"the provider's {limit}"
    return found.model_copy(update=bounded), limited_by


def _storage(known: Known) -> Estimate:
    """Bytes on the disk: answers in the store and in ask/, queries in traffic/ and dataset/."""
    if known.sampled:
        stored = [
            float(
                2 * sum(len(c.to_json().encode("utf-8")) for c in one.completions)
                + 2 * len(one.query.to_json().encode("utf-8"))
            )
            for one in known.sample.answered
        ]
        return _total(known, stored)
    answer = ANSWER_BYTES + known.sampling.max_tokens * (
        BYTES_PER_TOKEN + (LOGPROB_BYTES if known.sampling.logprobs else 0)
    )
    queries = sum(len(query.to_json().encode("utf-8")) for query in known.waiting)
    most = 2 * known.sampling.n * answer * len(known.waiting) + 2 * queries
    return Estimate(high=float(most), basis="bound")


def _accepted(known: Known) -> Estimate:
    of_traffic = {query.id for query in known.traffic}
    judged = [one for one in known.sample.answered if one.query.id in of_traffic]
    n = len(judged) + known.sample.failures
    if not known.sampled or n < 2:
        return Estimate(high=float(len(known.traffic)), basis="bound")
    passed = sum(known.accepts(one.query, one.completions) for one in judged)
    rest: Estimate = late("stillhouse.teacher.extrapolation").accepted_of_rest(
        passed,
        n,
        max(0, len(known.traffic) - n),
        confidence=known.recipe.evaluate.confidence,
    )
    return rest.model_copy(
        update={name: (getattr(rest, name) or 0.0) + passed for name in ("estimate", "low", "high")}
    )


def _examples(accepted: Estimate, near_repeats: int, traffic: int) -> Estimate:
    """Near-duplicates go only where their answers agree: between none of them and all."""
    low = None if accepted.low is None else max(0.0, accepted.low - near_repeats)
    left = 1.0 - near_repeats / max(1, traffic)
    middle = None if accepted.estimate is None else accepted.estimate * left
    return accepted.model_copy(update={"low": low, "estimate": middle})


def _cheapest(
    known: Known, usd: Estimate | None, batch: Estimate | None, seconds: Estimate | None
) -> str:
    if not known.waiting:
        return "nothing: every answer is in the store"
    if known.info.local:
        if seconds is None or seconds.estimate is None:
            return "this machine: no answer is paid for; its time is not known without --sample"
        machine = machine_usd_per_hour(known.recipe.prices)
        cost = seconds.estimate / 3600 * machine.usd_per_hour
        return f"this machine: about ${cost:.2f} at ${machine.usd_per_hour:g} an hour"
    if usd is None:
        return "not known: the price is not known"
    if batch is not None:
        return f"the provider's batches, within {BATCH_HOURS} hours each"
    if known.recipe.teacher.kind in BATCH_KINDS:
        name = known.info.name.partition(":")[2]
        return (
            "list price as far as is known: a batch discount is not; set "
            f"prices.models.{name}.batch_discount"
        )
    return "list price: no batches are known of this server"


def _notes(known: Known) -> tuple[str, ...]:
    notes = []
    if not known.sampled:
        notes.append(
            "no answers to go by: tokens are bounded (4 bytes a token by rule of thumb, 1 at "
            "worst; max_tokens for every answer), acceptance is not known; give --sample 100"
        )
    elif not known.sample.drawn:
        notes.append(
            "it rests on the answers there are, which were not drawn at random; give --sample"
        )
    if known.recipe.teacher.tune is not None:
        notes.append("the sample is of the teacher as it is now: tuned, if that was done before")
    if known.recipe.traffic.expand is not None:
        notes.append("the replies of traffic.expand, and answers to its queries, are not counted")
    if known.recipe.dataset.judge is not None:
        notes.append("what dataset.judge costs is not counted: it has its own budget_usd")
    if known.sample.failures:
        notes.append(f"{known.sample.failures} queries of the sample got no answer")
    return tuple(notes)
