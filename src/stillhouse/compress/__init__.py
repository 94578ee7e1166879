"""6 shrink: smaller forms of a student, and the student as a draft of its teacher; all measured."""
