"""What the hosts of a slice are to make."""

import json
import tarfile

import pytest
import yaml
from repository import PARAMS

from relu_sparsity.errors import UserError
from relu_sparsity.files import write_text
from relu_sparsity.layout import Layout
from relu_sparsity.params_file import load_params
from relu_sparsity.tpu.slice_job import EXPECTED
from relu_sparsity.tpu.slices import SliceParams
from relu_sparsity.tpu.work import Work

SMOKE = Layout("smoke")


def work(command, run, layout=SMOKE):
    params = load_params(PARAMS, "smoke")
    return Work(params, layout, SliceParams(), command, run, 0)


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


def test_masks_of_other_steps_have_slices_of_their_own(monkeypatch, tmp_path):
    """Also where the run's name leaves no room for the step."""
    monkeypatch.setenv("RELU_SPARSITY_STORE", "gs://mine/store")
    document = yaml.safe_load(PARAMS.read_text())
    document["runs"]["wide_and_slow_and_late_decay"] = {}
    for step in (200, 300):
        document["branches"][f"masked_at_{step}"] = {
            "parent": "wide_and_slow_and_late_decay",
            "intervention": "mask_unused",
            "mask": {"step": step},
        }
    edited = tmp_path / "params.yaml"
    edited.write_text(yaml.safe_dump(document))
    params = load_params(edited, "smoke")
    masks = [
        Work(params, Layout("smoke"), SliceParams(), "mask", f"masked_at_{step}", 0)
        for step in (200, 300)
    ]
    assert len({mask.slice_job.name for mask in masks}) == 2
    for mask in masks:
        assert len(mask.slice_job.name) <= 61
        assert mask.slice_job.name.endswith(mask.store.folder.name[:8])


def test_hosts_check_the_run_that_they_train(monkeypatch, tmp_path):
    """Of two masks that share a slice, the second launcher may describe what the first began."""
    monkeypatch.setenv("RELU_SPARSITY_STORE", str(tmp_path))
    layout = Layout("smoke", root=tmp_path / "results")
    told = []
    for run in ("masked", "random_masked"):
        mask = work("mask", run, layout)
        for path in (path for job in mask.run.text_jobs for path in job.files_written):
            write_text(path, "")
        mask.prepare()
        with tarfile.open(mask.slice_job.bundle) as bundle:
            expected = json.load(bundle.extractfile(EXPECTED))
        told.append((expected, mask.slice_job.description().run))
    assert told[0] == told[1]
    assert told[0][1] == "baseline"
    assert told[0][0] == work("train", "baseline", layout).run.job.fingerprint.as_json()


def test_a_run_without_a_mask_has_none_to_make():
    with pytest.raises(UserError, match=r"runs.baseline: has no mask; allowed: a run with one"):
        work("mask", "baseline")
