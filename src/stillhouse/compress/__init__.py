"""6 shrink: smaller forms of a student, gated again; the student as a draft of its teacher."""
