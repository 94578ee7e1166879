"""Stage 2: three teachers as one; how their beliefs become the ensemble's."""

from stillhouse.core.ensembles import MemberAnswers, combine
from stillhouse.core.records import Completion
from stillhouse.core.tasks import ClassificationTask

task = ClassificationTask(kind="classification", labels=("bug", "billing"))
beliefs = {
    "small": {"bug": -0.51, "billing": -0.92},
    "medium": {"bug": -0.43, "billing": -1.05},
    "large": {"bug": -4.6, "billing": -0.01},
}
members = [
    MemberAnswers(
        [
            Completion(
                query_id="ticket 7",
                text=max(belief, key=lambda label: belief[label]),
                model=name,
                revision="1",
                label_logprobs=belief,
            )
        ],
        "auto",
    )
    for name, belief in beliefs.items()
]
for how in ("majority", "mean_probabilities", "mean_logits"):
    found = combine(task, how, members)
    shown = ", ".join(f"{p:.2f}" for p in found.probabilities or ())
    print(f"{how}: {found.text} ({shown})")
