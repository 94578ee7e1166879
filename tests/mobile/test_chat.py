"""The plain runner of a GGUF file says what the compressed student says, without this package."""

from __future__ import annotations

import asyncio
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from stillhouse.compress.gguf_export import FILE, export_gguf
from stillhouse.core.records import Message, Query
from stillhouse.core.tasks import GenerationTask
from stillhouse.models.artefact_student import open_artefact
from stillhouse.models.completer import Sampling
from tiny_models import byte_bpe

pytest.importorskip("xllamacpp", reason="the gguf extra is not installed")
RUNNER = Path(__file__).parents[2] / "examples" / "mobile" / "chat.py"
TASK = GenerationTask(kind="generation", prompt="{text}\nReply:")
TEXTS = ("the cast is wonderful", "a tired script, \u00e9t\u00e9")
TOKENS = 12
ALONE = (
    "import runpy, sys\n"
    "class Absent:\n"
    "    def find_spec(self, name, path=None, target=None):\n"
    "        if name.partition('.')[0] in ('torch', 'transformers', 'stillhouse', 'gguf'):\n"
    "            raise ModuleNotFoundError(name, name=name)\n"
    "sys.meta_path.insert(0, Absent())\n"
    "sys.argv = ['chat.py', *sys.argv[1:]]\n"
    f"runpy.run_path({str(RUNNER)!r}, run_name='__main__')\n"
)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat")
    tokenizer = byte_bpe()
    torch.manual_seed(5)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, head_dim=8, intermediate_size=64,
            max_position_embeddings=256, bos_token_id=1, eos_token_id=2, pad_token_id=0,
        )
    )  # fmt: skip
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.normal_(std=0.4)
    for part in (model, tokenizer):
        part.save_pretrained(folder / "float")
    export_gguf(folder / "float", folder / "gguf", "f32", task=TASK)
    return folder / "gguf" / FILE


def run(file: Path, *arguments: str, **given: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", ALONE, str(file), "--max-tokens", str(TOKENS), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        **given,  # type: ignore[call-overload]
    )


@pytest.fixture(scope="module")
def expected(file: Path) -> list[str]:
    async def ask() -> list[str]:
        student = open_artefact(file.parent, TASK, "text", 1)
        queries = [Query(id=text, messages=TASK.messages_for(text)) for text in TEXTS]
        found = [(await student.complete(q, Sampling(max_tokens=TOKENS)))[0].text for q in queries]
        await student.aclose()
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        return asyncio.run(ask())


def test_each_text_is_answered_as_the_student_answers(file: Path, expected: list[str]) -> None:
    assert all(expected)
    assert len(set(expected)) == len(TEXTS)
    done = run(file, "--prompt", "{text}\\nReply:", input="\n".join(TEXTS) + "\n")
    for said in expected:
        assert said in done.stdout, done.stderr
    asked = run(file, "--prompt", "{text}\\nReply:", TEXTS[1], stdin=subprocess.DEVNULL)
    assert asked.stdout.strip() == expected[1], asked.stderr


def test_a_chat_remembers_and_ends_at_an_empty_line(file: Path) -> None:
    async def second(first: str) -> str:
        student = open_artefact(file.parent, TASK, "text", 1)
        turns = (
            Message(role="user", content=TEXTS[0]),
            Message(role="assistant", content=first),
            Message(role="user", content=TEXTS[1]),
        )
        found = await student.complete(Query(id="b", messages=turns), Sampling(max_tokens=TOKENS))
        await student.aclose()
        return found[0].text

    main, terminal = pty.openpty()
    os.write(main, f"{TEXTS[0]}\n{TEXTS[1]}\n\n".encode())
    done = run(file, stdin=terminal)
    os.close(main)
    os.close(terminal)
    assert done.returncode == 0, done.stderr
    said = [part.strip() for part in done.stdout.split("> ")][1:]
    assert len(said) == 3
    assert said[1] == asyncio.run(second(said[0]))


def test_other_files_are_refused_in_a_line(file: Path, tmp_path: Path) -> None:
    (tmp_path / "half.gguf").write_bytes(file.read_bytes()[:5000])
    for path, said in ((tmp_path / "half.gguf", "cannot load"), (tmp_path / "no.gguf", "no such")):
        done = run(path, "a", stdin=subprocess.DEVNULL)
        assert done.returncode == 1
        assert said in done.stderr
        assert "Traceback" not in done.stderr
