"""The names of the paper's metrics (sections 2.1 and A.6), for code with and without JAX."""

PERCENTILES = (50, 65, 75, 90)
METRICS = ("token_use", "sequence_use", "batch_use", *(f"p{q}" for q in PERCENTILES))
