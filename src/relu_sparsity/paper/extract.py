"""The numbers of one run that tables and claims are made of (Tables 1-5)."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Num

from relu_sparsity.files import write_json
from relu_sparsity.metrics import METRICS
from relu_sparsity.paper.history import RunHistory, load_run

if TYPE_CHECKING:
    from relu_sparsity.layout import Layout
    from relu_sparsity.params import Params

LayerValues = Float[np.ndarray, " layers"]


def _share(used: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Callable[..., LayerValues]:
    """Percent of a layer's units, of those that were on at the first and on at the last step."""

    def share(history: RunHistory, window: int) -> LayerValues:
        first, last = history.units[0], history.units[history.num_steps - 1]
        return np.array([100 * used(*pair).mean() for pair in zip(first, last, strict=True)])

    return share


def _percent(metric: str) -> Callable[..., LayerValues]:
    return lambda history, window: 100 * history.at_convergence(metric, window)


def _ratio(over: str, under: str) -> Callable[..., LayerValues]:
    def ratio(history: RunHistory, window: int) -> LayerValues:
        part, whole = (history.at_convergence(each, window) for each in (over, under))
        return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)

    return ratio


def _units_used(history: RunHistory, window: int) -> LayerValues:
    return np.array([float(layer.sum()) for layer in history.units[history.num_steps - 1]])


# Percent, but for ratios and unit counts. A layer that is off has the ratio 0.
LAYER_METRICS: dict[str, Callable[[RunHistory, int], LayerValues]] = {
    **{metric: _percent(metric) for metric in METRICS},
    "token_over_sequence": _ratio("token_use", "sequence_use"),
    "sequence_over_batch": _ratio("sequence_use", "batch_use"),
    "on_at_start": _share(lambda first, last: first),
    "turned_on": _share(lambda first, last: last & ~first),
    "turned_off": _share(lambda first, last: first & ~last),
    "final_use": _share(lambda first, last: last),
    "units_used": _units_used,
}


def over_all_units(values: Num[np.ndarray, "*batch layers"], history: RunHistory) -> Any:
    """The share of all units of the model, from the share in each layer."""
    return np.average(values, axis=-1, weights=history.mlp_dims)


def extract_metrics(run_dir: Path, convergence_window: int) -> dict[str, Any]:
    """Sums up one run and seed.

    Args:
      run_dir: The folder with the run's result files.
      convergence_window: "At convergence" is the mean over this many last steps.

    Returns:
      The held-out `loss` (nats per token) and `accuracy` (0 to 1) at the end, `total_batch_use`
      (percent of all units), and for every layer what `LAYER_METRICS` names.

    Raises:
      UserError: A result file is missing or malformed.
    """
    history = load_run(run_dir)
    values = {name: value(history, convergence_window) for name, value in LAYER_METRICS.items()}
    return {
        "loss": _rounded(history.eval_loss[-1].mean()),
        "accuracy": _rounded(history.eval_accuracy[-1].mean()),
        "total_batch_use": _rounded(over_all_units(values["batch_use"], history)),
        **{
            f"layer{layer}": {name: _rounded(each[layer]) for name, each in values.items()}
            for layer in range(len(history.mlp_dims))
        },
    }


def write_metrics(params: "Params", layout: "Layout", run: str, seed: int) -> None:
    """Writes what `extract_metrics` returns to metrics.json in the run's folder."""
    folder = layout.run(run, seed)
    window = params.runs[run].config.metrics.convergence_window
    write_json(folder / "metrics.json", extract_metrics(folder, window))


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
