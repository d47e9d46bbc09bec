"""What the paper's hardware says of its d_model."""

import pytest
from repository import PARAMS
from small_scale import needs_libtpu, small_params

from relu_sparsity.errors import UserError
from relu_sparsity.hardware import GIB
from relu_sparsity.params_file import load_params
from relu_sparsity.tpu import infer as module
from relu_sparsity.tpu.infer import SHAPES, Candidate, infer, lines


def candidate(*gib: float) -> Candidate:
    return Candidate(128, "bfloat16", False, dict(zip(SHAPES, gib, strict=True)), (3.0, 2.4))


def test_what_fits_and_should_not_is_wrong_and_so_is_the_reverse():
    hbm = 8 * GIB
    assert candidate(7.0, 8.0, 9.0).misfits(hbm) == []
    assert candidate(7.0, 7.5, 6.0).misfits(hbm) == pytest.approx([0.25])
    assert candidate(8.4, 10.0, 12.0).misfits(hbm) == pytest.approx([0.05, 0.25])


def test_the_table_has_memory_days_and_what_is_wrong():
    text = list(lines([candidate(7.56, 10.2, 16.5)], "v2:4x4"))
    assert "7.48 GiB" in text[0]
    assert "6 x 32768 and 14 x 16384 fit and 14 x 32768 does not" in text[0]
    row = [cell.strip() for cell in text[2].splitlines()[-1].strip("|").split("|")]
    assert row == ["128", "bfloat16", "no", "7.56", "10.20", "16.50", "3.0", "2.4", "2", "36%"]


@pytest.mark.parametrize(
    ("message", "gib"),
    [
        ("Ran out of memory in memory space hbm. Used 16.50G of 7.48G hbm.", 16.5),
        ("the total memory required for HLO temporaries (512.0M) exceeds available HBM", 0.5),
    ],
)
def test_the_compilers_refusal_tells_how_much_was_needed(message, gib):
    found = module._USED.search(message)
    assert float(found[1]) / (1 if found[2] == "G" else 1024) == gib


@pytest.mark.parametrize(("emb_dim", "num_heads"), [(512, 8), (100, 5), (6, 3), (2, 1)])
def test_heads_divide_whatever_size_is_asked_for(emb_dim, num_heads):
    config = load_params(PARAMS, "tpu").runs["baseline"].config
    assert module._num_heads(config, emb_dim) == num_heads


@pytest.mark.parametrize("emb_dim", [0, 1, 101])
def test_a_size_that_no_model_has_is_told(emb_dim):
    config = small_params().runs["baseline"].config
    with pytest.raises(UserError, match=f"--emb-dim {emb_dim}: allowed: even numbers from 2"):
        infer(config, "v2:4x4", [128, emb_dim])


@needs_libtpu
def test_compiled_for_the_slice(monkeypatch):
    shapes = {(2, 512): True, (4, 512): True, (2, 2048): False}
    monkeypatch.setattr(module, "SHAPES", shapes)
    config = small_params().runs["baseline"].config
    plain, remat = infer(config, "v2:2x2", [128], dtypes=("bfloat16",))
    assert (plain.remat, remat.remat) == (False, True)
    assert list(plain.gib) == list(shapes)
    assert 0 < remat.gib[4, 512] < plain.gib[4, 512], "computing again takes less memory"
    assert plain.gib[2, 512] < plain.gib[2, 2048]
    assert plain.days == remat.days
    assert plain.days[0] == pytest.approx(plain.days[1] * 0.5 / 0.4)
