"""`stillhouse forget`: remove a user from run folders, and name what was made of their records.

The order makes a kill harmless: a line in forgotten.jsonl first, then everything that can be made
again or found again, and last the files that say which records are the user's. Knows the run folder
and what its files are called; what a record of a user is, is in `core.traces`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from pydantic import Field, ValidationError

from stillhouse.core.errors import DataError, StillhouseError, UserError
from stillhouse.core.forgetting import (
    ROWS,
    artifacts,
    clean_file,
    mend_manifest,
    throw_away_half_done,
)
from stillhouse.core.forgotten import FORGOTTEN, ForgottenUsers, record_forgotten
from stillhouse.core.jsonl import read_json, read_objects, read_records, void, write_atomic
from stillhouse.core.lineage import (
    LABELLED,
    LINEAGE,
    QUERIES,
    USERS_FOLDER,
    datasets_of,
    pseudonym,
    read_lineage,
    strike_user,
)
from stillhouse.core.owners import GOLDEN, OWNERS, SALT, owned_by, owner_pseudonym
from stillhouse.core.recipe import Recipe
from stillhouse.core.records import LabelledQuery, Query, Record, Rejection, message_key
from stillhouse.core.runfolder import MANIFEST, RunFolder
from stillhouse.core.stage_files import hash_file
from stillhouse.core.traces import Traces
from stillhouse.evaluate.build import read_page_data
from stillhouse.evaluate.page import render_page
from stillhouse.evaluate.report import Report
from stillhouse.pipeline import RECIPE_FILE, read_run_recipe
from stillhouse.teacher.batch_journal import FOLDER as BATCHES
from stillhouse.teacher.batch_journal import ITEMS_SUFFIX, items_in
from stillhouse.teacher.forget import count_answers, is_store, remove_answers
from stillhouse.teacher.replay import store_path
from stillhouse.traffic.redact import pseudonym as redacted_name

PAGE: Final = "report.html"
TRAFFIC: Final = "traffic"
EXPAND: Final = "expand"


class UsedBy(Record):
    """A dataset that held the user, and the models trained on it: their hashes, kinds and paths."""

    dataset: str
    path: str
    models: tuple[str, ...] = ()


class RunForgotten(Record):
    """What was removed from one run folder (or would be)."""

    run: str
    found: bool
    removed: dict[str, int] = Field(default_factory=dict, description="File: records or places.")
    thrown_away: tuple[str, ...] = Field(default=(), description="Half-done work of killed stages.")
    used_by: tuple[UsedBy, ...] = ()
    stale: tuple[str, ...] = Field(default=(), description="Stages that `run` does again.")
    before: str | None = Field(default=None, description="When it was done before, if it was.")
    still_in: dict[str, int] = Field(
        default_factory=dict, description="Your own files that hold the user: lines."
    )


def runs_in(folders: Sequence[Path]) -> list[RunFolder]:
    """The run folders that are given or lie below a given folder, and their variants before them.

    A variant's folder shares stages with the run above it, whose files say whose a record is.

    Raises:
        UserError: a folder neither is one nor holds one.
    """
    found: dict[Path, RunFolder] = {}
    for folder in folders:
        here = (
            [folder]
            if (folder / RECIPE_FILE).exists()
            else sorted(path.parent for path in folder.rglob(RECIPE_FILE))
        )
        if not here:
            raise UserError(
                str(folder), "holds no run folder", action="give a run folder, or a folder of them"
            )
        for root in here:
            below = sorted(path.parent for path in root.rglob(RECIPE_FILE))
            found.update({one.resolve(): RunFolder(one) for one in (*below[1:], root)})
    return list(found.values())


def forget_user(user: str, folders: Sequence[Path], *, dry_run: bool) -> list[RunForgotten]:
    """Remove a user from every run folder; see the module.

    Raises:
        UserError: an empty name, no run folder, or no run knows the user.
        RunFolderError: a run is at work in a folder.
    """
    if not user.strip():
        raise UserError("--user", "is empty", action="give the user as the traffic names it")
    runs = runs_in(folders)
    results = [result for run in runs for result in _by_each_name(user, run, dry_run)]
    if not any(result.found or result.before for result in results):
        held = sum(sum(result.still_in.values()) for result in results)
        more = f"; your own files hold {held} of their lines" if held else ""
        raise UserError(
            "--user",
            f"no record of this user in {len(runs)} run folder{'s' if len(runs) > 1 else ''}{more}",
            action="write it exactly as the traffic's 'user' (or the mined log) does",
        )
    return results


def _by_each_name(user: str, run: RunFolder, dry_run: bool) -> list[RunForgotten]:
    """Forget the name, and what redaction made of it: mined traffic knows users by that alone."""
    plain, other = (_forget_in(name, run, dry_run) for name in (user, redacted_name(user)))
    if not (other.found or other.before):
        return [plain]
    if plain.found or plain.before:
        return [plain, other]
    return [other.model_copy(update={"still_in": plain.still_in | other.still_in})]


def _forget_in(user: str, run: RunFolder, dry_run: bool) -> RunForgotten:
    recipe = read_run_recipe(run.root)
    with run.locked():
        earlier = ForgottenUsers(run.root).lines_of(user)
        traces = _traces(user, recipe, run)
        held = datasets_of(run.root, user)
        used_by = tuple(
            UsedBy(
                dataset=one.digest,
                path=one.dataset.path,
                models=tuple(
                    f"{model.kind} {digest} ({model.path}, {model.recorded})"
                    for digest, model in one.dataset.models.items()
                ),
            )
            for one in held
        )
        removed = _clean(run, recipe, traces, dry_run=True)
        # Tables of numbers go with the user's records, but do not tell whose they are.
        found = bool(held) or any(Path(name).suffix not in ROWS for name in removed)
        begun = bool(earlier) and earlier[-1].state == "begun"
        half_done: list[str] = []
        if not found and not begun:
            removed = {}
        else:
            half_done = throw_away_half_done(run.root, dry_run=dry_run)
        stale = tuple(sorted({path.split("/")[0] for path in removed if "/" in path} - {"store"}))
        if (found or begun) and not dry_run:
            record_forgotten(run.root, user, "begun")
            for one in held:
                strike_user(run.root, one, user)
            _clean(run, recipe, traces, dry_run=False, resumed=begun)
            record_forgotten(
                run.root,
                user,
                "done",
                removed=removed,
                datasets=tuple(one.digest for one in held),
                models=tuple(digest for one in held for digest in one.dataset.models),
            )
    return RunForgotten(
        run=str(run.root),
        found=found,
        removed=removed,
        thrown_away=tuple(half_done),
        used_by=used_by,
        stale=stale,
        before=earlier[-1].at if earlier else None,
        still_in=_in_users_files(user, recipe, run, traces),
    )


def _traces(user: str, recipe: Recipe, run: RunFolder) -> Traces:
    """All by which this user's records are known in a run folder."""
    traffic = run.stage(TRAFFIC)
    ids: set[str] = set()
    chats: set[str] = set()
    texts: list[str] = []
    for query in _queries(traffic):
        if query.user == user:
            ids.add(query.id)
            chats.add(message_key(query.messages))
            texts.append(recipe.task.varying_text(query))
    if (traffic / "rejections.jsonl").exists():
        for rejection in read_records(traffic / "rejections.jsonl", Rejection):
            if rejection.user == user:
                ids.add(rejection.query_id)
    owned = owned_by(run, user)
    ids |= owned.ids
    chats |= owned.chats
    for query in _written_from(run.stage(EXPAND) / QUERIES, ids):
        ids.add(query.id)
        chats.add(message_key(query.messages))
        texts.append(recipe.task.varying_text(query))
    keys = {one.user_key for one in read_lineage(run.root).datasets.values()}
    if (traffic / QUERIES).exists():
        keys.add(hash_file(traffic / QUERIES))
    names = {user, *(pseudonym(key, user) for key in keys)}
    hidden = owner_pseudonym(run, user)
    if hidden is not None:
        names.add(hidden)
    ids |= {item.custom_id for item in items_in(run.store / BATCHES) if item.chat in chats}
    return Traces(
        frozenset(names),
        frozenset(ids),
        frozenset(chats),
        tuple(text for text in texts if text),
    )


