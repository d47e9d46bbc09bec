"""What leaving a mask's units out of the model saves (supposed in section 4.1.1)."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from relu_sparsity.errors import UserError
from relu_sparsity.files import read_json, write_text
from relu_sparsity.flops import described_flops_per_token
from relu_sparsity.paper.catalog import PRUNED_RUNS, PRUNING
from relu_sparsity.paper.history import load_mask
from relu_sparsity.paper.tables import to_latex

if TYPE_CHECKING:
    from relu_sparsity.layout import Layout
    from relu_sparsity.params import Params

_TITLES = {
    "run": "Run",
    "units_left": "Units left (%)",
    "units_trained": "Units trained (%)",
    "step_flops_dense": "FLOPs per step, dense",
    "step_flops_compacted": "FLOPs per step, compacted",
    "flops_ratio": "Ratio of FLOPs",
    "steps_per_second_dense": "Steps per second, dense",
    "steps_per_second_compacted": "Steps per second, compacted",
    "speedup": "Speed-up",
}
_SPEEDS = ("steps_per_second_dense", "steps_per_second_compacted", "speedup")
_FORMATS = dict.fromkeys(_TITLES, "{:.3g}".format) | {"run": "{}".format}


def write_pruning(params: "Params", layout: "Layout") -> None:
    """Writes the table as CSV, Markdown and LaTeX.

    Each masked run stands beside its parent, which is the same model with all of its units. FLOPs
    are those of a training step; speeds are the medians over what each run's own job measured,
    means over seeds, and not a number where a run was not trained here.

    Raises:
      UserError: A result file is missing or malformed.
    """
    rows = [_row(layout, params, run) for run in PRUNED_RUNS if run in params.runs]
    columns = [name for name in _TITLES if params.pruning.show_speed or name not in _SPEEDS]
    frame = pd.DataFrame(rows, columns=columns)
    display = pd.DataFrame({_TITLES[name]: frame[name].map(_FORMATS[name]) for name in columns})
    texts = {
        "csv": frame.to_csv(index=False, lineterminator="\n", float_format="%.6g"),
        "md": "**Pruning. What leaving the masked units out saves.**\n\n"
        + display.to_markdown(index=False, disable_numparse=True, stralign="right")
        + "\n",
        "tex": to_latex(display),
    }
    for path in layout.table(PRUNING):
        write_text(path, texts[path.suffix.removeprefix(".")])


def _row(layout: "Layout", params: "Params", run: str) -> dict[str, Any]:
    per_seed = [
        _measure(layout, str(params.runs[run].parent), run, seed) for seed in params.runs[run].seeds
    ]
    means = {name: float(np.mean([seed[name] for seed in per_seed])) for name in per_seed[0]}
    return {
        "run": run,
        **means,
        "flops_ratio": means["step_flops_compacted"] / means["step_flops_dense"],
        "speedup": means["steps_per_second_compacted"] / means["steps_per_second_dense"],
    }


def _measure(layout: "Layout", parent: str, run: str, seed: int) -> dict[str, float]:
    path = layout.run(run, seed) / "run.json"
    try:
        described = read_json(path)
        config = described["config"]
        training = config["training"]
        tokens = training["global_batch_size"] * training["seq_len"]
        whole, trained = config["model"]["mlp_dims"], described["trained_mlp_dims"]
        flops = {
            name: 3 * tokens * described_flops_per_token(config, mlp_dims)
            for name, mlp_dims in (("dense", whole), ("compacted", trained))
        }
        kept = sum(int(each.sum()) for each in load_mask(layout.mask(run, seed), len(whole)))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: or the mask beside it is missing or malformed: {error}") from None
    return {
        "units_left": 100 * kept / sum(whole),
        "units_trained": 100 * sum(trained) / sum(whole),
        "step_flops_dense": flops["dense"],
        "step_flops_compacted": flops["compacted"],
        "steps_per_second_dense": _steps_per_second(layout.throughput(parent, seed), tokens),
        "steps_per_second_compacted": _steps_per_second(layout.throughput(run, seed), tokens),
    }


def _steps_per_second(throughput: Path, tokens_per_step: int) -> float:
    if not throughput.is_file():
        return np.nan
    return float(pd.read_csv(throughput)["tokens_per_second"].median()) / tokens_per_step
