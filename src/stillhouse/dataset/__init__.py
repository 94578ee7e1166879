"""Stage 3: keep what is good: checks, duplicates, contamination, split."""
