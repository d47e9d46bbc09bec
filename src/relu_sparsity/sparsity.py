"""The paper's sparsity metrics (sections 2.1 and A.6), from counts.

Everything follows from one small integer array per layer: on how many tokens of each sequence
each hidden unit is above zero. It is 1 / seq_len of the activations' size, and integers add up to
the same sum in any order, so the metrics do not depend on how many devices share a batch.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Integer, Num

from relu_sparsity.metrics import PERCENTILES


class UnitUse(NamedTuple):
    """How a layer's hidden units are used in one batch.

    Attributes:
      token_units: Units above zero, summed over the tokens of each sequence.
      sequence_units: Units above zero anywhere in each sequence.
      batch_units: Units above zero anywhere in each group of `group_size` sequences.
      use_frequency: Per sequence, the percentiles of the fraction of tokens on which a unit is
        above zero, among the units used in the sequence. In the order of `PERCENTILES`.
      used: The units above zero anywhere in the first group.
    """

    token_units: Int[Array, "*layers batch"]
    sequence_units: Int[Array, "*layers batch"]
    batch_units: Int[Array, "*layers groups"]
    use_frequency: Float[Array, "*layers batch percentiles"]
    used: Bool[Array, "*layers hidden"]


def token_counts(activations: Num[Array, "batch seq hidden"]) -> Int[Array, "batch hidden"]:
    """Counts, for each sequence and hidden unit, the tokens on which the unit is above zero."""
    return jax.lax.platform_dependent(
        activations, cpu=_token_counts_by_piece, default=_token_counts_at_once
    )


def _token_counts_at_once(
    activations: Num[Array, "batch seq hidden"],
) -> Int[Array, "batch hidden"]:
    # Not in int32: XLA would merge later sums of the counts with this one, into further sums over
    # all the activations.
    dtype = jnp.int16 if activations.shape[1] < 2**15 else jnp.float32
    return jnp.sum(activations > 0, axis=1, dtype=dtype).astype(jnp.int32)


def _token_counts_by_piece(
    activations: Num[Array, "batch seq hidden"],
) -> Int[Array, "batch hidden"]:
    """Sums over pieces of a sequence, then over the pieces.

    On CPU XLA makes a sum over more than 32 elements a window reduction, and writes what it sums
    to memory first, as large as the activations. A sum of fewer is one loop with the comparison.
    The second sum is a window reduction on purpose: XLA would run two sums as one, badly ordered.
    """
    batch, seq_len, hidden = activations.shape
    piece = math.gcd(seq_len, 16)
    pieces = seq_len // piece
    dtype = jnp.int16 if seq_len < 2**15 else jnp.int32
    on = (activations > 0).reshape(batch, pieces, piece, hidden)
    of_pieces = jnp.sum(on, axis=2, dtype=jnp.uint8).astype(dtype)
    window = (1, pieces, 1)
    summed = jax.lax.reduce_window(of_pieces, dtype(0), jax.lax.add, window, window, "VALID")
    return summed[:, 0].astype(jnp.int32)


def use_from_counts(
    counts: Integer[Array, "batch hidden"], *, seq_len: int, group_size: int
) -> UnitUse:
    """Reduces token counts to the use of units per token, sequence and batch.

    Args:
      counts: Tokens on which each unit is above zero, 0 to `seq_len`.
      seq_len: Tokens in a sequence.
      group_size: Sequences in a device batch (16 in the paper). It divides `batch`.

    References:
      Section 2.1, A.6.1, A.6.2.
    """
    on = counts > 0
    groups = on.reshape(-1, group_size, on.shape[-1]).any(axis=1)
    return UnitUse(
        token_units=jnp.sum(counts, axis=-1),
        sequence_units=jnp.sum(on, axis=-1, dtype=jnp.int32),
        batch_units=jnp.sum(groups, axis=-1, dtype=jnp.int32),
        use_frequency=_percentile_counts(counts, seq_len) / seq_len,
        used=groups[0],
    )


def mean_use(use: Any, *, seq_len: int) -> dict[str, Any]:
    """Averages a `UnitUse` over its sequences and groups, as fractions.

    Args:
      use: A `UnitUse` of JAX or NumPy arrays, with any number of leading layer axes.
      seq_len: Tokens in a sequence.

    Returns:
      An array of the layer axes' shape for each of `metrics.METRICS`, each 0 to 1.
    """
    hidden = use.used.shape[-1]
    means = {
        "token_use": use.token_units.mean(axis=-1) / (seq_len * hidden),
        "sequence_use": use.sequence_units.mean(axis=-1) / hidden,
        "batch_use": use.batch_units.mean(axis=-1) / hidden,
    }
    frequency = use.use_frequency.mean(axis=-2)
    return means | {f"p{q}": frequency[..., i] for i, q in enumerate(PERCENTILES)}


def unit_use(
    activations: Num[Array, "batch seq hidden"] | Num[np.ndarray, "batch seq hidden"],
) -> dict[str, Float[Array, ""]]:
    """Measures how much of an MLP's hidden layer a batch uses. Works on any model, and in `jit`.

    Args:
      activations: Hidden activations after the ReLU, NumPy or JAX.

    Returns:
      Fractions from 0 to 1: `token_use`, `sequence_use` and `batch_use` of the hidden units (the
      whole batch counts as one device batch); `p50`, `p65`, `p75` and `p90` of the tokens of a
      sequence on which a unit is used, among the units that the sequence uses.

    Raises:
      ValueError: `activations` does not have three axes, or one of them is empty, or a sequence has
        more activations than 32 bits count.

    References:
      Section 2.1, A.6; Tables 1 and 3.
    """
    if activations.ndim != 3 or 0 in activations.shape:
        raise ValueError(
            f"activations: shape {activations.shape}; allowed: (batch, seq, hidden), none empty"
        )
    batch, seq_len, hidden = activations.shape
    if seq_len * hidden >= 2**31:
        raise ValueError(
            f"activations: shape {activations.shape}; allowed: seq x hidden below {2**31}"
        )
    counts = token_counts(jnp.asarray(activations))
    return mean_use(use_from_counts(counts, seq_len=seq_len, group_size=batch), seq_len=seq_len)


def _percentile_counts(
    counts: Integer[Array, "batch hidden"], seq_len: int
) -> Float[Array, "batch percentiles"]:
    """Percentiles of the positive counts, as A.6.1's rescaled percentiles of all counts.

    With U of H units used, A.6.1 takes the percentile q U / H + 100 (1 - U / H) of all counts.
    On H sorted counts that is the fractional index

      H - 1 - a / 100 + a / (100 H),  a = (100 - q) U,

    which integers give exactly: with a = 100 i + r it is H - 1 - i - n / (100 H), n = r H - a.
    """
    hidden = counts.shape[-1]
    used = jnp.sum(counts > 0, axis=-1, dtype=jnp.int32)[:, None]
    a = (100 - jnp.asarray(PERCENTILES, jnp.int32)) * used
    n = (a % 100) * hidden - a
    below = -(-n // (100 * hidden))
    low = hidden - 1 - a // 100 - below
    weight = (below * 100 * hidden - n).astype(jnp.float32) / (100 * hidden)
    high = jnp.minimum(low + 1, hidden - 1)
    ranks = jnp.concatenate([low, high], axis=-1)
    # A sort costs least on accelerators; on CPU a histogram of the few possible counts does.
    statistics = jax.lax.platform_dependent(
        counts,
        ranks,
        cpu=lambda counts, ranks: _order_statistics_by_histogram(counts, ranks, seq_len),
        default=_order_statistics_by_sort,
    )
    low_count, high_count = jnp.split(statistics.astype(jnp.float32), 2, axis=-1)
    return low_count + weight * (high_count - low_count)


def _order_statistics_by_sort(
    counts: Integer[Array, "batch hidden"], ranks: Integer[Array, "batch ranks"]
) -> Integer[Array, "batch ranks"]:
    return jnp.take_along_axis(jnp.sort(counts, axis=-1), ranks, axis=-1)


def _order_statistics_by_histogram(
    counts: Integer[Array, "batch hidden"], ranks: Integer[Array, "batch ranks"], seq_len: int
) -> Integer[Array, "batch ranks"]:
    histogram = jax.vmap(lambda row: jnp.bincount(row, length=seq_len + 1))(counts)
    at_most = jnp.cumsum(histogram, axis=-1)
    return jnp.sum(at_most[:, None, :] <= ranks[:, :, None], axis=-1, dtype=counts.dtype)
