"""The library: each kind of model, resume after a kill, what is saved, and what is refused."""

from __future__ import annotations

import signal
import subprocess
import sys
import warnings
from typing import Any

import killed_distiller
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    AutoModelForMaskedLM,
    BertForMaskedLM,
    BertForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

import stillhouse
from stillhouse import Distiller
from stillhouse.core.errors import RunFolderError, UserError
from stillhouse.models.divergence_kind import Divergence
from stillhouse.train.ensemble import EnsembleSource, Member
from stillhouse.train.features_layers import LayerPair
from stillhouse.train.features_terms import Contrastive, Hidden
from stillhouse.train.kinds import kind_of
from stillhouse.train.module_weights import load_module, save_module
from stillhouse.train.objectives import Weighted
from stillhouse.train.outputs import LabelReader, Needs
from stillhouse.train.readers import ModuleReader, Seq2SeqReader
from stillhouse.train.teacher_forms import Mapped, Mixture, as_source
from stillhouse.train.teachers import LiveTeacher
from stillhouse.train.terms import Response
from tiny_models import TEXTS, byte_bpe, review_examples, tiny_bert, tiny_llama, wordpiece


def adapted(model: Any) -> Any:
    with warnings.catch_warnings():
        # peft still asks transformers 5 by the old name of activation checkpointing
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        return get_peft_model(model, LoraConfig(target_modules=["q_proj"]))


def net(width: int = 4, seed: int = 0, classes: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, classes))


def points(count: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    """Points about three centres, and whose they are."""
    torch.manual_seed(1)
    labels = torch.arange(count) % 3
    return 2 * torch.eye(3, 6)[labels] + torch.randn(count, 6), labels


def classifier(labels: tuple[str, ...] = ("bad", "good"), seed: int = 0) -> Any:
    config = tiny_bert(wordpiece(), layers=1).config
    config.num_labels = len(labels)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: n for n, label in enumerate(labels)}
    torch.manual_seed(seed)
    return BertForSequenceClassification(config)


def masked(seed: int = 0) -> Any:
    config = tiny_bert(wordpiece(), layers=1).config
    torch.manual_seed(seed)
    return BertForMaskedLM(config)


def t5(seed: int = 0, vocabulary: int = 16) -> Any:
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=vocabulary, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2,
        decoder_start_token_id=0,
    )  # fmt: skip
    return T5ForConditionalGeneration(config)


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_kinds_are_told_by_class() -> None:
    llama = tiny_llama(byte_bpe(), layers=1)
    assert [kind_of(m) for m in (classifier(), masked(), llama, t5(), net())] == [
        "classifier", "masked_lm", "causal_lm", "seq2seq", "module",
    ]  # fmt: skip
    assert kind_of(adapted(llama)) == "causal_lm"

    class Own(BertForMaskedLM):
        pass

    assert kind_of(Own(masked().config)) == "masked_lm"


def test_a_taught_module_comes_nearer_to_its_teacher(tmp_path) -> None:
    teacher = net(32, 9)
    Distiller(teacher, alpha=0, epochs=20, learning_rate=1e-2).fit(points())
    teacher.train()
    student = net()
    distiller = Distiller(student, teacher, alpha=0.9, epochs=20, learning_rate=1e-2)
    done = distiller.fit(points(), held_out=points(30))
    looks = [r.held_out_divergence for r in done.curve if r.held_out_divergence is not None]
    assert looks[-1] < 0.8 * looks[0]
    assert not student.training
    assert teacher.training, "left as it was"
    distiller.save(tmp_path)
    again = net(seed=5)
    load_module(again, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]
    x = points()[0]
    torch.testing.assert_close(again(x), student(x), rtol=0, atol=0)