def _written_from(path: Path, ids: Collection[str]) -> Iterator[Query]:
    """The queries that a model made of one of these."""
    if path.exists():
        for query in read_records(path, Query):
            if query.synthetic and query.metadata.get("parent") in ids:
                yield query


def _queries(traffic: Path) -> Iterator[Query]:
    for name, record in ((QUERIES, Query), (LABELLED, LabelledQuery), (GOLDEN, LabelledQuery)):
        if (traffic / name).exists():
            yield from read_records(traffic / name, record)


def _clean(
    run: RunFolder, recipe: Recipe, traces: Traces, *, dry_run: bool, resumed: bool = False
) -> dict[str, int]:
    """Clean every file, those that tell whose a record is last. Returns counts by file.

    `resumed`: an earlier try was killed, which may have come between a file and its manifest.
    """
    root = run.root
    removed: dict[str, int] = {}

    def count(name: str, found: int) -> None:
        if found:
            removed[name] = found

    skip = frozenset({f"store/{SALT}", FORGOTTEN, LINEAGE, RECIPE_FILE, PAGE, ".lock"})
    telling = {f"store/{OWNERS}", f"{EXPAND}/{QUERIES}"}
    files = [
        path
        for path in artifacts(root, skip)
        if not path.is_relative_to(root / USERS_FOLDER)
        and not any(part.endswith(".partial") for part in path.relative_to(root).parts)
    ]

    def tells(path: Path) -> bool:
        name = str(path.relative_to(root))
        return name in telling or name.startswith(f"{TRAFFIC}/") or path.name.endswith(ITEMS_SUFFIX)

    for path in sorted(files, key=lambda path: (tells(path), str(path))):
        found = (
            remove_answers(path, traces.owns, dry_run=dry_run)
            if path.suffix == ".jsonl" and is_store(path)
            else clean_file(path, traces, dry_run=dry_run)
        )
        count(str(path.relative_to(root)), found)
    if not dry_run:
        shared = (path.parent for path in root.glob(f"*/{MANIFEST}"))
        for folder in sorted(path for path in shared if not path.is_symlink()):
            inside = f"{folder.name}/"
            changed = {n.removeprefix(inside) for n in removed if n.startswith(inside)}
            mend_manifest(run, folder.name, traces, None if resumed else changed)
        _draw_again(run, recipe)
    elif (root / PAGE).exists() and removed:
        removed[PAGE] = 1
    return removed


