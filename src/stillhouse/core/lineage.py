"""Which dataset trained which model, and whose queries were in it: lineage.json of a run folder.

A dataset that a later run replaces stays listed with the models trained on it, since these may be
in use. Beside it lie the dataset's users as pseudonyms, so that a user's name finds every dataset
that held them. Knows manifests and hashes; not what a record says.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stillhouse.core.errors import RunFolderError
from stillhouse.core.jsonl import read_json, read_objects, void, write_atomic, write_json
from stillhouse.core.recipe import Recipe
from stillhouse.core.rights import terms_sentence
from stillhouse.core.runfolder import Manifest, RunFolder

LINEAGE: Final = "lineage.json"
USERS_FOLDER: Final = "lineage"
PSEUDONYM_DIGITS: Final = 32
_FOLDERS: Final = {
    "student": "student",
    "twin": "twin/student",
    "pruned student": "student",
    "tuned teacher": "model",
}
PRUNED: Final = ("prune", "pruned student")
QUERIES: Final = "queries.jsonl"
LABELLED: Final = "labelled.jsonl"


class TrainedModel(BaseModel):
    """A model that was trained on a dataset. `path` is where it was written, in the run folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    path: str
    recorded: str = Field(description="UTC, ISO 8601.")


class DatasetLineage(BaseModel):
    """One dataset: what it was made of, and the models trained on it, by their output hash."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    recorded: str = Field(description="UTC, ISO 8601.")
    examples: int
    users: int
    teacher: str
    terms: str
    user_key: str = Field(description="Key of the pseudonyms; kept out of the dataset itself.")
    models: Mapping[str, TrainedModel] = Field(default_factory=dict)


class Lineage(BaseModel):
    """lineage.json: datasets by their hash."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = 1
    datasets: Mapping[str, DatasetLineage] = Field(default_factory=dict)


class Found(NamedTuple):
    """A dataset that held a user, and how its lineage reads."""

    digest: str
    dataset: DatasetLineage


def pseudonym(key: str, user: str) -> str:
    """A user's name as it stands in a dataset: HMAC-SHA256 under `key`, 32 hex digits.

    The key of a dataset is the hash of the traffic it was made from: equal runs make equal files,
    and who has the dataset alone cannot try names against it.
    """
    digest = hmac.new(key.encode("utf-8"), user.encode("utf-8", "surrogatepass"), hashlib.sha256)
    return digest.hexdigest()[:PSEUDONYM_DIGITS]


def read_lineage(root: Path) -> Lineage:
    """lineage.json of a run folder; empty where there is none.

    Raises:
        RunFolderError: it is damaged.
    """
    path = root / LINEAGE
    if not path.exists():
        return Lineage()
    try:
        return Lineage.model_validate(read_json(path))
    except ValidationError as error:
        raise RunFolderError(f"{path}: is damaged ({error.errors()[0]['msg']})") from None


def record_lineage(recipe: Recipe, run: RunFolder) -> None:
    """Add what the run folder holds now: its dataset, the student, twin, pruned student and
    tuned teacher.

    Does nothing where all is recorded already, so that it may be called after every stage.
    """
    lineage = read_lineage(run.root)
    datasets = dict(lineage.datasets)
    for name, file, trained in (
        ("dataset", None, (("train", "student"), ("train", "twin"), PRUNED)),
        ("traffic", LABELLED, (("tune", "tuned teacher"),)),
    ):
        manifest = run.manifest(name)
        if manifest is None or (file is not None and file not in manifest.outputs):
            continue
        digest = manifest.output_hash if file is None else manifest.outputs[file]
        models = dict(datasets[digest].models) if digest in datasets else {}
        for stage, kind in trained:
            found = _trained(run, stage, kind, name if file is None else f"{name}/{file}", digest)
            if found is not None:
                models.setdefault(*found)
        if digest not in datasets and (file is None or models):
            made = _dataset(recipe, run, manifest, name, file)
            if made is None:
                continue
            users, datasets[digest] = made
            _write_users(run.root, digest, users)
        if digest in datasets:
            datasets[digest] = datasets[digest].model_copy(update={"models": models})
    if datasets != dict(lineage.datasets):
        write_lineage(run.root, Lineage(datasets=datasets))


def write_lineage(root: Path, lineage: Lineage) -> None:
    """Write lineage.json."""
    write_json(root / LINEAGE, lineage.model_dump(mode="json"))


def _trained(
    run: RunFolder, stage: str, kind: str, read: str, digest: str
) -> tuple[str, TrainedModel] | None:
    """The model of a stage if it was trained on the dataset of this hash, under its own hash."""
    manifest = run.manifest(stage)
    inputs = manifest.key.get("inputs") if manifest is not None else None
    if manifest is None or not isinstance(inputs, Mapping) or inputs.get(read) != digest:
        return None
    folder = _FOLDERS[kind]
    weights = {n: h for n, h in manifest.outputs.items() if n.startswith(f"{folder}/")}
    if not weights:
        return None
    text = "\n".join(f"{name} {value}" for name, value in sorted(weights.items()))
    own = hashlib.sha256(text.encode("utf-8")).hexdigest()[:32]
    return own, TrainedModel(kind=kind, path=f"{stage}/{folder}", recorded=_now())


def _dataset(
    recipe: Recipe, run: RunFolder, manifest: Manifest, name: str, file: str | None
) -> tuple[set[str], DatasetLineage] | None:
    traffic = run.manifest("traffic")
    if traffic is None:
        return None
    key = traffic.outputs.get(QUERIES, "")
    folder = run.stage(name)
    users: set[str] = set()
    examples = 0
    files = ["train.jsonl", "held_out.jsonl"] if file is None else [file]
    if file is None and (folder / "watch.jsonl").exists():
        files.append("watch.jsonl")
    for path in files:
        for _, raw in read_objects(folder / path):
            examples += 1
            user = raw.get("user")
            if isinstance(user, str):
                users.add(user if file is None else pseudonym(key, user))
    return users, DatasetLineage(
        path=name if file is None else f"{name}/{file}",
        recorded=_now(),
        examples=examples,
        users=len(users),
        teacher=recipe.teacher.model,
        terms=terms_sentence(recipe.teacher),
        user_key=key,
    )


def users_file(root: Path, digest: str) -> Path:
    """Where the pseudonyms of a dataset's users are."""
    return root / USERS_FOLDER / f"{digest}.users"


def _write_users(root: Path, digest: str, users: Iterable[str]) -> None:
    path = users_file(root, digest)
    write_atomic(path, lambda handle: void(handle.write("".join(f"{u}\n" for u in sorted(users)))))


def datasets_of(root: Path, user: str) -> list[Found]:
    """The datasets that held a user, with the models trained on them."""
    found = []
    for digest, dataset in read_lineage(root).datasets.items():
        path = users_file(root, digest)
        if path.exists() and pseudonym(dataset.user_key, user) in path.read_text("utf-8").split():
            found.append(Found(digest, dataset))
    return found


def strike_user(root: Path, found: Found, user: str) -> None:
    """Take a user's pseudonym out of the list of a dataset's users; the dataset stays listed."""
    path = users_file(root, found.digest)
    left = set(path.read_text("utf-8").split()) - {pseudonym(found.dataset.user_key, user)}
    _write_users(root, found.digest, left)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
