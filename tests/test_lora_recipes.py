"""The LoRA recipes on a real API over loopback; tiny models of their families are students."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from aiohttp import web
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, Phi3Config, Phi3ForCausalLM

from doubles import write_rows
from stillhouse.core.jsonl import read_json
from stillhouse.core.progress import Silent
from stillhouse.core.recipe_file import load_recipe
from stillhouse.pipeline import run_stages
from teacher_servers import KEY, openai_answer, serve
from tiny_models import byte_bpe, tiny_llama

RECIPES = Path(__file__).parents[1] / "recipes"
COUNT = 80


def tiny_phi(tokenizer: Any) -> Phi3ForCausalLM:
    torch.manual_seed(2)
    return Phi3ForCausalLM(
        Phi3Config(
            vocab_size=len(tokenizer),
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=256,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def answer(body: dict[str, Any], _: int) -> web.Response:
    content = body["messages"][-1]["content"]
    return openai_answer("a boring film" if "dull" in content else "a moving film")


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
@pytest.mark.parametrize(
    ("name", "build", "weights"),
    [("llama-3.2-3b-lora", tiny_llama, 8), ("phi-3-mini-lora", tiny_phi, 2)],
)
def test_the_recipe_trains_adapters_on_the_answers_of_an_api(
    name: str, build: Any, weights: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    base = tmp_path / "base"
    tokenizer = byte_bpe()
    build(tokenizer).save_pretrained(base)
    tokenizer.save_pretrained(base)
    write_rows(
        tmp_path / "traffic.jsonl",
        [{"text": f"a {'dull' if n % 2 else 'gripping'} film {n}"} for n in range(COUNT)],
    )
    with serve(answer) as server:
        recipe = load_recipe(
            RECIPES / f"{name}.yaml",
            [
                f"traffic.path={tmp_path / 'traffic.jsonl'}",
                "traffic.golden=null",
                f"teacher.base_url={server.url}/v1",
                "teacher.terms={waived_by: the tests, reason: a server on loopback}",
                f"student.from=hf:{base}",
                "student.max_tokens=160",
                "dataset.near_duplicate=1",
                "train.epochs=1",
                "train.evals=1",
            ],
        )
        run_stages(recipe, tmp_path / "run", Silent(), last="train")
    assert len(server.bodies) == COUNT
    assert all(body["temperature"] == 0.3 for body in server.bodies)
    train = tmp_path / "run" / "train"
    facts = read_json(train / "train.json")
    assert facts["lora"] == {
        "r": 16,
        "alpha": 32,
        "dropout": 0.0,
        "target_modules": list(recipe.train.lora.target_modules) if recipe.train.lora else [],
    }
    assert facts["alpha"] == 0
    config = json.loads((train / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base)
    plain = AutoModelForCausalLM.from_pretrained(train / "student").eval()
    wrapped = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base), str(train / "adapter")
    ).eval()
    lora = [n for n, _ in wrapped.named_parameters() if "lora_" in n]
    assert len(lora) == 2 * weights  # A and B
    ids = AutoTokenizer.from_pretrained(train / "student")("a dull film", return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(plain(**ids).logits, wrapped(**ids).logits, rtol=1e-4, atol=1e-5)
