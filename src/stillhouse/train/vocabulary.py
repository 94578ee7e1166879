"""Trim a tokenizer to the pieces that a task's text uses.

A 22.7M-parameter encoder keeps half of its weights in the embedding rows of 30,522 pieces; one task
uses a fraction of them. `trim_tokenizer` picks the pieces by frequency and writes a tokenizer of
the plain kind, without custom code; `keep_rows` (in `embeddings`) shrinks the model to match. Knows
texts and tokenizer files; knows no weights.

What is guaranteed, and tested:
- a text all of whose pieces are kept is cut into the same pieces as before;
- any other text is still spelt, from shorter pieces: byte-level BPE keeps all bytes, WordPiece and
  Unigram keep the single characters of ASCII and of the given texts, Unigram also the bytes that it
  falls back to (a character of neither becomes the unknown token, as in any such vocabulary).
"""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from stillhouse.core.errors import UserError

COUNT_BLOCK: Final = 1024
FIELD: Final = "student.vocabulary"
BYTE: Final = re.compile("<0x[0-9A-F]{2}>")


class Trimmed(NamedTuple):
    """A smaller tokenizer. `kept[new_id]` is the piece's id in the source."""

    tokenizer: PreTrainedTokenizerBase
    kept: tuple[int, ...]


def trim_tokenizer(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    limit: int | None = None,
    max_tokens: int | None = None,
    labels: Sequence[str] = (),
) -> Trimmed:
    """Keep the special tokens, the characters or bytes, and the pieces that `texts` use.

    Args:
        tokenizer: a WordPiece or Unigram (XLM-RoBERTa) tokenizer, or BPE by bytes or with a
            fallback to them (Gemma, Phi-3).
        texts: the task's text, as the student will read it.
        limit: so many pieces: the task's, the most frequent first, then the source's other pieces
            in its own order, which in all kinds of vocabulary is roughly by frequency (another
            text of the task uses words that these texts do not); `None` keeps all that are used.
        max_tokens: the new tokenizer's `model_max_length`; `None` keeps the old one.
        labels: texts that the student has to write: their pieces stay, however rare.

    Raises:
        UserError: another kind of tokenizer, no text, a limit below what must be kept, or a label
            that the vocabulary cannot spell.
    """
    if not texts:
        raise UserError(FIELD, "there is no text to count pieces in", action="use full")
    spec = _spec(tokenizer)
    pieces = _pieces(spec)
    added = {str(token["content"]): int(token["id"]) for token in spec["added_tokens"]}
    counts = _count(tokenizer, texts)

    names = {number: piece for piece, number in pieces.items()} | {n: p for p, n in added.items()}
    needs, spelling = _needs(spec, pieces, counts, names)
    keep = set(added) | spelling
    if limit is not None and len(keep) > limit:
        raise UserError(
            FIELD,
            f"special tokens and single characters alone are {len(keep)} pieces",
            value=limit,
            action=f"use at least {len(keep)}",
        )
    for label in labels:
        keep |= _label_pieces(label, tokenizer, names, needs)
        if limit is not None and len(keep) > limit:
            raise UserError(
                FIELD,
                f"would lose tokens of the label {label!r}",
                value=limit,
                action="use more",
            )
    ranked = sorted(counts, key=lambda n: (-counts[n], n))
    if limit is not None:
        ranked += sorted(n for n, name in names.items() if not name.startswith("[unused"))
    for number in ranked:
        new = ({names[number]} | needs(names[number])) - keep
        if limit is None or len(keep) + len(new) <= limit:
            keep |= new

    kept = _order(keep, pieces, added)
    _rewrite(spec, kept)
    return Trimmed(
        _plain_tokenizer(spec, tokenizer, max_tokens),
        tuple(pieces[piece] if piece in pieces else added[piece] for piece in kept),
    )


