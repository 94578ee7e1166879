"""Put placeholders in place of personal data, before anything is written.

A value becomes `<KIND_N>`; within one request the same value has the same N, also in its answer, so
that a model can still refer to it. Text that is redacted already stays as it is. It fails closed:
what cannot be redacted is an error, and the caller stores nothing. Patterns are in `personal`;
names are found by Presidio (extra `presidio`), whose models are the user's to install. Knows texts
and records; not where they come from or go.
"""

from __future__ import annotations

import bisect
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple, TypeVar, get_args

from stillhouse.core.errors import StillhouseError, UserError
from stillhouse.core.optional import available, require
from stillhouse.core.recipe_data import RedactKind
from stillhouse.core.records import LabelledQuery, Message, Query
from stillhouse.traffic import personal
from stillhouse.traffic.call import Call, Turn
from stillhouse.traffic.personal import Span

Q = TypeVar("Q", bound=Query)
Finder = Callable[[str], Iterable[Span]]

KINDS: Final[tuple[RedactKind, ...]] = get_args(RedactKind)
DEFAULT_KINDS: Final[tuple[RedactKind, ...]] = ("key", "email", "iban", "card", "ip", "phone")
PRESIDIO_LANGUAGE: Final = "en"
REMEMBERED: Final = 4096
REMEMBERED_CHARS: Final = 8192
PRESIDIO_SCORE: Final = 0.5
SPACY_MODELS: Final = ("en_core_web_lg", "en_core_web_trf", "en_core_web_md", "en_core_web_sm")

_FINDERS: Final[dict[RedactKind, Finder]] = {
    "key": personal.keys,
    "email": personal.emails,
    "iban": personal.ibans,
    "card": personal.cards,
    "ip": personal.addresses,
    "phone": personal.phones,
}
_PLACEHOLDER = re.compile(r"<(?:" + "|".join(kind.upper() for kind in KINDS) + r")_(\d{1,9})>")
# One of each, put through a new redactor: a kind that is not found here is not looked for at all.
_PROBES: Final[dict[RedactKind, str]] = {
    "key": "sk-proj-abcdefghijklmnopqrstuvwx",
    "email": "someone@example.org",
    "iban": "DE89 3704 0044 0532 0130 00",
    "card": "4111 1111 1111 1111",
    "ip": "203.0.113.7",
    "phone": "+44 20 7946 0958",
    "name": "My name is John Smith and I live in London.",
}


class RedactionError(StillhouseError):
    """Personal data could not be looked for; nothing may be stored."""


class Redacted(NamedTuple):
    """A request's texts after redaction, and how many values of each kind were replaced."""

    texts: list[str]
    found: Counter[str]


