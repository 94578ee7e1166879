"""`stillhouse forget` on whole runs: nothing is left, what was made is named, `run` goes on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

import judge_doubles
from batch_servers import serve_batches
from doubles import doubles, recipe_of, write_rows
from stillhouse import forget
from stillhouse.core.errors import DataError, RunFolderError, UserError
from stillhouse.core.forgotten import ForgottenUsers
from stillhouse.core.jsonl import read_json, write_json
from stillhouse.core.lineage import read_lineage
from stillhouse.core.progress import Silent
from stillhouse.core.recipe import Recipe
from stillhouse.core.records import Query
from stillhouse.core.runfolder import RunFolder
from stillhouse.forget import forget_user, told
from stillhouse.models.fake import FakeCompleter
from stillhouse.pipeline import report_of, run_stages
from stillhouse.teacher import archive, expand_stage, judge_stage
from stillhouse.teacher.batch_journal import BatchJournal, held_by_batches
from stillhouse.teacher.replay import ReplayCompleter
from stillhouse.teacher.store import AnswerStore
from stillhouse.traffic.redact import pseudonym as redacted_name
from teacher_servers import KEY, openai_answer, serve

MARK = "zqx7"  # in the forgotten user's name, ids and texts, and nowhere else
LONG = " ".join(f"word{n}" for n in range(40))


def rows_of(user: str, ids: list[str]) -> dict[str, list[dict[str, Any]]]:
    """Traffic of two users and of nobody: repeats, near-repeats, labelled and golden queries."""
    ours = [
        {"text": f"{LONG} lovely {MARK}one", "user": user, "id": ids[0]},
        {"text": f"awful {MARK} second of them", "user": user, "id": ids[1]},
        {"text": "lovely text number 3", "user": user, "id": ids[2]},  # repeats another's
    ]
    others = [
        {"text": f"{word} text number {n}", "user": f"other{n % 3}", "id": f"o{n}{word}"}
        for n in range(14)
        for word in ("lovely", "awful")
    ]
    near = {"text": f"{LONG} lovely nearly", "user": "other1", "id": "near"}
    labels = ("good", "bad")
    words = {"good": "lovely", "bad": "awful"}

    def truth(name: str) -> list[dict[str, Any]]:
        rows = [
            {"text": f"{words[label]} {name} {n}", "label": label, "id": f"{name}{n}{label}"}
            for n in range(6)
            for label in labels
        ]
        return [
            *rows,
            {"text": f"lovely {MARK} {name}", "label": "good", "user": user, "id": f"{MARK}{name}"},
        ]

    return {
        "traffic": [*others[:10], *ours, *others[10:], near, {"text": "lovely, by nobody"}],
        "labelled": truth("labelled"),
        "golden": truth("golden"),
    }


def make(folder: Path, user: str, ids: list[str], last: str = "evaluate") -> tuple[Recipe, Path]:
    for name, rows in rows_of(user, ids).items():
        write_rows(folder / f"{name}.jsonl", rows)
    recipe = recipe_of(
        folder,
        traffic={"labelled": f"{folder}/labelled.jsonl", "golden": f"{folder}/golden.jsonl"},
    )
    root = folder / "run"
    with doubles():
        run_stages(recipe, root, Silent(), last=last)
    if last == "evaluate":
        report_of(root)
    return recipe, root


def files_with(root: Path, text: str) -> list[str]:
    sought = (text.encode(), json.dumps(text)[1:-1].encode())
    return [
        str(path.relative_to(root))
        for path in sorted(root.rglob("*"))
        if path.is_file() and any(one in path.read_bytes() for one in sought)
    ]


IDS = [f"{MARK}-u1", f"{MARK}-u2", f"{MARK}-u3"]

word = st.text(st.characters(exclude_categories=("Cs",)), max_size=6)


@settings(
    max_examples=5,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # each example is a whole run
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@example(before="", after="", ids=["", " x", ". <b>&'\"\\"])
@given(before=word, after=word, ids=st.lists(word, min_size=3, max_size=3, unique=True))
def test_no_trace_of_the_user_is_left_and_the_run_goes_on(
    before: str, after: str, ids: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    user = f"{before}{MARK}-by-name{after}"
    folder = tmp_path_factory.mktemp("run")
    named = [f"{MARK}{n}{one}" for n, one in enumerate(ids)]
    recipe, root = make(folder, user, named, last="dataset")
    assert {"traffic/queries.jsonl", "ask/completions.jsonl"} <= set(files_with(root, MARK))
    assert files_with(root / "dataset", f"{MARK}-by-name") == [], "a dataset names no user"
    forget_user(user, [root], dry_run=False)
    assert files_with(root, MARK) == []
    with doubles():
        run_stages(recipe, root, Silent(), last="dataset")
    assert files_with(root, MARK) == [], "the user's own file still has the lines: passed over"
    with AnswerStore(root / "store" / "answers.jsonl") as store:
        assert len(store)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    make(folder, f"{MARK} user", IDS)
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> tuple[Recipe, Path]:
    """A copy of the finished run, and of the files it was made from."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    root = tmp_path / "run"
    raw = read_json(root / "recipe.json")
    recipe = recipe_of(
        tmp_path,
        traffic={"labelled": f"{tmp_path}/labelled.jsonl", "golden": f"{tmp_path}/golden.jsonl"},
    )
    write_json(root / "recipe.json", recipe.model_dump(mode="json", by_alias=True))
    assert raw["name"] == recipe.name
    return recipe, root


