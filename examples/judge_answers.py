"""A judge compares answers in both orders, and one that always says A is found out."""

import asyncio

from stillhouse.core.judging import no_better_than_chance, pair_quality
from stillhouse.core.records import Query
from stillhouse.core.tasks import GenerationTask
from stillhouse.models.fake import FakeCompleter
from stillhouse.models.judge import Judge, JudgeForm, Pair, completer_asker

task = GenerationTask(kind="generation", prompt="Summarise: {text}")
pairs = [
    Pair(Query(id=str(i), messages=task.messages_for(f"Report {i}")), f"Good {i}.", f"Bad {i}.")
    for i in range(20)
]


def reads(query: Query, sample: int) -> str:
    """Prefers the answer that begins with `Good`; stands in for a model."""
    text = query.last_user_text
    return "A" if text.index("Good") < text.index("Bad") else "B"


for name, answer in (("reads", reads), ("always says A", lambda query, sample: "A")):
    model = FakeCompleter(name, answer=answer)
    judge = Judge(completer_asker(model), model.info, JudgeForm(task))
    quality = pair_quality(asyncio.run(judge.compare(pairs)))
    verdict = "refused" if no_better_than_chance(quality) else "can be used"
    print(f"{name}: right in {quality.right.estimate:.0%} of pairs, {verdict}")
