"""`stillhouse online`: a loop.yaml's task, its log, its student and its gateway put together.

Knows files and the gateway's database; what is learned is `retrain.online`'s.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

from stillhouse.core.artefact import is_artefact, read_artefact
from stillhouse.core.errors import UserError
from stillhouse.core.hashing import unit_hash
from stillhouse.core.jsonl import read_records
from stillhouse.core.live import LiveRows
from stillhouse.core.loop_file import load_loop
from stillhouse.core.loop_online import OnlineSection
from stillhouse.core.optional import available, require
from stillhouse.core.recipe_file import load_recipe
from stillhouse.core.records import Example, Query
from stillhouse.core.tasks import ClassificationTask
from stillhouse.models.artefact_student import open_any
from stillhouse.models.batching import Call
from stillhouse.models.completer import Sampling
from stillhouse.models.head_weights import open_head_student
from stillhouse.retrain.loop import served
from stillhouse.retrain.online import OnlineTask
from stillhouse.retrain.online_handover import HandOver
from stillhouse.retrain.online_personal import Fit
from stillhouse.retrain.online_rows import Beliefs, Lesson
from stillhouse.retrain.online_step import Learn
from stillhouse.retrain.registry_records import id_of

FOLDER: Final = "online"
BATCH: Final = 32
DATASET: Final = "dataset"
DAY_S: Final = 86_400.0
LATEST_S: Final = 300.0  # rows that young may not be stored yet


class Refining:
    """One task's learner with all that it needs.

    Args:
        path: loop.yaml.
        name: of the task.

    Raises:
        UserError: the files do not fit together, or the student cannot be refined.
    """

    def __init__(self, path: Path, name: str) -> None:
        loop = load_loop(path)
        if name not in loop.tasks:
            raise UserError(
                "TASK", f"is not in {path}: there are {', '.join(loop.tasks)}", value=name
            )
        task = loop.tasks[name]
        if task.online is None:
            raise UserError(f"tasks.{name}.online", "is missing", action="add the section")
        recipe = load_recipe(Path(task.recipe))
        if not isinstance(recipe.task, ClassificationTask):
            raise UserError(
                f"tasks.{name}.online",
                "refines label students, and the recipe's task is of another kind",
                value=recipe.task.kind,
                action="retrain it instead: stillhouse retrain",
            )
        serving: Any = require(
            "stillhouse.serve.gateway_file", "serve", "reading the gateway's log"
        )
        gateway = serving.load_gateway(Path(loop.gateway))
        if gateway.log.url is None:
            raise UserError("log.url", "is missing in gateway.yaml: there is nothing to learn from")
        self.section: OnlineSection = task.online
        self._name, self._gateway = name, gateway
        root = Path(loop.folder) / name / FOLDER
        self.note = unserved(gateway, name, root, self.section)
        self._places = (Path(loop.gateway).parent, name, root, Path(loop.registry))
        self._student = promoted(gateway, *self._places)
        self.learner = OnlineTask(
            root,
            name,
            recipe.task,
            self.section,
            student=self._student,
            opened=partial(open_head_student, task=recipe.task),
            learn=learner_of(self.section),
            clock=time.time,
            fit=fitter_of(self.section),
            held_out=examples_of(task.run, "held_out.jsonl", recipe.task),
            replay=drawn(examples_of(task.run, "train.jsonl", recipe.task), self.section),
            beliefs=beliefs_of(self.section.soft_targets, recipe.task),
            hand_over=hand_over_of(gateway, task.retrain.gateway_url),
            names=names_of(gateway, name, Path(loop.registry)),
        )

    @property
    def outdated(self) -> bool:
        """Whether another student was put to work since: whoever goes on opens that."""
        return promoted(self._gateway, *self._places) != self._student

    @contextmanager
    def rows(self) -> Iterator[LiveRows]:
        """The gateway's log."""
        tables: Any = require("stillhouse.serve.tables", "serve", "reading the gateway's log")
        stored: Any = require("stillhouse.serve.live_rows", "serve", "reading the gateway's log")
        engine = tables.open_database(self._gateway.log.url)
        try:
            yield stored.StoredRows(engine)
        finally:
            engine.dispose()

    def forget_gone(self, rows: LiveRows, notes: list[str]) -> int:
        """Forget whom the gateway has forgotten: rows of theirs are gone from the log before its
        time. How many rows went here."""
        days = self._gateway.log.retention_days
        since = 0.0 if days is None else time.time() - days * DAY_S + LATEST_S
        gone = self.learner.gone_from(rows, since)
        return self.learner.forget(None, gone, notes) if gone else 0

    def forget(self, tenant: str, user: str, notes: list[str]) -> int:
        """Forget a user by name, as `POST /users/forget` of the gateway does.

        Raises:
            UserError: the secret of the pseudonyms is not set.
        """
        private: Any = require("stillhouse.serve.private", "serve", "users' pseudonyms")
        whose = private.Pseudonyms.from_environment().of(tenant, user)
        return self.learner.forget(tenant, [whose], notes)


