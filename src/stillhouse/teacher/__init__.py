"""Stage 2: ask the teacher, durably and within budget."""
