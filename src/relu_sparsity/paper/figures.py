"""Figures 1-34 and those of your own runs, drawn from the rows of `catalog.figures`."""

import io
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import EngFormatter, MaxNLocator
from scipy.optimize import isotonic_regression

from relu_sparsity.counts import span
from relu_sparsity.files import write_text
from relu_sparsity.paper.catalog import (
    LOSS,
    MAX_POINTS,
    METRIC_TITLES,
    Figure,
    Panel,
    figures,
)
from relu_sparsity.paper.history import RunHistory, load_runs
from relu_sparsity.paper.published import published_layers

if TYPE_CHECKING:
    from relu_sparsity.layout import Layout
    from relu_sparsity.params import Params

STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "0.92",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "lines.linewidth": 1.2,
    "legend.frameon": False,
    "legend.fontsize": 7,
    "svg.fonttype": "path",
    # Without a salt, the identifiers in the file would be random.
    "svg.hashsalt": "relu-sparsity",
}
# Okabe and Ito's colours, which colour-blind readers can tell apart.
_LINE_STYLES = (("#000000", "o"), ("#0072B2", "s"), ("#D55E00", "^"), ("#009E73", "D"))
_FULL_RANGE_METRICS = ("sequence_use", "batch_use")


def layer_color(layer: int) -> tuple[float, float, float, float]:
    """The colour of a layer, the same in models of any depth.

    Colours follow a perceptually uniform map from dark to light. The first layers lie further
    apart, so that six can be told apart as well as fourteen.
    """
    return mpl.colormaps["plasma"](0.93 * (1 - np.exp(-layer / 4)))


def write_figure(params: "Params", layout: "Layout", figure: str) -> None:
    """Draws one of Figures 1-34, or that of one of your own runs, as SVG.

    Lines are means over seeds, bands one standard deviation to either side. Neighbours in a history
    of more than `MAX_POINTS` measurements are averaged. Hollow marks are the paper's values, where
    a table has them and the model has as many layers.

    Raises:
      UserError: The results of a run are incomplete or malformed.
    """
    row = figures(params.paper_runs)[figure]
    shown = {run: params.runs[run].seeds for run in row.runs if run in params.runs}
    runs = load_runs(layout.results, shown)
    with mpl.rc_context(STYLE):
        write_text(layout.figure(figure), to_svg(draw(row, runs, params)))


def to_svg(canvas: Canvas) -> str:
    """A figure as SVG, the same text each time."""
    file = io.StringIO()
    canvas.savefig(file, format="svg", metadata={"Date": None, "Creator": "relu-sparsity"})
    return file.getvalue()


def draw_evidence(numbers: dict[str, Any], paper: dict[str, Any]) -> Canvas | None:
    """A claim's numbers, a small line for each list of measurements; the paper's are hollow.

    Args:
      numbers: As in claims.json: measurements are floats, what counts or names is not; a word
        among measurements is a gap in the line.
      paper: The paper's, under the same names.

    Returns:
      The picture; None where no list has three measurements.
    """
    lines = {
        name: [value if _is_measured(value) else np.nan for value in values]
        for name, values in numbers.items()
        if isinstance(values, list) and len(values) > 2 and any(map(_is_measured, values))
    }
    # Steps are far above percentages: they have a picture where they are alone.
    of_steps = {name for name in lines if name.endswith("_step")}
    if of_steps < lines.keys():
        lines = {name: values for name, values in lines.items() if name not in of_steps}
    if not lines:
        return None
    canvas = Canvas(figsize=(2.8, 1.4), layout="constrained")
    axes = canvas.subplots()
    for (name, values), (color, marker) in zip(lines.items(), _LINE_STYLES, strict=False):
        style: dict[str, Any] = {"color": color, "marker": marker, "markersize": 3.5}
        axes.plot(values, label=name.replace("_", " "), **style)
        if len(paper.get(name, [])) == len(values):
            axes.plot(paper[name], **style, linestyle=":", linewidth=0.8, markerfacecolor="none")
    # What is not by layer names its runs.
    names = [run.replace("_", " ") for run in numbers.get("runs", [])]
    axes.set_xlabel("" if names else "layer")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if names:
        axes.set_xticks(range(len(names)), names)
    axes.axhline(0, color="0.7", linewidth=0.8)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0, ncols=2, fontsize=6)
    return canvas


def _is_measured(value: Any) -> bool:
    return isinstance(value, float)


