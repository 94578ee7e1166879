"""Distil with distill-anything's own entry point; run by its own environment.

python peer_distill_anything_learn.py '{"student": DIR, "teacher": DIR, "data": FILE, ...}'
"""

import json
import sys

import torch
from distillanything import Student
from distillanything.config import DistillConfig

given = json.loads(sys.argv[1])
torch.set_num_threads(given["threads"])
torch.manual_seed(given["seed"])
config = DistillConfig.model_validate(
    {
        "data": {"eval_fraction": 0.0, "dedup": False},
        "train": {
            "output_dir": given["out"],
            "seed": given["seed"],
            "epochs": given["epochs"],
            "lr": given["learning_rate"],
        },
    }
)
student = Student(given["student"])
student.learn(teacher="hf:" + given["teacher"], dataset=given["data"], mode="logit", config=config)
student.save(given["out"])
