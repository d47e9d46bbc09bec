"""What the hosts of a slice are to make."""

from pathlib import Path

import pytest

from relu_sparsity.errors import UserError
from relu_sparsity.layout import Layout
from relu_sparsity.params_file import load_params
from relu_sparsity.tpu.slices import SliceParams
from relu_sparsity.tpu.work import Work


def work(command, run):
    params = load_params(Path("params.yaml"), "smoke")
    return Work(params, Layout("smoke"), SliceParams(), command, run, 0)


def test_each_store_and_each_run_has_a_slice_of_its_own(monkeypatch):
    """The same run of two people in one project: neither takes nor deletes the other's slice."""
    names = {}
    for store in ("gs://mine/store", "gs://theirs/store"):
        monkeypatch.setenv("RELU_SPARSITY_STORE", store)
        for run in ("baseline", "lr_x1of3"):
            one = work("train", run)
            names[store, run] = one.slice_job.name
            # By which `status` finds the slice of a run.
            assert one.slice_job.name.endswith(one.store.folder.name[:8])
    assert len(set(names.values())) == 4


def test_masks_of_one_parent_at_one_step_share_a_slice(monkeypatch):
    monkeypatch.setenv("RELU_SPARSITY_STORE", "gs://mine/store")
    masks = {work("mask", run).slice_job.name for run in ("masked", "random_masked")}
    assert len(masks) == 1
    assert masks != {work("train", "baseline").slice_job.name}


def test_a_run_without_a_mask_has_none_to_make():
    with pytest.raises(UserError, match=r"runs.baseline: has no mask; allowed: a run with one"):
        work("mask", "baseline")