@pytest.mark.full
def test_a_killed_run_of_a_module_ends_with_the_same_bytes(tmp_path) -> None:
    killed_distiller.run(tmp_path / "a", tmp_path / "whole")
    command = [sys.executable, killed_distiller.__file__, tmp_path / "b", tmp_path / "killed", "17"]
    died = subprocess.run(command, capture_output=True, text=True, check=False)
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert list((tmp_path / "b" / "checkpoints").iterdir())
    killed_distiller.run(tmp_path / "b", tmp_path / "killed")
    whole = (tmp_path / "whole" / "model.safetensors").read_bytes()
    assert (tmp_path / "killed" / "model.safetensors").read_bytes() == whole
    for path in (tmp_path / "b").rglob("*"):
        assert path.suffix in ("", ".json", ".safetensors"), path


def test_masks_of_a_resumed_run_are_those_of_a_whole_one(tmp_path) -> None:
    """Stopped in the middle of an epoch: the rest of it has the masks it would have had."""
    found = []
    for stops in ((40,), (13, 40)):
        for stop in stops:
            model = masked()
            distiller = Distiller(
                model, masked(3), tokenizer=wordpiece(), epochs=4, batch_size=8, evals=8,
                folder=tmp_path / str(len(stops)),
            )  # fmt: skip
            if stop == 13:
                distiller.progress = _StopsAt(13)
                with pytest.raises(KeyboardInterrupt):
                    distiller.fit(TEXTS * 10)
            else:
                distiller.fit(TEXTS * 10)
        found.append(weights(model))
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=0, atol=0, msg=name)


class _StopsAt:
    """A progress bar that interrupts the run."""

    def __init__(self, step: int) -> None:
        self._left = step

    def bar(self, *_: Any) -> _StopsAt:
        return self

    def __enter__(self) -> _StopsAt:
        return self

    def __exit__(self, *_: Any) -> None:
        return None

    def note(self, text: str) -> None:
        pass

    def say(self, text: str) -> None:
        pass

    def advance(self, count: float = 1) -> None:
        self._left -= 1
        if not self._left:
            raise KeyboardInterrupt


def test_a_folder_is_one_run(tmp_path) -> None:
    Distiller(net(), net(8), folder=tmp_path, epochs=1).fit(points())
    with pytest.raises(RunFolderError, match=r"other alpha, seed; give another folder"):
        Distiller(net(), net(8), folder=tmp_path, epochs=1, alpha=0.1, seed=4).fit(points())
    finished = net(seed=7)
    Distiller(finished, net(8), folder=tmp_path, epochs=1).fit(points())
    first = net()
    Distiller(first, net(8), epochs=1).fit(points())
    torch.testing.assert_close(weights(finished), weights(first), rtol=0, atol=0)


def test_a_masked_model_is_saved_as_a_folder(tmp_path) -> None:
    tokenizer, student = wordpiece(), masked()
    distiller = Distiller(student, masked(4), tokenizer=tokenizer, epochs=1)
    done = distiller.fit(TEXTS * 4, held_out=TEXTS)
    assert done.curve[-1].held_out_divergence is not None
    distiller.save(tmp_path)
    again = AutoModelForMaskedLM.from_pretrained(tmp_path)
    torch.testing.assert_close(weights(again), weights(student), rtol=0, atol=0)
    assert (tmp_path / "tokenizer.json").exists()


def test_a_classifier_reads_texts_names_and_tokenised_rows() -> None:
    tokenizer = wordpiece()
    texts = [(text, "good" if n % 2 else "bad") for n, text in enumerate(TEXTS)] * 4
    ids = tokenizer([text for text, _ in texts], padding=True)
    rows = [
        {"input_ids": a, "attention_mask": b, "labels": int(label == "good")}
        for a, b, (_, label) in zip(ids["input_ids"], ids["attention_mask"], texts, strict=True)
    ]
    found = []
    for data in (texts, rows):
        student = classifier()
        Distiller(student, classifier(seed=5), tokenizer=tokenizer, epochs=1).fit(data)
        found.append(weights(student))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


