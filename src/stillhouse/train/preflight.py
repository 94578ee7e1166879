"""Find before the teacher is paid what would stop the training after it.

Looks at the student's folder, layers, adapters and device without loading weights. Knows the recipe
and model configurations; trains nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer

from stillhouse.core.errors import UserError
from stillhouse.core.recipe import Recipe
from stillhouse.core.recipe_readers import OWN
from stillhouse.models.loading import locate, pick_device
from stillhouse.models.quiet import quiet_transformers
from stillhouse.train.cut_student import plan_student
from stillhouse.train.layers import cut_layers
from stillhouse.train.lora import target_layers
from stillhouse.train.schedule import uses_bf16
from stillhouse.train.students import classes_of, student_source


def check_student(recipe: Recipe) -> None:
    """Refuse a student that could not be built or trained on this machine.

    Raises:
        UserError: no such model, no tokenizer, layers or adapter targets it does not have, a device
            or precision that this machine does not have.
    """
    uses_bf16(recipe.train.precision, pick_device(recipe.train.device))
    source = student_source(recipe, None)
    folder = str(locate(source).folder)
    with quiet_transformers():
        config: Any = AutoConfig.from_pretrained(folder, local_files_only=True)
        try:
            AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise UserError(
                f"student.from {source}",
                f"its tokenizer cannot be loaded: {error}",
                action="give a folder with tokenizer.json",
            ) from None
        with torch.device("meta"):  # shapes only
            builder: Any = AutoModel
            model = builder.from_config(config)
    for member in () if recipe.train.teachers is None else recipe.train.teachers.members:
        if member.local and member.model != OWN:
            locate(member.model)
    if recipe.student.size is not None:
        plan_student(config, recipe.student, classes_of(recipe.task))
    if recipe.student.layers is not None:
        cut_layers(model, recipe.student.layers)
    if recipe.train.lora is not None:
        target_layers(model, recipe.train.lora)
