"""INT8 in a browser and in Python: how far apart answers are, and where they part.

    make web
    python benchmarks/browser_int8.py runs/quickstart [--texts 150] [--looked-into 12]

Exports the run's student as `onnx-mobile` does and has Chromium (onnxruntime-web) and Python
(onnxruntime) answer the same texts, one at a time. Some are looked into: every integer input and
every integer sum is compared. As a scale, Python also answers with the normalisations' weights
changed by 3e-7 of themselves, about a rounding. Saves benchmarks/results/browser_int8.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
from machine_line import save

from stillhouse.compress.onnx_int8 import quantize_dynamic_onnx
from stillhouse.core.jsonl import read_json, read_records
from stillhouse.core.recipe import Recipe
from stillhouse.core.records import LabelledQuery
from stillhouse.models.onnx_student import OnnxReader

HERE = Path(__file__).parent
VENDOR = HERE.parent / "examples" / "mobile" / "vendor"
TYPES = {
    "DynamicQuantizeLinear": (np.uint8, np.float32, np.uint8),
    "MatMulInteger": (np.int32,),
    "LayerNormalization": (np.float32,),
}
CHANGE = 3e-7
WAIT_S = 1800
KINDS = {"html": "text/html", "mjs": "text/javascript", "wasm": "application/wasm"}


class Looked(NamedTuple):
    """A tensor that is compared."""

    name: str
    operator: str
    kind: type


def main() -> None:
    """Export, ask both, compare, save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--texts", type=int, default=150)
    parser.add_argument("--looked-into", type=int, default=12)
    asked = parser.parse_args()
    task: Any = Recipe.model_validate(read_json(asked.run / "recipe.json")).task
    golden = read_records(asked.run / "traffic" / "golden.jsonl", LabelledQuery)
    texts = [task.input_text(query) for query in golden][: asked.texts]
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        quantize_dynamic_onnx(asked.run / "train" / "student", work / "int8", task)
        plain = onnx.load(str(work / "int8" / "model.onnx"))
        reader = OnnxReader(work / "int8", 1)
        feeds = [reader.inputs([text]) for text in texts]
        looked = open_up(plain, work / "open.onnx")
        onnx.save(plain, str(work / "plain.onnx"))
        onnx.save(changed(plain), str(work / "changed.onnx"))
        graphs = {"plain.onnx": len(texts), "open.onnx": min(asked.looked_into, len(texts))}
        told = in_browser(work, graphs, feeds, {one.name: one.kind for one in looked})
        mine, other = session(work / "plain.onnx"), session(work / "changed.onnx")
        python = [p_of(mine.run(["logits"], feed)[0]) for feed in feeds]
        moved = [p_of(other.run(["logits"], feed)[0]) for feed in feeds]
        browser = [p_of(told["plain.onnx", i]["logits"]) for i in range(len(feeds))]
        found = {
            "texts": len(texts),
            "same labels": sum(
                a.argmax() == b.argmax() for a, b in zip(python, browser, strict=True)
            ),
            "browser": apart(python, browser),
            f"Python, normalisations changed by {CHANGE:g}": apart(python, moved),
            "looked into": within(plain, work / "open.onnx", looked, feeds, told),
        }
    save("browser_int8", "python benchmarks/browser_int8.py RUN", found)


def session(path: Path) -> Any:
    """On one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def p_of(logits: Any) -> Any:
    """Probabilities [C] of logits [1, C]."""
    e = np.exp(logits[0] - logits.max())
    return e / e.sum()


def apart(left: Sequence[Any], right: Sequence[Any]) -> dict[str, float]:
    """Largest and mean over texts of the largest difference of a probability."""
    found = [float(np.abs(a - b).max()) for a, b in zip(left, right, strict=True)]
    return {"largest": max(found), "mean": float(np.mean(found))}


def open_up(plain: Any, path: Path) -> list[Looked]:
    """Write the graph with what happens inside among its outputs; in the graph's order."""
    graph = onnx.ModelProto()
    graph.CopyFrom(plain)
    found = [
        Looked(name, node.op_type, kind)
        for node in graph.graph.node
        for name, kind in zip(node.output, TYPES.get(node.op_type, ()), strict=False)
    ]
    for one in found:
        kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(one.kind))
        graph.graph.output.append(onnx.helper.make_tensor_value_info(one.name, kind, None))
    onnx.save(graph, str(path))
    return [Looked("logits", "", np.float32), *found]


def changed(plain: Any) -> Any:
    """The graph with each normalisation's weight changed by CHANGE of itself, up or down."""
    graph = onnx.ModelProto()
    graph.CopyFrom(plain)
    draw = np.random.default_rng(0)
    scales = {n.input[1] for n in graph.graph.node if n.op_type == "LayerNormalization"}
    for one in graph.graph.initializer:
        if one.name in scales:
            value = onnx.numpy_helper.to_array(one)
            value = value * (1 + CHANGE * draw.choice([-1, 1], value.shape))
            one.CopyFrom(onnx.numpy_helper.from_array(value.astype(np.float32), one.name))
    return graph


