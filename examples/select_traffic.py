"""Stage 1: choose diverse texts of skewed traffic, and measure how near all of it is to them."""

from stillhouse.core.coverage import coverage
from stillhouse.core.selection import Strata, k_center, quotas
from stillhouse.models.clusters import cluster
from stillhouse.models.embedders import open_embedder

texts = [f"Where is my parcel number {i}?" for i in range(300)]
texts += [f"The invoice of month {i} charges me twice, please refund it." for i in range(30)]
texts += [f"The app crashes when I open page {i} on my phone." for i in range(6)]

vectors = open_embedder("hashing", texts).embed(texts)
clusters = cluster(vectors, 8)
strata = Strata(clusters.labels, quotas(clusters.sizes, 12, floor=1))
chosen = k_center(vectors, 12, strata=strata).chosen
for index in sorted(chosen.tolist()):
    print(f"cluster {clusters.labels[index]}: {texts[index]}")

measured = coverage(vectors, chosen)
print(f"largest distance: {measured.chosen.largest:.2f}, random {measured.random.largest:.2f}")
