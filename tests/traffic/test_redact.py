"""Redaction: what is found and what is left on a built set, numbering, and that it fails closed."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.core.errors import MissingExtraError, UserError
from stillhouse.core.records import LabelledQuery, Message
from stillhouse.traffic import redact
from stillhouse.traffic.call import Call, Turn
from stillhouse.traffic.personal import Span, emails, luhn, mod_97
from stillhouse.traffic.redact import DEFAULT_KINDS, RedactionError, Redactor, pseudonym

REDACTOR = Redactor()


def one(text: str) -> str:
    return REDACTOR.texts([text]).texts[0]


def naive_luhn(digits: str) -> bool:
    total = 0
    for place in range(1, len(digits) + 1):
        digit = int(digits[-place])
        total += sum(int(d) for d in str(2 * digit)) if place % 2 == 0 else digit
    return total % 10 == 0


def card(rng: random.Random, prefix: str, length: int, valid: bool = True) -> str:
    body = prefix + "".join(rng.choice("0123456789") for _ in range(length - len(prefix) - 1))
    good = [d for d in "0123456789" if naive_luhn(body + d)]
    number = body + rng.choice(good if valid else [d for d in "0123456789" if d not in good])
    return (
        " ".join(number[i : i + 4] for i in range(0, length, 4)) if rng.random() < 0.5 else number
    )


def iban(rng: random.Random, country: str, length: int, valid: bool = True) -> str:
    body = "".join(rng.choice("0123456789") for _ in range(length - 4))
    value = int("".join(str(int(c, 36)) for c in body + country + "00"))
    check = 98 - value % 97
    text = f"{country}{check if valid else (check - 2) % 97 + 1:02d}{body}"
    return " ".join(text[i : i + 4] for i in range(0, length, 4)) if rng.random() < 0.5 else text


ALPHANUMERIC = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"


def letters(rng: random.Random, size: int, pool: str = ALPHANUMERIC) -> str:
    return "".join(rng.choice(pool) for _ in range(size))


Make = Callable[[random.Random], str]
PERSONAL: dict[str, list[Make]] = {
    "email": [
        lambda r: f"{letters(r, 5)}.{letters(r, 4)}@{letters(r, 6)}.com",
        lambda r: f"o'{letters(r, 4)}+tag@mail.{letters(r, 5)}.co.uk",
        lambda r: "jürgen.müller@büro.example",
    ],
    "phone": [
        lambda r: f"+49 30 {r.randint(100000, 9999999)}",
        lambda r: f"+1 (415) {r.randint(200, 999)}-{r.randint(1000, 9999)}",
        lambda r: f"+33{r.choice('123456')}{r.randint(10000000, 99999999)}",
        lambda r: f"(212) {r.randint(200, 999)}-{r.randint(1000, 9999)}",
        lambda r: f"617-{r.randint(200, 999)}-{r.randint(1000, 9999)}",
        lambda r: f"020 7946 0{r.randint(100, 999)}",
        lambda r: f"0171/{r.randint(1000000, 9999999)}",
        lambda r: f"06 12 34 56 {r.randint(10, 99)}",
        lambda r: f"0049 89 {r.randint(1000000, 9999999)}",
        lambda r: f"phone: {r.randint(2000000, 9999999)}",
    ],
    "card": [
        lambda r: card(r, "4", 16),
        lambda r: card(r, "55", 16),
        lambda r: card(r, "37", 15).replace(" ", ""),
        lambda r: card(r, "6011", 16),
    ],
    "iban": [
        lambda r: iban(r, "DE", 22),
        lambda r: iban(r, "FR", 27),
        lambda r: iban(r, "NL", 18),
        lambda r: iban(r, "NO", 15),
    ],
    "ip": [
        lambda r: (
            f"{r.randint(11, 223)}.{r.randint(0, 255)}.{r.randint(0, 255)}.{r.randint(1, 254)}"
        ),
        lambda r: f"192.168.{r.randint(0, 255)}.{r.randint(1, 254)}",
        lambda r: f"2001:db8:{r.randint(0, 9999):x}::{r.randint(1, 9999)}",
        lambda r: ":".join(f"{r.randint(4096, 65535):x}" for _ in range(7)) + ":1a2b",
    ],
    "key": [
        lambda r: f"sk-proj-{letters(r, 40)}",
        lambda r: f"sk-ant-api03-{letters(r, 60)}",
        lambda r: f"AKIA{letters(r, 16, 'ABCDEFGHIJKLMNOPQRSTUVWXYZ234567')}",
        lambda r: f"ghp_{letters(r, 36)}",
        lambda r: f"xoxb-{r.randint(10**10, 10**11)}-{letters(r, 24)}",
        lambda r: f"eyJ{letters(r, 20)}.eyJ{letters(r, 40)}.{letters(r, 30)}",
        lambda r: f"AIza{letters(r, 35)}",
        lambda r: f"password={letters(r, 6)}7!x",
        lambda r: f"https://bot:{letters(r, 12)}@git.example/repo",
        lambda r: f"hf_{letters(r, 34)}",
    ],
}
LOOKALIKES: list[Make] = [
    lambda r: "order " + card(r, "4", 16, valid=False),
    lambda r: "tracking " + card(r, "9", 16),
    lambda r: f"order number {r.randint(200, 999)}-{r.randint(200, 999)}-{r.randint(1000, 9999)}",
    lambda r: f"invoice {r.randint(10**7, 10**10)}",
    lambda r: (
        f"version {r.randint(0, 20)}.{r.randint(0, 255)}.{r.randint(0, 255)}.{r.randint(0, 9)}"
    ),
    lambda r: f"v{r.randint(1, 9)}.{r.randint(0, 9)}.{r.randint(0, 99)}.{r.randint(0, 99)}",
    lambda r: f"Chrome/{r.randint(90, 140)}.0.0.0 Safari",
    lambda r: f"section {r.randint(1, 9)}.{r.randint(1, 9)}.{r.randint(1, 9)}.{r.randint(1, 9)}",
    lambda r: (
        f"ratio {r.randint(300, 999)}.{r.randint(0, 99)}.{r.randint(0, 99)}.{r.randint(0, 99)}"
    ),
    lambda r: f"on {r.randint(10, 28)}-{r.randint(10, 12)}-{r.randint(1990, 2030)} at 10:30:45",
    lambda r: f"on 0{r.randint(1, 9)}.0{r.randint(1, 9)}.2024 14.30",
    lambda r: f"{r.randint(10**9, 2 * 10**9)} seconds and {r.randint(10**12, 2 * 10**12)} ms",
    lambda r: f"std::vector and abc::def at {r.randint(1, 12)}:{r.randint(10, 59)}",
    lambda r: "loopback 127.0.0.1 and ::1",
    lambda r: f"react@18.{r.randint(0, 9)}.0 by @{letters(r, 8)}",
    lambda r: "password: required, and the token is missing",
    lambda r: f"ISBN 978-3-16-1484{r.randint(10, 99)}-0",
    lambda r: f"account {iban(r, 'DE', 22, valid=False)}",
    lambda r: f"uuid {letters(r, 8, 'abcdef')}-1234-4321-8765-{letters(r, 12, 'abcdef01')}",
    lambda r: f"prices {r.randint(10, 99)} 000 000 and 1,234,567.89",
    lambda r: f"sk-learn, task-{letters(r, 4)} and the desk-{r.randint(1, 9)}",
]
AROUND = (
    "My {} is what you asked for, thanks.",
    "Please use {}.",
    "I wrote it down: {}, and waited\nuntil noon.",
    "({})",
    "{}",
)


@pytest.mark.parametrize("kind", PERSONAL)
def test_recall_of_each_kind_on_the_built_set(kind: str) -> None:
    rng = random.Random(kind)
    missed: list[str] = []
    total = 0
    for make in PERSONAL[kind]:
        for around in AROUND * 20:
            text = around.format(value := make(rng))
            total += 1
            if f"<{kind.upper()}_1>" not in one(text) or value in one(text):
                missed.append(text)
    assert len(missed) <= 0.01 * total, missed[:5]


def test_precision_on_lookalikes() -> None:
    rng = random.Random(1)
    wrong: list[str] = []
    total = 0
    for make in LOOKALIKES:
        for around in AROUND * 20:
            text = around.format(make(rng))
            total += 1
            if one(text) != text:
                wrong.append(f"{text} -> {one(text)}")
    # A random 16 digits have a valid check digit one time in ten, hence the made invalid ones.
    assert len(wrong) <= 0.01 * total, wrong[:5]


def test_each_kind_can_be_left_out() -> None:
    text = "a@b.example, +49 30 901820"
    assert Redactor(("email",)).texts([text]).texts == ["<EMAIL_1>, +49 30 901820"]
    assert Redactor(()).texts([text]).texts == [text]
    with pytest.raises(UserError, match="known kinds"):
        Redactor(("mail",))


def test_equal_values_have_equal_numbers_over_all_texts_of_a_request() -> None:
    done = REDACTOR.texts(["a@b.example and c@d.example", "C@D.example, +49 30 901820"])
    assert done.texts == ["<EMAIL_1> and <EMAIL_2>", "<EMAIL_2>, <PHONE_1>"]
    assert done.found == {"email": 2, "phone": 1}


def test_new_numbers_do_not_collide_with_placeholders_that_are_there() -> None:
    assert one("<EMAIL_7> a@b.example") == "<EMAIL_7> <EMAIL_8>"


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.text(max_size=40),
            st.sampled_from(
                ["a@b.example", "+49 30 901820", "4111 1111 1111 1111", "<EMAIL_2>", "10.1.2.3",
                 "DE89370400440532013000", "sk-proj-abcdefghijklmnopqrst", "<", "_1>", " "]
            ),
        ),
        max_size=8,
    )
)  # fmt: skip
def test_redacting_twice_is_redacting_once(parts: list[str]) -> None:
    once = one("".join(parts))
    assert one(once) == once


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet=st.sampled_from("0123456789 -+.()@:/aA<>_"), max_size=200))
def test_any_text_is_redacted_in_reasonable_time(text: str) -> None:
    one(text * 5)


@given(st.text(alphabet="0123456789", min_size=1, max_size=24))
def test_luhn_is_the_naive_sum(digits: str) -> None:
    assert luhn(digits) == naive_luhn(digits)


def test_the_published_example_ibans_pass() -> None:
    for example in (
        "DE89370400440532013000",
        "GB29NWBK60161331926819",
        "FR1420041010050500013M02606",
    ):
        assert mod_97(example)
        assert one(example.lower()) == "<IBAN_1>"


def test_a_call_is_redacted_whole_and_its_user_gets_a_pseudonym() -> None:
    call = Call(
        id="r1",
        turns=(Turn("system", "Mail a@b.example."), Turn("user", "from +49 30 901820")),
        answer="a@b.example, c@d.example",
        user="c@d.example",
        schema='{"description": "c@d.example"}',
        model="m",
    )
    clean, found = REDACTOR.call(call)
    assert [turn.content for turn in clean.turns] == ["Mail <EMAIL_1>.", "from <PHONE_1>"]
    assert clean.answer == "<EMAIL_1>, <EMAIL_2>"
    assert clean.schema == '{"description": "<EMAIL_2>"}'
    assert clean.user == pseudonym("c@d.example")
    assert (clean.id, clean.model) == ("r1", "m")
    assert found == {"email": 2, "phone": 1}


def test_a_query_keeps_its_truth_in_step_with_its_text() -> None:
    query = LabelledQuery(
        id="1",
        messages=(Message(role="user", content="Mail a@b.example"),),
        reference='{"mail": "a@b.example"}',
        metadata={"from": ["a@b.example", 3]},
    )
    clean = REDACTOR.query(query)
    assert clean.messages[0].content == "Mail <EMAIL_1>"
    assert clean.reference == '{"mail": "<EMAIL_1>"}'
    assert clean.metadata == {"from": ["<EMAIL_1>", 3]}


def test_a_broken_line_hides_nothing_behind_its_escapes() -> None:
    assert "b.example" not in REDACTOR.line('{"text": "a\\u0040b.example')


def test_a_finder_that_fails_stops_all(monkeypatch: pytest.MonkeyPatch) -> None:
    redactor = Redactor(("email",))

    def broken(text: str) -> list[object]:
        raise ZeroDivisionError

    redactor._finders[0] = ("email", broken)  # type: ignore[assignment]
    with pytest.raises(RedactionError, match="nothing is stored"):
        redactor.texts(["new text"])


def test_a_finder_that_finds_nothing_is_noticed_at_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(redact._FINDERS, "card", lambda text: [])
    with pytest.raises(RedactionError, match="card is not found in a probe"):
        Redactor(DEFAULT_KINDS)


def test_names_without_presidio_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "presidio_analyzer", None)
    with pytest.raises(MissingExtraError, match=r"stillhouse\[presidio\]"):
        Redactor(("name",))


def presidio_double(monkeypatch: pytest.MonkeyPatch, finds: str) -> None:
    """Presidio's two modules with the calls that are made of them."""

    class Engine:
        def __init__(self, **options: object) -> None:
            pass

        def analyze(self, text: str, **options: object) -> list[SimpleNamespace]:
            start = text.find(finds)
            return [] if start < 0 else [SimpleNamespace(start=start, end=start + len(finds))]

    class Provider:
        def __init__(self, nlp_configuration: dict[str, object]) -> None:
            assert nlp_configuration["nlp_engine_name"] == "spacy"

        def create_engine(self) -> None:
            pass

    module, inner = ModuleType("presidio_analyzer"), ModuleType("presidio_analyzer.nlp_engine")
    setattr(module, "AnalyzerEngine", Engine)  # noqa: B010
    setattr(inner, "NlpEngineProvider", Provider)  # noqa: B010
    monkeypatch.setitem(sys.modules, "presidio_analyzer", module)
    monkeypatch.setitem(sys.modules, "presidio_analyzer.nlp_engine", inner)


