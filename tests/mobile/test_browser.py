"""The page in a real browser: the same labels and probabilities as onnxruntime in Python."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from mobile_student import LABELS, TASK, TEXTS, make_student
from stillhouse.compress.onnx_export import export_onnx
from stillhouse.compress.onnx_mobile import export_mobile, pack

onnx = pytest.importorskip("onnx", reason="the onnx extra is not installed")
onnx_student = pytest.importorskip("stillhouse.models.onnx_student")
PAGE = Path(__file__).parents[2] / "examples" / "mobile"
BROWSER = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
pytestmark = [
    pytest.mark.skipif(BROWSER is None, reason="needs chromium: apt-get install chromium"),
    pytest.mark.skipif(
        not (PAGE / "vendor" / "ort.wasm.min.mjs").is_file(),
        reason="needs the npm package onnxruntime-web: make web",
    ),
]
WAIT_S = 120
# Probabilities. Float sums differ by rounding alone. In INT8 such a difference can move an input
# across the middle between two steps of its range, and so an answer by a step's worth.
WITHIN = {"float.onnx": 1e-5, "model.onnx": 1e-3}


class Served(NamedTuple):
    """A page's server, and what the browser told it."""

    told: list[Any]
    heard: threading.Event
    asked: list[str]


class Handler(SimpleHTTPRequestHandler):
    """The example's files, the harness and a student."""

    def __init__(self, served: Served, files: Path, *args: Any) -> None:
        self.served, self.files = served, files
        super().__init__(*args, directory=str(PAGE))

    def translate_path(self, path: str) -> str:
        name = path.partition("?")[0].lstrip("/")
        own = (self.files / name, Path(__file__).parent / name)
        found = next((one for one in own if name.endswith((".onnx", "harness.html", "given"))
                      and one.is_file()), None)  # fmt: skip
        return str(found) if found else super().translate_path(path)

    def do_GET(self) -> None:
        self.served.asked.append(self.path)
        super().do_GET()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.served.told.append(json.loads(body))
        self.send_response(204)
        self.end_headers()
        self.served.heard.set()

    def log_message(self, *args: Any) -> None:
        """Quiet."""


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("browser")
    student = make_student(root / "student")
    export_mobile(student, root / "model.onnx", TASK, texts=TEXTS)
    export_onnx(student, root / "parts", TASK, texts=TEXTS)
    (root / "float.onnx").mkdir()
    pack(root / "parts", root / "float.onnx")
    return root


@pytest.fixture(scope="module")
def told(student: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    files = tmp_path_factory.mktemp("files")
    for name in WITHIN:
        (files / name).write_bytes((student / name / "model.onnx").read_bytes())
    whole = (files / "model.onnx").read_bytes()
    bare = onnx.load_from_string(whole)
    del bare.metadata_props[:]
    onnx.save(bare, str(files / "bare.onnx"))
    (files / "half.onnx").write_bytes(whole[: len(whole) // 2])
    (files / "noise.onnx").write_bytes(b"\xff" * 64)
    (files / "given").write_text(
        json.dumps({"texts": TEXTS, "students": [*WITHIN]}), encoding="utf-8"
    )
    served = Served([], threading.Event(), [])
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, served, files))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    log = files / "log"
    try:
        with log.open("wb") as errors:
            browser = subprocess.Popen(
                command(f"http://127.0.0.1:{server.server_port}/harness.html", files),
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )
            try:
                heard = served.heard.wait(WAIT_S)
            finally:
                browser.terminate()
                browser.wait(30)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    console = log.read_text(encoding="utf-8", errors="replace")
    assert heard, f"the browser told nothing; asked for {served.asked}; {console[-3000:]}"
    return served.told[0] | {"console": console, "asked": served.asked}


def command(url: str, profile: Path) -> list[str]:
    """A headless browser that can reach this server alone."""
    assert BROWSER is not None
    return [
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
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        f"--user-data-dir={profile / 'profile'}",
        "--enable-logging=stderr",
        "--remote-debugging-port=0",  # keeps a headless browser open
        url,
    ]


@pytest.mark.parametrize("name", [*WITHIN])
def test_the_same_labels_and_probabilities(told: dict[str, Any], student: Path, name: str) -> None:
    assert "error" not in told, told["error"]
    reader = onnx_student.OnnxReader(student / name, 1)
    for text, answer in zip(TEXTS, told["answers"][name], strict=True):
        read = reader.read([text])
        p = np.exp(read.log_p[0])
        mine = [answer["probabilities"][label] for label in LABELS]
        np.testing.assert_allclose(mine, p, rtol=0, atol=WITHIN[name], err_msg=text)
        assert answer["label"] == LABELS[int(p.argmax())]
        assert answer["tokens"] == read.tokens[0]
    assert len({answer["label"] for answer in told["answers"][name]}) > 1


def test_the_page_shows_what_the_runner_says(told: dict[str, Any]) -> None:
    for answer, shown in zip(told["answers"]["model.onnx"], told["shown"], strict=True):
        assert shown["label"] == shown["rows"][0][0] == answer["label"]
        assert shown["status"].startswith(f"{answer['tokens']} tokens")
        assert {label: float(share) for label, share in shown["rows"]} == pytest.approx(
            answer["probabilities"], abs=5.1e-5
        )


def test_it_asks_its_own_server_alone_and_logs_nothing(told: dict[str, Any]) -> None:
    assert told["outside"] == []
    assert "CONSOLE" not in told["console"], told["console"]
    assert told["wide"] <= 0, "nothing sticks out sideways"
    assert any(path.endswith(".wasm") for path in told["asked"])


def test_other_files_are_refused_in_a_line(told: dict[str, Any]) -> None:
    assert "onnx-mobile" in told["refused"]["bare.onnx"]
    assert "no ONNX file" in told["refused"]["half.onnx"]
    assert "no ONNX file" in told["refused"]["noise.onnx"]
