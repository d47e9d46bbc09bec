import pytest

from relu_sparsity.counts import counted


@pytest.mark.parametrize(
    ("number", "told"), [(0, "0 runs"), (1, "1 run"), (2, "2 runs"), (1000, "1,000 runs")]
)
def test_one_is_singular(number, told):
    assert counted(number, "run") == told
