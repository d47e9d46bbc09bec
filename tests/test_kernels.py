"""What is written for a backend computes what the plain form does."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from relu_sparsity.kernels import causal_attention, contract, probed


@pytest.mark.parametrize(("features", "out"), [(3, 8), (8, 3)])
def test_contraction_and_its_gradients_are_those_of_a_product(features, out):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (2, 5, features))
    kernel = jax.random.normal(keys[1], (features, out))
    weights = jax.random.normal(keys[2], (2, 5, out))
    value, gradients = jax.vjp(contract, x, kernel)
    expected, expected_gradients = jax.vjp(jnp.matmul, x, kernel)
    np.testing.assert_array_equal(value, expected)
    for ours, theirs in zip(gradients(weights), expected_gradients(weights), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_probe_counts_and_changes_nothing(dtype):
    hidden, weights = jax.random.normal(jax.random.key(0), (2, 3, 500, 7)).astype(dtype)
    out, gradients = jax.vjp(probed, hidden, jnp.zeros((3, 7)))
    gradient, counts = gradients(weights)
    np.testing.assert_array_equal(out, hidden)
    np.testing.assert_array_equal(gradient, weights)
    np.testing.assert_array_equal(counts, (np.asarray(hidden, np.float32) > 0).sum(axis=1))


@pytest.mark.parametrize(("dtype", "atol"), [("float32", 1e-5), ("bfloat16", 3e-2)])
def test_attention_and_its_gradients_are_those_of_jax(dtype, atol):
    heads = jax.random.normal(jax.random.key(0), (4, 2, 9, 3, 8)).astype(dtype)
    *inputs, weights = heads

    def with_gradients(attention):
        @jax.jit
        def call(*inputs):
            mixed, gradients = jax.vjp(attention, *inputs)
            return mixed, *gradients(weights)

        return call(*inputs)

    found = with_gradients(causal_attention)
    expected = with_gradients(functools.partial(jax.nn.dot_product_attention, is_causal=True))
    assert found[0].dtype == expected[0].dtype
    for ours, theirs in zip(found, expected, strict=True):
        ours, theirs = (np.asarray(array, np.float32) for array in (ours, theirs))
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=atol * np.abs(theirs).max())
