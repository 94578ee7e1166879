"""Before stage 2: what asking the rest will cost, from a sample, with its interval."""

import random

from stillhouse.teacher.extrapolation import Rest, total_of_rest

draw = random.Random(0)
sizes = [draw.uniform(200, 2000) for _ in range(50)]  # bytes of the sampled prompts
usd = [size / 4 * 2e-6 + draw.uniform(50, 150) * 8e-6 for size in sizes]  # what they cost
rest = Rest(queries=20_000, size=20_000 * 1100.0)  # what is known of the others beforehand
found = total_of_rest(usd, sizes, rest, confidence=0.95, seed=0)
print(f"the rest will cost ${found.estimate:.2f}, between ${found.low:.2f} and ${found.high:.2f}")
