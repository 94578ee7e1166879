"""Stage 8: watch fidelity, divergence, drift and its cause; alerts; the dashboard."""