class Redactor:
    """Finds and replaces the given kinds of personal data.

    Args:
        kinds: what to look for; none of them redacts nothing.

    Raises:
        UserError: an unknown kind.
        MissingExtraError: `name` is wanted and Presidio is not installed.
        RedactionError: a kind is not found in a probe: its finder does not work here.
    """

    def __init__(self, kinds: Sequence[str] = DEFAULT_KINDS) -> None:
        for kind in kinds:
            if kind not in KINDS:
                raise UserError(
                    "redact",
                    "is not a kind of personal data",
                    value=kind,
                    action=f"known kinds: {', '.join(KINDS)}",
                )
        # The order is that of KINDS: what is found first is not looked at again.
        self.kinds = tuple(kind for kind in KINDS if kind in kinds)
        self._finders: list[tuple[RedactKind, Finder]] = [
            (kind, _name_finder() if kind == "name" else _FINDERS[kind]) for kind in self.kinds
        ]
        # Texts that hold nothing: system prompts, schemas and model names come again and again.
        self._clean: set[str] = set()
        for kind in self.kinds:
            if f"<{kind.upper()}_1>" not in self.texts([_PROBES[kind]]).texts[0]:
                raise RedactionError(
                    f"redact: {kind} is not found in a probe; nothing is stored without it"
                )

    def texts(self, texts: Sequence[str]) -> Redacted:
        """Redact the texts of one request together: equal values get equal placeholders.

        Raises:
            RedactionError: a finder failed.
        """
        numbers: dict[tuple[str, str], int] = {}
        highest: Counter[str] = Counter()
        for text in texts:
            for mark in _PLACEHOLDER.finditer(text) if "<" in text else ():
                kind = mark.group()[1:].partition("_")[0]
                highest[kind] = max(highest[kind], int(mark.group(1)))
        found: Counter[str] = Counter()

        def replaced(text: str) -> str:
            parts: list[str] = []
            at = 0
            for start, end, kind, value in self._spans(text):
                number = numbers.get((kind, value))
                if number is None:
                    highest[kind.upper()] += 1
                    number = numbers[kind, value] = highest[kind.upper()]
                    found[kind] += 1
                parts += [text[at:start], f"<{kind.upper()}_{number}>"]
                at = end
            return "".join([*parts, text[at:]]) if parts else text

        done: list[str] = []
        for text in texts:
            # What stood right beside another value is only seen once that one is gone.
            while (once := replaced(text)) != text:
                text = once
            done.append(text)
        return Redacted(done, found)

    def text(self, text: str) -> str:
        """One text, redacted by itself: at once where it is known to hold nothing.

        Raises:
            RedactionError: a finder failed.
        """
        return text if text in self._clean else self.texts([text]).texts[0]

    def _spans(self, text: str) -> list[tuple[int, int, str, str]]:
        """Places in order, none of which overlap: an earlier kind goes before a later one."""
        if text in self._clean:
            return []
        marks = _PLACEHOLDER.finditer(text) if "<" in text else ()
        taken = [(mark.start(), mark.end(), "", "") for mark in marks]
        for kind, finder in self._finders:
            try:
                for span in finder(text):
                    place = (span.start, span.end, kind, span.value)
                    at = bisect.bisect(taken, place)
                    if (at == 0 or taken[at - 1][1] <= span.start) and (
                        at == len(taken) or taken[at][0] >= span.end
                    ):
                        taken.insert(at, place)
            except Exception as error:
                raise RedactionError(
                    f"redact: looking for {kind} failed ({type(error).__name__}); nothing is stored"
                ) from error
        places = [place for place in taken if place[2]]
        if not places and len(text) <= REMEMBERED_CHARS:
            if len(self._clean) >= REMEMBERED:
                self._clean.clear()
            self._clean.add(text)
        return places

    def call(self, call: Call) -> tuple[Call, Counter[str]]:
        """A logged request with all its texts redacted; a telling user becomes a pseudonym."""
        answer = [] if call.answer is None else [call.answer]
        extra = [call.model, call.schema or "", call.api_base or "", *call.tools]
        done = self.texts([*(turn.content for turn in call.turns), *answer, *extra])
        turns = tuple(
            Turn(turn.role, text) for turn, text in zip(call.turns, done.texts, strict=False)
        )
        rest = done.texts[len(turns) :]
        said = rest.pop(0) if answer else None
        model, schema, base, *tools = rest
        return (
            call._replace(
                id=self.identifier(call.id),
                turns=turns,
                answer=said,
                model=model,
                schema=schema or None,
                api_base=base or None,
                tools=tuple(tools),
                user=None if call.user is None else self.identifier(call.user),
            ),
            done.found,
        )

    def identifier(self, name: str) -> str:
        """An id or a user's name; one that holds personal data becomes a fixed pseudonym."""
        return name if self.text(name) == name else pseudonym(name)

    def query(self, query: Q) -> Q:
        """A query with all its texts redacted, and its true answer where it has one."""
        truth = [query.reference] if isinstance(query, LabelledQuery) else []
        done = self.texts([*(message.content for message in query.messages), *truth]).texts
        update: dict[str, object] = {
            "id": self.identifier(query.id),
            "messages": tuple(
                Message(role=message.role, content=text)
                for message, text in zip(query.messages, done, strict=False)
            ),
            "user": None if query.user is None else self.identifier(query.user),
            "metadata": {key: self._value(value) for key, value in query.metadata.items()},
        }
        if truth:
            update["reference"] = done[-1]
        return query.model_copy(update=update)

    def _value(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, list):
            return [self._value(item) for item in value]
        if isinstance(value, dict):
            return {self._value(key): self._value(item) for key, item in value.items()}
        return value

    def line(self, raw: str) -> str:
        """A line that is no sound JSON: escapes are undone first, for they may hide an address."""
        plain = re.sub(
            r"\\u([0-9a-fA-F]{4})", lambda mark: chr(int(mark.group(1), 16)), raw
        ).replace("\\/", "/")
        plain = re.sub(r"\\[nrt]", " ", plain)
        return self.text(plain.encode("utf-8", "replace").decode("utf-8"))


def pseudonym(name: str) -> str:
    """`user-` and 16 hex digits of the name's SHA-256: the same for the same name, everywhere.

    It can be undone by trying names: it is a pseudonym, not anonymous.
    """
    return "user-" + hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _name_finder() -> Finder:
    """A finder of people's names by Presidio, over the first spaCy model that is installed."""
    module = require("presidio_analyzer", "presidio", "redacting names")
    installed = next((name for name in SPACY_MODELS if available(name)), None)
    if installed is None:  # Presidio would try to download one
        raise RedactionError(
            f"redact: name needs a spaCy model ({', '.join(SPACY_MODELS)}); "
            f"run: python -m spacy download {SPACY_MODELS[0]}"
        )
    try:
        nlp = require("presidio_analyzer.nlp_engine", "presidio", "redacting names")
        models = [{"lang_code": PRESIDIO_LANGUAGE, "model_name": installed}]
        provider = nlp.NlpEngineProvider(
            nlp_configuration={"nlp_engine_name": "spacy", "models": models}
        )
        engine = module.AnalyzerEngine(
            nlp_engine=provider.create_engine(), supported_languages=[PRESIDIO_LANGUAGE]
        )
    except (Exception, SystemExit) as error:
        raise RedactionError(
            f"redact: Presidio cannot start ({type(error).__name__}: {error}); nothing is stored"
        ) from None

    def names(text: str) -> Iterator[Span]:
        results = engine.analyze(
            text=text,
            entities=["PERSON"],
            language=PRESIDIO_LANGUAGE,
            score_threshold=PRESIDIO_SCORE,
        )
        for result in sorted(results, key=lambda found: (found.start, -found.end)):
            yield Span(result.start, result.end, text[result.start : result.end].casefold())

    return names