def draw(figure: Figure, runs: dict[str, dict[int, RunHistory]], params: "Params") -> Canvas:
    count = len(figure.panels)
    canvas = Canvas(figsize=(3.6 * count + 0.4 * (count == 1), 2.7), layout="constrained")
    legend: dict[str, Any] = {}
    for index, (panel, axes) in enumerate(
        zip(figure.panels, np.ravel(canvas.subplots(1, count)), strict=True)
    ):
        letter = f"({'ab'[index]}) " if count > 1 else ""
        axes.set_title(letter + panel.title, loc="left")
        axes.set_ylabel(_y_label(panel.metric))
        if panel.metric == LOSS:
            _draw_losses(axes, panel, runs)
        elif panel.compared_by:
            _draw_models(axes, panel, runs, params)
        else:
            _draw_layers(axes, panel, runs.get(panel.runs[0], {}), params)
            handles, labels = axes.get_legend_handles_labels()
            legend |= dict(zip(labels, handles, strict=True))
    if legend:
        canvas.legend(
            legend.values(), legend.keys(), loc="outside lower right", ncols=4, fontsize=6
        )
    return canvas


def _y_label(metric: str) -> str:
    if metric.startswith("p"):
        return f"tokens using the p{metric[1:]} unit (%)"
    if metric == LOSS:
        return "held-out loss (nats per token)"
    return f"{METRIC_TITLES[metric].lower()} (%)"


def _draw_layers(axes: Axes, panel: Panel, seeds: dict[int, RunHistory], params: "Params") -> None:
    axes.set_xlabel("training step")
    if not seeds:
        _say_missing(axes, panel.runs)
        return
    steps = next(iter(seeds.values())).steps
    values = 100 * np.stack([history.unit_use[panel.metric] for history in seeds.values()])
    early_steps = params.runs[panel.runs[0]].config.metrics.early_steps
    end = early_steps if panel.span == "early" else steps[-1]
    shown = steps <= end
    last_step = int(steps[shown][-1])
    steps, values = average_neighbours(steps[shown], values[:, shown])
    mean, ends = values.mean(axis=0), {}
    for layer in range(mean.shape[1]):
        color = layer_color(layer)
        axes.plot(steps, mean[:, layer], color=color)
        if len(seeds) > 1:
            _draw_band(axes, steps, values[..., layer], color)
        ends[layer] = mean[-1, layer]
    colors = list(map(layer_color, ends))
    is_compared = _draw_paper(axes, panel, panel.runs[0], len(ends) * [last_step], colors)
    if is_compared and panel.span == "early":
        # What the paper's values compare with: the lines end before that.
        window = params.runs[panel.runs[0]].config.metrics.convergence_window
        of_seeds = [each.at_convergence(panel.metric, window) for each in seeds.values()]
        ours = 100 * np.mean(of_seeds, axis=0)
        label = "ours at convergence"
        axes.scatter(len(ours) * [last_step], ours, 14, c=colors, label=label, clip_on=False)
    axes.set_ylim(bottom=0, top=103 if panel.metric in _FULL_RANGE_METRICS else None)
    axes.set_xlim(0, max(last_step, 1))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    _mark_steps(axes, panel.runs[0], params, last_step)
    label_ends(axes, ends)