def _draw_again(run: RunFolder, recipe: Recipe) -> None:
    """Make report.html anew from what is left; where that cannot be, remove it.

    Its figures are those of the evaluation that was: they hold no text.
    """
    path = run.root / PAGE
    if not path.exists():
        return
    try:
        report = Report.model_validate(read_json(run.root / "report.json"))
        page = render_page(report, read_page_data(recipe, run))
    except (StillhouseError, ValidationError, LookupError, ValueError):
        with suppress(FileNotFoundError):
            path.unlink()
        return
    write_atomic(path, lambda handle: void(handle.write(page)))


def _in_users_files(user: str, recipe: Recipe, run: RunFolder, traces: Traces) -> dict[str, int]:
    """Lines outside the run that are of them, in files it reads: these are not ours to change."""
    found: dict[str, int] = {}
    for name in (recipe.traffic.path, recipe.traffic.labelled, recipe.traffic.golden):
        if name is None:
            continue
        with suppress(DataError):
            lines = sum(raw.get("user") == user for _, raw in read_objects(Path(name)))
            if lines:
                found[name] = lines
    for path in _replayed(recipe):
        if not path.resolve().is_relative_to(run.root.resolve()) and path.exists():
            with suppress(DataError):
                lines = count_answers(path, traces.owns)
                if lines:
                    found[str(path)] = lines
    return found


def _replayed(recipe: Recipe) -> Iterator[Path]:
    """The frozen stores that a recipe has in a teacher's or a judge's place."""
    models = list(recipe.teacher.sources)
    if recipe.compare is not None:
        models += [section.model for section in recipe.compare.teachers.values()]
    if recipe.dataset.judge is not None:
        models.append(recipe.dataset.judge.model)
    for model in dict.fromkeys(models):
        kind, _, name = model.partition(":")
        if kind == "replay":
            yield store_path(Path(name).expanduser())


def told(results: Sequence[RunForgotten], *, dry_run: bool) -> Iterator[str]:
    """The results as lines for people."""
    verb = "would remove" if dry_run else "removed"
    for result in results:
        if not result.found:
            done = f"forgotten before, on {result.before}" if result.before else "no record"
            yield f"{result.run}: {done}"
        else:
            total = sum(result.removed.values())
            yield f"{result.run}: {verb} {total:,} records and mentions"
            for name, count in result.removed.items():
                yield f"  {name}: {count:,}"
            for name in result.thrown_away:
                yield f"  {name}: half done, thrown away"
            for used in result.used_by:
                yield f"  dataset {used.dataset} ({used.path}) held this user; trained on it:"
                yield from (f"    {model}" for model in used.models or ("nothing",))
            if result.stale:
                yield (
                    f"  stale now: {', '.join(result.stale)} and what follows; do them again with: "
                    "stillhouse run"
                )
        for name, count in result.still_in.items():
            yield (
                f"  your own file {name} still holds {count:,} of their lines: remove them there; "
                "this run passes them over"
            )
