"""Stage 1, before all: find the task worth distilling in a request log, and its recipe."""

import json
import random
import tempfile
from pathlib import Path

from stillhouse.core.progress import Silent
from stillhouse.core.recipe_file import load_recipe
from stillhouse.traffic.mine import MineOptions, mine
from stillhouse.traffic.tasks_page import show_tasks

rng = random.Random(0)
with tempfile.TemporaryDirectory() as folder:
    log = Path(folder) / "log.jsonl"
    with log.open("w") as handle:
        for number in range(400):
            team = rng.choice(["billing", "bug", "other"])
            words = " ".join(rng.choices(["invoice", "screen", "hello", "app", "refund"], k=8))
            ticket = f"{words}, mail me at user{number}@example.org"
            asked = [{"role": "user", "content": f"Which team?\n\nTicket: {ticket}\n\nTeam:"}]
            said = {
                "choices": [{"message": {"role": "assistant", "content": team}}],
                "usage": {"prompt_tokens": 40, "completion_tokens": 1},
            }
            row = {"request": {"model": "gpt-4.1", "messages": asked}, "response": said}
            handle.write(json.dumps({**row, "timestamp": 1_770_000_000 + 900 * number}) + "\n")
    out = Path(folder) / "tasks"
    report = mine(MineOptions((log,), out), Silent()).report
    show_tasks(report, out, as_json=False)
    recipe = load_recipe(out / str(report.tasks[0].recipe))
    print(repr(recipe.task.prompt), recipe.teacher.model)
    print((out / str(report.tasks[0].traffic)).read_text().splitlines()[0])