def test_a_language_model_reads_texts_chats_and_rows_under_adapters(tmp_path) -> None:
    tokenizer = byte_bpe()
    teacher = tiny_llama(tokenizer, layers=2)
    for data in (TEXTS, review_examples(6), [{"input_ids": [5, 6, 7, 8]}] * 4):
        done = Distiller(
            tiny_llama(tokenizer, layers=1), teacher, tokenizer=tokenizer, epochs=1, batch_size=4
        ).fit(data, held_out=data)
        assert done.curve[-1].held_out_agreement is not None
    student = adapted(tiny_llama(tokenizer, layers=1))
    distiller = Distiller(student, teacher, tokenizer=tokenizer, epochs=1, batch_size=4)
    assert distiller._section().effective_learning_rate == 2e-4
    distiller.fit(TEXTS, held_out=TEXTS)
    distiller.save(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").exists()


def test_an_encoder_decoder_learns_from_rows_of_unequal_lengths() -> None:
    rows = [{"input_ids": [a, a + 1, 1][: 2 + a % 2], "labels": [a + 1, a, 1][a % 3 :]}
            for a in range(2, 14)]  # fmt: skip
    student = t5()
    before = weights(student)
    done = Distiller(student, t5(4), epochs=4, batch_size=4, learning_rate=1e-2).fit(rows, rows)
    looks = [r.held_out_divergence for r in done.curve if r.held_out_divergence is not None]
    assert looks[-1] < looks[0]
    assert any((weights(student)[k] != v).any() for k, v in before.items())
    assert student.config.use_cache, "switched off for training alone"


class _Dataset(torch.utils.data.Dataset):  # type: ignore[type-arg]
    def __init__(self, named: bool) -> None:
        self.inputs, self.labels = points()
        self.named = named

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, n: int) -> Any:
        if self.named:
            return {"input": self.inputs[n], "labels": self.labels[n]}
        return self.inputs[n], int(self.labels[n])


def test_tensors_names_and_datasets_are_one() -> None:
    inputs, labels = points()
    found = []
    forms = [
        (inputs, labels), {"inputs": inputs, "labels": labels}, {"input": inputs, "labels": labels},
        _Dataset(False), _Dataset(True), list(zip(inputs, labels, strict=True)),
    ]  # fmt: skip
    for data in forms:
        student = net()
        Distiller(student, net(8, 2), epochs=2).fit(data)
        found.append(weights(student))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=0)


def test_an_image_model_of_transformers_is_a_module(tmp_path) -> None:
    config = ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        image_size=4, patch_size=2, num_channels=1, num_labels=3,
    )  # fmt: skip
    student = ViTForImageClassification(config)
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    images = torch.randn(12, 1, 4, 4)
    distiller = Distiller(student, teacher, epochs=1)
    assert distiller.kind == "module"
    distiller.fit((images, torch.arange(12) % 3))
    distiller.save(tmp_path)
    again = ViTForImageClassification.from_pretrained(tmp_path)
    torch.testing.assert_close(weights(again), weights(student), rtol=0, atol=0)


def test_rows_without_labels_get_the_teachers_first_choice() -> None:
    inputs, _ = points()
    teacher = net(8, 2)
    answers = teacher(inputs).argmax(-1)
    found = []
    for data in (inputs, (inputs, answers), [*inputs]):
        student = net()
        Distiller(student, teacher, epochs=2).fit(data)
        found.append(weights(student))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=0)


def test_a_teacher_read_once_is_a_teacher_that_reads_along() -> None:
    inputs, labels = points()
    teacher = net(8, 2)
    beliefs = teacher(inputs).detach()
    kept = {"inputs": inputs, "labels": labels, "teacher_logits": beliefs}
    found = []
    for source, data, once in (
        (teacher, (inputs, labels), False),
        (teacher, (inputs, labels), True),
        (teacher, _Dataset(True), True),
        (None, kept, False),
    ):
        student = net()
        Distiller(student, source, teacher_once=once, epochs=2).fit(data)
        found.append(weights(student))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-5, atol=1e-6)
    student = classifier()
    Distiller(student, classifier(seed=3), tokenizer=wordpiece(), teacher_once=True).fit(TEXTS)
    with pytest.raises(UserError, match=r"teacher_once: is for classifiers and modules"):
        Distiller(masked(), masked(1), teacher_once=True)


