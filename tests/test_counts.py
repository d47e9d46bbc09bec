import pytest

from relu_sparsity.counts import counted, span


@pytest.mark.parametrize(
    ("number", "told"), [(0, "0 runs"), (1, "1 run"), (2, "2 runs"), (1000, "1,000 runs")]
)
def test_one_is_singular(number, told):
    assert counted(number, "run") == told


@pytest.mark.parametrize(
    ("numbers", "told"), [([256, 256], "256"), ((64, 2048, 128), "64 to 2,048"), ([3], "3")]
)
def test_numbers_that_differ_are_told_from_the_least_to_the_largest(numbers, told):
    assert span(numbers) == told
