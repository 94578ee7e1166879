"""The command line: frozen options, exit codes, one-line errors, scaffolds that load."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from stillhouse.cli import app
from stillhouse.cli_table import COMMANDS, Deferred
from stillhouse.core.recipe_corpus_file import corpus_schema_text, load_corpus_recipe
from stillhouse.core.recipe_file import load_recipe, recipe_schema_text
from stillhouse.core.recipe_images_file import image_schema_text, load_image_recipe
from stillhouse.stages import STAGE_NAMES

ROOT = Path(__file__).parents[1]

STAGE_OPTIONS = {"recipe", "run_dir", "overrides", "as_json"}
OPTIONS = {
    "init": {"kind", "out"},
    "doctor": {"as_json"},
    "run": STAGE_OPTIONS,
    "images": STAGE_OPTIONS,
    "report": {"folder", "as_json"},
    "schema": {"corpus", "of_images"},
    "store": set(),
    "mine": {
        "logs",
        "out",
        "log_format",
        "redact",
        "price",
        "days",
        "min_requests",
        "top",
        "teacher",
        "repeats",
        "as_json",
    },
    "plan": {*STAGE_OPTIONS, "sample"},
    "curve": {*STAGE_OPTIONS, "sizes", "repeats", "same_steps", "point_usd"},
    "frontier": {*STAGE_OPTIONS, "sizes", "students", "repeats"},
    "pretrain": {*STAGE_OPTIONS, "until"},
    "forget": {"folders", "user", "dry_run", "as_json"},
    "teacher": set(),
    "signals": set(),
    "registry": set(),
    "monitor": set(),
    **dict.fromkeys(STAGE_NAMES, STAGE_OPTIONS),
    "compress": {*STAGE_OPTIONS, "student"},
    "serve": {"file"},
    "dashboard": {"loop_yaml", "host", "port"},
    "online": {"file", "task", "follow", "roll_back", "forget", "status", "as_json"},
    "calibrate": {
        "run",
        "error",
        "delta",
        "method",
        "samples",
        "acceptable",
        "student",
        "window",
        "novelty",
        "repeats",
        "temperature",
        "log",
        "task",
        "log_student",
        "days",
        "outcomes",
        "student_usd",
        "teacher_usd",
        "out",
        "as_json",
    },
    "retrain": {"loop", "task", "every", "on_alert", "dry_run", "as_json"},
    "simulate": {
        "log",
        "policy",
        "task",
        "days",
        "per_day",
        "repetitions",
        "seed",
        "export",
        "as_json",
    },
}


TEACHER_OPTIONS = {
    "compare": STAGE_OPTIONS,
    "check": {"recipe", "overrides", "as_json"},
    "tune": STAGE_OPTIONS,
}
_MOVES = {"reason", "by", "version", "registry", "as_json"}
REGISTRY_OPTIONS = {
    "add": {"source", "task", "parent", "reason", "by", "registry", "as_json"},
    "list": {"task", "registry", "as_json"},
    "show": {"ref", "registry", "as_json"},
    "promote": {"ref", "loop", *_MOVES},
    "rollback": {"task", "loop", *_MOVES},
    "reload": {"task", "loop", "reason", "registry"},
    "move": {"ref", "stage", *_MOVES},
    "alias": {"task", "name", "ref", "reason", "by", "registry"},
    "verify": {"registry", "as_json"},
    "export": {"ref", "out", "to", "registry"},
    "gc": {"days", "ancestors", "yes", "by", "registry"},
}
MONITOR_OPTIONS = {
    "check": {"loop", "task", "as_json"},
    "freeze": {"loop", "task", "again", "as_json"},
}
SIGNALS_OPTIONS = {"verify": {"folder", "sample", "most", "as_json"}}


def stillhouse(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "stillhouse", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


def options_of(group: object) -> dict[str, set[str | None]]:
    return {
        name: {p.name for p in command.params if p.name != "help"}
        for name, command in commands_of(group).items()
    }


def commands_of(group: object) -> dict[str, Any]:
    commands = getattr(group, "commands")  # noqa: B009 - click's Group, seen as Command
    return {
        name: command.load() if isinstance(command, Deferred) else command
        for name, command in commands.items()
    }


def test_the_option_list_is_pinned() -> None:
    group = typer.main.get_command(app)
    assert options_of(group) == OPTIONS
    commands = commands_of(group)
    assert options_of(commands["teacher"]) == TEACHER_OPTIONS
    assert options_of(commands["signals"]) == SIGNALS_OPTIONS
    assert options_of(commands["registry"]) == REGISTRY_OPTIONS
    assert options_of(commands["monitor"]) == MONITOR_OPTIONS
    assert options_of(commands["store"]) == {
        "freeze": {"place"},
        "export": {"place", "out", "teacher"},
        "import": {"source", "place"},
    }


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_of_the_table_is_there_and_says_what_the_table_says(name: str) -> None:
    waiting = Deferred(name, COMMANDS[name])
    found = waiting.load()
    assert found.name == name
    assert found.help == waiting.help == COMMANDS[name].help
    assert (found.hidden, found.deprecated) == (waiting.hidden, waiting.deprecated)


def test_stages_have_a_command() -> None:
    assert set(STAGE_NAMES) - set(COMMANDS) == set()
    named = {name for name, entry in COMMANDS.items() if entry.attribute == "STAGE_COMMANDS"}
    assert set(STAGE_NAMES) - named == {"tune", "compress", "speculate"}


HEAVY = ("torch", "transformers", "anthropic", "openai", "sklearn", "datasketch")
# With their exit codes; one process runs them all, so that each of them must load nothing heavy.
CHEAP = [
    (["--help"], 0),
    (["--version"], 0),
    (["nothing-like-it"], 2),
    (["plan", "--help"], 0),
    (["plan", "missing.yaml"], 2),
    (["run", "missing.yaml"], 2),
    (["report", "."], 2),
    (["doctor", "--help"], 0),
    (["init", "generation"], 0),
    (["schema"], 0),
    (["registry", "list"], 0),
    (["store", "freeze", "missing"], 2),
    (["forget", ".", "--user", "someone"], 2),
    (["online", "missing.yaml", "task"], 2),
]


def test_a_command_waits_for_no_others_libraries(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from stillhouse.cli import main\n"
        f"for arguments, code in {CHEAP!r}:\n"
        "    sys.argv = ['stillhouse', *arguments]\n"
        "    try:\n"
        "        main()\n"
        "    except SystemExit as end:\n"
        "        assert (end.code or 0) == code, (arguments, end.code)\n"
        f"    loaded = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "    assert not loaded, (arguments, loaded)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_help_lists_every_command_in_order_and_imports_none(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from stillhouse.cli import main\n"
        "sys.argv = ['stillhouse', '--help']\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        "    mine = [n for n in sys.modules if n.startswith('stillhouse.')]\n"
        "    print(*mine, file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.partition("Commands:\n")[2].splitlines()
    listed = [line.split()[0] for line in lines if line[2:3].strip()]
    assert listed == list(COMMANDS)
    assert not {entry.module for entry in COMMANDS.values()} & set(done.stderr.split())


def test_an_unknown_command_is_named_with_what_is_like_it() -> None:
    done = CliRunner().invoke(app, ["plann"])
    assert done.exit_code == 2
    assert "No such command 'plann'. Did you mean 'plan'?" in done.output


@pytest.mark.parametrize("kind", ["classification", "extraction", "generation"])
def test_init_writes_a_recipe_that_loads(kind: str, tmp_path: Path) -> None:
    out = tmp_path / "recipe.yaml"
    done = CliRunner().invoke(app, ["init", kind, "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert load_recipe(out).task.kind == kind
    assert "#" in out.read_text()


def test_init_never_overwrites(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("precious")
    done = stillhouse("init", cwd=tmp_path)
    assert done.returncode == 2
    assert "exists already" in done.stderr
    assert (tmp_path / "recipe.yaml").read_text() == "precious"


def test_a_user_error_is_one_line_with_exit_code_2(tmp_path: Path) -> None:
    done = stillhouse("run", "missing.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "missing.yaml" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unknown_key_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text((ROOT / "recipes/quickstart.yaml").read_text())
    done = stillhouse("run", "r.yaml", "--set", "train.learning_rat=1", cwd=tmp_path)
    assert done.returncode == 2
    assert "did you mean 'learning_rate'" in done.stderr


def test_missing_traffic_is_one_line_and_leaves_no_stage(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text((ROOT / "recipes/quickstart.yaml").read_text())
    done = stillhouse("traffic", "r.yaml", "--run-dir", "run", cwd=tmp_path)
    assert done.returncode == 2
    assert "traffic.jsonl" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert not (tmp_path / "run" / "traffic").exists()


def test_json_errors_are_json(tmp_path: Path) -> None:
    done = stillhouse("run", "missing.yaml", "--json", cwd=tmp_path)
    assert done.returncode == 2
    assert "missing.yaml" in json.loads(done.stdout)["error"]["message"]


def test_doctor_reports_extras_with_their_pip_line(tmp_path: Path) -> None:
    done = stillhouse("doctor", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    findings = json.loads(done.stdout)
    assert findings["extras"]["train"]["install"] == "run: pip install 'stillhouse[train]'"
    assert findings["machine"]["cores"] >= 1


def test_report_of_no_run_says_so(tmp_path: Path) -> None:
    done = stillhouse("report", ".", cwd=tmp_path)
    assert done.returncode == 2
    assert "not a run folder" in done.stderr


def test_the_schema_in_docs_is_the_schema() -> None:
    assert (ROOT / "docs" / "recipe.schema.json").read_text() == recipe_schema_text()
    assert (ROOT / "docs" / "corpus_recipe.schema.json").read_text() == corpus_schema_text()
    assert (ROOT / "docs" / "image_recipe.schema.json").read_text() == image_schema_text()


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda p: p.name)
def test_every_recipe_in_the_tree_loads(path: Path) -> None:
    text = path.read_text()
    load: Callable[[Path], Any] = load_recipe
    if "\ncorpus:" in text:
        load = load_corpus_recipe
    elif "\nimages:" in text:
        load = load_image_recipe
    assert load(path).name


@pytest.mark.full
def test_mine_finds_the_task_and_writes_its_recipe(tmp_path: Path) -> None:
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"Spam or ham?\n\nmail {n} of a{n}@x.example"},
                {"role": "assistant", "content": "spam" if n % 3 else "ham"},
            ],
            "model": "gpt-4.1",
        }
        for n in range(80)
    ]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = stillhouse("mine", "log.jsonl", "--out", "found", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (task,) = json.loads(done.stdout)["tasks"]
    assert (task["kind"], task["recipe"]) == ("classification", f"{task['name']}/recipe.yaml")
    assert (
        load_recipe(tmp_path / "found" / task["recipe"]).task.prompt
        == "Spam or ham?\n\nmail {text}"
    )
    done = stillhouse("mine", "log.jsonl", "--format", "nope", cwd=tmp_path)
    assert done.returncode == 2
    done = stillhouse("mine", "log.jsonl", "--redact", "mail", cwd=tmp_path)
    assert done.returncode == 2
    assert "known kinds" in done.stderr
    assert not (tmp_path / "tasks").exists()
