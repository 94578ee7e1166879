"""report.html: what it says, that it asks nobody for anything, and that a real browser draws it."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from stillhouse.core.progress import Silent
from stillhouse.core.runfolder import StageKey
from stillhouse.evaluate.page import disagreements, verdict_sentence
from stillhouse.evaluate.report import Report
from stillhouse.evaluate.report_files import write_report
from stillhouse.evaluate.results import Prediction
from stillhouse.evaluate.stage import run_evaluate
from synthetic_run import finish_evaluate, install_students, make_recipe, make_run, teacher_double

BROWSER = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Path]:
    recipe = make_recipe()
    run = make_run(tmp_path_factory.mktemp("run"), recipe)
    work = run.open_partial(StageKey("evaluate", {}, {}, {}, recipe.seed))
    with pytest.MonkeyPatch.context() as patch:
        install_students(patch, [])
        outcome = run_evaluate(recipe, run, work, Silent(), teacher_double())
    finish_evaluate(recipe, run, work, outcome)
    return write_report(recipe, run), run.root / "report.html"


class Reader(HTMLParser):
    """Collects what could make a request, and checks that tags nest."""

    VOID = frozenset({"meta", "link", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.svgs = self.titles = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [str(v) for k, v in attrs if k in ("src", "href", "action", "xlink:href")]
        self.svgs += tag == "svg"
        self.titles += tag == "desc"
        assert tag != "script"
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_asks_nobody(page: tuple[Report, Path]) -> None:
    text = page[1].read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    assert reader.links == ["data:,"]
    assert "url(" not in text
    assert "@import" not in text
    assert reader.svgs == reader.titles >= 8, "every plot describes itself"


def test_the_page_says_why_the_student_stopped_improving(page: tuple[Report, Path]) -> None:
    text = page[1].read_text(encoding="utf-8")
    assert "<h2>Convergence</h2>" in text
    assert "The student is too small for this task: 82.0%." in text
    assert "<li>a bigger student</li>" in text
    assert "Student too small" in text


def test_text_from_users_is_escaped(page: tuple[Report, Path]) -> None:
    text = page[1].read_text(encoding="utf-8")
    assert "&lt;b&gt;item" in text
    assert "<b>item" not in text


def test_the_banner_says_the_verdict(page: tuple[Report, Path]) -> None:
    report, path = page
    sentence = verdict_sentence(report)
    assert re.match(r"The student keeps \d+\.\d% \[", sentence)
    may = "may replace" if report.gate.verdict == "pass" else "may not replace"
    assert f"It {may} the teacher at a margin of 5 points." in sentence
    assert f'class="banner {report.gate.verdict}"' in path.read_text(encoding="utf-8")


def test_a_slower_dearer_student_is_called_so(page: tuple[Report, Path]) -> None:
    report = page[0]
    slow = report.model_copy(
        update={
            "speed": report.speed.model_copy(update={"ratio": 0.5}),
            "cost": report.cost.model_copy(update={"ratio": 2.0}),
            "size": report.size.model_copy(update={"ratio": None}),
        }
    )
    assert "is 2x slower and costs 2x as much per query." in verdict_sentence(slow)


def test_the_surest_disagreements_come_first() -> None:
    def line(name: str, agreement: float, p: float) -> Prediction:
        return Prediction(
            set="golden",
            id=name,
            text=name,
            reference="a",
            answers={"teacher": "a", "student": "b"},
            probabilities={"teacher": (p, 1 - p), "student": (1 - p, p)},
            agreement=agreement,
        )

    lines = [line("same", 1.0, 0.9), line("unsure", 0.0, 0.6), line("sure", 0.0, 0.99)]
    found = disagreements(lines, ("a", "b"))
    assert [d.text for d in found] == ["sure", "unsure"]
    assert found[0].student == "b (99%)"


MEASURE = """<!doctype html><meta charset="utf-8"><body style="margin:0">
<iframe id="f" style="border:0;width:%dpx;height:900px"></iframe>
<script>
const frame = document.getElementById("f");
frame.onload = () => {
  const d = frame.contentDocument, w = frame.contentWindow;
  const svgs = [...d.querySelectorAll("svg")];
  const drawn = svgs.filter((s) => s.getBoundingClientRect().height > 30);
  const out = {
    svgs: svgs.length, drawn: drawn.length,
    overflow: d.documentElement.scrollWidth - d.documentElement.clientWidth,
    requests: w.performance.getEntriesByType("resource").length,
    banner: d.querySelector(".banner").getBoundingClientRect().height > 40,
    styled: w.getComputedStyle(d.querySelector(".banner")).borderRadius,
  };
  document.body.dataset.result = Object.entries(out).map(([k, v]) => k + "=" + v).join(";");
};
frame.srcdoc = %s;
</script>"""


@pytest.mark.skipif(BROWSER is None, reason="needs chromium: apt-get install chromium")
@pytest.mark.parametrize("width", [1200, 390])
def test_a_browser_draws_the_page(page: tuple[Report, Path], tmp_path: Path, width: int) -> None:
    source = page[1].read_text(encoding="utf-8")
    literal = "`" + source.replace("\\", "\\\\").replace("`", "\\`").replace("$", "\\$") + "`"
    wrapper = tmp_path / "wrapper.html"
    wrapper.write_text(
        MEASURE % (width, literal.replace("</script", "<\\/script")), encoding="utf-8"
    )
    dom, log = browse(wrapper, tmp_path)
    found = re.search(r'data-result="([^"]*)"', dom)
    assert found, dom[:500]
    result = dict(item.split("=") for item in found.group(1).split(";"))
    assert result["svgs"] == result["drawn"]
    assert int(result["svgs"]) >= 8
    assert int(result["overflow"]) <= 0, "nothing sticks out sideways"
    assert result["requests"] == "0"
    assert result["banner"] == "true"
    assert result["styled"] == "12px"
    assert "CONSOLE" not in log


@pytest.mark.skipif(BROWSER is None, reason="needs chromium: apt-get install chromium")
def test_a_browser_shows_no_console_message(page: tuple[Report, Path], tmp_path: Path) -> None:
    dom, log = browse(page[1], tmp_path)
    assert "How to read this" in dom
    assert "CONSOLE" not in log


def browse(page: Path, profile: Path) -> tuple[str, str]:
    """(DOM after load, log) of a headless browser that can reach no host."""
    assert BROWSER is not None
    done = subprocess.run(
        [
            BROWSER,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--disable-dev-shm-usage",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            f"--user-data-dir={profile / 'profile'}",
            "--enable-logging=stderr",
            "--virtual-time-budget=3000",
            "--window-size=1280,1000",
            "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr
