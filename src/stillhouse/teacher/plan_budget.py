"""What a budget buys, and what a wished size costs. Knows estimates; not where they come from."""

from __future__ import annotations

from typing import Final, NamedTuple

from stillhouse.teacher.estimate import Estimate
from stillhouse.teacher.plan_records import BudgetPlan, Target

# Examples: the least that teaches, what the usual recipe takes, what strong results take.
TARGETS: Final = (10_000, 50_000, 100_000)


class Counts(NamedTuple):
    """Queries waiting and of the traffic; the budget (`None`: none) and what is paid of it."""

    waiting: int
    traffic: int
    budget_usd: float | None
    paid_usd: float


def plan_budget(
    plan: Counts, usd: Estimate | None, per_query: Estimate | None, examples: Estimate
) -> BudgetPlan | None:
    """What the budget is good for, at the price that is asked at; `None` without one.

    Args:
        plan: counts, and the money.
        usd: of all that is waiting, as the recipe asks (live or by batch); `None`: not known.
        per_query: the same for one query; `None` also where none is waiting.
        examples: what the whole traffic is expected to give.
    """
    limit = plan.budget_usd
    if limit is None:
        return None
    left = max(0.0, limit - plan.paid_usd)
    if usd is None or per_query is None:  # no price is known, or nothing is left to ask
        suffices = "unknown" if usd is None else "yes"
        return BudgetPlan(usd=limit, left_usd=left, suffices=suffices, queries=None, examples=None)
    suffices = "perhaps"
    if usd.high is not None and usd.high <= left:
        suffices = "yes"
    elif usd.low is not None and usd.low > left:
        suffices = "no"
    elif usd.low is None:
        suffices = "unknown"
    queries = _inverse(per_query, left, plan.waiting)
    share = 1.0 / max(1, plan.traffic)
    return BudgetPlan(
        usd=limit,
        left_usd=left,
        suffices=suffices,
        queries=queries,
        examples=_product(queries, examples.times(share)),
    )


def _inverse(per_query: Estimate, usd: float, most: int) -> Estimate:
    """How many queries so much money buys, at most `most`."""

    def buys(cost: float | None) -> float | None:
        if cost is None:
            return None
        return float(most) if cost <= 0 else min(float(most), usd / cost)

    return per_query.model_copy(
        update={
            "estimate": buys(per_query.estimate),
            "low": buys(per_query.high),
            "high": buys(per_query.low),
        }
    )


def _product(left: Estimate, right: Estimate) -> Estimate:
    """End by end: wider than need be, never narrower."""

    def times(a: float | None, b: float | None) -> float | None:
        return None if a is None or b is None else a * b

    return left.model_copy(
        update={
            name: times(getattr(left, name), getattr(right, name))
            for name in ("estimate", "low", "high")
        }
    )


def plan_targets(
    plan: Counts, per_query: Estimate | None, batch: Estimate | None, examples: Estimate
) -> tuple[Target, ...]:
    """What it takes to have the sizes of `TARGETS`; arguments as `plan_budget`."""
    share = examples.times(1.0 / max(1, plan.traffic))
    batch_per_query = None
    if batch is not None and plan.waiting:
        batch_per_query = batch.times(1.0 / plan.waiting)
    found = []
    for count in TARGETS:
        if share.low is None:  # not known how many are accepted: at best, all
            queries = Estimate(low=float(count), basis="bound")
            list_usd = None if per_query is None else per_query.times(count)
            batch_usd = None if batch_per_query is None else batch_per_query.times(count)
            found.append(
                Target(
                    examples=count,
                    queries=queries,
                    usd_list=list_usd,
                    usd_batch=batch_usd,
                    within_traffic=plan.traffic >= count,
                )
            )
            continue
        queries = share.model_copy(
            update={
                "estimate": count / share.estimate if share.estimate else None,
                "low": count / share.high if share.high else None,
                "high": count / share.low if share.low else None,
            }
        )
        expected = examples.estimate if examples.estimate is not None else examples.high
        found.append(
            Target(
                examples=count,
                queries=queries,
                usd_list=None if per_query is None else _product(queries, per_query),
                usd_batch=None if batch_per_query is None else _product(queries, batch_per_query),
                within_traffic=(expected or 0.0) >= count,
            )
        )
    return tuple(found)
