"""Stage 3: judge answers and find near-duplicates; a reject keeps its reason."""

from stillhouse.core.duplicates import groups_of
from stillhouse.core.recipe_data import DatasetSection
from stillhouse.core.records import Completion, Message, Query, Rejection
from stillhouse.core.tasks import ClassificationTask
from stillhouse.dataset.checks import check_completion

task = ClassificationTask(kind="classification", labels=("bug", "billing", "other"))
query = Query(id="1", messages=(Message(role="user", content="I was charged twice."),))
for text in ("Billing.", "It depends", ""):
    answer = Completion(query_id="1", text=text, model="teacher", revision="1")
    judged = check_completion(task, query, answer, DatasetSection())
    print(repr(text), "rejected: " + judged.reason if isinstance(judged, Rejection) else "kept")

texts = ["the page stays blank after login", "the page stays blank after login today", "refund me"]
print(groups_of(texts, threshold=0.7))
