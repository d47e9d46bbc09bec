"""What has to be set up for slices, and what a killed launcher left."""

import json
import logging

import pytest
from small_scale import small_params
from test_slices import FAILED, gcloud_answers

from relu_sparsity.errors import UserError
from relu_sparsity.tpu.setup import delete_left_over, require_setup
from relu_sparsity.tpu.slice_job import SliceJob
from relu_sparsity.tpu.slices import SliceParams

SLICES = SliceParams(project="p", zone="z")


@pytest.fixture
def job(tmp_path):
    return SliceJob(tmp_path / "jobs" / "relu-sparsity-tpu-x-1")


@pytest.fixture(autouse=True)
def gcloud(monkeypatch, tmp_path):
    (tmp_path / "gcloud").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))


def test_what_a_killed_launcher_left_is_deleted(monkeypatch, job):
    described = (0, json.dumps(FAILED), "")
    calls = gcloud_answers(monkeypatch, (0, "me", ""), described, (0, "", ""), (1, "", "NOT_FOUND"))
    delete_left_over(job, SLICES)
    assert [call[4] for call in calls[1:]] == ["describe", "delete", "describe"]


def test_that_nobody_knows_whether_a_slice_was_left_is_told(monkeypatch, job, caplog):
    told = "whether its slice was left over is not known"
    with caplog.at_level(logging.WARNING):
        gcloud_answers(monkeypatch, (0, "me", ""), (1, "", "UNAVAILABLE: try again"))
        delete_left_over(job, SLICES)
        assert f"{told} (UNAVAILABLE: try again)" in caplog.text
        caplog.clear()
        gcloud_answers(monkeypatch, (0, "(unset)", ""))
        delete_left_over(job, SLICES)
        assert f"{told} (an account: gcloud auth login)" in caplog.text


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"data": {"source": "text", "files": ["a.txt"]}}, "the text: a slice's hosts cannot"),
        ({"tokenizer": {"model": "own.model", "vocab_size": 64}}, "copy tokenizer.model to a buck"),
    ],
)
def test_files_that_no_host_can_read_are_told_beforehand(monkeypatch, changes, told):
    monkeypatch.setenv("RELU_SPARSITY_STORE", "gs://bucket/store")
    gcloud_answers(monkeypatch, (0, "me", ""))
    with pytest.raises(UserError, match=told):
        require_setup(SLICES, with_defaults(small_params(), changes))


def with_defaults(params, changes):
    sections = {
        name: getattr(params.defaults, name).model_copy(update=values)
        for name, values in changes.items()
    }
    return params.model_copy(update={"defaults": params.defaults.model_copy(update=sections)})
