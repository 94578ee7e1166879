"""The compress section and what is refused before anything is paid; the probe's process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stillhouse.compress import footprint, planning
from stillhouse.compress.footprint import measure_footprint
from stillhouse.compress.planning import check_compress, compress_notes
from stillhouse.compress.probe import ProbeSpec, own_peak_mb
from stillhouse.core import recipe_compress
from stillhouse.core.artefact import MadeFrom, write_artefact
from stillhouse.core.errors import MissingExtraError, StillhouseError, UserError
from stillhouse.core.machine import peak_rss_mb
from stillhouse.core.recipe_compress import CompressSection
from synthetic_run import make_recipe, query_of


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"formats": ["gguf-q8_0"]}, "compress.formats: gguf-q8_0 is for text students"),
        ({"formats": []}, "names nothing to make"),
        ({"formats": ["onnx", "onnx"]}, "names a format twice"),
        ({"formats": ["tflite"]}, "formats"),
        ({"margin_student": 0}, "margin_student"),
    ],
)
def test_a_section_that_does_not_fit_is_refused(section: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make_recipe(compress=section)


def test_what_is_not_named_is_all_that_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe_compress, "available", lambda module: module != "onnx")
    assert CompressSection().wanted("label") == ()
    assert CompressSection().wanted("text") == ("gguf-f16", "gguf-q8_0", "gguf-q4")
    assert CompressSection(formats=("onnx",)).wanted("label") == ("onnx",)
    assert CompressSection().wanted("tags") == ()
    monkeypatch.setattr(recipe_compress, "available", lambda module: True)
    assert CompressSection().wanted("tags") == ("onnx", "onnx-int8", "onnx-int8-static")


def test_a_missing_extra_is_a_pip_line_before_anything_is_paid(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(recipe_compress, "available", lambda _: False)
    with pytest.raises(MissingExtraError, match=r"pip install 'stillhouse\[onnx\]'"):
        check_compress(make_recipe(compress={"formats": ["onnx"]}))
    with pytest.raises(MissingExtraError, match=r"pip install 'stillhouse\[onnx\]'"):
        check_compress(make_recipe(compress={}))
    (first, second) = compress_notes(make_recipe(compress={}))
    assert "nothing: its extra is not installed" in first
    assert "pip install" in second


def test_a_missing_calibration_file_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "installed", lambda _: True)
    recipe = make_recipe(compress={"formats": ["onnx"], "calibration": "/nowhere.jsonl"})
    with pytest.raises(UserError, match=r"compress\.calibration: there is no such file"):
        check_compress(recipe)


@pytest.mark.parametrize(
    ("lines", "said"), [("", "holds no query"), ('{"label": "x"}\n', "line 1: has neither text")]
)
def test_calibration_texts_are_read_before_anything_is_paid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: str, said: str
) -> None:
    monkeypatch.setattr(planning, "installed", lambda _: True)
    path = tmp_path / "texts.jsonl"
    path.write_text(lines)
    section = {"formats": ["onnx-int8-static"], "calibration": str(path)}
    with pytest.raises(UserError, match=said):
        check_compress(make_recipe(compress=section))
    # No other format reads them.
    check_compress(make_recipe(compress={**section, "formats": ["onnx-int8"]}))


def test_a_plan_says_what_will_be_made() -> None:
    assert compress_notes(make_recipe()) == []
    note = compress_notes(make_recipe(compress={"formats": ["onnx-int8"]}))[0]
    assert "compress makes onnx-int8" in note
    assert "within 2 points of the float student" in note


def _spec(folder: Path) -> ProbeSpec:
    recipe = make_recipe()
    return ProbeSpec.model_validate(
        {
            "folder": str(folder),
            "task": recipe.task,
            "head": "label",
            "batch_size": 2,
            "device": "cpu",
            "max_tokens": 8,
            "labels": ("fresh", "rotten"),
            "json_schema": None,
            "seed": 0,
            "queries": (query_of(recipe, 1),),
        }
    )


def test_a_process_that_cannot_answer_says_why(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"weights")
    made = MadeFrom(student="0" * 64)
    write_artefact(tmp_path, kind="onnx", precision="int8", head="label", made_from=made)
    (tmp_path / "model.onnx").write_bytes(b"edited!")
    with pytest.raises(StillhouseError, match=r"model\.onnx: was changed after"):
        measure_footprint(_spec(tmp_path), 1)


def test_starts_are_timed_to_the_first_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for the probe: it answers at once, and has a peak of its own."""
    script = tmp_path / "probe.sh"
    script.write_text("#!/bin/sh\necho answered\necho '{\"peak_rss_mb\": 42.5}'\n")
    script.chmod(0o755)
    monkeypatch.setattr(footprint.sys, "executable", str(script))
    ticks = iter([0.0, 3.0, 10.0, 11.0, 20.0, 22.0])
    found = measure_footprint(_spec(tmp_path), 3, clock=lambda: next(ticks))
    assert found.cold_starts == (3.0, 1.0, 2.0)
    assert found.cold_start_s == 2.0
    assert found.peak_rss_mb == 42.5


def test_the_peak_is_this_programs_own() -> None:
    assert 10 < own_peak_mb() <= peak_rss_mb() + 1
