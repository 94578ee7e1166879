"""A student's tokenizer in llama.cpp's terms: pieces, types, merges or scores, special tokens.

llama.cpp cuts text into words by rules it has compiled in, chosen by name (`tokenizer.ggml.pre`),
and reads no rules from a file. `vocabulary_of` names the rule that a tokenizer.json is written for
and refuses one that there is no name for; `gguf_proof` then proves the choice on texts. Knows
tokenizers; does not know models or files.

Two kinds are carried over:
- BPE over bytes (SmolLM, Llama 3, Qwen, Phi-4). Its merges are written as they are.
- BPE over characters that spells unknown ones in bytes (Llama 2, Phi-3, Gemma). Where a piece may
  be put together in any way that the vocabulary allows, and all ways of one piece are of one rank
  (whatever was converted from SentencePiece), ranks become the scores of llama.cpp's own
  SentencePiece reader, which knows no merges. Else its merges are written (`sarvam-moe`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from stillhouse.core.errors import UserError

FIELD: Final = "student tokenizer"
ACTION: Final = "keep it as a transformers folder, or export it to ONNX"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # llama_token_type
# A student without a chat template reads its messages' bare text (`models.chat`).
PLAIN_TEMPLATE: Final = (
    "{% for message in messages %}{% if not loop.first %}{{ '\\n\\n' }}{% endif %}"
    "{% if loop.last %}{{ message['content'].rstrip() }}{% else %}{{ message['content'] }}"
    "{% endif %}{% endfor %}"
)
_CONTRACTIONS: Final = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL: Final = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD: Final = r"[^\r\n\p{L}\p{N}]?\p{L}+"
# (pattern, whether whole words skip the merges) -> llama.cpp's name for both. Those that go by case
# (gpt-4o, tekken) are not here: llama.cpp's are right for A to Z only.
_PATTERNS: Final[dict[tuple[str, bool], str]] = {
    (rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}{{1,3}}|{_TAIL}", True): "llama-bpe",
    (rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}{{1,3}}|{_TAIL}", False): "dbrx",
    (rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}|{_TAIL}", False): "qwen2",
    (
        rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}|"
        r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        False,
    ): "qwen35",
}
_BYTE: Final = re.compile("<0x[0-9A-F]{2}>")
_SPACE: Final = "\u2581"


class GgufVocabulary(NamedTuple):
    """What is written of a tokenizer. `scores` or `merges` is empty.

    `ends` are the tokens that end an answer, at most three. `composes`: the student's tokenizer
    composes characters (NFC) before it cuts; llama.cpp does not, so who asks has to.
    `strips`: white space after a special token is dropped, as llama.cpp does for Phi-3 by its name.
    """

    model: str
    pre: str
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    scores: tuple[float, ...]
    merges: tuple[str, ...]
    special: Mapping[str, int]
    ends: tuple[int, ...]
    add_bos: bool
    add_eos: bool
    space_prefix: bool
    template: str
    plain: bool
    composes: bool
    strips: bool


def vocabulary_of(tokenizer: Any, rows: int, ends: Sequence[int]) -> GgufVocabulary:
    """Carry a tokenizer over.

    Args:
        tokenizer: a fast tokenizer of transformers.
        rows: rows of the model's embedding; those beyond the tokenizer are written as unused.
        ends: tokens that end an answer, the tokenizer's own first (`models.chat.end_ids`).

    Raises:
        UserError: llama.cpp has no rule that cuts as this tokenizer does.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise _refusal("has no tokenizer.json", type(tokenizer).__name__)
    spec: dict[str, Any] = json.loads(backend.to_str())
    model = spec["model"]
    if model["type"] != "BPE":
        raise _refusal("llama.cpp reads BPE vocabularies of decoders only", model["type"])
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise _refusal(f"llama.cpp's BPE has no {key}", model[key])
    if not ends:
        raise _refusal("has no end token, and llama.cpp would take token 11 for one")
    if len(ends) > 3:
        raise _refusal("a GGUF file names at most three tokens that end an answer", list(ends))
    tokens, types = _pieces(spec, rows)
    fallback = bool(model.get("byte_fallback"))
    kind = _fallback_kind(spec, tokens, types) if fallback else _byte_kind(spec)
    plain = not tokenizer.chat_template
    if not plain and not isinstance(tokenizer.chat_template, str):
        raise _refusal("has several chat templates", sorted(tokenizer.chat_template))
    bos, eos = _added(tokenizer, ends[0]) if plain else (False, False)
    strips = any(token["rstrip"] for token in spec["added_tokens"])
    if strips and "</s>" not in tokens:
        raise _refusal("drops white space after special tokens, and has no </s>")
    return GgufVocabulary(
        model=kind.model,
        pre=kind.pre,
        tokens=tokens,
        types=types,
        scores=kind.scores,
        merges=kind.merges,
        special=_special(tokenizer, ends),
        ends=tuple(ends),
        add_bos=bos,
        add_eos=eos,
        space_prefix=kind.space_prefix,
        template=PLAIN_TEMPLATE if plain else tokenizer.chat_template,
        plain=plain,
        composes=kind.composes,
        strips=strips,
    )


