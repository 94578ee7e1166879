"""Pretrained sentence encoders: all-MiniLM-L6-v2 from its package, or any by hub id or folder.

A sentence-transformers folder says in modules.json what follows the encoder: pooling, dense layers,
normalising. These are few and simple, so they are read here; a module of another kind is refused by
name. Only safetensors are read, and no code of the model's. A folder without modules.json is a
plain encoder: mean pooling, as sentence-transformers itself does. Needs torch.

N texts, B batch, T tokens, H dimensions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from huggingface_hub import snapshot_download
from safetensors.torch import load_file

from stillhouse.core.errors import UserError
from stillhouse.models.embedders import Vectors, unit_rows
from stillhouse.models.loading import Loaded, load_encoder, locate

BATCH: Final = 64
LONGEST: Final = 512  # tokens, where neither the model nor its tokenizer says
_MODULE_FILES: Final = ("modules.json", "*sentence*.json", "*_*/config.json", "*_*/*.safetensors")
_OLD_MODES: Final = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_ACTIVATIONS: Final[dict[str, Callable[[torch.Tensor], torch.Tensor]]] = {
    "Identity": lambda x: x,
    "Tanh": torch.tanh,
    "ReLU": torch.relu,
    "GELU": torch.nn.functional.gelu,
    "SiLU": torch.nn.functional.silu,
    "Sigmoid": torch.sigmoid,
}

Head = Callable[[torch.Tensor], torch.Tensor]  # [B, H] -> [B, H']


class SentenceEncoder:
    """An encoder with its pooling and what follows; see the module."""

    def __init__(
        self,
        loaded: Loaded,
        name: str,
        *,
        modes: Sequence[str],
        heads: Sequence[Head],
        longest: int,
        prompt: str,
    ) -> None:
        self._loaded = loaded
        self._name = f"{name}@{loaded.revision}"
        self._modes = tuple(modes)
        self._heads = tuple(heads)
        self._longest = longest
        self._prompt = prompt
        self._dimensions = int(self._encode([""]).shape[1])

    @property
    def name(self) -> str:
        """The recipe's name of it, with the revision of its weights."""
        return self._name

    @property
    def dimensions(self) -> int:
        """H."""
        return self._dimensions

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Unit vectors, shape [len(texts), H]. Distinct texts are encoded once, by length."""
        distinct = sorted(set(texts), key=lambda text: (len(text), text))
        place = {text: row for row, text in enumerate(distinct)}
        vectors = np.zeros((len(distinct), self._dimensions), dtype=np.float32)
        for start in range(0, len(distinct), BATCH):
            vectors[start : start + BATCH] = self._encode(distinct[start : start + BATCH])
        vectors[~vectors.any(axis=1)] = 1.0
        return unit_rows(vectors)[[place[text] for text in texts]]

    @torch.inference_mode()
    def _encode(self, texts: Sequence[str]) -> Vectors:
        model, tokenizer = self._loaded.model, self._loaded.tokenizer
        batch = tokenizer(
            [self._prompt + text for text in texts],
            padding=True,
            padding_side="right",
            truncation=True,
            max_length=self._longest,
            return_tensors="pt",
        ).to(model.device)
        if batch["input_ids"].shape[1] == 0:  # an empty text, and a tokenizer that adds nothing
            batch = tokenizer([tokenizer.pad_token] * len(texts), return_tensors="pt")
        states = model(**batch).last_hidden_state.float()  # [B, T, H]
        pooled = torch.cat([pool(states, batch["attention_mask"], m) for m in self._modes], dim=-1)
        for head in self._heads:
            pooled = head(pooled)
        return np.asarray(pooled.cpu().numpy(), dtype=np.float32)


def pool(states: torch.Tensor, mask: torch.Tensor, mode: str) -> torch.Tensor:
    """One vector a text from its tokens' [B, T, H]; `mask` [B, T], padding at the end."""
    weights = mask.unsqueeze(-1).to(states.dtype)  # [B, T, 1]
    counts = weights.sum(dim=1).clamp(min=1.0)  # [B, 1]
    if mode == "cls":
        return states[:, 0]
    if mode == "lasttoken":
        last = mask.sum(dim=1).clamp(min=1) - 1
        return states[torch.arange(len(states), device=states.device), last]
    if mode == "max":
        return states.masked_fill(weights == 0, float("-inf")).amax(dim=1)
    if mode == "weightedmean":
        places = torch.arange(1, states.shape[1] + 1, device=states.device, dtype=states.dtype)
        weights = weights * places[None, :, None]
        return (states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1.0)
    total = (states * weights).sum(dim=1)
    return total / (counts.sqrt() if mode == "mean_sqrt_len_tokens" else counts)


