"""How rows of teacher signals lie in a file: the layout, and the manifest that goes with it.

Knows sizes, names and checksums; knows no tensor.

Legend: R rows (targets), E entries, K kept entries a row, V vocabulary or classes, H hidden.

| format  | arrays of a shard                                                                |
|---------|----------------------------------------------------------------------------------|
| top_k   | `ids` [R, K, bytes], `log_probs` [R, K], `tail` [R]                               |
| sampled | `in_row` [R] uint8, `entries` [E, bytes] (id and count, or id), `weights` [E] where |
|         | the proposal is not the target, `information` [R] float16                          |
| dense   | `log_probs` [R, V]                                                                |
| hidden  | `hidden` [R, H]                                                                   |

and beside them `example` and `tokens` [X, 16] uint8 (digests), `first_row` and, for sampled,
`first_entry` [X + 1] int64, for the X examples of the shard. Integers are little-endian.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

from pydantic import Field, ValidationError

from stillhouse.core.errors import RunFolderError
from stillhouse.core.jsonl import read_json
from stillhouse.core.records import Record

SignalFormat = Literal["top_k", "sampled", "dense", "hidden"]
Number = Literal["float16", "bfloat16", "float32"]
SIGNALS: Final = "signals.json"
DIGEST_BYTES: Final = 16
_WIDTH: Final[dict[str, int]] = {"float16": 2, "bfloat16": 2, "float32": 4}


class Layout(Record):
    """How the rows of one cache are encoded.

    `width` is V; for hidden states it is H. `dtype` is of log-probabilities, hidden states and
    importance weights. `distillation_temperature` is of sampled targets alone: all other formats
    hold the belief at T = 1.
    """

    format: SignalFormat
    width: int = Field(ge=1)
    dtype: Number
    k: int = 0
    samples: int = 0
    draws: Literal["systematic", "independent"] = "systematic"
    proposal_temperature: float = 1.0
    distillation_temperature: float = 1.0

    @property
    def counted(self) -> bool:
        """Whether an entry is an id and how often it was drawn: no weight is stored."""
        return self.proposal_temperature == 1.0

    @property
    def id_bits(self) -> int:
        """Bits of a token id."""
        return max(1, (self.width - 1).bit_length())

    @property
    def entry_bytes(self) -> int:
        """Bytes of an id, with its count where it is counted: 24 bits hold both up to 262,144
        tokens and 64 draws."""
        count_bits = (self.samples - 1).bit_length() if self.counted and self.samples else 0
        return (self.id_bits + count_bits + 7) // 8

    @property
    def most_row_bytes(self) -> int:
        """Bytes of a row at most, without the index."""
        number = _WIDTH[self.dtype]
        match self.format:
            case "top_k":
                return self.k * (self.entry_bytes + number) + number
            case "sampled":
                return self.samples * (self.entry_bytes + (0 if self.counted else number)) + 3
            case "dense" | "hidden":
                return self.width * number


class CacheKey(Record):
    """What a cache holds for one teacher and one way to cut text into tokens, and for no other.

    Hashes are of the tokenizer's whole definition and of its chat template. A cache over classes
    reads no token: its tokenizer, template and length are empty.
    """

    teacher: str
    teacher_revision: str
    read_from: Literal["teacher", "logprobs", "answers"]
    precision: str = ""
    tokenizer: str = ""
    chat_template: str = ""
    max_tokens: int = 0


class Shard(Record):
    """One file of a cache. `plan` is the digest of what it was to hold."""

    file: str
    sha256: str
    size_bytes: int
    examples: int
    rows: int
    entries: int
    plan: str


class CacheManifest(Record):
    """signals.json: written last; a folder without it is no cache."""

    version: Literal[1] = 1
    key: CacheKey
    layout: Layout
    shards: tuple[Shard, ...]
    examples: int
    rows: int
    hard_rows: int = 0
    unaligned: dict[str, int] = Field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        """All shards, with their index."""
        return sum(shard.size_bytes for shard in self.shards)

    @property
    def bytes_per_row(self) -> float:
        """Size of the shards over their rows: bytes a token, or a class belief."""
        return self.size_bytes / max(1, self.rows)


def read_cache_manifest(folder: Path) -> CacheManifest:
    """signals.json of a cache.

    Raises:
        RunFolderError: it is missing or damaged.
    """
    path = folder / SIGNALS
    if not path.exists():
        raise RunFolderError(f"{folder}: holds no finished signal cache; run: stillhouse capture")
    try:
        return CacheManifest.model_validate(read_json(path))
    except ValidationError as error:
        raise RunFolderError(f"{path}: is damaged ({error.errors()[0]['msg']})") from None