class _Kind(NamedTuple):
    model: str
    pre: str
    scores: tuple[float, ...] = ()
    merges: tuple[str, ...] = ()
    space_prefix: bool = False
    composes: bool = False


def _byte_kind(spec: Mapping[str, Any]) -> _Kind:
    normalizer = _steps(spec["normalizer"], "normalizers")
    composes = [step["type"] for step in normalizer] == ["NFC"]
    if normalizer and not composes:
        raise _refusal("llama.cpp has no such normalizer", normalizer[0]["type"])
    steps = _steps(spec["pre_tokenizer"], "pretokenizers")
    if not steps or steps[-1]["type"] != "ByteLevel":
        raise _refusal("its pieces are not bytes", [step["type"] for step in steps])
    *before, last = steps
    if last.get("add_prefix_space"):
        raise _refusal("puts a space before every text, which llama.cpp's BPE does not")
    skips = bool(spec["model"].get("ignore_merges"))
    pre = (_named if last.get("use_regex", True) else _split_by)(before, skips)
    return _Kind("gpt2", pre, merges=_merges(spec), composes=composes)


def _named(before: Sequence[Mapping[str, Any]], skips: bool) -> str:
    """GPT-2's own pattern, or SmolLM's: digits one by one first."""
    kinds = [step["type"] for step in before]
    if not skips and kinds == []:
        return "gpt-2"
    if not skips and kinds == ["Digits"] and before[0].get("individual_digits"):
        return "smollm"
    raise _refusal("llama.cpp has no rule that cuts words like this", kinds)


def _split_by(before: Sequence[Mapping[str, Any]], skips: bool) -> str:
    if len(before) != 1 or before[0]["type"] != "Split":
        kinds = [step["type"] for step in before]
        raise _refusal("llama.cpp has no rule that cuts words like this", kinds)
    step = before[0]
    pattern = step["pattern"].get("Regex", "")
    name = _PATTERNS.get((pattern, skips))
    if name is None or step["behavior"] != "Isolated" or step.get("invert"):
        raise _refusal("llama.cpp has no rule that cuts words like this", pattern or step)
    return name


def _fallback_kind(spec: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int]) -> _Kind:
    prefix = _space_prefix(spec)
    ranks = {_pair(merge): rank for rank, merge in enumerate(spec["model"]["merges"])}
    scores = _scores(tokens, types, ranks)
    if scores is not None:
        return _Kind("llama", "default", scores=scores, space_prefix=prefix)
    if prefix:
        raise _refusal("its merges are no ranking of pieces, and it puts a space before a text")
    mixed = [piece for piece in spec["model"]["vocab"] if "\n" in piece.strip("\n")]
    mixed += [piece for piece in spec["model"]["vocab"] if "\n" in piece and piece.strip("\n")]
    if mixed:
        raise _refusal("llama.cpp never merges over the end of a line", mixed[0])
    return _Kind("gpt2", "sarvam-moe", merges=_merges(spec))


def _space_prefix(spec: Mapping[str, Any]) -> bool:
    """Whether a text gets a space before it; refuses what writes spaces in another way."""
    prefix = replaces = False
    for step in _steps(spec["normalizer"], "normalizers"):
        if step["type"] == "Prepend" and step["prepend"] == _SPACE:
            prefix = True
        elif step["type"] == "Replace" and step["pattern"] == {"String": " "}:
            replaces = step["content"] == _SPACE
        else:
            raise _refusal("llama.cpp has no such normalizer", step["type"])
    for step in _steps(spec["pre_tokenizer"], "pretokenizers"):
        if step["type"] == "Metaspace" and not step.get("split", True):
            replaces = step["replacement"] == _SPACE
            prefix = step["prepend_scheme"] != "never"
        elif not (step["type"] == "Split" and step["pattern"] == {"String": " "} and replaces):
            raise _refusal("llama.cpp has no rule that cuts words like this", step["type"])
    if not replaces:
        raise _refusal("does not write spaces as U+2581")
    return prefix


