"""What the paper's hardware and clock say of what it leaves open: d_model, remat, dtype.

The paper trains on a v2-32 in about 2.5 days. Models of 6 layers of 32768 units and of 14 of 16384
fit there, and deeper ones of full width do not (section 5.3).
"""

import itertools
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import jax
from jax.sharding import Mesh

from relu_sparsity.errors import UserError
from relu_sparsity.flops import training_flops
from relu_sparsity.hardware import GIB, HARDWARE
from relu_sparsity.params import ModelParams, RunConfig
from relu_sparsity.tpu.check import compile_step, hbm_used, topology_mesh

log = logging.getLogger(__name__)

PAPER_DAYS = 2.5
PEAK_SHARES = (0.4, 0.5)
"""What a well-made program reaches of the peak."""
SHAPES = {(6, 32768): True, (14, 16384): True, (14, 32768): False}
"""Layers and width, and whether the paper's hardware holds the model."""
# What the compiler says of a program that does not fit: "Used 16.52G of 7.48G hbm", or "memory
# required for HLO temporaries (7.56G) exceeds available HBM (7.48G)".
_USED = re.compile(r"([\d.]+)([MG])\)? (?:of|exceeds) ")


@dataclass(frozen=True)
class Candidate:
    """One choice of what the paper leaves open.

    Attributes:
      emb_dim: Its d_model.
      dtype: What it computes in.
      remat: Whether it computes each layer's activations again in the backward pass.
      gib: What a train step needs per core, by layers and width.
      days: What the baseline's steps take at least at each share of the peak.
    """

    emb_dim: int
    dtype: str
    remat: bool
    gib: dict[tuple[int, int], float]
    days: tuple[float, ...]

    def misfits(self, hbm: float) -> list[float]:
        """By which share of a core's memory models fit that should not, or the reverse."""
        return [
            abs(used * GIB / hbm - 1)
            for shape, used in self.gib.items()
            if (used * GIB <= hbm) != SHAPES[shape]
        ]


def infer(
    config: RunConfig,
    topology: str,
    emb_dims: Sequence[int],
    *,
    dtypes: Sequence[str] = ("bfloat16", "float32"),
) -> list[Candidate]:
    """Compiles the paper's models under every choice.

    Args:
      config: The paper's baseline.
      topology: The paper's slice.
      emb_dims: The values of d_model; each a multiple of the heads.
      dtypes: What to compute in.

    Raises:
      UserError: libtpu is not installed, or there is no such topology.
    """
    for emb_dim in emb_dims:
        if emb_dim < 2 or emb_dim % 2:
            raise UserError(f"--emb-dim {emb_dim}: allowed: even numbers from 2")
    mesh = topology_mesh(topology)
    choices = list(itertools.product(emb_dims, dtypes, (False, True)))
    found = []
    for number, (emb_dim, dtype, remat) in enumerate(choices, 1):
        log.info("%d of %d: d_model %d, %s, remat %s", number, len(choices), emb_dim, dtype, remat)
        gib = {}
        for num_layers, mlp_dim in SHAPES:
            model = config.model.model_copy(
                update={
                    "num_layers": num_layers,
                    "mlp_dim": mlp_dim,
                    "emb_dim": emb_dim,
                    "num_heads": _num_heads(config, emb_dim),
                    "dtype": dtype,
                    "remat": remat,
                }
            )
            gib[num_layers, mlp_dim] = _gib(config.model_copy(update={"model": model}), mesh)
        found.append(Candidate(emb_dim, dtype, remat, gib, _days(config, emb_dim, mesh)))
    return found


def _num_heads(config: RunConfig, emb_dim: int) -> int:
    """As many as the scale has, or the most below that which divide the size."""
    most = min(config.model.num_heads, emb_dim // 2)
    return max(heads for heads in range(1, most + 1) if emb_dim % heads == 0)


def lines(candidates: Sequence[Candidate], topology: str) -> Iterator[str]:
    """The result as a table, the likeliest choices marked."""
    from tabulate import tabulate

    hardware = HARDWARE["TPU v2"]
    yield (
        f"A core of {topology} has {hardware.hbm / GIB:.2f} GiB; the paper's runs take about "
        f"{PAPER_DAYS:g} days. There, {_fits(True)} fit and {_fits(False)} does not."
    )
    yield ""
    header = ["d_model", "dtype", "remat", *(f"{a} x {b}" for a, b in SHAPES)]
    header += [f"days at {share:.0%}" for share in PEAK_SHARES]
    header += ["wrong", "by at most"]
    yield tabulate(
        [
            [
                each.emb_dim,
                each.dtype,
                "yes" if each.remat else "no",
                *(f"{used:.2f}" for used in each.gib.values()),
                *(f"{days:.1f}" for days in each.days),
                len(each.misfits(hardware.hbm)),
                f"{max(each.misfits(hardware.hbm), default=0.0):.0%}",
            ]
            for each in candidates
        ],
        header,
        tablefmt="pipe",
        disable_numparse=True,
        stralign="right",
    )
    yield ""
    yield (
        "GiB that a train step with metrics needs per core, by layers x width. 'wrong': how many "
        "of the three fit and should not, or the reverse; 'by at most': how far, as a share of the "
        "memory. Days are those of the baseline's steps at that share of the peak."
    )


def as_json(candidates: Sequence[Candidate]) -> list[dict[str, Any]]:
    """As values that JSON knows."""
    return [
        asdict(each) | {"gib": {f"{a}x{b}": used for (a, b), used in each.gib.items()}}
        for each in candidates
    ]


def _fits(wanted: bool) -> str:
    return " and ".join(f"{a} x {b}" for (a, b), fits in SHAPES.items() if fits == wanted)


def _gib(config: RunConfig, mesh: Mesh) -> float:
    try:
        return hbm_used(compile_step(config, None, mesh)) / GIB
    except jax.errors.JaxRuntimeError as error:
        found = _USED.search(str(error))
        if found is None:
            raise
        return float(found[1]) / (1 if found[2] == "G" else 1024)


def _days(config: RunConfig, emb_dim: int, mesh: Mesh) -> tuple[float, ...]:
    model: ModelParams = config.model.model_copy(update={"emb_dim": emb_dim})
    of_choice = config.model_copy(update={"model": model})
    flops = training_flops(
        of_choice, model.mlp_dims, first_step=0, last_step=config.training.num_steps
    )
    peak = HARDWARE[mesh.devices[0].device_kind].peak_flops * mesh.size
    return tuple(flops / (share * peak) / 86400 for share in PEAK_SHARES)
