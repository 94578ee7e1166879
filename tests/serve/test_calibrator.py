"""Calibrated probabilities, the promise on fresh samples, and files that are refused."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from stillhouse.core.errors import DataError
from stillhouse.models.confidence import agreement, label_features, text_features
from stillhouse.serve.calibrator import (
    Judged,
    fit_calibrator,
    fit_gate,
    gate_of_run,
)
from stillhouse.serve.gate_file import load_gate, save_gate


def judged(n, seed):
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        x = float(rng.normal(2, 2))
        right = bool(rng.random() < 1 / (1 + math.exp(-x)))
        rows.append(Judged(f"{seed}-{i}", {"a": x, "b": float(rng.normal())}, right))
    return rows


def test_calibrator_finds_the_true_probability():
    rows = judged(8_000, 1)
    found = fit_calibrator([r.features for r in rows], [r.acceptable for r in rows])
    for x in (-1.0, 0.0, 1.0, 3.0):
        assert found.probability({"a": x, "b": 0}) == pytest.approx(
            1 / (1 + math.exp(-x)), abs=0.04
        )


def test_promise_on_fresh_samples(tmp_path):
    gate = fit_gate(judged(3_000, 2), 0.05)
    save_gate(tmp_path / "gate.json", gate)
    assert load_gate(tmp_path / "gate.json") == gate
    fresh = judged(20_000, 3)
    accepted = [r for r in fresh if gate.confident(r.features)[1]]
    assert len(accepted) > 5_000
    assert sum(not r.acceptable for r in accepted) / len(accepted) <= 0.05


def test_gate_of_a_run_folder(tmp_path):
    rng = np.random.default_rng(4)
    (tmp_path / "evaluate").mkdir()
    with (tmp_path / "evaluate" / "predictions.jsonl").open("w") as handle:
        for i in range(800):
            p = float(rng.uniform(0.5, 1))
            said = "a" if rng.random() < p else "b"
            line = {"set": "held_out", "id": str(i), "reference": "a", "answers": {"s": said}}
            handle.write(json.dumps({**line, "probabilities": {"s": [p, 1 - p]}}) + "\n")
    assert gate_of_run(tmp_path, "s", 0.2).threshold is not None
    with pytest.raises(DataError, match="nobody"):
        gate_of_run(tmp_path, "nobody", 0.2)


def test_not_a_number_is_refused(tmp_path):
    gate = fit_gate(judged(400, 5), 0.2)
    with pytest.raises(ValueError, match="not finite"):
        gate.confident({"a": math.nan, "b": 0})
    with pytest.raises(ValueError, match="missing"):
        gate.confident({"a": 1})
    with pytest.raises(ValueError, match="finite"):
        fit_calibrator([{"a": math.nan}, {"a": 1}], [True, False])
    with pytest.raises(ValueError, match="acceptable"):
        fit_calibrator([{"a": 1}], [True])
    path = tmp_path / "gate.json"
    path.write_text(json.dumps({**gate.model_dump(mode="json"), "threshold": math.nan}))
    with pytest.raises(DataError):
        load_gate(path)
    path.write_text("{}")
    with pytest.raises(DataError, match="no gate"):
        load_gate(path)


def test_features_by_hand():
    found = label_features([0.75, 0.25])
    assert found["logit"] == pytest.approx(math.log(3)) == found["margin"]
    assert found["certainty"] == pytest.approx(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert text_features([-1.0, -3.0]) == {"mean_logprob": -2.0, "min_logprob": -3.0}
    assert agreement(["x", "x", "y"]) == {"agreement": 0.5}
    for bad in ([1.0], [math.nan, 1], [-0.1, 1.1], [0.1, 0.1]):
        with pytest.raises(ValueError, match="probabilities"):
            label_features(bad)
    with pytest.raises(ValueError, match="log-prob"):
        text_features([])
