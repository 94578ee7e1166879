"""The stages `teacher`, `train` and `evaluate` of a corpus run. Knows the recipe and their folders;
what is trained, minimised and scored is in the other `corpus_*` modules."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from transformers import PreTrainedTokenizerBase

from stillhouse.core.corpus import TEST, TRAIN, VALIDATION, Passage
from stillhouse.core.jsonl import read_json, read_records, write_json
from stillhouse.core.progress import Progress
from stillhouse.core.recipe_corpus import CorpusRecipe
from stillhouse.core.runfolder import Outcome
from stillhouse.models.loading import count_parameters, folder_size, locate, pick_device
from stillhouse.train.corpus_choices import read_choices
from stillhouse.train.corpus_models import CorpusStudent, Read, build_corpus_student, read_model
from stillhouse.train.corpus_report import Asked, by_language, choice_figures, text_figures
from stillhouse.train.corpus_rows import Cutter
from stillhouse.train.corpus_scores import (
    REFERENCE,
    Counted,
    Pace,
    choose,
    measure_pace,
    score_texts,
)
from stillhouse.train.corpus_train import CorpusJob, train_on_corpus
from stillhouse.train.corpus_vocabulary import WHOLE, believe_in_kept, left_out, of_whole
from stillhouse.train.distil import FACTS, STUDENT

MODEL: Final = "model"  # the adapted teacher
TWIN: Final = "twin"
START: Final = "start"  # the student before it was trained
PLAN: Final = "plan.json"
EVALUATION: Final = "evaluation.json"
SPEED: Final = "speed.json"


def run_adapt(recipe: CorpusRecipe, corpus: Path, work: Path, progress: Progress) -> Outcome:
    """Train the teacher on the corpus before it teaches; writes `model/`.

    Raises:
        UserError: a teacher that cannot be read.
        StillhouseError: training went off.
    """
    adapt = recipe.teacher.adapt
    assert adapt is not None
    read = read_model(recipe.teacher.model, recipe.objective.kind, recipe.seed, headless=True)
    if read.fresh:
        progress.say(f"      the teacher's language head is new: {len(read.fresh)} tensors")
    cutter = _cutter(recipe, read, read.tokenizer)
    facts = train_on_corpus(
        CorpusJob(
            model=read.model,
            tokenizer=read.tokenizer,
            kind=recipe.objective.kind,
            section=recipe.adapting(),
            seed=recipe.seed,
            train=cutter.training(_passages(corpus, TRAIN)),
            validation=cutter.scoring(_passages(corpus, VALIDATION)).rows,
            title="adapt teacher",
            output=MODEL,
            trained=_head_weights(read) if adapt.weights == "head" else None,
        ),
        work,
        progress,
    )
    write_json(work / FACTS, {**facts, "fresh": list(read.fresh), "weights": adapt.weights})
    return Outcome(summary={name: facts[name] for name in ("parameters", "steps", "best_step")})


def run_corpus_train(
    recipe: CorpusRecipe, corpus: Path, adapted: Path | None, work: Path, progress: Progress
) -> Outcome:
    """Train the student, and its untaught twin; writes `plan.json`, `student/` and `twin/student/`.

    Raises:
        UserError: a student that cannot be built, or insides that cannot be compared.
        StillhouseError: training went off.
    """
    teacher = _teacher(recipe, adapted)
    train, validation = _passages(corpus, TRAIN), _passages(corpus, VALIDATION)
    texts = [passage.text for passage in train]
    student = build_corpus_student(recipe, teacher, texts)
    plan = student.plan
    if not (work / PLAN).exists():
        write_json(work / PLAN, plan.as_json())
    kept = "" if plan.layers_kept is None else f" {list(plan.layers_kept)}"
    progress.say(
        f"      student: {plan.architecture}, {plan.layers} of {plan.layers_before} layers{kept}, "
        f"{plan.parameters:,} parameters, {plan.parameters / plan.parameters_before:.0%} of "
        "the teacher's"
    )
    for line in plan.said:
        progress.say(f"      student: {line}")
    cutter = _cutter(recipe, teacher, student.tokenizer)
    watched = cutter.scoring(validation).rows
    lost: dict[str, object] = {}
    if student.kept is not None:
        parts = {"train": texts, "validation": [passage.text for passage in validation]}
        left = left_out(teacher, student, recipe.objective.kind, watched, parts)
        lost = {"mass_on_kept_pieces": left.mass, "cut_otherwise": left.cut_otherwise}
        progress.say(f"      student: {left.line()}")

    def trained(one: CorpusStudent, folder: Path, *, taught: bool) -> dict[str, Any]:
        job = CorpusJob(
            model=one.model,
            tokenizer=student.tokenizer,
            kind=recipe.objective.kind,
            section=recipe.section(taught=taught),
            seed=recipe.seed,
            train=cutter.training(train),
            validation=watched,
            title="train student" if taught else "train untaught twin",
            output=STUDENT,
            teacher=teacher.model if taught and _reads_teacher(recipe) else None,
        )
        return train_on_corpus(job, folder, progress)

    twin = None
    if recipe.train.untaught_twin:
        twin = trained(build_corpus_student(recipe, teacher, texts), work / TWIN, taught=False)
    teacher = believe_in_kept(teacher, student, watched)
    facts = trained(student, work, taught=True)
    write_json(work / FACTS, {**facts, "plan": plan.as_json(), "twin": twin, **lost})
    return Outcome(
        summary={name: facts[name] for name in ("parameters", "size_bytes", "steps", "best_step")}
    )


def run_corpus_evaluate(
    recipe: CorpusRecipe,
    corpus: Path,
    adapted: Path | None,
    trained: Path,
    work: Path,
    *,
    progress: Progress,
) -> Outcome:
    """Score teacher, student, twin and untrained student on the test texts; writes
    `evaluation.json` and `speed.json`.

    Raises:
        UserError: a file of questions that cannot be read.
    """
    kind, options = recipe.objective.kind, recipe.evaluate
    questions = []
    if options.zero_shot is not None:
        questions = read_choices(Path(options.zero_shot), options.zero_shot_limit)
    teacher = _teacher(recipe, adapted)
    device = pick_device(recipe.train.device)
    start = build_corpus_student(
        recipe, teacher, [passage.text for passage in _passages(corpus, TRAIN)]
    )
    models: dict[str, Any] = {
        REFERENCE: teacher.model,
        STUDENT: _student(trained / STUDENT, kind),
        START: start.model,
    }
    if (trained / TWIN / STUDENT).is_dir():
        models[TWIN] = _student(trained / TWIN / STUDENT, kind)
    models = {name: model.to(device).eval() for name, model in models.items()}
    parameters = {name: count_parameters(model) for name, model in models.items()}
    passages = _passages(corpus, TEST)
    asked = Asked(options.confidence, options.resamples, recipe.seed)
    groups = [passage.group for passage in passages]
    scored = _cutter(recipe, teacher, start.tokenizer).scoring(passages)
    # What can be compared whatever the pieces are is asked of the whole teacher, before it loses
    # those that the student does not have.
    readers = dict.fromkeys(models, start.tokenizer) | {REFERENCE: teacher.tokenizer}
    chosen = {}
    if questions:
        with progress.bar("zero-shot", len(models), "models") as ticker:
            for name, model in models.items():
                chosen[name] = choose(model, readers[name], questions, recipe.corpus.max_tokens)
                ticker.advance()
    pace = measure_pace(
        {name: models[name] for name in (REFERENCE, STUDENT)},
        kind,
        scored,
        start.tokenizer,
        rows=options.speed_rows,
        repeats=options.speed_repeats,
        numbers={} if start.kept is None else {REFERENCE: start.kept},
    )
    whole: Counted | None = None
    if start.kept is not None:
        whole = score_texts(
            {REFERENCE: teacher.model},
            kind,
            _cutter(recipe, teacher, teacher.tokenizer).scoring(passages),
            teacher.tokenizer,
            texts=len(passages),
            progress=progress,
        )
        teacher = believe_in_kept(teacher, start, scored.rows)
    counted = score_texts(
        models, kind, scored, start.tokenizer, texts=len(passages), progress=progress
    )
    languages = [passage.language for passage in passages]
    figures: dict[str, Any] = {
        "kind": kind,
        "confidence": options.confidence,
        "test": text_figures(counted, groups, asked, kind=kind),
        WHOLE: None,
        "languages": by_language(counted, groups, languages, asked, kind=kind),
        "zero_shot": None,
        "parameters": parameters,
        "size_bytes": {
            REFERENCE: folder_size(
                adapted if adapted is not None else locate(recipe.teacher.model).folder
            ),
            STUDENT: folder_size(trained / STUDENT),
        },
        "plan": read_json(trained / PLAN),
    }
    if whole is not None:
        figures[WHOLE] = {
            **text_figures(whole, groups, asked, kind=kind)[REFERENCE],
            "retention": of_whole(counted, whole, groups, asked, STUDENT),
        }
    if chosen:
        figures["zero_shot"] = choice_figures(
            chosen,
            [question.right for question in questions],
            [question.group or str(number) for number, question in enumerate(questions)],
            asked,
        )
    write_json(work / EVALUATION, figures)
    write_json(work / SPEED, _speed(pace, recipe.train.device))
    kept = figures["test"][STUDENT]["retention"]["accuracy"]
    return Outcome(
        summary={} if kept is None else {"accuracy_kept": kept["estimate"]},
        measured=frozenset({SPEED}),
    )


def _speed(pace: dict[str, Pace], device: str) -> dict[str, object]:
    pairs = zip(pace[STUDENT].repeats, pace[REFERENCE].repeats, strict=True)
    ratios = sorted(student / teacher for student, teacher in pairs)
    return {
        "device": device,
        "tokens_per_s": {name: one.tokens_per_s for name, one in pace.items()},
        "times_as_fast": {
            "estimate": ratios[len(ratios) // 2],
            "slowest": ratios[0],
            "fastest": ratios[-1],
            "n": len(ratios),
        },
    }


def _reads_teacher(recipe: CorpusRecipe) -> bool:
    return recipe.objective.soft > 0 or bool(recipe.objective.terms)


def _teacher(recipe: CorpusRecipe, adapted: Path | None) -> Read:
    source = recipe.teacher.model if adapted is None else f"hf:{adapted}"
    return read_model(source, recipe.objective.kind, recipe.seed)


def _student(folder: Path, kind: str) -> Any:
    return read_model(f"hf:{folder}", kind, 0).model


def _head_weights(read: Read) -> Sequence[str]:
    """Names of the weights that are not the body's: tied ones stay with the body."""
    body = {id(weight) for weight in read.model.base_model.parameters()}
    return [name for name, w in read.model.named_parameters() if id(w) not in body]


def _cutter(recipe: CorpusRecipe, teacher: Read, tokenizer: PreTrainedTokenizerBase) -> Cutter:
    config: Any = teacher.model.config
    most = int(getattr(config, "max_position_embeddings", recipe.corpus.max_tokens))
    return Cutter(
        tokenizer,
        recipe.objective.kind,
        min(recipe.corpus.max_tokens, most),
        vocabulary=int(config.vocab_size),
        seed=recipe.seed,
        mask_share=recipe.objective.mask_share,
    )


def _passages(corpus: Path, part: str) -> list[Passage]:
    return list(read_records(corpus / f"{part}.jsonl", Passage))
