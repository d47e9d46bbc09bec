"""What slices have used, and what a plan will take of them."""

import json

import pytest
from typer.testing import CliRunner

from relu_sparsity.cli import app
from relu_sparsity.plan import Cost, Plan, PlannedJob, Speed
from relu_sparsity.tpu import usage
from relu_sparsity.tpu.slices import SliceParams
from relu_sparsity.tpu.usage import SliceUse, Usage

HOUR = 3600.0


def test_hours_are_added_and_only_those_of_a_slice_that_was_there_cost():
    never_there = SliceUse("v2-32", 16.0, asked=0, gone=2 * HOUR)
    preempted = SliceUse("v2-32", 16.0, 3 * HOUR, 4 * HOUR, 10 * HOUR, lost_seconds=HOUR / 2)
    used = Usage.sum([Usage.of(never_there), Usage.of(preempted)])
    assert used == Usage(
        slices=2, slice_hours=6.0, waiting_hours=3.0, lost_hours=0.5, cost=6 * 16.0
    )
    assert str(used).endswith("after 3.00 hours of waiting, 96.00 at slices.yaml's price")
    assert Usage.sum([used, used]).cost == 2 * 96.0
    unpriced = Usage.of(SliceUse("v2-32", None, 0, HOUR, 2 * HOUR))
    assert unpriced.cost is None
    assert Usage.sum([used, unpriced]).cost is None


def test_a_slice_that_is_there_counts_up_to_now(monkeypatch):
    monkeypatch.setattr(usage, "now", lambda: 5 * HOUR)
    there = SliceUse("v2-32", 1.0, asked=0).marked("active").marked("active")
    assert there.active == 5 * HOUR
    monkeypatch.setattr(usage, "now", lambda: 7 * HOUR)
    assert Usage.of(there).slice_hours == pytest.approx(2.0)
    assert there.marked("active").active == 5 * HOUR, "the first time counts"


def test_a_clock_that_is_set_changes_no_hours(monkeypatch):
    there = SliceUse("v2-32", 1.0, asked=usage.now()).marked("active")
    monkeypatch.setattr(usage.time, "time", lambda: 0.0)
    assert 0.0 <= there.marked("gone").gone - there.active < 60.0


def test_launchers_whose_clocks_differ_give_nothing_back():
    used = Usage.of(SliceUse("v2-32", 16.0, asked=9 * HOUR, active=8 * HOUR, gone=7 * HOUR))
    assert (used.slice_hours, used.waiting_hours, used.cost) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("accelerator_type", "chips"),
    [("v2-32", 16), ("v3-8", 4), ("v4-16", 8), ("v5p-8", 4), ("v5litepod-16", 16), ("v6e-8", 8)],
)
def test_the_names_of_types_count_cores_or_chips(accelerator_type, chips):
    params = SliceParams(accelerator_type=accelerator_type, price_per_chip_hour=2.0)
    assert params.num_chips == chips
    assert params.hourly_price == 2.0 * chips


def test_a_plan_on_slices_tells_hours_and_cost():
    job = PlannedJob("train/baseline/seed0", "train", [], Cost(1, 1, 1.0, device_hours=640.0))
    plan = Plan("tpu", Speed(1e12, 32, 0), [job])
    [line] = usage.planned_lines(plan, SliceParams(price_per_chip_hour=1.5))
    assert line == (
        "On slices v2-32: about 20 slice-hours, 480 at 1.5 per chip-hour and 16 chips a slice."
    )
    [line] = usage.planned_lines(plan, SliceParams())
    assert "about 20 slice-hours. For their cost set price_per_chip_hour" in line


def test_the_plan_of_the_tpu_scale_has_them():
    printed = CliRunner().invoke(app, ["plan", "--scale", "tpu", "--json"])
    told = json.loads(printed.stdout)["slices"]
    assert told["accelerator_type"] == "v2-32"
    assert told["slice_hours"] > 1000
    assert (
        json.loads(CliRunner().invoke(app, ["plan", "--scale", "smoke", "--json"]).stdout)["slices"]
        is None
    )