def test_several_teachers_are_averaged_by_probability() -> None:
    inputs, labels = points(9)
    teachers = [net(8, 2), net(8, 3)]
    source = as_source(teachers, ModuleReader())
    signal = source.view({"inputs": inputs, "labels": labels}, Needs(logits=True)).signal
    wanted = sum(t(inputs).softmax(-1) for t in teachers) / 2
    torch.testing.assert_close(signal.logits.exp(), wanted)
    Distiller(net(), teachers, epochs=1).fit((inputs, labels))
    Distiller(net(), LiveTeacher(teachers[0], ModuleReader()), epochs=1).fit((inputs, labels))
    with pytest.raises(UserError, match=r"unequal numbers of classes.*\[3, 4\]"):
        Distiller(net(), [net(), net(classes=4)]).fit((inputs, labels))
    with pytest.raises(UserError, match="empty list"):
        Distiller(net(), []).fit((inputs, labels))


def test_a_mapping_brings_the_teachers_ids_to_the_students() -> None:
    inputs, labels = points(9)
    teacher = net(8, 2, classes=5)
    live = LiveTeacher(teacher, ModuleReader())
    batch = {"inputs": inputs, "labels": labels}
    got = Mapped(live, torch.tensor([4, 0, 2])).view(batch, Needs(logits=True)).signal
    torch.testing.assert_close(got.logits, teacher(inputs)[:, [4, 0, 2]])
    Distiller(net(), teacher, mapping=[4, 0, 2], epochs=1).fit((inputs, labels))
    Distiller(net(), Mixture([live, live]), mapping=[4, 0, 2], epochs=1).fit((inputs, labels))


def test_classes_named_in_another_order_are_matched() -> None:
    distiller = Distiller(
        classifier(("bad", "good", "so so")), classifier(("so so", "bad", "good"))
    )
    assert distiller.mapping == [1, 2, 0]
    with pytest.raises(UserError, match=r"names other classes than the student's.*mapping="):
        Distiller(classifier(), classifier(("bad", "fine")))


def says(model: Any, rows: Any) -> str:
    """The class that a classifier gives all rows."""
    with torch.no_grad():
        means = model(input_ids=torch.tensor([row["input_ids"] for row in rows])).logits.mean(0)
    return str(model.config.id2label[int(means.argmax())])


def always(label: str, labels: tuple[str, ...]) -> Any:
    """A teacher that always says `label`."""
    model = classifier(labels)
    with torch.no_grad():
        model.classifier.bias.fill_(-3.0)
        model.classifier.bias[labels.index(label)] = 3.0
    return model


@pytest.mark.parametrize("form", ["one", "list", "lists", "live", "mixture", "ensemble"])
def test_classes_are_matched_whatever_form_the_teacher_has(form: str) -> None:
    """Teachers of mixed orders all say "bad"; a student of the other order learns "bad"."""
    reader = LabelReader()
    first, second = always("bad", ("bad", "good")), always("bad", ("good", "bad"))
    live = [LiveTeacher(model, reader) for model in (first, second, first)]
    ensemble = EnsembleSource([Member(one) for one in live], "mean_probabilities", 2)
    teacher = {
        "one": first,
        "list": [first, second, first],
        "lists": [[first], live[1], first],
        "live": live[0],
        "mixture": Mixture(live),
        "ensemble": ensemble,
    }[form]
    rows = [{"input_ids": [2, 5 + n % 9, 3], "labels": 0} for n in range(16)]
    student = classifier(("good", "bad"))  # all labels are "good": the teacher alone says "bad"
    options = {"alpha": 1.0, "epochs": 20, "batch_size": 16, "learning_rate": 1e-2}
    Distiller(student, teacher, **options).fit(rows)
    assert says(student, rows) == "bad"


