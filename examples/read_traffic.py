"""Stage 1: read a file of requests; what cannot be read is one line that names file and line."""

import json
import tempfile
from pathlib import Path

from stillhouse.core.errors import DataError
from stillhouse.core.tasks import ClassificationTask
from stillhouse.traffic.read import read_queries

task = ClassificationTask(
    kind="classification",
    prompt="{text}\nbug, billing or other?",
    labels=("bug", "billing", "other"),
)
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "traffic.jsonl"
    rows = [{"text": "The page is blank."}, {"text": "I was charged twice."}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for query in read_queries(path, task).queries:
        print(query.id, repr(task.input_text(query)))

    path.write_text('{"text": "fine"}\n{"txt": "misspelt key"}\n')
    try:
        read_queries(path, task)
    except DataError as error:
        print(error)