def unserved(gateway: Any, name: str, root: Path, section: OnlineSection) -> str | None:
    """Why nobody is answered with the adapters that are made here, where that is so."""
    task = gateway.tasks.get(name)
    if section.personal is None or task is None or task.student is None:
        return None
    upstream = gateway.upstreams[task.student]
    served = upstream.adapters if upstream.kind == "student" else None
    if served is not None and served.resolve() == root.resolve():
        return None
    return (
        f"upstreams.{task.student}.adapters of gateway.yaml is {served or 'missing'}: nobody is "
        f"answered with these adapters; write adapters: {root}"
    )


def promoted(gateway: Any, base: Path, name: str, root: Path, registry: Path) -> Path:
    """The student that a retraining has put to work: the registry's live one, in the form that the
    gateway serves where that can be refined; else gateway.yaml's.

    Raises:
        UserError: there is none.
    """
    link = registry / "live" / name
    if link.exists():
        folder = link.resolve()
        form = served(folder)
        onnx = is_artefact(form) and read_artefact(form).kind == "onnx"
        return form if onnx else folder
    section: Any = gateway.tasks.get(name)
    upstream = (
        None if section is None or section.student is None else (gateway.upstreams[section.student])
    )
    if upstream is None or upstream.kind != "student":
        raise UserError(
            f"tasks.{name}.student",
            "is no student that the gateway runs itself, so none can be refined",
            action="serve it as an upstream of kind student",
        )
    path = Path(base / upstream.path).resolve()
    if path.is_relative_to(root.resolve()):
        raise UserError(
            f"upstreams.{section.student}.path",
            "is a refined version; without a registry nothing says which student it began from",
            value=str(path),
            action="name the student that was distilled",
        )
    return path


def learner_of(section: OnlineSection) -> Learn:
    """Small steps as the section says."""
    module: Any = require("stillhouse.train.online_head", "train", "online learning")
    rates = module.HeadRates(
        section.steps, section.learning_rate, section.anchor_kl, section.anchor_l2
    )

    def learn(live: Any, features: Any, targets: Any, draw: Callable[[], Any]) -> Any:
        return module.refine(live, features, targets, rates, draw)

    return learn


def fitter_of(section: OnlineSection) -> Fit | None:
    """Adapters as the section says; `None`: nobody has one."""
    own = section.personal
    if own is None:
        return None
    module: Any = require("stillhouse.train.online_head", "train", "adapters")
    rates = module.HeadRates(own.steps, own.learning_rate, 0.0, own.anchor_l2)
    rank, seed = own.rank, section.seed

    def fit(shared: Any, features: Any, targets: Any) -> Any:
        return module.fit_delta(shared, features, targets, rates, rank=rank, seed=seed)

    return fit


def drawn(lessons: Sequence[Lesson], section: OnlineSection) -> list[Lesson]:
    """Of a run's examples so many, always the same."""
    order = sorted(lessons, key=lambda one: unit_hash(one.id, section.seed))
    return order[: section.replay_rows]


def examples_of(run: str | None, file: str, task: ClassificationTask) -> list[Lesson]:
    """A file of examples of the student's run; none where there is no run."""
    if run is None:
        return []
    path = Path(run) / DATASET / file
    found = []
    for one in read_records(path, Example):
        label = one.label if one.label in task.labels else task.parse(one.completion).value
        if isinstance(label, str):
            found.append(
                Lesson(
                    id=f"{file}:{one.id}",
                    at=0,
                    tenant="",
                    whose="",
                    messages=one.prompt,
                    target=label,
                    source="teacher",
                    teacher=label,
                )
            )
    return found


def beliefs_of(folder: str | None, task: ClassificationTask) -> Beliefs | None:
    """A local classifier's probabilities of the task's labels."""
    if folder is None:
        return None
    teacher: Any = open_any(Path(folder), task, "label", BATCH)

    def beliefs(queries: Sequence[Query]) -> list[Mapping[str, float]]:
        found: list[Mapping[str, float]] = []
        for start in range(0, len(queries), BATCH):
            calls = [Call(one, Sampling()) for one in queries[start : start + BATCH]]
            for said in teacher.run_batch(calls):
                shares = {k: math.exp(v) for k, v in said[0].label_logprobs.items()}
                total = sum(shares.values())
                found.append({label: share / total for label, share in shares.items()})
        return found

    return beliefs


def names_of(gateway: Any, name: str, registry: Path) -> frozenset[str]:
    """What the gateway may call the student that `promoted` finds: its id in the registry, or the
    upstream of gateway.yaml."""
    link, section = registry / "live" / name, gateway.tasks.get(name)
    found = {id_of(link.resolve().name)} if link.exists() else set()
    return frozenset(found if section is None else {*found, section.student})


def hand_over_of(gateway: Any, url: str | None) -> HandOver | None:
    """The gateway's admin API, where it has one.

    Args:
        url: its address, where that is not as gateway.yaml says.
    """
    if gateway.admin is None or not available("stillhouse.retrain.gateway_admin"):
        return None
    module: Any = require("stillhouse.retrain.gateway_admin", "serve", "the gateway's admin API")
    address = url or module.address_of(gateway.admin.host, gateway.admin.port)
    found: HandOver = module.GatewayAdmin.from_environment(address, gateway.admin.key_env)
    return found
