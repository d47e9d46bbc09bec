"""What a person sees of a workflow, from the events that Snakemake's plugin hands on."""

import shutil
from pathlib import Path

import pytest
from repository import PARAMS

from relu_sparsity.dag_view import DagView, Expected, TimeLeft
from relu_sparsity.params_file import load_params


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_time_left_goes_by_what_jobs_took_and_tell():
    left = TimeLeft({"train/a/seed0": 10.0, "train/b/seed0": 20.0}, {"train": 2, "figure": 4}, 2)
    # Two starts of 6 s, steps as planned, four figures of a second, two at a time.
    assert left.seconds({}) == (2 * 6 + 30 + 4) / 2
    assert left.seconds({"train/a/seed0": (4.0, None)}) == (2 * 6 + 30 - 4 + 4) / 2
    assert left.seconds({"train/a/seed0": (4.0, 2.0)}) == (2 + 6 + 20 + 4) / 2
    left.finish("train/a/seed0", 26.0)
    # Its steps took twice as long as planned, so the others' will.
    assert left.seconds({}) == (6 + 40 + 4) / 2
    left.finish("figure/fig01", 3.0)
    assert left.seconds({}) == (6 + 40 + 3 * 3) / 2
    left.finish("train/b/seed0", 46.0)
    assert left.seconds({}) == 3 * 3 / 2


def test_nobody_waits_for_what_has_failed_unless_it_is_tried_again():
    left = TimeLeft({"train/a/seed0": 10.0, "train/b/seed0": 20.0}, {"train": 2, "figure": 3}, 1)
    left.fail("train/b/seed0")
    left.fail("figure/fig01")
    assert left.seconds({}) == 6 + 10 + 2
    assert left.seconds({"train/b/seed0": (0.0, None)}) == 6 + 10 + 6 + 20 + 2
    left.finish("train/b/seed0", 26.0)
    assert left.seconds({}) == 6 + 10 + 2


def test_time_left_is_that_of_the_jobs_that_run(tmp_path, monkeypatch):
    """Of a run alone, or of those that are only made when asked for."""
    monkeypatch.setenv("RELU_SPARSITY_STORE", str(tmp_path / "store"))
    shutil.copy(PARAMS, tmp_path)
    monkeypatch.chdir(tmp_path)
    params = load_params(Path("params.yaml"), "smoke")
    jobs = {"train/baseline/seed0", "train/rmsnorm/seed0", "extract/baseline/seed0"}
    left = Expected(params, 1, jobs).time_left({"train": 2, "extract": 1})
    assert left.training.keys() == {"train/baseline/seed0", "train/rmsnorm/seed0"}
    assert left.training["train/baseline/seed0"] == left.training["train/rmsnorm/seed0"] > 1


def test_a_job_that_failed_is_shown_no_more(capsys, clock, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    view = DagView(clock)
    view.begin({"train": 2})
    for number, run in ((3, "a"), (4, "b")):
        view.start(number, "train", {"run": run, "seed": "0"}, f"train {run}, seed 0")
    view.fail(3)
    # Its end may be told twice, and one may end that was never seen to start.
    view.fail(3)
    (names, _) = view._picture().renderables
    assert [str(cell) for cell in names.columns[0].cells] == ["  train b, seed 0"]
    view.close()


def test_elsewhere_than_in_a_terminal_each_long_job_leaves_a_line(capsys, clock):
    view = DagView(clock)
    view.begin({"train": 1, "figure": 2})
    view.start(7, "train", {"run": "baseline", "seed": "0"}, "train baseline, seed 0")
    clock.now += 65
    view.finish(7)
    view.start(8, "figure", {"figure": "fig01"}, "draw fig01")
    clock.now += 1
    view.finish(8)
    view.say("Error in rule figure:\n    [jobid: 9]")
    view.start(9, "figure", {"figure": "fig02"}, "draw fig02")
    clock.now += 1
    view.finish(9)
    view.close()
    assert capsys.readouterr().err.splitlines() == [
        "train baseline, seed 0: done in 0:01:05; 1 of 3 jobs done in 0:01:05",
        "Error in rule figure:",
        "    [jobid: 9]",
        "draw fig02: done in 0:00:01; 3 of 3 jobs done in 0:01:07",
    ]
