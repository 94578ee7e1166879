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
from stillhouse.train.features_layers import check_layers
from stillhouse.train.layers import cut_layers, depth
from stillhouse.train.lora import target_layers
from stillhouse.train.schedule import uses_bf16
from stillhouse.train.students import student_source, teacher_source


def check_student(recipe: Recipe) -> None:
    """Refuse a student that could not be built or trained on this machine.

    Raises:
        UserError: no such model, no tokenizer, layers or adapter targets it does not have, terms
            over layers that it or its teacher does not have, a device
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
    model = _shapes(config)
    for member in () if recipe.train.teachers is None else recipe.train.teachers.members:
        if member.local and member.model != OWN:
            locate(member.model)
    if recipe.student.layers is not None:
        cut_layers(model, recipe.student.layers)
    if recipe.train.lora is not None:
        target_layers(model, recipe.train.lora)
    if recipe.train.insides:
        there = str(locate(teacher_source(recipe)).folder)
        with quiet_transformers():
            teacher = _shapes(AutoConfig.from_pretrained(there, local_files_only=True))
        check_layers(recipe.train.terms or (), depth(model), depth(teacher))


def _shapes(config: Any) -> Any:
    """A model of this configuration without its weights."""
    builder: Any = AutoModel
    with quiet_transformers(), torch.device("meta"):
        return builder.from_config(config)
