"""Whether a text is in the language it should be in (extra: language).

py3langid gives each of its languages a probability, calibrated over text lengths. A text is
rejected only where the wanted language is all but excluded, so that names, numbers and short
answers pass; measured in docs/quality.md. Knows text only.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, Final

from stillhouse.core.errors import UserError
from stillhouse.core.optional import require

LEAST: Final = 0.05
# A text without this many letters says nothing of its language.
LEAST_LETTERS: Final = 6
# Written so much alike that short texts do not tell them apart.
_NEAR: Final = (
    frozenset({"da", "nb", "nn", "no"}),
    frozenset({"id", "ms"}),
    frozenset({"bs", "hr", "sr"}),
)


@cache
def _identifier(module: Any) -> Any:
    return module.LanguageIdentifier.from_model_file(module.MODEL_FILE, norm_probs=True)


class LanguageCheck:
    """Says of texts whether they can be in one language.

    Raises:
        MissingExtraError: py3langid is not installed.
        UserError: it does not know the language.
    """

    def __init__(self, language: str) -> None:
        module = require("py3langid.langid", "language", "dataset.validators.language")
        self._identifier = _identifier(module)
        known = set(self._identifier.labels)
        self._wanted = next((near for near in _NEAR if language in near), frozenset({language}))
        if not self._wanted & known:
            raise UserError(
                "dataset.validators.language",
                "is not a language that can be told",
                value=language,
                action=f"known: {', '.join(sorted(known))}",
            )
        self._language = language

    def problem(self, text: str) -> str | None:
        """What language a text is in instead, or `None`."""
        if sum(character.isalpha() for character in text) < LEAST_LETTERS:
            return None
        found: Mapping[str, float] = dict(self._identifier.rank(text))
        if sum(found.get(one, 0.0) for one in self._wanted) >= LEAST:
            return None
        likeliest = max(found, key=lambda one: found[one])
        return f"looks like {likeliest} ({found[likeliest]:.0%}), not {self._language}"
