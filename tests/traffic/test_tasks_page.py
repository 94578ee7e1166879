"""tasks.html: whole, self-contained, escaped, and drawn by a real browser."""

from __future__ import annotations

import json
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from planted_log import write_logs
from stillhouse.core.progress import Silent
from stillhouse.traffic.mine import MineOptions, mine
from stillhouse.traffic.tasks_page import known_usd, render_tasks, sentence, show_tasks, tokens, usd
from stillhouse.traffic.tasks_report import TasksReport

BROWSER = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> tuple[TasksReport, Path]:
    folder = tmp_path_factory.mktemp("page")
    made = write_logs(folder, 2000, seed=3)
    asked = [
        {"messages": [{"role": "user", "content": f"Rate <script>x({n})</script> & co:\n{n * 7}"},
                      {"role": "assistant", "content": ["<b>good</b>", "<i>bad</i>"][n % 2]}]}
        for n in range(120)
    ]  # fmt: skip
    path = folder / "hostile.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in asked))
    out = folder / "out"
    return mine(MineOptions((*made.files, path), out), Silent()).report, out / "tasks.html"


class Reader(HTMLParser):
    """Collects what could make a request, and checks that tags nest."""

    VOID = frozenset({"meta", "link", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [str(v) for k, v in attrs if k in ("src", "href", "action")]
        assert tag not in ("script", "b", "i")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_asks_nobody(page: tuple[TasksReport, Path]) -> None:
    text = page[1].read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    assert reader.links == ["data:,"]
    assert "url(" not in text


def test_it_says_what_the_report_says(page: tuple[TasksReport, Path]) -> None:
    report, path = page
    text = path.read_text(encoding="utf-8")
    assert sentence(report).split(".", maxsplit=1)[0] in text
    for task in report.tasks:
        assert task.name in text
        if task.recipe is not None:
            assert f"stillhouse run {task.recipe}" in text
    assert "one token for 4 characters" in text, "the hostile log has no usage"


def test_spend_that_is_known_in_part_is_said_as_a_lower_bound(
    page: tuple[TasksReport, Path],
) -> None:
    report = page[0]
    priced = [task for task in report.tasks if task.usd_per_month is not None]
    assert priced
    part = report.model_copy(update={"tasks": tuple(priced), "usd": None, "usd_per_month": None})
    total = sum(task.usd_per_month or 0.0 for task in priced)
    assert known_usd(part) == f"at least {usd(total)}"
    assert f"<dd>at least {usd(total)}<small>" in render_tasks(part, {})
    whole = part.model_copy(update={"usd": 1.0, "usd_per_month": 1.0})
    assert known_usd(whole) is None
    assert known_usd(part.model_copy(update={"tasks": ()})) is None


def test_what_is_to_be_filled_in_is_said_before_the_command(
    page: tuple[TasksReport, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    report, path = page
    assert "Fill in teacher.terms" in path.read_text(encoding="utf-8")
    show_tasks(report, path.parent, as_json=False)
    shown = capsys.readouterr().out.replace("\n", " ")
    assert "fill in" in shown
    assert shown.index("teacher.terms") < shown.index("stillhouse plan")


def test_text_from_users_is_escaped(page: tuple[TasksReport, Path]) -> None:
    text = page[1].read_text(encoding="utf-8")
    assert "&lt;script&gt;" in text
    assert "&lt;b&gt;good" in text


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "unknown"), (0.0, "$0"), (0.0123, "$0.012"), (12.345, "$12.35"), (12345.6, "$12,346")],
)
def test_money(value: float | None, shown: str) -> None:
    assert usd(value) == shown


def test_token_counts() -> None:
    assert [tokens(v) for v in (7, 1500, 2.5e6, 3e9)] == ["7", "1.5K", "2.5M", "3B"]


@pytest.mark.skipif(BROWSER is None, reason="no chromium to draw the page with")
@pytest.mark.parametrize("width", [1100, 390])
def test_a_browser_draws_it(page: tuple[TasksReport, Path], tmp_path: Path, width: int) -> None:
    picture = tmp_path / "page.png"
    done = subprocess.run(
        [
            str(BROWSER),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--window-size={width},1400",
            f"--screenshot={picture}",
            page[1].as_uri(),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert picture.exists(), done.stderr
    assert picture.stat().st_size > 20_000
