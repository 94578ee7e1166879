"""Stage 5: prove: scorers, fidelity, retention, cost, gate, report."""
