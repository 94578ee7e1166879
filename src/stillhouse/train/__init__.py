"""Stage 4: distil: students, objectives, trainer, teacher tuning."""