def test_other_classes_are_refused_in_every_form() -> None:
    reader = LabelReader()
    other, same = classifier(("bad", "fine")), classifier()
    for teacher in (
        [same, other],
        LiveTeacher(other, reader),
        Mixture([LiveTeacher(other, reader)]),
    ):
        with pytest.raises(UserError, match=r"names other classes than the student's.*mapping="):
            Distiller(classifier(), teacher)
        assert Distiller(classifier(), teacher, mapping=[0, 1]).mapping == [0, 1], "as was said"
    turned = LiveTeacher(classifier(("good", "bad")), reader)
    with pytest.raises(UserError, match=r"in another order, within a _Wrapping.*mapping="):
        Distiller(classifier(), _Wrapping(turned))
    Distiller(classifier(), Mapped(turned, torch.tensor([0, 1])))  # by hand


class _Wrapping:
    """A source of the user's own around another."""

    def __init__(self, source: Any) -> None:
        self.source = source

    def view(self, batch: Any, needs: Needs) -> Any:
        return self.source.view(batch, needs)


@pytest.mark.parametrize("which", ["train_data", "held_out"])
def test_data_without_a_target_is_refused(which: str) -> None:
    labels = torch.randint(0, 3, (6, 4))
    labels[0] = -100  # the first row has none, and that is allowed
    data = {"train_data": (points(6)[0][:, None].expand(6, 4, 6), labels)}
    data["held_out"] = data["train_data"]
    Distiller(net(), net(8), epochs=1).fit(**data)
    data[which] = (data[which][0], torch.full_like(labels, -100))
    with pytest.raises(UserError, match=rf"{which}: has no target in any of its 6 rows"):
        Distiller(net(), net(8), epochs=1).fit(**data)


def test_a_teacher_of_fewer_token_ids_is_named() -> None:
    """Before it is asked, whatever form it has."""
    row = {"input_ids": [5, 17], "labels": [6]}
    written = [{"input_ids": [5], "labels": [6]}, {"input_ids": [5], "labels": [16]}]
    ids = list(range(16))
    for teacher in (t5(0, 16), [t5(0, 18), t5(1, 16)], LiveTeacher(t5(0, 16), Seq2SeqReader())):
        student = t5(0, 18)
        with pytest.raises(UserError, match=r"teacher: knows 16 token ids.*row 0 holds 17"):
            Distiller(student, teacher, mapping=[*ids, 0, 0], epochs=1).fit([row])
        with pytest.raises(UserError, match=r"held_out row 1 holds 16"):
            Distiller(student, teacher, mapping=[*ids, 0, 0], epochs=1).fit(written[:1], written)
    config = masked().config
    config.vocab_size -= 1
    smaller = BertForMaskedLM(config)
    with pytest.raises(UserError, match=r"train_data, once masked, holds"):
        Distiller(
            masked(), smaller, tokenizer=wordpiece(), mapping=[*range(config.vocab_size), 0]
        ).fit(TEXTS)


