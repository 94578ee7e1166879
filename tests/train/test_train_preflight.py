"""What would stop the training is found before the teacher is paid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, XLMRobertaConfig

from stillhouse.core.errors import UserError
from stillhouse.core.recipe import Recipe
from stillhouse.train.preflight import check_student
from tiny_models import byte_bpe, tiny_bert, tiny_llama, unigram, wordpiece


def recipe(
    source: str, head: str = "label", train: dict[str, Any] | None = None, **student: Any
) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "t",
            "task": {"kind": "classification", "labels": ["positive", "negative"]},
            "traffic": {"path": "x"},
            "teacher": {"model": "openai:gpt-4.1"},
            "student": {"head": head, "from": source, **student},
            "train": {"alpha": 0.0, **(train or {})},
        }
    )


def test_a_student_that_can_be_built_passes(encoder_folder: Path, lm_folder: Path) -> None:
    check_student(recipe(f"hf:{encoder_folder}", layers=2))
    check_student(recipe(f"hf:{lm_folder}", head="text", train={"lora": {}}))


def test_what_cannot_be_built_is_named(
    encoder_folder: Path, lm_folder: Path, tmp_path: Path
) -> None:
    tiny_bert(wordpiece()).save_pretrained(tmp_path / "bare")
    cases = (
        (recipe(f"hf:{tmp_path / 'nowhere'}"), "nowhere"),
        (recipe(f"hf:{tmp_path / 'bare'}"), "tokenizer"),
        (recipe(f"hf:{encoder_folder}", layers=9), "layers"),
        (recipe(f"hf:{encoder_folder}", layers=(0, 7)), "layers"),
        (
            recipe(
                f"hf:{lm_folder}", head="text", train={"lora": {"target_modules": ["qkv_proj"]}}
            ),
            "qkv_proj",
        ),
        (
            recipe(f"hf:{lm_folder}", train={"lora": {"target_modules": ["q_proj", "nope"]}}),
            "nope",
        ),
    )
    for one, expected in cases:
        with pytest.raises(UserError, match=expected) as caught:
            check_student(one)
        assert "\n" not in str(caught.value)


def test_a_vocabulary_that_cannot_be_trimmed_is_named(tmp_path: Path) -> None:
    words = Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"))
    word_level = PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", pad_token="<unk>"
    )
    for name, tokenizer in (("words", word_level), ("unigram", unigram())):
        tokenizer.save_pretrained(tmp_path / name)
        config = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
        shape = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 6}
        more = {"intermediate_size": 96, "max_position_embeddings": 66}
        XLMRobertaConfig(**config, **shape, **more).save_pretrained(tmp_path / name)
    one = recipe(f"scratch:{tmp_path / 'words'}", size="heavy")
    assert one.student.vocabulary == "task"
    with pytest.raises(UserError, match=r"student\.vocabulary.*WordLevel.*use full"):
        check_student(one)
    check_student(recipe(f"scratch:{tmp_path / 'words'}", size="heavy", vocabulary="full"))
    check_student(recipe(f"scratch:{tmp_path / 'unigram'}", size="heavy"))


def test_a_vocabulary_that_would_lose_a_label_is_named(lm_folder: Path) -> None:
    bytes_and_specials = 259
    with pytest.raises(
        UserError, match=r"student\.vocabulary: would lose tokens of the label"
    ) as e:
        check_student(recipe(f"hf:{lm_folder}", head="text", vocabulary=bytes_and_specials + 1))
    assert "\n" not in str(e.value)
    check_student(recipe(f"hf:{lm_folder}", head="text", vocabulary=400))
    check_student(recipe(f"hf:{lm_folder}", head="text", vocabulary="task"))


def test_a_device_that_is_not_there_is_named(encoder_folder: Path) -> None:
    with pytest.raises(UserError, match=r"precision|bf16"):
        check_student(recipe(f"hf:{encoder_folder}", train={"precision": "bf16", "device": "cpu"}))


def test_terms_over_layers_that_are_not_there_are_named(encoder_folder: Path) -> None:
    def over(layers: list[list[int]], kind: str = "hidden") -> Recipe:
        one: Any = layers if kind == "hidden" else layers[0]
        plain = recipe(
            f"hf:{encoder_folder}",
            train={"alpha": 0.5, "terms": [{"kind": kind, "layers": one}]},
            layers=1,
        ).model_dump(by_alias=True)
        return Recipe.model_validate({**plain, "teacher": {"model": f"hf:{encoder_folder}"}})

    check_student(over([[0, 0], [0, 1]]))
    check_student(over([[0, 1]], "rkd_distance"))
    for kind in ("hidden", "rkd_distance"):
        for pair in ([1, 0], [0, 7]):
            with pytest.raises(UserError, match=r"train.terms.0.layers.*the student has layers 0"):
                check_student(over([pair], kind))


def test_a_teacher_with_another_tokenizer_is_named_before_it_is_paid(
    lm_folder: Path, tmp_path: Path
) -> None:
    tiny_llama(byte_bpe()).save_pretrained(tmp_path / "other")
    wordpiece().save_pretrained(tmp_path / "other")
    own = recipe(f"hf:{lm_folder}", head="text").model_dump(by_alias=True)

    def taught(by: str, **train: Any) -> Recipe:
        return Recipe.model_validate(
            {**own, "teacher": {"model": by}, "train": {"alpha": 0.5, **train}}
        )

    check_student(taught(f"hf:{lm_folder}"))
    other = {"model": f"hf:{tmp_path / 'other'}"}
    check_student(taught(other["model"], alpha=0))
    check_student(taught("openai:x", teachers={"members": [other], "tokenizers": "universal"}))
    for one in (
        taught(other["model"]),
        taught(other["model"], signals="cache"),
        taught("openai:x", teachers={"members": [other]}),
        taught(f"hf:{lm_folder}", teachers={"members": [{"model": "teacher"}, other]}),
    ):
        with pytest.raises(UserError, match="a student with its teacher's tokenizer"):
            check_student(one)
