"""Train with distill-anything; run by its own environment, see training_step.

python peer_distill_anything.py '["kd", NAME, FOLDER, [SIZE...], THREADS, KEPT, SEED]'
"""

import ctypes
import json
import resource
import sys
import time
from pathlib import Path

import torch
from distillanything.config import DistillConfig
from distillanything.train.trainer import DistillTrainer
from transformers import AutoModelForCausalLM, AutoTokenizer

_, _, folder, (_, _, batch, _, _), threads, kept, seed = json.loads(sys.argv[1])
torch.set_num_threads(threads)
given = json.loads((Path(folder) / "tokens.json").read_text(encoding="utf-8"))
rows = [{name: torch.tensor(row[name]) for name in row} for row in given["train"]]
student, teacher = (
    AutoModelForCausalLM.from_pretrained(f"{folder}/{name}", dtype=torch.float32)
    for name in ("student", "teacher")
)
config = DistillConfig.model_validate(
    {
        "mode": "logit",
        "loss": {"kind": "forward_kl", "temperature": 1.0, "alpha": 1.0},
        "train": {
            "output_dir": kept,
            "lr": 1e-4,
            "epochs": 1,
            "batch_size": batch,
            "grad_accum": 1,
            "warmup_ratio": 0.0,
            "seed": seed,
        },
    }
)
tokenizer = AutoTokenizer.from_pretrained(f"{folder}/student")
trainer = DistillTrainer(student, tokenizer, rows, config, teacher_model=teacher)
trainer.save = lambda *_: None  # all are timed without what they write


def resident_mib(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(x.split()[1]) for x in lines if x.startswith(f"{field}:")) / 1024


ctypes.CDLL(None).malloc_trim(0)
Path("/proc/self/clear_refs").write_text("5")
start = resident_mib("VmRSS")
print("answer " + json.dumps({"ready": start}), flush=True)
for _ in sys.stdin:
    wall, cpu = time.perf_counter(), time.process_time()
    trainer.train()
    print(
        "answer "
        + json.dumps(
            {
                "seconds": time.perf_counter() - wall,
                "cpu_seconds": time.process_time() - cpu,
                "added_mib": resident_mib("VmHWM") - start,
                "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            }
        ),
        flush=True,
    )
student.save_pretrained(kept)
