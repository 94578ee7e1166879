"""Stage 1: read logs and find the queries worth distilling."""
