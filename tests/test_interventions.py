"""Masks and widths of section 4."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relu_sparsity.interventions import random_mask, unused_mask, used_widths

layers = st.lists(
    st.lists(st.booleans(), min_size=1, max_size=30).map(lambda row: np.array(row, bool)),
    min_size=1,
    max_size=5,
)


@given(layers)
def test_unused_mask_keeps_just_the_used_units(used):
    for kept, layer in zip(unused_mask(used), used, strict=True):
        np.testing.assert_array_equal(kept, layer)


@given(layers, st.integers(0, 99))
def test_random_mask_keeps_as_many_units_in_each_layer(used, seed):
    kept = random_mask(used, seed=seed, run_seed=0)
    assert [layer.sum() for layer in kept] == [layer.sum() for layer in used]
    assert [layer.size for layer in kept] == [layer.size for layer in used]


@given(layers, st.integers(0, 99))
def test_random_mask_over_the_model_keeps_the_total(used, seed):
    kept = random_mask(used, seed=seed, run_seed=0, over="model")
    assert sum(layer.sum() for layer in kept) == sum(layer.sum() for layer in used)
    assert [layer.size for layer in kept] == [layer.size for layer in used]


def test_random_mask_is_seeded_and_not_the_unused_mask():
    used = [np.arange(100) < 50, np.arange(100) < 90]
    same, again, other = (random_mask(used, seed=0, run_seed=seed) for seed in (0, 0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(same, again, strict=True))
    assert not np.array_equal(same[0], other[0])
    assert not np.array_equal(same[0], used[0])
    (other_seed, _) = random_mask(used, seed=1, run_seed=0)
    assert not np.array_equal(same[0], other_seed)


def test_equal_layers_get_different_random_masks():
    one, other = random_mask([np.arange(100) < 50] * 2, seed=0, run_seed=0)
    assert not np.array_equal(one, other)


def test_random_mask_over_the_model_moves_units_between_layers():
    used = [np.zeros(500, bool), np.ones(500, bool)]
    kept = random_mask(used, seed=0, run_seed=0, over="model")
    assert 150 < kept[0].sum() < 350
    assert random_mask(used, seed=0, run_seed=0)[0].sum() == 0


@pytest.mark.parametrize(
    ("multiple_of", "widths"), [(1, [3, 1, 10]), (4, [4, 4, 10]), (8, [8, 8, 10])]
)
def test_used_widths_round_up_within_the_layer(multiple_of, widths):
    used = [np.arange(10) < 3, np.zeros(10, bool), np.ones(10, bool)]
    assert used_widths(used, multiple_of=multiple_of) == widths