def test_names_are_found_by_presidio(monkeypatch: pytest.MonkeyPatch) -> None:
    presidio_double(monkeypatch, "John Smith")
    monkeypatch.setattr(redact, "available", lambda name: name == "en_core_web_sm")
    redactor = Redactor(("email", "name"))
    assert redactor.texts(["John Smith, js@x.example"]).texts == ["<NAME_1>, <EMAIL_1>"]


def test_presidio_without_a_model_is_an_error_not_a_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    presidio_double(monkeypatch, "John Smith")
    monkeypatch.setattr(redact, "available", lambda name: False)
    with pytest.raises(RedactionError, match="spacy download"):
        Redactor(("name",))
    monkeypatch.setattr(redact, "available", lambda name: True)
    presidio_double(monkeypatch, "nobody")
    with pytest.raises(RedactionError, match="name is not found in a probe"):
        Redactor(("name",))


def test_a_text_alone_is_what_it_is_among_texts_and_is_looked_through_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked: list[str] = []

    def finder(text: str) -> list[Span]:
        looked.append(text)
        return list(emails(text))

    monkeypatch.setitem(redact._FINDERS, "email", finder)
    redactor = Redactor(["email"])
    looked.clear()
    clean, mail = "nothing in it", "ann@example.org asks bob@example.org about <EMAIL_3>"
    for _ in range(3):
        assert redactor.text(clean) == clean
        assert redactor.text(mail) == "<EMAIL_4> asks <EMAIL_5> about <EMAIL_3>"
        assert redactor.text(mail) == redactor.texts([mail]).texts[0]
    assert looked.count(clean) == 1
    assert looked.count(mail) > 3  # what holds something is never taken for clean