def check_trims(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse, before any text is there, a tokenizer of a kind that cannot be trimmed.

    Raises:
        UserError: it is of such a kind.
    """
    _pieces(_spec(tokenizer))


def _spec(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UserError(
            FIELD,
            f"a {type(tokenizer).__name__} cannot be trimmed",
            action="use full, or a source with a tokenizer.json",
        )
    return dict(json.loads(backend.to_str()))


def _label_pieces(
    label: str,
    tokenizer: PreTrainedTokenizerBase,
    names: Mapping[int, str],
    needs: Callable[[str], set[str]],
) -> set[str]:
    """What a label is spelt from at the start of a text and inside one, and what that needs."""
    kept: set[str] = set()
    for text in (label, f" {label}", f"\n{label}"):
        for number in tokenizer(text, add_special_tokens=False)["input_ids"]:
            if number == tokenizer.unk_token_id:
                raise UserError(
                    FIELD,
                    f"the source's vocabulary cannot spell the label {label!r}",
                    action="use other characters in the label",
                )
            kept |= {names[number]} | needs(names[number])
    return kept


def _pieces(spec: Mapping[str, Any]) -> dict[str, int]:
    kind = spec["model"]["type"]
    if kind == "WordPiece" or (kind == "BPE" and _all_bytes(spec)):
        return dict(spec["model"]["vocab"])
    if kind == "Unigram":
        return {piece: number for number, (piece, _) in enumerate(spec["model"]["vocab"])}
    raise UserError(
        FIELD,
        "only WordPiece and Unigram vocabularies, and those of BPE that fall back to bytes, can be "
        "trimmed",
        value=kind,
        action="use full",
    )


def _all_bytes(spec: Mapping[str, Any]) -> bool:
    """Whether BPE spells any text: by bytes alone, or in bytes where a character is not known."""
    falls_back = bool(spec["model"].get("byte_fallback"))
    return falls_back or "ByteLevel" in json.dumps(spec["decoder"])


def _count(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Counter[int]:
    counts: Counter[int] = Counter()
    for start in range(0, len(texts), COUNT_BLOCK):
        block = list(texts[start : start + COUNT_BLOCK])
        encoded = tokenizer(block, add_special_tokens=False, truncation=False, verbose=False)
        for row in encoded["input_ids"]:
            counts.update(row)
    return counts


class _Needs(NamedTuple):
    of: Callable[[str], set[str]]
    spelling: set[str]


def _needs(
    spec: Mapping[str, Any],
    pieces: Mapping[str, int],
    counts: Mapping[int, int],
    names: Mapping[int, str],
) -> _Needs:
    """What a kept piece needs beside it, and what must be kept to spell anything."""
    if spec["model"]["type"] == "BPE":
        ranks = {_pair(merge): rank for rank, merge in enumerate(spec["model"]["merges"])}
        alphabet = {piece for piece in pieces if len(piece) == 1}
        if spec["model"].get("byte_fallback"):  # other characters are spelt in bytes
            seen = {char for number in counts for char in names[number]}
            alphabet = {piece for piece in alphabet if piece.isascii() or piece in seen}
            alphabet |= {piece for piece in pieces if BYTE.fullmatch(piece)}
        return _Needs(lambda piece: merge_steps(piece, ranks) & pieces.keys(), alphabet)
    if spec["model"]["type"] == "Unigram":
        return _Needs(lambda _: set(), _unigram_spelling(spec["model"], pieces, counts, names))
    prefix = str(spec["model"]["continuing_subword_prefix"])
    seen = {char for number in counts for char in names[number].removeprefix(prefix)}
    alphabet = {
        piece
        for piece in pieces
        if len(bare := piece.removeprefix(prefix)) == 1 and (bare.isascii() or bare in seen)
    }
    return _Needs(lambda _: set(), alphabet | {str(spec["model"]["unk_token"])})


def _unigram_spelling(
    model: Mapping[str, Any],
    pieces: Mapping[str, int],
    counts: Mapping[int, int],
    names: Mapping[int, str],
) -> set[str]:
    """Characters, bytes, and what the best path through a text is measured by.

    The path of kept pieces stays the best one of fewer; but a character that is no piece costs the
    lowest score of the vocabulary and 10 more, so a piece of that score stays. The pieces up to the
    unknown one are control pieces: positions of RoBERTa are counted from the id of one of them.
    """
    seen = {char for number in counts for char in names[number]}
    kept = {piece for piece in pieces if len(piece) == 1 and (piece.isascii() or piece in seen)}
    if model.get("byte_fallback"):
        kept |= {piece for piece in pieces if BYTE.fullmatch(piece)}
    kept.add(min(model["vocab"], key=lambda entry: entry[1])[0])
    unknown = model.get("unk_id")
    return kept | {piece for piece, _ in model["vocab"][: 0 if unknown is None else unknown + 1]}


def merge_steps(piece: str, ranks: Mapping[tuple[str, str], int]) -> set[str]:
    """All pieces that byte-pair encoding passes through while it builds `piece`.

    Inside any text, the merges inside a piece that survives whole are those of the piece alone: a
    merge across its edge would have destroyed it. With these steps kept, and with all merges whose
    two halves and result are kept, in their old order, the piece is built as it was before.
    """
    parts = list(piece)
    steps: set[str] = set(parts)
    while len(parts) > 1:
        rank, at = min(
            (ranks.get((left, right), len(ranks)), i)
            for i, (left, right) in enumerate(itertools.pairwise(parts))
        )
        if rank == len(ranks):
            break
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
        steps.add(parts[at])
    return steps


def _pair(merge: str | Sequence[str]) -> tuple[str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _order(keep: Iterable[str], pieces: Mapping[str, int], added: Mapping[str, int]) -> list[str]:
    """Old order; added tokens outside the model's vocabulary last, where loaders expect them."""
    return sorted(keep, key=lambda p: (0, pieces[p]) if p in pieces else (1, added[p]))


def _rewrite(spec: dict[str, Any], kept: Sequence[str]) -> None:
    """Renumber a tokenizer.json in place."""
    new = {piece: number for number, piece in enumerate(kept)}
    model = spec["model"]
    if model["type"] == "Unigram":
        at = model["unk_id"]
        unknown = None if at is None else model["vocab"][at][0]
        score = dict(model["vocab"])
        model["vocab"] = [[piece, score[piece]] for piece in kept if piece in score]
        model["unk_id"] = unknown if unknown is None else new[unknown]
    else:
        model["vocab"] = {piece: n for piece, n in new.items() if piece in model["vocab"]}
    if "merges" in model:
        inside = model["vocab"].keys()
        pairs = [_pair(merge) for merge in model["merges"]]
        model["merges"] = [
            [left, right]
            for left, right in pairs
            if left in inside and right in inside and left + right in inside
        ]
    for token in spec["added_tokens"]:
        token["id"] = new[token["content"]]
    spec["added_tokens"].sort(key=lambda token: token["id"])
    spec["truncation"] = spec["padding"] = None
    _renumber_template(spec["post_processor"], new)


def _renumber_template(node: object, new: Mapping[str, int]) -> None:
    """Post-processors name special tokens as {tokens, ids}, or as ["[CLS]", 101]."""
    if isinstance(node, list):
        for item in node:
            _renumber_template(item, new)
    elif isinstance(node, dict):
        if "tokens" in node and "ids" in node:
            node["ids"] = [new[token] for token in node["tokens"]]
        for key, value in node.items():
            if key in ("cls", "sep") and isinstance(value, list) and len(value) == 2:
                node[key] = [value[0], new[value[0]]]
            else:
                _renumber_template(value, new)


def _plain_tokenizer(
    spec: Mapping[str, Any], source: PreTrainedTokenizerBase, max_tokens: int | None
) -> PreTrainedTokenizerBase:
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=Tokenizer.from_str(json.dumps(spec, ensure_ascii=False)),
        model_max_length=max_tokens or source.model_max_length,
        model_input_names=list(source.model_input_names),
        padding_side=source.padding_side,
        truncation_side=source.truncation_side,
        **({"chat_template": source.chat_template} if source.chat_template else {}),
        **source.special_tokens_map,
    )
