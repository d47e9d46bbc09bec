"""The metrics against a plain NumPy transcription of section A.6."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax.sharding import NamedSharding, PartitionSpec

from relu_sparsity import sparsity
from relu_sparsity.metrics import METRICS
from relu_sparsity.sparsity import mean_use, token_counts, unit_use, use_from_counts
from relu_sparsity.training.step import make_mesh

# --- Section A.6, line by line, on counts as the text says -----------------------------------


def get_rescaled_percentile(fract_nonzero, desired_percentile):
    fract_zero = 1 - fract_nonzero
    return desired_percentile * fract_nonzero + 100 * fract_zero


def percentile_used_dimension_count(seq, percentile):
    seq_dim = seq.shape[0]
    use_count_by_dimension = np.sum(seq > 0, axis=0)
    frac_dimensions_gt_0 = np.sum(use_count_by_dimension > 0) / use_count_by_dimension.shape[0]
    new_percentile = get_rescaled_percentile(frac_dimensions_gt_0, percentile)
    return np.percentile(use_count_by_dimension, new_percentile) / seq_dim


def sequence_total_dimensions_used(seq):
    summed_activations_over_sequence = np.sum(seq, axis=0)
    return np.sum((summed_activations_over_sequence > 0).astype(np.int32))


def total_batch_dimensions_used(batch):
    return sequence_total_dimensions_used(batch.reshape(-1, batch.shape[2]))


def reference(batch):
    hidden = batch.shape[2]
    return {
        "token_use": np.mean([[np.sum(token > 0) for token in seq] for seq in batch]) / hidden,
        "sequence_use": np.mean([sequence_total_dimensions_used(seq) for seq in batch]) / hidden,
        "batch_use": total_batch_dimensions_used(batch) / hidden,
    } | {
        f"p{q}": np.mean([percentile_used_dimension_count(seq, q) for seq in batch])
        for q in (50, 65, 75, 90)
    }


def assert_equals_reference(batch):
    found, expected = unit_use(batch), reference(batch)
    assert tuple(found) == METRICS
    for metric in METRICS:
        np.testing.assert_allclose(found[metric], expected[metric], atol=2e-6, err_msg=metric)


# Each is compiled once: values are many, shapes are few.
shapes = st.sampled_from(
    [(1, 1, 1), (1, 1, 13), (1, 6, 1), (3, 1, 1), (1, 5, 8), (2, 2, 2), (2, 6, 7), (2, 3, 12),
     (3, 1, 9), (3, 4, 5), (3, 6, 13)]
)  # fmt: skip
# Positive values stay clear of underflow in A.6's sums over tokens.
values = st.one_of(st.just(0.0), st.floats(2**-10, 2**10, width=32))


@settings(max_examples=100)
@given(hnp.arrays(np.float32, shapes, elements=values))
def test_equals_a6_on_any_activations(batch):
    assert_equals_reference(batch)


@pytest.mark.parametrize(
    "batch",
    [
        pytest.param(np.zeros((3, 8, 16), np.float32), id="all zero"),
        pytest.param(np.ones((3, 8, 16), np.float32), id="dense"),
        pytest.param(np.ones((2, 1, 5), np.float32), id="one token"),
        pytest.param(np.eye(1, 7, dtype=np.float32)[None].repeat(4, 1), id="one unit"),
        pytest.param(np.ones((1, 3, 1), np.float32), id="a single unit"),
        pytest.param(np.eye(12, dtype=np.float32)[None], id="one unit per token"),
    ],
)
def test_equals_a6_on_edge_cases(batch):
    assert_equals_reference(batch)


@pytest.mark.parametrize("density", [0.01, 0.3, 0.9])
def test_equals_a6_on_a_layer_of_the_papers_shape(density):
    rng = np.random.default_rng(0)
    frequency = rng.beta(density, 1, size=2048)
    batch = (rng.random((2, 512, 2048)) < frequency).astype(np.float32)
    assert_equals_reference(batch)


def test_takes_jax_arrays_and_works_inside_jit():
    batch = np.random.default_rng(1).normal(size=(2, 8, 32)).clip(0).astype(np.float32)
    for function in (unit_use, jax.jit(unit_use)):
        found = function(jnp.asarray(batch))
        for metric, value in reference(batch).items():
            np.testing.assert_allclose(found[metric], value, atol=2e-6)


@pytest.mark.parametrize("shape", [(4, 8), (1, 2, 3, 4), (0, 8, 16), (2, 0, 16)])
def test_names_a_shape_it_cannot_take(shape, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=r"activations: shape .*allowed: \(batch, seq, hidden\)"):
        unit_use(np.zeros(shape, np.float32))


def test_more_activations_than_32_bits_count_are_refused():
    def shapes(seq_len):
        return jax.eval_shape(unit_use, jax.ShapeDtypeStruct((1, seq_len, 2**15), jnp.float32))

    assert shapes(2**16 - 1)["token_use"].shape == ()
    with pytest.raises(ValueError, match=r"allowed: seq x hidden below 2147483648"):
        shapes(2**16)


@settings(max_examples=40)
@given(hnp.arrays(np.int32, (3, 17), elements=st.integers(0, 11)))
def test_histogram_and_sort_give_the_same_order_statistics(counts):
    ranks = np.tile(np.arange(17), (3, 1))
    expected = np.sort(counts, axis=-1)
    by_sort = sparsity._order_statistics_by_sort(jnp.asarray(counts), jnp.asarray(ranks))
    by_histogram = sparsity._order_statistics_by_histogram(
        jnp.asarray(counts), jnp.asarray(ranks), 11
    )
    np.testing.assert_array_equal(by_sort, expected)
    np.testing.assert_array_equal(by_histogram, expected)


@pytest.mark.parametrize("count", [sparsity._token_counts_by_piece, sparsity._token_counts_at_once])
def test_a_long_sequence_is_counted_whole(count):
    seq_len = 2**15  # One more than an int16 holds.
    counts = count(jnp.ones((1, seq_len, 2), jnp.int8))
    np.testing.assert_array_equal(counts, [[seq_len, seq_len]])


def test_percentiles_are_exact_where_floats_would_round():
    # At the paper's width a float32 rank is off by up to 0.002 of a unit.
    hidden, used = 32768, 24811
    counts = np.zeros((1, hidden), np.int32)
    counts[0, :used] = np.random.default_rng(0).integers(1, 513, used)
    use = use_from_counts(jnp.asarray(counts), seq_len=512, group_size=1)
    for index, q in enumerate((50, 65, 75, 90)):
        rank = get_rescaled_percentile(used / hidden, q)
        expected = np.percentile(counts[0].astype(np.float64), rank) / 512
        np.testing.assert_allclose(use.use_frequency[0, index], expected, rtol=1e-6)


def test_batch_use_is_per_device_batch_then_averaged():
    batch = np.zeros((4, 2, 10), np.float32)
    batch[0, 0, :4] = batch[1, 1, 4:6] = batch[2, 0, :1] = 1
    counts = token_counts(jnp.asarray(batch))
    use = use_from_counts(counts, seq_len=2, group_size=2)
    np.testing.assert_array_equal(use.batch_units, [6, 1])
    np.testing.assert_array_equal(use.used, [True] * 6 + [False] * 4)
    np.testing.assert_allclose(mean_use(use, seq_len=2)["batch_use"], 0.35)


@pytest.mark.parametrize("num_devices", [2, 8])
def test_does_not_depend_on_how_many_devices_share_the_batch(num_devices):
    batch = np.random.default_rng(2).normal(-1, size=(16, 32, 64)).clip(0).astype(np.float32)

    def measure(batch):
        return use_from_counts(token_counts(batch), seq_len=32, group_size=4)

    expected = jax.jit(measure)(batch)
    by_data = NamedSharding(make_mesh(num_devices), PartitionSpec("data"))
    found = jax.jit(measure, in_shardings=by_data)(batch)
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_array_equal(one, other)
