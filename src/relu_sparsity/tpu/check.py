"""Whether every model of a scale fits a TPU slice, and what training it there takes at least.

The compiler in the libtpu wheel compiles for a slice that is not there, so no TPU is needed. It
refuses a program that does not fit in the HBM of a device.
"""

import functools
import importlib.util
import logging
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import Mesh
from tabulate import tabulate

from relu_sparsity.errors import UserError
from relu_sparsity.flops import forward_flops_per_token
from relu_sparsity.hardware import GIB, HARDWARE, Hardware
from relu_sparsity.model import KeptUnits
from relu_sparsity.params import MASKS, Params, RunConfig, RunParams
from relu_sparsity.tpu.cost import program_cost
from relu_sparsity.tpu.models import PAPER_LAYERS, TrainedModel, distinct_models
from relu_sparsity.training.step import make_mesh, make_steps

log = logging.getLogger(__name__)

DEFAULT_TOPOLOGY = "v2:4x4"
EXAMPLES = "v2:4x4 (the paper's v2-32), v3:4x4, v4:2x2x4, v5e:4x8, v5p:2x4x4, v6e:4x8, tpu7x:2x2x4"


@dataclass(frozen=True)
class ModelCheck:
    """What the compiler says of one model: its train step with metrics, for one device.

    Attributes:
      steps: The runs that train this model, with the updates of each.
      seeds: The seeds of each run.
      mlp_dims: The width of each layer that is trained.
      hbm_used: Bytes of HBM; None where the model cannot be compiled.
      flops: Floating-point operations of a step.
      matmul_flops: Those of its matrix products, from the shapes alone.
      hbm_bytes: Bytes that a step reads from and writes to HBM.
      seconds_per_step: The least time that the FLOPs and the bytes allow.
      bound_by: Which of the two it is, `flops` or `bytes`.
      hours_per_run: The least time of the updates, of the longest run if they differ.
      slice_hours: The same for all runs and seeds together.
      problem: Why the model cannot be compiled; None where it can.
    """

    steps: dict[str, int]
    seeds: dict[str, int]
    mlp_dims: tuple[int, ...]
    hbm_used: int | None = None
    flops: float | None = None
    matmul_flops: float | None = None
    hbm_bytes: float | None = None
    seconds_per_step: float | None = None
    bound_by: str | None = None
    hours_per_run: float | None = None
    slice_hours: float | None = None
    problem: str | None = None


@dataclass(frozen=True)
class TpuCheck:
    """What `check` found.

    Attributes:
      scale: The scale of params.yaml.
      topology: The slice.
      device_kind: What JAX calls its devices.
      num_devices: How many it has.
      hardware: What each can do.
      models: Every distinct model.
      notes: What else is to be known.
    """

    scale: str
    topology: str
    device_kind: str
    num_devices: int
    hardware: Hardware
    models: list[ModelCheck]
    notes: list[str] = field(default_factory=list)

    def problems(self) -> list[str]:
        """One line for each model that does not fit or cannot be compiled."""
        return [
            f"{', '.join(model.steps)} ({_shape(model.mlp_dims)}): {model.problem}"
            for model in self.models
            if model.problem is not None
        ]

    def slice_hours(self) -> float:
        """Slice-hours of all runs whose model fits."""
        return sum(model.slice_hours or 0.0 for model in self.models)

    def lines(self) -> Iterator[str]:
        """The result as a table, with notes."""
        unit = self.hardware.unit
        yield (
            f"Scale {self.scale} on {self.topology}: {self.num_devices} {unit}s ({self.device_kind}"
            f"), each with {self.hardware.peak_flops / 1e12:g} TFLOP/s in bfloat16, "
            f"{self.hardware.bandwidth / 1e9:g} GB/s and {self.hardware.hbm / GIB:.2f} GiB of HBM "
            "that a program can use."
        )
        yield f"The train step with metrics, per {unit}:"
        yield ""
        table = tabulate(
            [_HEADER, *map(self._row, self.models)],
            tablefmt="plain",
            disable_numparse=True,
            colalign=("left", "left", *["right"] * (len(_HEADER) - 2)),
        )
        yield from table.splitlines()
        yield ""
        yield f"In all {self.slice_hours():,.0f} slice-hours, at least."
        if self.problems():
            yield "Not counted, as they cannot be compiled:"
            yield from (f"  {problem}" for problem in self.problems())
        yield from self.notes

    def as_json(self) -> dict[str, Any]:
        """As values that JSON knows."""
        return asdict(self) | {"slice_hours": self.slice_hours(), "problems": self.problems()}

    def _row(self, model: ModelCheck) -> list[str]:
        head = [", ".join(model.steps), _shape(model.mlp_dims)]
        runs = str(sum(model.seeds.values()))
        if model.problem is not None:
            return [*head, *["-"] * 7, runs, "-"]
        assert model.hbm_used is not None
        assert model.flops is not None
        assert model.matmul_flops is not None
        assert model.hbm_bytes is not None
        return [
            *head,
            f"{model.hbm_used / GIB:.2f}",
            f"{model.flops / 1e12:.3f}",
            f"{model.flops / model.matmul_flops:.3f}",
            f"{model.hbm_bytes / 1e9:.1f}",
            f"{model.seconds_per_step:.4f}",
            str(model.bound_by),
            f"{model.hours_per_run:.1f}",
            runs,
            f"{model.slice_hours:,.1f}",
        ]