def within(
    plain: Any,
    path: Path,
    looked: Sequence[Looked],
    feeds: Sequence[Mapping[str, Any]],
    told: Mapping[tuple[str, int], Mapping[str, Any]],
) -> dict[str, Any]:
    """Where the two part: integer sums of equal inputs, integer inputs, the first tensor."""
    opened, kinds = session(path), {one.name: one for one in looked}
    names = [one.name for one in opened.get_outputs()]
    sums = unequal = inputs = stepped = far = 0
    first: dict[str, int] = {}
    texts = [i for graph, i in told if graph == path.name]
    for i in texts:
        mine, theirs = dict(zip(names, opened.run(None, feeds[i]), strict=True)), told[path.name, i]
        for node in plain.graph.node:
            if node.op_type == "DynamicQuantizeLinear":
                steps = np.abs(mine[node.output[0]].astype(int) - theirs[node.output[0]])
                inputs, stepped = inputs + steps.size, stepped + int((steps > 0).sum())
                far += int((steps > 1).sum())
            elif node.op_type == "MatMulInteger" and np.array_equal(
                mine[node.input[2]], theirs[node.input[2]]
            ):
                x, y = mine[node.input[0]], theirs[node.input[0]]
                same = (x == y).all(-1)
                a, b = mine[node.output[0]][same], theirs[node.output[0]][same]
                sums, unequal = sums + a.size, unequal + int((a != b).sum())
        parts = next(n for n in names[1:] if not np.array_equal(mine[n], theirs[n]))
        first[kinds[parts].operator] = first.get(kinds[parts].operator, 0) + 1
    return {
        "texts": len(texts),
        "integer sums of equal inputs": sums,
        "integer sums that are unequal": unequal,
        "UINT8 inputs": inputs,
        "UINT8 inputs that are unequal": stepped,
        "UINT8 inputs unequal by more than a step": far,
        "first tensor that differs": first,
    }


def in_browser(
    work: Path,
    graphs: Mapping[str, int],
    feeds: Sequence[Mapping[str, Any]],
    kinds: Mapping[str, type],
) -> dict[tuple[str, int], dict[str, Any]]:
    """All outputs of each graph on its first texts, as Chromium gives them."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None or not (VENDOR / "ort.wasm.min.mjs").is_file():
        raise SystemExit("needs chromium (apt-get install chromium) and: make web")
    given = {
        "graphs": [{"name": name, "texts": count} for name, count in graphs.items()],
        "feeds": [{name: ids[0].tolist() for name, ids in feed.items()} for feed in feeds],
    }
    told: dict[tuple[str, int], dict[str, Any]] = {}
    ended, faults = threading.Event(), list[str]()

    class Handler(BaseHTTPRequestHandler):
        """The page, the runtime and the graphs; takes what the page tells."""

        def do_GET(self) -> None:
            name = self.path.rpartition("/")[2]
            places = (work / name, VENDOR / name, HERE / name)
            body = next((p.read_bytes() for p in places if name and p.is_file()), b"")
            if name == "given":
                body = json.dumps(given).encode()
            self.send_response(200)
            kind = KINDS.get(name.rpartition(".")[2], "application/octet-stream")
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(204)
            self.end_headers()
            if self.path == "/done":
                faults.append(body.decode())
                ended.set()
                return
            line, _, rest = body.partition(b"\n")
            said, at, found = json.loads(line), 0, {}
            for one in said["said"]:
                kind = np.dtype(kinds[one["output"]])
                count = int(np.prod(one["dims"], dtype=int))
                found[one["output"]] = np.frombuffer(rest, kind, count, at).reshape(one["dims"])
                at += count * kind.itemsize
            told[said["name"], said["i"]] = found

        def log_message(self, *args: Any) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=partial(server.serve_forever, 0.1), daemon=True)
    thread.start()
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    options += ["--disable-dev-shm-usage", "--remote-debugging-port=0"]
    options += [f"--user-data-dir={work / 'profile'}"]
    page = f"http://127.0.0.1:{server.server_port}/browser_int8.html"
    nowhere = subprocess.DEVNULL
    running = subprocess.Popen([browser, *options, page], stdout=nowhere, stderr=nowhere)
    try:
        if not ended.wait(WAIT_S) or faults[0]:
            raise SystemExit(f"the browser did not end: {faults}")
    finally:
        running.terminate()
        running.wait(30)
        server.shutdown()
        server.server_close()
    return told


if __name__ == "__main__":
    main()
