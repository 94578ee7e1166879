"""Drafts that cannot be measured are refused before the teacher is paid."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from stillhouse.compress.speculate_check import check_drafts
from stillhouse.core.errors import MissingExtraError, UserError
from stillhouse.core.progress import Silent
from stillhouse.core.recipe import Recipe
from stillhouse.pipeline import run_stages
from stillhouse.speculate import check_speculate
from test_text_forms import load, text_project
from tiny_models import loud_llama, wordpiece


def recipe_of(folder: Path, **speculate: Any) -> Recipe:
    recipe: Recipe = load(folder, text_project(folder) | {"speculate": speculate})
    return recipe


def unlike(folder: Path) -> str:
    pieces = wordpiece()
    loud_llama(pieces, 1, 0.4).save_pretrained(folder)
    pieces.save_pretrained(folder)
    return f"hf:{folder}"


def test_unlike_tokenizers_stop_a_run_before_anybody_is_asked(tmp_path: Path) -> None:
    other = unlike(tmp_path / "other")
    for name in ("draft", "others", "undistilled"):
        given = {"others": {"strange": other}} if name == "others" else {name: other}
        if name == "draft":
            given["undistilled"] = None
        with pytest.raises(UserError, match="cuts text in another way than the target"):
            check_drafts(recipe_of(tmp_path, **given))
    root = tmp_path / "run"
    with pytest.raises(UserError, match=r"speculate\.draft: cuts text in another way"):
        run_stages(recipe_of(tmp_path, undistilled=other), root, Silent())
    assert (root / "traffic").is_dir()
    assert not (root / "ask").exists()
    check_drafts(recipe_of(tmp_path))


def test_a_runtime_or_a_file_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(tmp_path, runtimes=["llama.cpp"], target_gguf=str(tmp_path / "no.gguf"))
    check_speculate(recipe_of(tmp_path))
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "xllamacpp", None)
        with pytest.raises(MissingExtraError, match=r"pip install 'stillhouse\[gguf\]'"):
            check_speculate(recipe)
    pytest.importorskip("xllamacpp")
    trimmed = text_project(tmp_path) | {"speculate": {"runtimes": ["llama.cpp"]}}
    trimmed["student"] |= {"vocabulary": 300}
    with pytest.raises(UserError, match="drafts in the target's own vocabulary"):
        check_speculate(load(tmp_path, trimmed))
    with pytest.raises(UserError, match=r"speculate\.target_gguf: there is no such file"):
        check_speculate(recipe)
