"""Stage 2: ask a teacher; every answer is kept, and none is asked for twice."""

import asyncio
import tempfile
from pathlib import Path

from stillhouse.core.records import Message, Query
from stillhouse.models.completer import Sampling
from stillhouse.models.fake import FakeCompleter
from stillhouse.teacher.ask import ask
from stillhouse.teacher.store import AnswerStore

queries = [
    Query(id=str(n), messages=(Message(role="user", content=f"ticket {n}"),)) for n in range(20)
]
teacher = FakeCompleter()  # or stillhouse.teacher.build.open_teacher(recipe.teacher, ...)
sampling = Sampling(labels=("bug", "billing", "other"))
with tempfile.TemporaryDirectory() as folder:
    for _ in range(2):
        store = AnswerStore(Path(folder) / "answers.jsonl")
        result = asyncio.run(ask(teacher, queries, sampling, store, concurrency=8))
        store.close()
        print(f"asked {result.asked}, reused {result.reused}")
