"""What the paper leaves open, one choice at a time: which of the baseline's claims hang on it."""

from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from relu_sparsity.files import write_text
from relu_sparsity.paper.claims import CLAIMS
from relu_sparsity.paper.evidence import MeasuredResults
from relu_sparsity.paper.figures import STYLE, to_svg
from relu_sparsity.paper.history import RunHistory, load_runs
from relu_sparsity.paper.own_runs import as_numbers, as_texts, summarize
from relu_sparsity.paper.verdicts import VERDICTS, Verdict, decide_claim

if TYPE_CHECKING:
    from relu_sparsity.layout import Layout
    from relu_sparsity.params import Params, RunParams

SHOWN_METRICS = ("batch_use", "token_use", "p50")
# What needs no other run than the baseline.
BASELINE_CLAIMS = tuple(claim for claim in CLAIMS if claim.runs == ("baseline",))
_MARKS: dict[Verdict, str] = dict(zip(VERDICTS, ("yes", "no", "–"), strict=True))
# Okabe and Ito's blue and orange, and grey.
_COLORS: dict[Verdict, str] = dict(zip(VERDICTS, ("#0072B2", "#E69F00", "#DDDDDD"), strict=True))
# By choice: what `summarize` tells of it, and its verdicts by the number of the claim.
_Rows = dict[str, dict[str, Any]]
_Verdicts = dict[str, dict[int, Verdict]]


def write_sensitivity(params: "Params", layout: "Layout") -> None:
    """Writes sensitivity.csv, sensitivity.md and sensitivity.svg.

    The first row is the baseline itself; a choice without results is left out.

    Raises:
      UserError: The results of a run are incomplete or malformed.
    """
    asked = {"baseline": params.runs["baseline"], **params.choices}
    runs = load_runs(layout.results, {name: run.seeds for name, run in asked.items()})
    rows = {
        name: summarize(params, asked[name], seeds.values(), SHOWN_METRICS)
        for name, seeds in runs.items()
    }
    verdicts = {name: _verdicts(params, asked[name], runs[name], layout) for name in runs}
    csv, markdown, figure = layout.sensitivity
    frame = pd.DataFrame(
        {
            "choice": name,
            **as_numbers(row),
            **{f"claim{number}": verdict for number, verdict in verdicts[name].items()},
        }
        for name, row in rows.items()
    )
    write_text(csv, frame.to_csv(index=False, lineterminator="\n", float_format="%.6g"))
    write_text(markdown, as_markdown(rows, verdicts, params.scale))
    with mpl.rc_context(STYLE):
        write_text(figure, to_svg(draw(rows, verdicts)))


def as_markdown(rows: _Rows, verdicts: _Verdicts, scale: str) -> str:
    """Two tables: use by layer, and verdicts by claim."""
    use = pd.DataFrame({"Choice": name, **as_texts(row, digits=0)} for name, row in rows.items())
    claims = pd.DataFrame(
        {"Choice": name, **{str(number): _MARKS[each] for number, each in of_choice.items()}}
        for name, of_choice in verdicts.items()
    )
    marks = ", ".join(f"{mark}: {verdict}" for verdict, mark in _MARKS.items())
    return "\n\n".join(
        (
            f"# What decides the claims of the baseline at the scale `{scale}`",
            "Each row is the baseline with one other choice, most of them choices that the paper "
            "leaves open. Use is at convergence, layer by layer from the first.",
            use.to_markdown(index=False, disable_numparse=True),
            f"Verdicts by the number of the claim ({marks}):",
            claims.to_markdown(index=False, disable_numparse=True),
            *(f"{claim.number}. {claim.statement}" for claim in BASELINE_CLAIMS),
        )
    ) + "\n"  # fmt: skip


def draw(rows: _Rows, verdicts: _Verdicts) -> Canvas:
    """Left, the verdict on each claim under each choice; right, batch use by layer."""
    canvas = Canvas(figsize=(9.5, 1.2 + 0.24 * len(rows)), layout="constrained")
    claims, layers = canvas.subplots(1, 2, width_ratios=(len(BASELINE_CLAIMS), 8))
    _draw_verdicts(claims, verdicts)
    _draw_use(layers, rows)
    return canvas


def _verdicts(
    params: "Params", run: "RunParams", seeds: dict[int, RunHistory], layout: "Layout"
) -> dict[int, Verdict]:
    """Decides the baseline's claims with another run in the baseline's place, by their numbers."""
    in_its_place = params.model_copy(update={"runs": {**params.runs, "baseline": run}})
    results = MeasuredResults({"baseline": seeds}, in_its_place, layout.results)
    return {each.number: decide_claim(each, results).verdict for each in BASELINE_CLAIMS}


def _draw_verdicts(axes: Axes, verdicts: _Verdicts) -> None:
    for row, of_choice in enumerate(verdicts.values()):
        for column, verdict in enumerate(of_choice.values()):
            axes.add_patch(
                mpl.patches.Rectangle(
                    (column - 0.46, row - 0.42), 0.92, 0.84, color=_COLORS[verdict], linewidth=0
                )
            )
    axes.set_xticks(range(len(BASELINE_CLAIMS)), [str(each.number) for each in BASELINE_CLAIMS])
    axes.set_xlim(-0.6, len(BASELINE_CLAIMS) - 0.4)
    _name_rows(axes, [name.replace("_", " ") for name in verdicts])
    axes.set_title("claim", loc="left")
    handles = [mpl.patches.Patch(color=color, label=name) for name, color in _COLORS.items()]
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(0, -0.02), ncols=3)


def _draw_use(axes: Axes, rows: _Rows) -> None:
    count = max(len(each["batch_use"]) for each in rows.values())
    grid = np.full((len(rows), count), np.nan)
    for row, each in enumerate(rows.values()):
        values = each["batch_use"]
        grid[row, : len(values)] = values
        for layer, value in enumerate(values):
            color = "white" if value < 55 else "black"
            axes.text(layer, row, f"{value:.0f}", ha="center", va="center", color=color, fontsize=7)
    axes.imshow(grid, cmap="viridis", vmin=0, vmax=100, aspect="auto")
    axes.set_xticks(range(count))
    _name_rows(axes, [""] * len(rows))
    axes.set_title("units used per batch (%), by layer", loc="left")


def _name_rows(axes: Axes, names: list[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
