"""Several teachers, teachers of other tokens, and teachers on other machines, read along."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers import models as token_models
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from stillhouse.core.errors import RecipeError, StillhouseError, UserError
from stillhouse.core.progress import Silent
from stillhouse.core.recipe import Recipe
from stillhouse.core.recipe_readers import ReaderSection, ReadersSection
from stillhouse.core.records import Example, Message
from stillhouse.models.signals import DenseSignal, SparseSignal, sparsify
from stillhouse.models.universal_logits import aligned, byte_starts, sorted_l1
from stillhouse.train.batches import DOMAIN, Collator, Rows, encode_chats
from stillhouse.train.ensemble import EnsembleSource, Member
from stillhouse.train.objectives import TermsObjective, Weighted
from stillhouse.train.other_tokenizer import UniversalLogits, with_other_tokens
from stillhouse.train.outputs import ALIGNED, CausalReader, Counts, Needs, count
from stillhouse.train.planning import check_recipe
from stillhouse.train.remote_teacher import PromptLogprobs
from stillhouse.train.stage import run_train
from stillhouse.train.teachers import LiveTeacher
from teacher_servers import serve
from tiny_models import (
    TEMPLATE,
    TEXTS,
    byte_bpe,
    loud_llama,
    review_examples,
    text_recipe,
    write_jsonl,
)

TOKENIZER = byte_bpe()
PAD = int(TOKENIZER.pad_token_id)
LOGITS = Needs(logits=True)


def _other_tokenizer(size: int = 300) -> PreTrainedTokenizerFast:
    """Other merges, other special tokens, another size."""
    backend = Tokenizer(token_models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=size,
        special_tokens=["<s>", "<e>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["the the then posit negat ive", *TEXTS[:2]], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<s>",
        bos_token="<s>",
        eos_token="<e>",
        chat_template=TEMPLATE,
    )


def _loud(layers: int, tokenizer: Any = TOKENIZER) -> Any:
    return loud_llama(tokenizer, layers, 0.5).eval()


def _batch(count: int = 6, domains: tuple[int, ...] = ()) -> dict[str, torch.Tensor]:
    items = list(encode_chats(review_examples(count), TOKENIZER, 200).rows.items)
    if domains:
        items = [{**item, DOMAIN: domain} for item, domain in zip(items, domains, strict=True)]
    return Collator(PAD)(items)


def _live(layers: int) -> LiveTeacher:
    return LiveTeacher(_loud(layers), CausalReader())


def test_an_ensemble_is_the_mean_of_what_its_members_say() -> None:
    batch = _batch()
    one, two = (_live(n).view(batch, LOGITS).signal for n in (1, 2))
    assert isinstance(one, DenseSignal)
    assert isinstance(two, DenseSignal)
    width = one.logits.shape[-1]
    source = EnsembleSource([Member(_live(1), 3.0), Member(_live(2), 1.0)], "mean_logits", width)
    got = source.view(batch, LOGITS).signal
    assert isinstance(got, DenseSignal)
    wanted = (0.75 * one.logits + 0.25 * two.logits).log_softmax(-1)
    torch.testing.assert_close(got.logits.log_softmax(-1), wanted, rtol=1e-4, atol=1e-5)
    mixed = EnsembleSource(source.members, "mean_probabilities", width).view(batch, LOGITS).signal
    assert isinstance(mixed, DenseSignal)
    wanted = 0.75 * one.logits.softmax(-1) + 0.25 * two.logits.softmax(-1)
    torch.testing.assert_close(mixed.logits.softmax(-1), wanted, rtol=1e-4, atol=1e-6)


def test_each_teacher_reads_its_own_domains() -> None:
    batch = _batch(6, (0, 1, 0, 2, 1, 0))
    everybody, zero, one = _live(1), _live(2), _live(3)
    width = len(TOKENIZER) + 40  # a padded student: the ids that all have are what counts
    asked: list[int] = []

    class Counting:
        """Counts the rows that a teacher reads."""

        def view(self, part: Any, needs: Needs) -> Any:
            asked.append(len(part["labels"]))
            return zero.view(part, needs)

    members = [
        Member(Counting(), 1.0, frozenset({0})),
        Member(one, 1.0, frozenset({1, 2})),
        Member(everybody, 1.0),
    ]
    got = EnsembleSource(members, "mean_probabilities", width).view(batch, LOGITS).signal
    assert isinstance(got, DenseSignal)
    assert asked == [3]
    start = 0
    for row, domain in enumerate((0, 1, 0, 2, 1, 0)):
        alone = {name: value[row : row + 1] for name, value in batch.items()}
        parts = [(zero if domain == 0 else one).view(alone, LOGITS).signal]
        parts.append(everybody.view(alone, LOGITS).signal)
        logits = [p.logits for p in parts if isinstance(p, DenseSignal)]
        wanted = (logits[0].softmax(-1) + logits[1].softmax(-1)) / 2
        part = got.logits[start : start + len(wanted)].softmax(-1)
        torch.testing.assert_close(part, wanted, rtol=1e-4, atol=1e-6)
        start += len(wanted)
    with pytest.raises(ValueError, match="has no teacher"):
        EnsembleSource(members[:1], "mean_logits", width).view(batch, LOGITS)


def test_a_teacher_whose_only_rows_are_fillers_is_not_asked() -> None:
    """What the last short batch holds on one of several ranks."""
    one = LiveTeacher(_loud(4).eval(), CausalReader())
    width = int(one.model.config.vocab_size)
    members = [Member(one, 1.0, frozenset({0})), Member(one, 1.0, frozenset({1}))]
    batch = _batch(2, (0, 1))
    batch["labels"][1] = -100
    got = EnsembleSource(members, "mean_probabilities", width).view(batch, LOGITS).signal
    alone = {name: value[:1] for name, value in batch.items()}
    wanted = one.view(alone, LOGITS).signal
    assert isinstance(got, DenseSignal)
    assert isinstance(wanted, DenseSignal)
    torch.testing.assert_close(got.logits.softmax(-1), wanted.logits.softmax(-1))
    batch["labels"][:] = -100
    got = EnsembleSource(members, "mean_probabilities", width).view(batch, LOGITS).signal
    assert got is not None
    assert got.positions == (0,)


# Universal logit distillation


def test_sorted_l1_is_the_definition() -> None:
    draw = torch.manual_seed(0)
    teacher = torch.randn(4, 9, generator=draw, dtype=torch.float64)
    student = torch.randn(4, 6, generator=draw, dtype=torch.float64)
    total = 0.0
    for z, y in zip(teacher.tolist(), student.tolist(), strict=True):
        p = sorted((math.exp(x / 2) for x in z), reverse=True)
        q = sorted((math.exp(x / 2) for x in y), reverse=True)
        q += [0.0] * 3
        total += sum(abs(a / sum(p) - b / sum(q)) for a, b in zip(p, q, strict=True))
    got = sorted_l1(teacher, student, 2.0)
    assert float(got.total) == pytest.approx(total)
    assert int(got.items) == 4
    other_names = student[:, torch.randperm(6, generator=draw)]
    assert float(sorted_l1(other_names, student).total) == pytest.approx(0.0, abs=1e-12)
    wanted = student.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: sorted_l1(teacher, x).total, (wanted,))
    empty = sorted_l1(teacher[:0], student[:0])
    assert float(empty.total) == 0.0


@settings(max_examples=150, deadline=None)
@given(text=st.text(st.sampled_from("the pos film né 漢🎉\n"), max_size=30))
def test_paired_positions_have_the_same_text_before_them(text: str) -> None:
    other = _OTHER
    chat = Example(
        id="x",
        messages=(Message(role="user", content="q"), Message(role="assistant", content=text)),
        task="t",
        group="g",
        teacher="t",
        teacher_revision="1",
    )
    rows = encode_chats([chat], TOKENIZER, 500).rows
    (item,) = with_other_tokens(rows, [chat], TOKENIZER, other, 500).items
    ours = [token for token in item["labels"] if token != -100]
    theirs = [token for token in item["other_labels"] if token != -100]
    assert item["pairs"][0] == (0, 0)
    assert item["pairs"][-1] == (len(ours) - 1, len(theirs) - 1)
    for student, teacher in item["pairs"]:
        assert TOKENIZER.decode(ours[:student]) == other.decode(theirs[:teacher])


_OTHER = _other_tokenizer()


def test_tokens_that_share_a_character_begin_at_its_first() -> None:
    assert byte_starts("né!", [(0, 1), (1, 2), (1, 2), (2, 3)]) == [0, 1, 1, 3, 4]
    assert aligned([0, 1, 1, 3, 4], [0, 3, 4]) == [(0, 0), (3, 1), (4, 2)]
    assert byte_starts("a b", [(0, 1), (2, 3)]) == [0, 1, 3]


def _universal_rows(n: int) -> Rows:
    chats = review_examples(n)
    rows = encode_chats(chats, TOKENIZER, 200).rows
    return with_other_tokens(rows, chats, TOKENIZER, _OTHER, 200)


def test_universal_loss_is_the_same_in_any_split() -> None:
    student, teacher = _loud(2), _loud(1, _OTHER)
    rows, collate = _universal_rows(6), Collator(PAD)
    objective = TermsObjective(
        CausalReader(),
        [Weighted(UniversalLogits(teacher, 1.5), 0.7), Weighted(UniversalLogits(teacher), 0.1)],
    )
    whole = collate(rows.items)
    counts = Counts(*count(whole).unbind())
    assert int(counts.aligned) == len(whole[ALIGNED]) >= 12
    loss = objective.loss(student, whole, counts).item()
    parts = [collate(rows.items[i : i + 2]) for i in (0, 2, 4)]
    assert loss == pytest.approx(
        sum(objective.loss(student, part, counts).item() for part in parts), rel=1e-5
    )
    naive = 0.0
    for item in rows.items:
        ours, theirs = (torch.tensor([item[k]]) for k in ("input_ids", "other_input_ids"))
        with torch.no_grad():
            q, p = student(ours).logits[0], teacher(theirs).logits[0]
        first = item["labels"].count(-100) - 1
        other = item["other_labels"].count(-100) - 1
        for student_at, teacher_at in item["pairs"]:
            at_p, at_q = p[other + teacher_at][None], q[first + student_at][None]
            naive += 0.7 * float(sorted_l1(at_p, at_q, 1.5).total)
            naive += 0.1 * float(sorted_l1(at_p, at_q).total)
    assert loss == pytest.approx(naive / int(counts.aligned), rel=1e-4)


def test_a_student_learns_the_shape_of_beliefs_in_other_tokens() -> None:
    student, teacher = _loud(2), _loud(1, _OTHER)
    batch = Collator(PAD)(_universal_rows(6).items)
    counts = Counts(*count(batch).unbind())
    objective = TermsObjective(CausalReader(), [Weighted(UniversalLogits(teacher))])
    optimizer = torch.optim.AdamW(student.parameters(), lr=5e-3)
    losses = []
    for _ in range(40):
        loss = objective.loss(student, batch, counts)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


# A server


class _Vllm:
    """Answers completions as vLLM does, from a tiny model."""

    def __init__(self, model: Any, tokenizer: Any, least: int | None = None) -> None:
        self.model, self.tokenizer, self.least = model, tokenizer, least
        self.down = False
        self.bodies: list[dict[str, Any]] = []

    async def handle(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.bodies.append(body)
        if self.down:
            return web.json_response({"error": {"message": "prompt_logprobs too many"}}, status=400)
        choices = []
        for index, ids in enumerate(body["prompt"]):
            with torch.no_grad():
                log_p = self.model(torch.tensor([ids])).logits[0].log_softmax(-1)
            entries: list[dict[str, Any] | None] = [None]
            for at, token in enumerate(ids[1:]):
                k = self.least or body["prompt_logprobs"]
                top = set(log_p[at].topk(k).indices.tolist()) | {token}
                entries.append(
                    {
                        str(t): {
                            "logprob": float(log_p[at, t]),
                            "rank": int((log_p[at] > log_p[at, t]).sum()) + 1,
                            "decoded_token": self.tokenizer.decode([t]),
                        }
                        for t in top
                    }
                )
            choices.append(
                {"index": index, "text": "", "finish_reason": "length", "prompt_logprobs": entries}
            )
        return web.json_response(
            {
                "id": "1",
                "object": "text_completion",
                "created": 1,
                "model": body["model"],
                "choices": choices[::-1],  # order is the index's, not the list's
            }
        )


def _serving(server: _Vllm) -> Any:
    return serve(lambda *_: web.Response(), routes=[web.post("/v1/completions", server.handle)])


def test_a_server_says_what_the_model_would_say_here() -> None:
    model, batch = _loud(2), _batch()
    server = _Vllm(model, TOKENIZER)
    with _serving(server) as loopback:
        client = openai.OpenAI(base_url=f"{loopback.url}/v1", api_key="none", max_retries=0)
        got = PromptLogprobs(client, "m", 5, len(TOKENIZER), TOKENIZER).view(batch, LOGITS).signal
    here = LiveTeacher(model, CausalReader()).view(batch, LOGITS).signal
    assert isinstance(got, SparseSignal)
    assert isinstance(here, DenseSignal)
    wanted = sparsify(here, 5)
    torch.testing.assert_close(got.log_probs, wanted.log_probs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got.tail_log_mass, wanted.tail_log_mass, rtol=1e-3, atol=1e-4)
    assert got.token_ids.tolist() == wanted.token_ids.tolist()
    assert len(server.bodies) == 1
    assert server.bodies[0]["max_tokens"] == 1


def test_what_a_server_lacks_is_said_in_one_line() -> None:
    model, batch = _loud(2), _batch(2)

    def ask(server: _Vllm, k: int = 3) -> None:
        with _serving(server) as loopback:
            client = openai.OpenAI(base_url=f"{loopback.url}/v1", api_key="none", max_retries=0)
            PromptLogprobs(client, "m", k, len(TOKENIZER), TOKENIZER).view(batch, LOGITS)

    with pytest.raises(UserError, match="another tokenizer: token"):
        ask(_Vllm(model, _OTHER))
    with pytest.raises(UserError, match=r"returns \d entries a token"):
        ask(_Vllm(model, TOKENIZER, least=2), 50)
    down = _Vllm(model, TOKENIZER)
    down.down = True
    with pytest.raises(UserError, match=r"refused to read.*400"):
        ask(down)
    client = openai.OpenAI(base_url="http://127.0.0.1:9/v1", api_key="none", max_retries=0)
    with pytest.raises(StillhouseError, match="does not answer"):
        PromptLogprobs(client, "m", 3, len(TOKENIZER), TOKENIZER).view(batch, LOGITS)


# Recipes


def _recipe(folder: Path, teachers: dict[str, Any] | None, **train: Any) -> Recipe:
    return text_recipe(folder, teachers=teachers, **train)


def _folders(tmp_path: Path) -> tuple[Path, Path]:
    one, other = tmp_path / "one", tmp_path / "other"
    _loud(4).save_pretrained(one)
    TOKENIZER.save_pretrained(one)
    _loud(3, _OTHER).save_pretrained(other)
    _OTHER.save_pretrained(other)
    examples = review_examples(16)
    examples = [e.model_copy(update={"task": f"task{i % 2}"}) for i, e in enumerate(examples)]
    write_jsonl(tmp_path / "data/train.jsonl", [*examples[:12]])
    write_jsonl(tmp_path / "data/held_out.jsonl", [*examples[12:]])
    return one, other


def _curve(recipe: Recipe, tmp_path: Path, name: str) -> list[dict[str, Any]]:
    (tmp_path / name).mkdir()
    run_train(recipe, tmp_path / "data", None, tmp_path / name, Silent())
    history: list[dict[str, Any]] = json.loads((tmp_path / name / "history.json").read_text())
    return history


def test_recipes_train_with_every_kind_of_reader(tmp_path: Path) -> None:
    one, other = _folders(tmp_path)
    server = _Vllm(_loud(4), TOKENIZER)
    with _serving(server) as loopback:
        remote = {
            "model": "openai-compatible:m",
            "base_url": f"{loopback.url}/v1",
            "prompt_logprobs": 20,
        }
        routed = {
            "combine": "mean_logits",
            "members": [
                {"model": f"hf:{one}", "domains": ["task0"]},
                {"model": "teacher", "domains": ["task1"]},
            ],
        }
        kinds: dict[str, Any] = {
            "plain": None,
            "alone": {"members": [{}]},
            "routed": routed,  # both are the same model: the same course
            "mixed": {"members": [{"model": "teacher"}, remote]},
            "universal": {"tokenizers": "universal", "members": [{"model": f"hf:{other}"}]},
        }
        curves = {k: _curve(_recipe(one, v), tmp_path, k) for k, v in kinds.items()}
    assert server.bodies
    assert curves["alone"] == curves["plain"]
    last = {name: rows[-1]["held_out_divergence"] for name, rows in curves.items()}
    assert last["routed"] == pytest.approx(last["plain"], rel=1e-3)
    # over the kept entries and the rest, a divergence is at most that over all entries
    assert 0 < last["mixed"] < 1.2 * last["plain"]
    looks = [row["held_out_divergence"] for row in curves["universal"]]
    assert looks[-1] is not None
    assert math.isfinite(looks[-1])


def test_impossible_readers_are_refused_before_anything_is_paid(tmp_path: Path) -> None:
    one = {"members": [{}]}
    with pytest.raises(RecipeError, match=r"train\.teachers.*alpha: 0"):
        check_recipe(_recipe(tmp_path, one, alpha=0))
    api = _recipe(tmp_path, one).model_dump(mode="json", by_alias=True)
    api["teacher"] = {"model": "openai:gpt-4.1"}
    with pytest.raises(RecipeError, match="weights are not here"):
        check_recipe(Recipe.model_validate(api))
    api["train"]["teachers"] = {"members": [{"model": "hf:x"}]}
    check_recipe(Recipe.model_validate(api))
    universal = {"members": [{}], "tokenizers": "universal"}
    with pytest.raises(RecipeError, match=r"train\.on_policy.*another tokenizer"):
        check_recipe(_recipe(tmp_path, universal, on_policy={}))
    server = {"model": "openai-compatible:m", "base_url": "http://h:1/v1"}
    policy = {"teacher_fraction": 0.5}
    with pytest.raises(RecipeError, match="a server only reads along"):
        check_recipe(_recipe(tmp_path, {"members": [server]}, on_policy=policy))
    with pytest.raises(ValidationError, match="needs base_url"):
        ReaderSection(model="openai-compatible:m")
    with pytest.raises(ValidationError, match="must be teacher"):
        ReaderSection(model="gpt")
    with pytest.raises(ValidationError, match="takes one local teacher"):
        ReadersSection(members=(ReaderSection(), ReaderSection()), tokenizers="universal")


def test_an_example_that_no_teacher_reads_ends_the_run_before_its_first_step(
    tmp_path: Path,
) -> None:
    one, _ = _folders(tmp_path)
    recipe = _recipe(one, {"members": [{"domains": ["task0"]}]})
    with pytest.raises(UserError, match=r"no teacher reads examples of task 'task1'"):
        run_train(recipe, tmp_path / "data", None, tmp_path, Silent())


# What all texts begin with


def _chats(count: int, system: str) -> list[Example]:
    return [
        example.model_copy(
            update={"messages": (Message(role="system", content=system), *example.messages)}
        )
        for example in review_examples(count)
    ]


def test_a_shared_beginning_is_read_once_and_changes_nothing() -> None:
    model = _loud(3).double()
    read: list[int] = []
    model.model.register_forward_pre_hook(
        lambda _, args, kwargs: read.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    teacher = LiveTeacher(model, CausalReader())
    rows = encode_chats(_chats(9, "say whether the film is good or bad"), TOKENIZER, 200).rows
    for items in (rows.items[:4], rows.items[4:9]):
        batch = Collator(PAD)(items)
        plain = CausalReader().read(model, batch, Needs(last_hidden=True))
        read.clear()
        got = teacher.view(batch, Needs(last_hidden=True)).outputs
        assert got is not None
        assert got.last_hidden is not None
        assert plain.last_hidden is not None
        torch.testing.assert_close(got.last_hidden, plain.last_hidden, rtol=1e-9, atol=1e-9)
        assert sum(read) < 0.75 * batch["input_ids"].numel()
    assert len(read) == 1, "the second batch finds the beginning in the cache"
    other = encode_chats(_chats(3, "another task altogether, with other words"), TOKENIZER, 200)
    for items in ([*other.rows.items, rows.items[0]], other.rows.items, rows.items[:1]):
        batch = Collator(PAD)(items)
        plain = CausalReader().read(model, batch, Needs(logits=True))
        signal = teacher.view(batch, LOGITS).signal
        assert isinstance(signal, DenseSignal)
        assert plain.logits is not None
        torch.testing.assert_close(signal.logits, plain.logits, rtol=1e-9, atol=1e-9)


def test_no_target_is_in_a_shared_beginning() -> None:
    """The same prompt twice: the rows differ from the first token of the answer on."""
    model = _loud(3).double()
    one, two = _chats(2, "say whether the film is good or bad")
    same = two.model_copy(update={"messages": (*one.messages[:-1], two.messages[-1])})
    batch = Collator(PAD)(encode_chats([one, same], TOKENIZER, 200).rows.items)
    got = LiveTeacher(model, CausalReader()).view(batch, LOGITS).signal
    plain = CausalReader().read(model, batch, LOGITS).logits
    assert isinstance(got, DenseSignal)
    assert plain is not None
    torch.testing.assert_close(got.logits, plain, rtol=1e-9, atol=1e-9)
