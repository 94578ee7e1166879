"""Stage 9: registry of students, continuous and online distillation, promotion, roll back."""