_HEADER = [
    "runs",
    "layers x width",
    "GiB used",
    "TFLOPs",
    "of formula",
    "HBM GB",
    "s/step",
    "bound by",
    "hours/run",
    "trained",
    "slice-hours",
]


def check(
    params: Params, topology: str = DEFAULT_TOPOLOGY, *, runs: Sequence[str] | None = None
) -> TpuCheck:
    """Compiles the train step of every distinct model of a scale for a TPU slice.

    Takes up to a minute per model, and says in the log how far it is.

    Args:
      params: The scale.
      topology: The slice: a TPU version, and its chips along each axis.
      runs: Only the models of these runs; None takes all.

    Raises:
      UserError: libtpu is not installed, or there is no such topology or run, or the devices do
        not fit the batch. A model that does not fit is no error: see `TpuCheck.problems`.
    """
    chosen = (
        list(params.paper_runs.values()) if runs is None else [params.run(name) for name in runs]
    )
    models = distinct_models(params, chosen)
    mesh = topology_mesh(topology)
    device_kind = mesh.devices[0].device_kind
    hardware = HARDWARE.get(device_kind)
    if hardware is None:
        raise UserError(
            f"topology: {topology!r} has devices of the kind {device_kind!r}, whose speed is not "
            f"known; allowed: {', '.join(HARDWARE)}"
        )
    checked = []
    for number, model in enumerate(models, 1):
        names = ", ".join(model.steps)
        shape = _shape(model.config.model.mlp_dims)
        log.info("%d of %d: %s: compiles %s", number, len(models), names, shape)
        start = time.monotonic()
        result = _check_model(model, mesh, hardware)
        log.info("  %s, %.0f s", result.problem or "fits", time.monotonic() - start)
        checked.append(result)
    return TpuCheck(
        params.scale, topology, device_kind, mesh.size, hardware, checked, list(_notes(chosen))
    )


