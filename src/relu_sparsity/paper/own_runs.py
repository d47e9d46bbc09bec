"""The table of your own runs: those of params.yaml that are not the paper's."""

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from relu_sparsity.files import write_text
from relu_sparsity.paper.catalog import METRIC_TITLES, OWN_RUNS, own_runs
from relu_sparsity.paper.history import RunHistory, load_runs
from relu_sparsity.paper.tables import to_latex

if TYPE_CHECKING:
    from relu_sparsity.layout import Layout
    from relu_sparsity.params import Params, RunParams

_METRICS = ("token_use", "sequence_use", "batch_use")


def write_own_runs(params: "Params", layout: "Layout") -> None:
    """Writes the table as CSV, Markdown and LaTeX, the baseline first.

    Loss (nats per token) and accuracy (0 to 1, in percent in Markdown and LaTeX) are those of the
    held-out text at the end; use is in percent of a layer's units at convergence, as in Table 1.
    Numbers are means over seeds. A run without results is left out.

    Raises:
      UserError: The results of a run are incomplete or malformed.
    """
    shown = ["baseline", *own_runs(params.paper_runs)]
    seeds = {name: params.runs[name].seeds for name in shown if name in params.runs}
    rows = {
        name: summarize(params, params.runs[name], of_run.values(), _METRICS)
        for name, of_run in load_runs(layout.results, seeds).items()
    }
    frame = pd.DataFrame([{"run": name, **as_numbers(row)} for name, row in rows.items()])
    display = pd.DataFrame([{"Run": name, **as_texts(row)} for name, row in rows.items()])
    texts = {
        "csv": frame.to_csv(index=False, lineterminator="\n", float_format="%.6g"),
        "md": "**Your own runs.** Use is at convergence, layer by layer from the first.\n\n"
        + display.to_markdown(index=False, disable_numparse=True)
        + "\n",
        "tex": to_latex(display),
    }
    for path in layout.table(OWN_RUNS):
        write_text(path, texts[path.suffix.removeprefix(".")])


def difference(params: "Params", run: "RunParams") -> str:
    """What a run does not share with the baseline, in words."""
    own, base = (each.config.model_dump() for each in (run, params.runs.get("baseline", run)))
    branch = f"{run.intervention} of {run.parent}" if run.parent else ""
    changed = (
        f"{key} {value:.6}" if isinstance(value, float) else f"{key} {value}"
        for section, values in own.items()
        for key, value in values.items()
        # Widths that only the parent decides are none of the run's own.
        if value != base[section][key] and (key != "mlp_dim" or value is not None)
    )
    return ", ".join(filter(None, (branch, *changed)))


def summarize(
    params: "Params", run: "RunParams", seeds: Collection[RunHistory], metrics: Iterable[str]
) -> dict[str, Any]:
    """A run's row: means over its seeds; use in percent at convergence, an array over layers."""
    window = run.config.metrics.convergence_window
    return {
        "differs_in": difference(params, run),
        "seeds": len(seeds),
        "loss": np.mean([each.eval_loss[-1].mean() for each in seeds]),
        "accuracy": np.mean([each.eval_accuracy[-1].mean() for each in seeds]),
        **{
            metric: 100 * np.mean([each.at_convergence(metric, window) for each in seeds], axis=0)
            for metric in metrics
        },
    }


def as_numbers(row: dict[str, Any]) -> dict[str, Any]:
    """A row with a column for each layer."""
    use = {name: values for name, values in row.items() if isinstance(values, np.ndarray)}
    return {name: value for name, value in row.items() if name not in use} | {
        f"{metric}_layer{layer}": value
        for metric, values in use.items()
        for layer, value in enumerate(values)
    }


def as_texts(row: dict[str, Any], digits: int = 1) -> dict[str, str]:
    """A row for people to read, with so many decimals of use."""
    return {
        "Differs in": row["differs_in"] or "–",
        "Seeds": str(row["seeds"]),
        "Loss": f"{row['loss']:.3f}",
        "Accuracy (%)": f"{100 * row['accuracy']:.1f}",
        **{
            f"{METRIC_TITLES[metric]} (%)": " ".join(f"{value:.{digits}f}" for value in values)
            for metric, values in row.items()
            if isinstance(values, np.ndarray)
        },
    }
