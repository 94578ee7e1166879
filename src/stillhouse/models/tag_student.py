"""A trained tag student of transformers' own weights: a token classifier that answers with JSON.

Reads `task.input_text(query)`; what its tags come to is `tag_completer`'s. Knows model folders and
tasks; does not know how the student was trained.

Shapes: B batch, T tokens, C tags.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Final

import torch

from stillhouse.core.errors import UserError
from stillhouse.core.tasks import ExtractionTask
from stillhouse.core.words import FIRST
from stillhouse.models.classifier_reader import ClassifierReader
from stillhouse.models.loading import Loaded
from stillhouse.models.tag_completer import TagCompleter, TagsRead, tags_read

TAG_WORDS: Final = "tag_words"  # of config.json: by which rule of `core.words` it was trained


class Tagger:
    """Reads texts with a token classifier of transformers, as it was trained to. `longest`,
    `takes` and `classes` are as `ClassifierReader` has them, `words` as `TagReader`.

    Raises:
        UserError: its tokenizer cannot say where a token stands.
    """

    def __init__(self, loaded: Loaded) -> None:
        if not loaded.tokenizer.is_fast:
            raise UserError(
                loaded.name,
                "its tokenizer does not say where in the text a token stands",
                action="give a student with a tokenizer.json",
            )
        cuts = ClassifierReader(loaded)  # what a classifier is given, and how much of a text
        self.longest, self.classes, self.takes = cuts.longest, cuts.classes, cuts.takes
        self.words: int = getattr(loaded.model.config, TAG_WORDS, FIRST)
        self._loaded = loaded
        # Of its own: a fast tokenizer must not be used by two threads at a time.
        self._measuring = copy.deepcopy(loaded.tokenizer)

    def measure(self, text: str) -> int:
        """Tokens of a text, not cut. May be called while another thread reads."""
        return len(self._measuring(text, verbose=False)["input_ids"])

    @torch.inference_mode()
    def read(self, texts: Sequence[str]) -> list[TagsRead]:
        """One forward pass; texts longer than `longest` tokens are cut at their end."""
        encoded = self._loaded.tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=self.longest,
            return_tensors="pt",
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
        )
        model = self._loaded.model
        inputs = {name: encoded[name].to(model.device) for name in self.takes if name in encoded}
        log_p = model(**inputs).logits.float().log_softmax(-1).cpu().numpy()  # [B, T, C]
        offsets = encoded["offset_mapping"].numpy()  # [B, T, 2]
        special = encoded["special_tokens_mask"].numpy()
        real = encoded["attention_mask"].numpy() == 1
        return [
            tags_read(log_p[row][own], offsets[row][own].tolist(), special[row][own].tolist())
            for row, own in enumerate(real)
        ]


class TagStudent(TagCompleter):
    """A token classifier of transformers.

    Raises:
        UserError: as `Tagger` and `TagCompleter`.
    """

    def __init__(self, loaded: Loaded, task: ExtractionTask, batch_size: int) -> None:
        held = f"{loaded.name} id2label"
        super().__init__(Tagger(loaded), task, loaded.info("tags"), batch_size, held)