def average_neighbours(
    steps: Int[np.ndarray, " steps"], values: Float[np.ndarray, "seeds steps layers"]
) -> tuple[Float[np.ndarray, " points"], Float[np.ndarray, "seeds points layers"]]:
    """Averages neighbours of a long history, which would be drawn as a broad smear."""
    starts = np.arange(0, len(steps), -(-len(steps) // MAX_POINTS))
    counts = np.diff([*starts, len(steps)])
    return (
        np.add.reduceat(steps, starts) / counts,
        np.add.reduceat(values, starts, axis=1) / counts[:, None],
    )


def _draw_band(axes: Axes, x: Any, values: Float[np.ndarray, "seeds points"], color: Any) -> None:
    mean, std = values.mean(axis=0), values.std(axis=0, ddof=1)
    axes.fill_between(x, mean - std, mean + std, color=color, alpha=0.2, linewidth=0)


def _draw_paper(axes: Axes, panel: Panel, run: str, x: Any, colors: list[Any]) -> bool:
    """Marks the paper's values, where it has as many; returns whether it has."""
    values = published_layers(panel.table, run, panel.metric) if panel.table else []
    if len(values) != len(colors):
        return False
    label = f"paper at convergence (Table {panel.table})"
    axes.scatter(x, values, 14, facecolors="none", edgecolors=colors, label=label, clip_on=False)
    return True


def _mark_steps(axes: Axes, run: str, params: "Params", end: int) -> None:
    warmup_steps = params.runs[run].config.optimizer.warmup_steps
    marks = [(warmup_steps, "end of warm-up", ":")]
    marks += [(step, "mask step", "--") for step in params.branch_steps(run)]
    for step, label, style in marks:
        if 0 < step < end:
            axes.axvline(step, color="0.5", linewidth=0.8, linestyle=style, zorder=1, label=label)


def label_ends(axes: Axes, ends: dict[int, float]) -> None:
    """Writes each layer's number at the right end of its line, moved apart where they collide."""
    low, high = axes.get_ylim()
    order = sorted(ends, key=lambda layer: (ends[layer], layer))
    # Least squares under a smallest distance: a monotone fit once the distances are taken off.
    offsets = np.arange(len(order)) * (high - low) * min(0.06, 1 / len(order))
    fit = isotonic_regression([ends[layer] for layer in order] - offsets).x
    heights = np.clip(fit, low, high - offsets[-1]) + offsets
    for layer, height in zip(order, heights, strict=True):
        axes.annotate(
            str(layer),
            (1, ends[layer]),
            xycoords=("axes fraction", "data"),
            xytext=(1.035, height),
            textcoords=("axes fraction", "data"),
            va="center",
            fontsize=7,
            fontweight="bold",
            color=layer_color(layer),
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": layer_color(layer),
                "linewidth": 0.6,
                "relpos": (0, 0.5),
                "shrinkA": 1,
                "shrinkB": 0,
            },
        )
    axes.annotate(
        "layer",
        (1.1, 0.5),
        xycoords="axes fraction",
        va="center",
        rotation=270,
        fontsize=7,
        color="0.3",
        annotation_clip=False,
    )


def _draw_models(
    axes: Axes, panel: Panel, runs: dict[str, dict[int, RunHistory]], params: "Params"
) -> None:
    axes.set_xlabel("layer")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    missing = [run for run in panel.runs if run not in runs]
    for run, (color, marker) in zip(panel.runs, _LINE_STYLES, strict=False):
        if run in missing:
            continue
        seeds = list(runs[run].values())
        config = params.runs[run].config
        window, model = config.metrics.convergence_window, config.model
        size = (
            f"{span(model.mlp_dims)} units"
            if panel.compared_by == "width"
            else f"{model.num_layers} layers"
        )
        values = np.stack([100 * each.at_convergence(panel.metric, window) for each in seeds])
        layers = np.arange(values.shape[1])
        axes.plot(layers, values.mean(axis=0), color=color, marker=marker, markersize=4, label=size)
        if len(seeds) > 1:
            _draw_band(axes, layers, values, color)
        _draw_paper(axes, panel, run, layers, len(layers) * [color])
    axes.set_ylim(bottom=0, top=103 if panel.metric in _FULL_RANGE_METRICS else None)
    if missing:
        _say_missing(axes, missing)
    if len(missing) < len(panel.runs):
        axes.legend(loc="best")


def _draw_losses(axes: Axes, panel: Panel, runs: dict[str, dict[int, RunHistory]]) -> None:
    axes.set_xlabel("training step")
    shown = {run: list(runs[run].values()) for run in panel.runs if run in runs}
    for (run, seeds), (color, _) in zip(shown.items(), _LINE_STYLES, strict=False):
        values = np.stack([each.eval_loss.mean(axis=1) for each in seeds])
        axes.plot(seeds[0].eval_steps, values.mean(axis=0), color=color, label=run)
        if len(seeds) > 1:
            _draw_band(axes, seeds[0].eval_steps, values, color)
    ngrams = shown[panel.runs[-1]][0].ngram_losses if panel.runs[-1] in shown else {}
    for (name, loss), style in zip(ngrams.items(), (":", "--"), strict=False):
        label = f"{name.removesuffix('_loss')}s"
        axes.axhline(loss, color="0.5", linewidth=0.8, linestyle=style, label=label)
    if panel.runs[-1] not in shown:
        _say_missing(axes, panel.runs[-1:])
    if shown:
        axes.legend(loc="best")


def _say_missing(axes: Axes, runs: Iterable[str]) -> None:
    axes.text(
        0.5,
        0.5,
        f"no results of {', '.join(runs)} at this scale",
        transform=axes.transAxes,
        ha="center",
        va="center",
        color="0.4",
        wrap=True,
    )