def topology_mesh(topology: str) -> Mesh:
    """The devices of a TPU slice that need not be there, along the axis `data`.

    Raises:
      UserError: libtpu is not installed, or there is no such topology.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "libtpu is not installed; run `make tpu-check`, which installs it for this check only"
        )
    # libtpu would look for a TPU, ask the cloud's metadata server about it, and write logs.
    for key, value in {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v2-8",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_LOG_DIR": "disabled",
        # It lets one process at a time have the TPU, of which there is none.
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }.items():
        os.environ.setdefault(key, value)
    jax.config.update("jax_platforms", "cpu")
    # A chip of v4 has two cores, which JAX uses as one device on a real slice.
    options = {"chip_config_name": "megacore"} if topology.startswith("v4:") else {}
    try:
        description = topologies.get_topology_desc(topology, "tpu", **options)
    except jax.errors.JaxRuntimeError as error:
        raise UserError(
            f"topology: {topology!r}: {_first_line(error)}; allowed: a TPU version and its chips "
            f"along each axis, such as {EXAMPLES}"
        ) from None
    return make_mesh(devices=description.devices)


def _check_model(model: TrainedModel, mesh: Mesh, hardware: Hardware) -> ModelCheck:
    result = functools.partial(ModelCheck, model.steps, model.seeds, model.config.model.mlp_dims)
    try:
        compiled = compile_step(model.config, model.kept_units, mesh)
    except jax.errors.JaxRuntimeError as error:
        return result(problem=_first_line(error))
    cost = program_cost(compiled)
    seconds = {
        "flops": cost.flops / hardware.peak_flops,
        "bytes": cost.hbm_bytes / hardware.bandwidth,
    }
    bound_by = max(seconds, key=lambda key: seconds[key])
    hours = {run: steps * seconds[bound_by] / 3600 for run, steps in model.steps.items()}
    return result(
        hbm_used=hbm_used(compiled),
        flops=cost.flops,
        matmul_flops=matmul_flops(model.config, mesh.size),
        hbm_bytes=cost.hbm_bytes,
        seconds_per_step=seconds[bound_by],
        bound_by=bound_by,
        hours_per_run=max(hours.values()),
        slice_hours=sum(hours[run] * model.seeds[run] for run in hours),
    )


def compile_step(
    config: RunConfig, kept_units: list[KeptUnits] | None, mesh: Mesh
) -> jax.stages.Compiled:
    """Compiles the train step with metrics for the devices of a mesh, which need not be there.

    Args:
      config: The run's parameters.
      kept_units: The shapes of the masks of each stack of layers.
      mesh: The devices.

    Raises:
      UserError: The number of devices does not divide the global batch.
      jax.errors.JaxRuntimeError: The program does not fit in HBM, or cannot be compiled.
    """
    training = config.training
    steps = make_steps(config, vocab_size=config.tokenizer.vocab_size, mesh=mesh)
    step: Any = steps.train_and_measure
    tokens = jax.ShapeDtypeStruct((training.global_batch_size, training.seq_len + 1), jnp.int32)
    learning_rate = jax.ShapeDtypeStruct((), jnp.float32)
    return step.lower(steps.state, tokens, learning_rate, kept_units).compile()


def hbm_used(compiled: jax.stages.Compiled) -> int:
    """Bytes of a device's memory that a program takes, with its arguments and its code."""
    memory = compiled.memory_analysis()
    assert memory is not None
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes
    )


def matmul_flops(config: RunConfig, num_devices: int) -> float:
    """FLOPs of a step's matrix products on each device, from the shapes alone.

    What rematerialization computes again counts here: each layer's forward pass but its last
    product, which the backward pass does not need.
    """
    training, emb_dim, mlp_dims = config.training, config.model.emb_dim, config.model.mlp_dims
    per_token = functools.partial(
        forward_flops_per_token, emb_dim=emb_dim, mlp_dims=mlp_dims, seq_len=training.seq_len
    )
    flops = 3 * per_token(vocab_size=config.tokenizer.vocab_size)
    if config.model.remat:
        flops += per_token(vocab_size=0) - 2 * emb_dim * sum(mlp_dims)
    return flops * training.global_batch_size * training.seq_len / num_devices


def _notes(runs: Sequence[RunParams]) -> Iterator[str]:
    yield (
        "The least time: FLOPs at peak or bytes at full bandwidth, whichever takes longer; nothing "
        "for communication, evaluations or input. 'of formula': FLOPs relative to those of the "
        "matrix products alone, from the shapes. 'HBM GB': read and written in a step."
    )
    interventions = {run.intervention for run in runs}
    if interventions & set(MASKS):
        yield (
            "The widths of masked runs are the paper's: what its Table 1 says is used per batch. "
            "They train from the mask step on."
        )
    if "used_widths" in interventions:
        yield "The widths of runs with used_widths are the paper's: what its Table 4 says is used."
    other_depths = [
        run.name
        for run in runs
        if run.intervention is not None and run.config.model.num_layers != PAPER_LAYERS
    ]
    if other_depths:
        yield (
            f"{', '.join(other_depths)}: another number of layers than the paper's "
            f"{PAPER_LAYERS}; all units count as used."
        )


def _shape(mlp_dims: Sequence[int]) -> str:
    low, high = min(mlp_dims), max(mlp_dims)
    return f"{len(mlp_dims)} x {low}" + ("" if low == high else f" to {high}")


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".")