def everything(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_it_names_what_was_made_and_marks_it_stale(run: tuple[Recipe, Path]) -> None:
    recipe, root = run
    manifest = RunFolder(root).manifest("dataset")
    assert manifest is not None
    (result,) = forget_user(f"{MARK} user", [root], dry_run=False)
    (used,) = result.used_by
    assert used.dataset == manifest.output_hash
    assert len(used.models) == 1
    assert "student" in used.models[0]
    assert "train/student" in used.models[0]
    assert {"traffic", "ask", "dataset", "evaluate"} <= set(result.stale)
    assert result.still_in == {
        recipe.traffic.path: 3,
        recipe.traffic.labelled: 1,
        recipe.traffic.golden: 1,
    }
    for name in ("traffic", "ask", "check", "dataset"):
        now = RunFolder(root).manifest(name)
        assert now is not None
    lines = "\n".join(told([result], dry_run=False))
    assert manifest.output_hash in lines
    assert "stillhouse run" in lines
    with doubles():
        again = run_stages(recipe, root, Silent(), last="train")
    assert {r.name for r in again if not r.skipped} >= {"traffic", "ask", "dataset", "train"}
    known = read_lineage(root).datasets
    assert manifest.output_hash in known, "a student that may be in use keeps its dataset"
    assert len(known) == 2


def test_manifests_say_what_the_files_hold(run: tuple[Recipe, Path]) -> None:
    _, root = run
    forget_user(f"{MARK} user", [root], dry_run=False)
    folder = RunFolder(root)
    for name in ("traffic", "ask", "dataset", "evaluate"):
        manifest = folder.manifest(name)
        assert manifest is not None
        for file, digest in manifest.outputs.items():
            assert forget.hash_file(root / name / file) == digest, f"{name}/{file}"


def test_a_dry_run_changes_nothing_and_says_the_same(run: tuple[Recipe, Path]) -> None:
    _, root = run
    before = everything(root)
    (dry,) = forget_user(f"{MARK} user", [root], dry_run=True)
    assert everything(root) == before
    (done,) = forget_user(f"{MARK} user", [root], dry_run=False)
    assert (dry.removed, dry.used_by, dry.stale) == (done.removed, done.used_by, done.stale)


def test_an_audit_shows_that_it_was_done_without_the_name(run: tuple[Recipe, Path]) -> None:
    _, root = run
    forget_user(f"{MARK} user", [root], dry_run=False)
    lines = ForgottenUsers(root).lines_of(f"{MARK} user")
    assert [line.state for line in lines] == ["begun", "done"]
    assert lines[1].removed["store/answers.jsonl"] >= 2
    assert len(lines[1].datasets) == len(lines[1].models) == 1
    assert ForgottenUsers(root).lines_of("other1") == []
    (again,) = forget_user(f"{MARK} user", [root], dry_run=False)
    assert not again.found
    assert again.before == lines[1].at


def test_others_keep_their_records(run: tuple[Recipe, Path]) -> None:
    _, root = run
    before = len((root / "traffic" / "queries.jsonl").read_text().splitlines())
    forget_user(f"{MARK} user", [root], dry_run=False)
    left = (root / "traffic" / "queries.jsonl").read_text().splitlines()
    assert len(left) == before - 3  # two of the traffic, one of the labelled set
    rejected = (root / "dataset" / "rejections.jsonl").read_text()
    assert "(forgotten)" in rejected or '"near"' not in rejected


def test_a_user_nobody_knows_is_an_error(run: tuple[Recipe, Path], tmp_path: Path) -> None:
    _, root = run
    before = everything(root)
    with pytest.raises(UserError, match="no record of this user in 1 run folder"):
        forget_user("nobody", [root], dry_run=False)
    with pytest.raises(UserError, match="is empty"):
        forget_user(" ", [root], dry_run=False)
    assert everything(root) == before
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no run folder"):
        forget_user("x", [tmp_path / "empty"], dry_run=False)


def test_a_folder_of_runs(finished: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        shutil.copytree(finished, tmp_path / name)
    results = forget_user(f"{MARK} user", [tmp_path], dry_run=False)
    assert [result.found for result in results] == [True, True]
    assert (
        files_with(tmp_path / "a" / "run", MARK) == files_with(tmp_path / "b" / "run", MARK) == []
    )


def test_what_killed_stages_left_is_thrown_away(run: tuple[Recipe, Path]) -> None:
    _, root = run
    (root / "train.partial" / "checkpoints").mkdir(parents=True)
    (root / "train.partial" / "half.jsonl").write_text(f"{MARK}\n")
    (root / "store" / "answers.jsonl.tmp").write_text(f"{MARK}\n")
    (root / "evaluate" / "rows.npy").write_bytes(b"numbers")
    (root / "evaluate" / "notes.csv").write_text(f"a,b\n{MARK} user , 3\nc,d\n")
    (root / "evaluate" / "page.html").write_text(f"<p>{MARK} user</p>")
    (result,) = forget_user(f"{MARK} user", [root], dry_run=False)
    assert result.thrown_away == ("train.partial", "store/answers.jsonl.tmp")
    assert files_with(root, MARK) == []
    assert not (root / "evaluate" / "rows.npy").exists()
    assert (root / "evaluate" / "notes.csv").read_text() == "a,b\nc,d\n"


def test_answers_of_traffic_that_is_gone_are_found(run: tuple[Recipe, Path]) -> None:
    """The store outlives the traffic: an index of pseudonyms tells whose an old answer is."""
    recipe, root = run
    path = Path(recipe.traffic.path)
    kept = [line for line in path.read_text().splitlines() if MARK not in line]
    path.write_text("".join(line + "\n" for line in kept))
    for name in (recipe.traffic.labelled, recipe.traffic.golden):
        assert name is not None
        rows = [line for line in Path(name).read_text().splitlines() if MARK not in line]
        Path(name).write_text("".join(line + "\n" for line in rows))
    with doubles():
        run_stages(recipe, root, Silent(), last="train")
    assert files_with(root / "store", MARK) == ["answers.jsonl", "owners.jsonl"]
    assert files_with(root / "traffic", MARK) == []
    (result,) = forget_user(f"{MARK} user", [root], dry_run=False)
    assert files_with(root, MARK) == []
    assert result.removed["store/answers.jsonl"] >= 2
    assert len(result.used_by) == 1, "the dataset that was, and its student"


def test_killed_midway_it_ends_the_same(
    run: tuple[Recipe, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, root = run
    clean, left = forget.clean_file, iter(range(4))

    def dies(*arguments: Any, **more: Any) -> int:
        if not more["dry_run"] and next(left, None) is None:
            raise KeyboardInterrupt
        return clean(*arguments, **more)

    monkeypatch.setattr(forget, "clean_file", dies)
    with pytest.raises(KeyboardInterrupt):
        forget_user(f"{MARK} user", [root], dry_run=False)
    assert files_with(root, MARK)
    monkeypatch.setattr(forget, "clean_file", clean)
    forget_user(f"{MARK} user", [root], dry_run=False)
    assert files_with(root, MARK) == []
    assert ForgottenUsers(root).lines_of(f"{MARK} user")[-1].state == "done"


def test_a_run_at_work_is_left_alone(run: tuple[Recipe, Path]) -> None:
    _, root = run
    with RunFolder(root).locked(), pytest.raises(RunFolderError, match="another run"):
        forget_user(f"{MARK} user", [root], dry_run=False)
    assert files_with(root, MARK)


@pytest.mark.parametrize("by_pseudonym", [False, True])
@pytest.mark.parametrize("redact", [[], ["email"]])
def test_a_user_whom_redaction_renamed(
    tmp_path: Path, redact: list[str], by_pseudonym: bool
) -> None:
    """Mined traffic, and traffic under traffic.redact, know a user by a pseudonym alone."""
    user = f"{MARK}@example.org"
    hidden = redacted_name(user)
    for name, rows in rows_of(user if redact else hidden, IDS).items():
        write_rows(tmp_path / f"{name}.jsonl", rows)
    sets = {name: f"{tmp_path}/{name}.jsonl" for name in ("labelled", "golden")}
    recipe = recipe_of(tmp_path, traffic={**sets, "redact": redact})
    root = tmp_path / "run"
    with doubles():
        run_stages(recipe, root, Silent(), last="dataset")
    assert files_with(root / "traffic", hidden)
    (result,) = forget_user(hidden if by_pseudonym else user, [root], dry_run=False)
    assert result.removed["store/answers.jsonl"] >= 2
    assert len(result.used_by) == 1
    if not by_pseudonym:
        assert result.still_in, "under either name"
        assert forget_user(user, [root], dry_run=False)[0].before
    assert files_with(root, MARK) == files_with(root, hidden) == []
    with doubles():
        run_stages(recipe, root, Silent(), last="dataset")
    assert files_with(root, MARK) == files_with(root, hidden) == [], "passed over from now on"


def test_a_frozen_store_stays_one(run: tuple[Recipe, Path], tmp_path: Path) -> None:
    _, root = run
    path = root / "store" / "answers.jsonl"
    archive.freeze(root)
    with AnswerStore(path) as store:
        before = store.frozen
    forget_user(f"{MARK} user", [root], dry_run=False)
    assert files_with(root, MARK) == []
    with AnswerStore(path) as store:
        assert before is not None
        assert store.frozen is not None
        assert (store.frozen.at, store.frozen.answers) == (before.at, len(store))
        assert len(store) < before.answers
    archive.export(root, tmp_path / "export.jsonl", None)
    _, *rest = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(rest))
    with pytest.raises(DataError, match=rf"line {len(rest)}: is damaged"):
        forget_user("other1", [root], dry_run=False)
    assert path.read_bytes() == b"".join(rest), "what was changed before is not made good"


def test_what_a_model_made_of_their_words_goes_too(tmp_path: Path) -> None:
    """Queries written from theirs, the replies these came in, and a judge's reasons."""
    secret = f"{MARK} words about a divorce and an account in Zurich"
    rows = [
        {"text": f"{word} text number {n} alpha{n} beta{n * 7}", "user": f"o{n % 3}"}
        for n in range(14)
        for word in ("lovely", "awful")
    ]
    write_rows(
        tmp_path / "traffic.jsonl",
        rows + [{"text": f"lovely {secret} {k}", "user": "u", "id": f"u{k}"} for k in range(3)],
    )
    write_rows(
        tmp_path / "gold.jsonl",
        [
            {"text": f"gold {i}", "answer": answer, "good": good}
            for i in range(30)
            for answer, good in (("good", True), ("bad", False))
        ],
    )
    recipe = recipe_of(
        tmp_path,
        traffic={
            "expand": {"n": 30, "per_cluster": 40, "clusters": 1, "per_request": 2, "seeds": 20}
        },
        dataset={"judge": {"model": "embedded", "gold": f"{tmp_path}/gold.jsonl", "explain": True}},
    )
    asked: list[int] = []

    def grow(query: Query, _: int) -> str:
        number = len(asked)
        asked.append(number)
        said = f"lovely {secret} again, kappa{number}" if secret in query.last_user_text else ""
        return json.dumps({"inputs": [said, f"lovely new nu{number} xi{number * 3}"]})

    def verdict(prompt: str) -> str:
        text, answer = judge_doubles.material(prompt)[:2]
        score = 1 if "gold" in text and answer.strip() == "bad" else 5
        return f"The input says: {text}\nScore: {score}"

    root = tmp_path / "run"

    def run() -> None:
        with doubles(), pytest.MonkeyPatch.context() as patch:
            writer = FakeCompleter("embedded", answer=grow)
            patch.setattr(expand_stage, "open_teacher", lambda *_: writer)
            patch.setattr(judge_stage, "open_teacher", lambda *_: judge_doubles.double(verdict))
            run_stages(recipe, root, Silent(), last="dataset")

    run()
    assert {"store/answers.jsonl", "store/judge.jsonl", "expand/queries.jsonl"} <= set(
        files_with(root, MARK)
    )
    before = len((root / "store" / "judge.jsonl").read_text().splitlines())
    forget_user("u", [root], dry_run=False)
    assert files_with(root, MARK) == []
    left = len((root / "store" / "judge.jsonl").read_text().splitlines())
    assert before / 2 < left < before, "other people's verdicts stay"
    run()
    assert files_with(root, MARK) == []


def test_forgetting_keeps_the_bill_and_leaves_frozen_stores_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    write_rows(
        tmp_path / "traffic.jsonl",
        [{"text": f"lovely {n}", "user": "u" if n < 4 else "other"} for n in range(10)],
    )
    teacher = {"model": "openai:gpt-4.1", "terms": {"waived_by": "tests", "reason": "loopback"}}
    root, outside = tmp_path / "run", tmp_path / "outside.jsonl"
    with serve(lambda *_: openai_answer("good", usage=(20, 1))) as server:
        recipe = recipe_of(
            tmp_path, teacher={**teacher, "base_url": f"{server.url}/v1"}, train={"alpha": 0}
        )
        run_stages(recipe, root, Silent(), last="ask")
    path = root / "store" / "answers.jsonl"
    with AnswerStore(path, read_only=True) as store:
        paid, told_of = store.paid_usd, dict(store.teachers)
    assert paid > 0
    archive.export(root, outside)
    archive.export(root, root / "inside.jsonl")
    archive.freeze(root)
    replaying = recipe_of(
        tmp_path, teacher={"model": f"replay:{outside}", "terms": teacher["terms"]}
    )
    write_json(root / "recipe.json", replaying.model_dump(mode="json", by_alias=True))
    (result,) = forget_user("u", [root], dry_run=False)
    assert result.still_in[str(outside)] == 4
    for copy, cost in ((path, paid), (root / "inside.jsonl", 0.0)):
        with AnswerStore(copy, read_only=True) as store:
            assert len(store) == 6
            assert store.frozen is not None
            assert store.frozen.answers == 6
            assert store.teachers == told_of
            assert store.paid_usd == pytest.approx(cost)
    assert ReplayCompleter(root).info.name == "openai:gpt-4.1"


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
@pytest.mark.parametrize("moment", ["sending", "fetched"])
def test_what_an_open_batch_holds_of_them_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, provider: str, moment: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    write_rows(
        tmp_path / "traffic.jsonl",
        [
            {"text": f"lovely {n} {MARK if n < 4 else ''}", "user": "u" if n < 4 else "other"}
            for n in range(12)
        ],
    )
    models = {"openai": "openai:gpt-4.1", "anthropic": "anthropic:claude-haiku-4-5"}

    class Killed(BaseException):
        pass

    write = BatchJournal.write

    def dying(journal: BatchJournal, event: Any) -> None:
        write(journal, event)
        if event.event == moment:
            raise Killed

    with serve_batches() as server:
        server.text = lambda text: f"good, you wrote: {text}"
        recipe = recipe_of(
            tmp_path,
            teacher={
                "model": models[provider],
                "base_url": server.url + ("/v1" if provider == "openai" else ""),
                "terms": {"waived_by": "tests", "reason": "loopback"},
                "signals": "none",
                "batch": {"poll_s": 0.01, "pilot": 1},
            },
            train={"alpha": 0},
        )
        root = tmp_path / "run"
        with monkeypatch.context() as patch:
            patch.setattr(BatchJournal, "write", dying)
            with pytest.raises(Killed):
                run_stages(recipe, root, Silent(), last="ask")
        assert any("batches/" in name for name in files_with(root, MARK))
        forget_user("u", [root], dry_run=False)
        assert files_with(root, MARK) == []
        if moment == "fetched":
            run_stages(recipe, root, Silent(), last="ask")
            assert files_with(root, MARK) == []
            assert max((server.billed + server.live).values()) == 1
            lost = held_by_batches(root / "store" / "batches").usd
            assert lost > 0, "what the forgotten answers cost was paid all the same"