def open_sentence_encoder(source: str, name: str) -> SentenceEncoder:
    """Load an encoder with the modules that its folder names.

    Args:
        source: as in `loading`.
        name: what the recipe calls it.

    Raises:
        UserError: it cannot be had, or has a module that is not read here.
    """
    loaded = load_encoder(source)
    folder = _with_modules(source)
    modes: list[str] = ["mean"]
    heads: list[Head] = []
    for module in _json(folder / "modules.json", source, [])[1:]:
        kind = str(module["type"]).rpartition(".")[2]
        config = _json(folder / module["path"] / "config.json", source, {})
        if kind == "Pooling":
            modes = _modes(config, source)
        elif kind == "Dense":
            heads.append(_dense(folder / module["path"], config, source, loaded.model.device))
        elif kind == "Normalize":
            heads.append(torch.nn.functional.normalize)
        elif kind != "Dropout":  # of training alone
            raise UserError(
                f"embedder {source}",
                "has a module that is not read here (read: Pooling, Dense, Normalize)",
                value=module["type"],
                action="choose another model",
            )
    settings = _json(folder / "sentence_bert_config.json", source, {})
    prompts = _json(folder / "config_sentence_transformers.json", source, {})
    prompt = (prompts.get("prompts") or {}).get(prompts.get("default_prompt_name")) or ""
    longest = settings.get("max_seq_length") or min(
        loaded.tokenizer.model_max_length,
        getattr(loaded.model.config, "max_position_embeddings", None) or LONGEST,
        LONGEST,
    )
    return SentenceEncoder(
        loaded, name, modes=modes, heads=heads, longest=int(longest), prompt=prompt
    )


def _with_modules(source: str) -> Path:
    """The model's folder, with the files of its modules, which other uses of it do not need."""
    folder = locate(source).folder
    wanted = source.removeprefix("hf:")
    if source != "embedded-encoder" and not Path(wanted).expanduser().is_dir():
        repo, _, revision = wanted.partition("@")
        snapshot_download(repo, revision=revision or None, allow_patterns=list(_MODULE_FILES))
    return folder


def _json(path: Path, source: str, missing: Any) -> Any:
    if not path.is_file():
        return missing
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(
            f"embedder {source}", f"{path.name} is not JSON: {error}", action="check the folder"
        ) from None


def _modes(config: dict[str, Any], source: str) -> list[str]:
    found = config.get("pooling_mode") or [
        mode for key, mode in _OLD_MODES.items() if config.get(key)
    ]
    modes = [found] if isinstance(found, str) else list(found) or ["mean"]
    unknown = [mode for mode in modes if mode not in _OLD_MODES.values()]
    if unknown or config.get("include_prompt", True) is not True:
        raise UserError(
            f"embedder {source}",
            "pools in a way that is not read here",
            value=unknown[0] if unknown else "include_prompt: false",
            action="choose another model",
        )
    return modes


def _dense(folder: Path, config: dict[str, Any], source: str, device: torch.device) -> Head:
    """y = activation(W x + b)."""
    path = folder / "model.safetensors"
    name = str(config.get("activation_function", "torch.nn.modules.activation.Tanh"))
    activation = _ACTIVATIONS.get(name.rpartition(".")[2])
    if not path.is_file() or activation is None or config.get("use_residual"):
        raise UserError(
            f"embedder {source}",
            f"its dense layer {folder.name} cannot be read",
            value=name if path.is_file() else "no model.safetensors",
            action="choose another model",
        )
    weights = load_file(path, device=str(device))

    def head(pooled: torch.Tensor) -> torch.Tensor:
        linear = torch.nn.functional.linear(
            pooled, weights["linear.weight"].float(), _bias(weights)
        )
        return activation(linear)

    return head


def _bias(weights: dict[str, torch.Tensor]) -> torch.Tensor | None:
    bias = weights.get("linear.bias")
    return None if bias is None else bias.float()