def _scores(
    tokens: Sequence[str], types: Sequence[int], ranks: Mapping[tuple[str, str], int]
) -> tuple[float, ...] | None:
    """Minus the rank of each piece, if ranks are of pieces rather than of merges; else `None`.

    A reader that knows pieces alone joins any two neighbours that make a piece, the best first. It
    does as the merges say if they hold every way to make each piece from two others, and no merge
    of another piece lies between two ways of the same.
    """
    plain = {token for token, kind in zip(tokens, types, strict=True) if kind == NORMAL}
    ways: dict[str, list[int]] = {}
    for (left, right), rank in ranks.items():
        ways.setdefault(left + right, []).append(rank)
    for piece in plain:
        halves = [
            (piece[:cut], piece[cut:])
            for cut in range(1, len(piece))
            if piece[:cut] in plain and piece[cut:] in plain
        ]
        if any(half not in ranks for half in halves):
            return None
    if any(max(found) - min(found) >= len(found) for found in ways.values()):
        return None
    return tuple(float(-min(ways.get(token, [0]))) for token in tokens)


def _pieces(spec: Mapping[str, Any], rows: int) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Each row's text and type."""
    model = spec["model"]
    names = {int(number): str(piece) for piece, number in model["vocab"].items()}
    kinds = dict.fromkeys(names, NORMAL)
    if model.get("byte_fallback"):
        kinds |= {number: BYTE for number, piece in names.items() if _BYTE.fullmatch(piece)}
    for token in spec["added_tokens"]:
        number = int(token["id"])
        names[number] = str(token["content"])
        kinds[number] = CONTROL if token["special"] else USER_DEFINED
    unknown = model["vocab"].get(model.get("unk_token"))
    if unknown is not None and model.get("byte_fallback"):
        kinds[int(unknown)] = UNKNOWN
    # Loaders add special tokens of a family that a cut student has no rows for.
    for number in [n for n, kind in kinds.items() if n >= rows and kind == CONTROL]:
        del names[number], kinds[number]
    if max(names) >= rows:
        raise _refusal(f"has a token {max(names)} and the model {rows} rows")
    texts = tuple(names.get(row, f"[PAD{row}]") for row in range(rows))
    if len(set(texts)) != rows:
        raise _refusal("two of its tokens have the same text")
    return texts, tuple(kinds.get(row, UNUSED) for row in range(rows))


def _merges(spec: Mapping[str, Any]) -> tuple[str, ...]:
    pairs = [_pair(merge) for merge in spec["model"]["merges"]]
    for left, right in pairs:
        if " " in left or " " in right:
            raise _refusal("a merge holds a space, which a GGUF file cannot say", left + right)
    # A file needs one at least; a pair of no pieces never applies.
    return tuple(f"{left} {right}" for left, right in pairs) or ("\u0000 \u0000",)


def _added(tokenizer: Any, end: int) -> tuple[bool, bool]:
    """Whether the tokenizer itself writes a first and a last token around a bare text."""
    bare = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    whole = list(tokenizer("a", add_special_tokens=True)["input_ids"])
    bos = tokenizer.bos_token_id
    for first in ([], [bos]):
        for last in ([], [end]):
            if whole == [*first, *bare, *last]:
                return bool(first), bool(last)
    raise _refusal("writes special tokens around a text that a GGUF file cannot say", whole)


def _special(tokenizer: Any, ends: Sequence[int]) -> dict[str, int]:
    found = dict(zip(("eos", "eot", "eom"), map(int, ends), strict=False))
    for name in ("bos", "unk", "pad"):
        number = getattr(tokenizer, f"{name}_token_id", None)
        if number is not None:
            found[name] = int(number)
    return found


def _steps(node: Mapping[str, Any] | None, inside: str) -> list[Mapping[str, Any]]:
    """A normalizer or pre-tokenizer as the list of its steps."""
    if node is None:
        return []
    if node["type"] == "Sequence":
        return [step for part in node[inside] for step in _steps(part, inside)]
    return [node]


def _pair(merge: str | Sequence[str]) -> tuple[str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _refusal(problem: str, value: object = None) -> UserError:
    return UserError(FIELD, problem, value=value, action=ACTION)
