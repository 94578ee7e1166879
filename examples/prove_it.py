"""Stage 5: retention with its interval, and the gate, from paired scores."""

import numpy as np

from stillhouse.core.statistics import mcnemar_exact, non_inferiority, paired_ratio

rng = np.random.default_rng(0)
teacher = (rng.random(1200) < 0.84).astype(float)
student = np.where(rng.random(1200) < 0.93, teacher, 1 - teacher)
retention = paired_ratio(student, teacher)
gate = non_inferiority(student, teacher, margin=0.05)
print(f"retention {retention.estimate:.3f} [{retention.low:.3f}, {retention.high:.3f}]")
print(f"difference {gate.difference.estimate:+.3f}, lower bound {gate.difference.low:+.3f}")
print("non-inferior" if gate.non_inferior else "not shown to be non-inferior")
print(f"McNemar p = {mcnemar_exact(student, teacher).p_value:.3g}")
