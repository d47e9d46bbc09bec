"""From exported runs to the paper's tables, figures and claims. Nothing here imports JAX."""