def test_maps_within_terms_are_learned_and_dropped(tmp_path) -> None:
    """As they are handed over; in checkpoints, from which a stopped run goes on; not in the
    student."""
    pair, pairs = LayerPair(0, 0), (LayerPair(0, 0),)
    rows = [{"input_ids": [5 + n % 5, 6, 7, 2], "labels": n % 2} for n in range(24)]
    teacher = classifier(seed=4)
    found = []
    for stop in (None, 4):
        width = teacher.config.hidden_size
        torch.manual_seed(3)
        maps = [nn.Linear(width, width) for _ in range(3)]
        still = nn.Linear(width, width).requires_grad_(False)
        before = [weights(one) for one in (*maps, still, teacher)]
        terms = [
            Weighted(Hidden("hidden", pairs, "mse", {pair: maps[0]}), 2.0),
            Weighted(Contrastive("pairs", pair, "mean", maps[1], maps[2], 0.1, 24, False)),
            Weighted(Hidden("hidden", pairs, "mse", {pair: still})),
        ]
        student = classifier()
        names = set(weights(student))
        folder = tmp_path / str(stop)
        distiller = Distiller(
            student, teacher, terms=terms, epochs=2, batch_size=8, learning_rate=1e-3, evals=3,
            folder=folder,
        )  # fmt: skip
        if stop is not None:
            distiller.progress = _StopsAt(stop)
            with pytest.raises(KeyboardInterrupt):
                distiller.fit(rows)
            assert set(weights(student)) == names
            for one, kept in zip(maps, before, strict=False):
                one.load_state_dict(kept)
        distiller.progress = None
        distiller.fit(rows)
        assert set(weights(student)) == names
        moved = [
            any((weights(one)[k] != v).any() for k, v in kept.items())
            for one, kept in zip((*maps, still, teacher), before, strict=True)
        ]
        assert moved == [True, True, True, False, False]
        distiller.save(folder / "student")
        again = BertForSequenceClassification.from_pretrained(folder / "student")
        torch.testing.assert_close(weights(again), weights(student), rtol=0, atol=0)
        assert list(folder.glob("checkpoints/*/distillation.safetensors"))
        found.append([weights(one) for one in (student, *maps)])
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    terms[0] = Weighted(Hidden("hidden", pairs, "mse", {pair: nn.Sequential(maps[0])}), 2.0)
    with pytest.raises(RunFolderError, match="other maps"):
        Distiller(
            classifier(), teacher, terms=terms, epochs=2, batch_size=8, learning_rate=1e-3,
            evals=3, folder=folder,
        ).fit(rows)  # fmt: skip


X, Y = points(9)
ROW = {"input_ids": [5, 6, 7], "labels": 1}


