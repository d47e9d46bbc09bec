"""What is said of the models that are compiled for a TPU slice."""

import importlib.util
import json
import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from small_scale import needs_libtpu, small_params

from relu_sparsity.errors import UserError
from relu_sparsity.hardware import GIB, HARDWARE
from relu_sparsity.tpu import check as module
from relu_sparsity.tpu.check import ModelCheck, TpuCheck, check, topology_mesh

RESULT = TpuCheck(
    scale="tpu",
    topology="v2:4x4",
    device_kind="TPU v2",
    num_devices=32,
    hardware=HARDWARE["TPU v2"],
    models=[
        ModelCheck(
            steps={"baseline": 1000, "slow": 1000},
            seeds={"baseline": 1, "slow": 2},
            mlp_dims=(32768,) * 6,
            hbm_used=5 * GIB,
            flops=2.02e12,
            matmul_flops=2e12,
            hbm_bytes=3e9,
            seconds_per_step=0.5,
            bound_by="flops",
            hours_per_run=10.0,
            slice_hours=30.0,
        ),
        ModelCheck({"deep": 9}, {"deep": 1}, (16384, 4096), problem="does not fit"),
    ],
    notes=["A note."],
)


def test_the_table_has_every_model_and_says_what_does_not_fit():
    head, what, _, header, *rows = RESULT.lines()
    assert head.startswith("Scale tpu on v2:4x4: 32 cores (TPU v2), each with 23 TFLOP/s")
    assert what == "The train step with metrics, per core:"
    assert header.split()[:2] == ["runs", "layers"]
    fields = re.split(r"  +", rows[0])
    assert fields[:6] == ["baseline, slow", "6 x 32768", "5.00", "2.020", "1.010", "3.0"]
    assert fields[6:] == ["0.5000", "flops", "10.0", "3", "30.0"]
    assert re.split(r"  +", rows[1])[:3] == ["deep", "2 x 4096 to 16384", "-"]
    assert rows[3] == "In all 30 slice-hours, at least."
    assert rows[5] == "  deep (2 x 4096 to 16384): does not fit"
    assert rows[6] == "A note."


def test_json_has_the_same():
    values = json.loads(json.dumps(RESULT.as_json()))
    assert values["slice_hours"] == 30
    assert values["problems"] == ["deep (2 x 4096 to 16384): does not fit"]
    assert [model["hbm_used"] for model in values["models"]] == [5 * GIB, None]


def test_other_depths_are_noted():
    params = small_params()
    notes = list(module._notes(list(params.paper_runs.values())))
    assert "masked: another number of layers than the paper's 6; all units count as used." in notes


def test_without_libtpu_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="libtpu is not installed; run `make tpu-check`"):
        check(small_params())


def test_an_unknown_run_is_an_error():
    with pytest.raises(UserError, match="run 'slwo' is not in"):
        check(small_params(), runs=["slwo"])


@needs_libtpu
@pytest.mark.parametrize("topology", ["v2", "v9:2x2", "v2:3x5"])
def test_an_unknown_topology_is_an_error(topology):
    with pytest.raises(UserError, match=f"topology: '{topology}': .*; allowed: .* v2:4x4"):
        check(small_params(), topology)


@needs_libtpu
def test_a_slice_that_does_not_fit_the_batch_is_an_error():
    with pytest.raises(UserError, match=r"training.global_batch_size: 16 .* by 512 devices"):
        check(small_params(), "v2:16x16")


@needs_libtpu
@pytest.mark.parametrize(("topology", "num_devices"), [("v3:2x2", 8), ("v4:2x2x1", 4)])
def test_a_device_is_a_core_or_a_chip(topology, num_devices):
    assert topology_mesh(topology).size == num_devices


@needs_libtpu
def test_a_small_model_is_compiled_for_a_slice():
    result = check(small_params(), "v2:2x2", runs=["baseline", "slow"])
    assert (result.device_kind, result.num_devices) == ("TPU v2", 8)
    assert not result.problems()
    (model,) = result.models
    assert model.steps == {"baseline": 1_000_000, "slow": 1_000_000}
    # What each device keeps whatever its share of the batch: parameters, two moments, in float32.
    parameters = 2 * (2 * 128 * 1024 + 4 * 128**2) + 512 * 128
    assert 12 * parameters < model.hbm_used < result.hardware.hbm
    assert model.flops == pytest.approx(model.matmul_flops, rel=0.1)
    assert model.hbm_bytes > 24 * parameters, "they are read and written"
    expected = max(
        model.flops / result.hardware.peak_flops, model.hbm_bytes / result.hardware.bandwidth
    )
    assert model.seconds_per_step == expected
    assert model.hours_per_run == pytest.approx(1e6 * expected / 3600)
    assert model.slice_hours == 2 * model.hours_per_run


@needs_libtpu
def test_a_model_that_does_not_fit_is_told():
    result = check(small_params(mlp_dim=2**22), "v2:2x2", runs=["baseline"])
    (problem,) = result.problems()
    assert problem.startswith("baseline (2 x 4194304): ")
    assert "exceeds available HBM (7.48G)" in problem
    assert result.slice_hours() == 0


@needs_libtpu
@pytest.mark.parametrize(
    "topology", ["v2:2x2", "v3:2x2", "v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1"]
)
def test_the_usable_hbm_is_what_the_compiler_allows(topology):
    mesh = topology_mesh(topology)
    everywhere = NamedSharding(mesh, PartitionSpec())
    too_large = jax.ShapeDtypeStruct((2**10, 2**13, 2**13), jnp.float32)
    add_one = jax.jit(lambda x: x + 1, in_shardings=everywhere, out_shardings=everywhere)
    with pytest.raises(jax.errors.JaxRuntimeError) as error:
        add_one.lower(too_large).compile()
    usable = re.search(r"available HBM \((.*)G\)", str(error.value))[1]
    assert HARDWARE[mesh.devices[0].device_kind].hbm == float(usable) * GIB
