"""How much a training on a corpus will be, before any weights are read: rows, tokens, steps.

Knows texts, tokenizers and configurations; trains nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stillhouse.core.corpus import TRAIN, Passage
from stillhouse.core.jsonl import read_records
from stillhouse.core.recipe_corpus import CorpusRecipe
from stillhouse.train.corpus_models import check_corpus_student
from stillhouse.train.corpus_rows import Cutter
from stillhouse.train.schedule import plan_schedule


def planned_training(recipe: CorpusRecipe, corpus: Path) -> dict[str, Any]:
    """What will be trained, of a recipe whose corpus is divided.

    Args:
        recipe: the recipe.
        corpus: folder of that stage.

    Raises:
        UserError: a teacher or student that cannot be used.
    """
    passages = list(read_records(corpus / f"{TRAIN}.jsonl", Passage))
    shapes = check_corpus_student(recipe, [passage.text for passage in passages])
    tokenizer: Any = shapes.tokenizer
    most = min(recipe.corpus.max_tokens, shapes.most_tokens or recipe.corpus.max_tokens)
    rows = Cutter(
        tokenizer,
        recipe.objective.kind,
        most,
        vocabulary=shapes.vocabulary,
        seed=recipe.seed,
        mask_share=recipe.objective.mask_share,
    ).training(passages)
    train, adapt = recipe.train, recipe.teacher.adapt

    def steps(epochs: float, evals: int) -> int:
        return plan_schedule(
            len(rows), train.batch_size, train.micro_batch_size, epochs, evals
        ).steps

    return {
        "teacher_parameters": shapes.teacher_parameters,
        "vocabulary": shapes.vocabulary_before,
        "student": {
            "parameters": shapes.parameters,
            "layers": shapes.layers,
            "vocabulary": shapes.vocabulary,
            "cut": [] if shapes.cut is None else list(shapes.cut.lines()),
        },
        "rows": len(rows),
        "tokens": sum(rows.lengths),
        "steps": steps(train.epochs, train.evals),
        "adapt_steps": None if adapt is None else steps(adapt.epochs, adapt.evals),
        "untaught_twin": train.untaught_twin,
    }