@pytest.mark.parametrize(
    ("build", "options", "data", "says"),
    [
        (net, {"teacher": net(classes=4)}, (X, Y), r"3 outputs and the teacher 4.*mapping="),
        (net, {"teacher": net(classes=4), "mapping": [0, 1]}, (X, Y), "needs 3 ids"),
        (net, {"teacher": net(classes=4), "mapping": [0, 1, 4]}, (X, Y), "outside the teacher's 4"),
        (net, {}, (X, Y), "need a teacher.*alpha=0"),
        (net, {"alpha": 0}, X, "no labels, and there is no teacher"),
        (net, {"alpha": 0}, (X, Y + 1), r"within 0 and 2.*got 3"),
        (net, {"alpha": 0}, (X, Y.float()), "whole numbers"),
        (net, {"alpha": 0}, (X, Y[:5]), "unequal lengths"),
        (net, {"alpha": 0}, (X[:0], Y[:0]), "is empty"),
        (net, {"alpha": 0}, {"pixels": X, "labels": Y}, r"keys.*Sequential.*\['pixels'\].*labels"),
        (net, {"alpha": 0}, {"labels": Y}, "holds no inputs"),
        (net, {"alpha": 0}, [(X[0], 0, 1)], "3 parts"),
        (net, {"alpha": 0}, [(X[0], 0), (X[0, :5], 1)], "one shape"),
        (net, {"alpha": 1.5}, (X, Y), "alpha: .*1"),
        (net, {"batch_size": 8, "micro_batch_size": 3}, (X, Y), "multiple"),
        (net, {"distillation_temperature": 0}, (X, Y), "distillation_temperature"),
        (classifier, {"alpha": 0}, ["a film"], "no tokenizer"),
        (classifier, {"alpha": 0}, [ROW | {"idx": 3}], r"train_data row 0.*\['idx'\]"),
        (classifier, {"alpha": 0}, [ROW | {"input_ids": [900]}], "token id 900"),
        (classifier, {"alpha": 0}, [ROW | {"labels": 2}], "within 0 and 1"),
        (classifier, {"alpha": 0}, [ROW | {"input_ids": [5] * 49}], "49 tokens, and 48 are read"),
        (classifier, {"alpha": 0}, [ROW, {"input_ids": [5]}], "labels in some rows"),
        (masked, {"alpha": 0}, [{"input_ids": [5, 6]}], "mask token"),
        (masked, {"alpha": 0}, [{"input_ids": [5], "labels": [-100]}], "1 of 1 rows have no targ"),
        (t5, {"alpha": 0}, [{"input_ids": [5, 6]}], "rows without labels"),
        (t5, {"teacher": t5(0, 18)}, [{"input_ids": [5], "labels": [6]}], "16 outputs and the te"),
        (t5, {"alpha": 0}, [{"input_ids": [5], "labels": [16]}], "within 0 and 15"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said_in_one_line(
    build: Any, options: dict[str, Any], data: Any, says: str
) -> None:
    with pytest.raises(UserError, match=says) as caught:
        Distiller(build(), **options, epochs=1).fit(data)
    assert "\n" not in str(caught.value)


def test_texts_that_cannot_be_read_are_named() -> None:
    tokenizer = wordpiece()
    with pytest.raises(UserError, match=r"does not know.*labels are bad, good"):
        Distiller(classifier(), alpha=0, tokenizer=tokenizer).fit([("a film", "fine")])
    with pytest.raises(UserError, match=r"row 0: a seq2seq is not read from this.*\(source, targ"):
        Distiller(t5(), alpha=0, tokenizer=tokenizer).fit(["a film"])
    with pytest.raises(UserError, match="1 of 1 rows have no token to hide"):
        Distiller(masked(), masked(), tokenizer=tokenizer).fit([""])
    with pytest.raises(UserError, match="teacher's tokenizer"):
        Distiller(masked(), masked(), tokenizer=tokenizer, teacher_tokenizer=byte_bpe())


def test_the_divergence_and_further_terms_reach_the_objective(tmp_path) -> None:
    hard = Weighted(Response(0.0), 0.5)
    found = []
    for number, more in enumerate(
        ({}, {"divergence": Divergence("reverse_kl")}, {"terms": [hard]})
    ):
        student = net()
        distiller = Distiller(student, net(8, 2), epochs=1, folder=tmp_path / str(number), **more)
        distiller.fit(points())
        found.append(student(X))
    assert not torch.allclose(found[0], found[1])
    assert not torch.allclose(found[0], found[2])
    with pytest.raises(RunFolderError, match="other divergence"):
        Distiller(net(), net(8, 2), epochs=1, folder=tmp_path / "1").fit(points())


def test_a_module_of_another_shape_does_not_load(tmp_path) -> None:
    save_module(net(), tmp_path)
    with pytest.raises(UserError, match="does not fit a Sequential"):
        load_module(net(5), tmp_path)
    with pytest.raises(UserError, match="is not there"):
        load_module(net(), tmp_path / "no")


def test_tied_weights_of_a_module_are_saved(tmp_path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(6, 6)
            self.b = nn.Linear(6, 6)
            self.b.weight = self.a.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.a(x))

    model, again = Tied(), Tied()
    Distiller(model, net(classes=6), epochs=1, folder=tmp_path / "run").fit(X, held_out=X)
    save_module(model, tmp_path)
    load_module(again, tmp_path)
    assert again.a.weight is again.b.weight
    torch.testing.assert_close(again(X), model(X))


def test_the_package_brings_it_when_asked() -> None:
    assert stillhouse.Distiller is Distiller
    with pytest.raises(AttributeError, match="Still"):
        _ = stillhouse.Still
    code = "import sys, stillhouse; assert 'torch' not in sys.modules; stillhouse.__version__"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
