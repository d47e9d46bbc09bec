"""What the paper leaves open, one choice at a time: which of the baseline's claims hang on it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from relu_sparsity.files import write_text
from relu_sparsity.paper.catalog import METRIC_TITLES
from relu_sparsity.paper.claims import CLAIMS
from relu_sparsity.paper.evidence import MeasuredResults
from relu_sparsity.paper.figures import STYLE, save
from relu_sparsity.paper.history import RunHistory, load_runs
from relu_sparsity.paper.own_runs import difference
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


@dataclass(frozen=True)
class Choice:
    """A baseline under one other choice.

    Attributes:
      name: Its run.
      differs_in: What it does not share with the baseline.
      seeds: How many there are of it.
      loss: Held-out loss at the end, in nats per token, the mean over seeds.
      accuracy: Held-out accuracy at the end, 0 to 1.
      layers: For each of `SHOWN_METRICS`, percent of a layer's units (or tokens) at convergence.
      verdicts: By the number of the claim.
    """

    name: str
    differs_in: str
    seeds: int
    loss: float
    accuracy: float
    layers: dict[str, Float[np.ndarray, " layers"]]
    verdicts: dict[int, Verdict]


def write_sensitivity(params: "Params", layout: "Layout") -> None:
    """Writes sensitivity.csv, sensitivity.md and sensitivity.svg.

    The first row is the baseline itself; a choice without results is left out.

    Raises:
      UserError: The results of a run are incomplete or malformed.
    """
    asked = {"baseline": params.runs["baseline"], **params.choices}
    runs = load_runs(layout.results, {name: run.seeds for name, run in asked.items()})
    choices = [_choice(params, asked[name], seeds, layout) for name, seeds in runs.items()]
    csv, markdown, figure = layout.sensitivity
    frame = as_frame(choices)
    write_text(csv, frame.to_csv(index=False, lineterminator="\n", float_format="%.6g"))
    write_text(markdown, as_markdown(choices, params.scale))
    with mpl.rc_context(STYLE):
        save(draw(choices), figure)


def as_frame(choices: list[Choice]) -> pd.DataFrame:
    """A row for each choice; a column for each layer's use and for each claim."""
    rows = []
    for each in choices:
        use = {
            f"{metric}_layer{layer}": value
            for metric, values in each.layers.items()
            for layer, value in enumerate(values)
        }
        claims = {f"claim{number}": verdict for number, verdict in each.verdicts.items()}
        head = {"choice": each.name, "differs_in": each.differs_in, "seeds": each.seeds}
        rows.append({**head, "loss": each.loss, "accuracy": each.accuracy, **use, **claims})
    return pd.DataFrame(rows)


def as_markdown(choices: list[Choice], scale: str) -> str:
    """Two tables: use by layer, and verdicts by claim."""
    use = pd.DataFrame(
        {
            "Choice": each.name,
            "Differs in": each.differs_in or "–",
            "Seeds": str(each.seeds),
            "Loss": f"{each.loss:.3f}",
            "Accuracy (%)": f"{100 * each.accuracy:.1f}",
            **{
                f"{METRIC_TITLES[metric]} (%)": " ".join(f"{value:.0f}" for value in values)
                for metric, values in each.layers.items()
            },
        }
        for each in choices
    )
    verdicts = pd.DataFrame(
        {"Choice": each.name, **{str(n): _MARKS[v] for n, v in each.verdicts.items()}}
        for each in choices
    )
    marks = ", ".join(f"{mark}: {verdict}" for verdict, mark in _MARKS.items())
    return "\n\n".join(
        (
            f"# What decides the claims of the baseline at the scale `{scale}`",
            "Each row is the baseline with one other choice, most of them choices that the paper "
            "leaves open. Use is at convergence, layer by layer from the first.",
            use.to_markdown(index=False, disable_numparse=True),
            f"Verdicts by the number of the claim ({marks}):",
            verdicts.to_markdown(index=False, disable_numparse=True),
            *(f"{claim.number}. {claim.statement}" for claim in BASELINE_CLAIMS),
        )
    ) + "\n"  # fmt: skip


def draw(choices: list[Choice]) -> Canvas:
    """Left, the verdict on each claim under each choice; right, batch use by layer."""
    canvas = Canvas(figsize=(9.5, 1.2 + 0.24 * len(choices)), layout="constrained")
    claims, layers = canvas.subplots(1, 2, width_ratios=(len(BASELINE_CLAIMS), 8))
    _draw_verdicts(claims, choices)
    _draw_use(layers, choices)
    return canvas


def _choice(
    params: "Params", run: "RunParams", seeds: dict[int, RunHistory], layout: "Layout"
) -> Choice:
    """Decides the baseline's claims with another run in the baseline's place."""
    in_its_place = params.model_copy(update={"runs": {**params.runs, "baseline": run}})
    results = MeasuredResults({"baseline": seeds}, in_its_place, layout.results)
    return Choice(
        name=run.name,
        differs_in=difference(params, run),
        seeds=len(seeds),
        loss=float(np.mean([each.eval_loss[-1].mean() for each in seeds.values()])),
        accuracy=float(np.mean([each.eval_accuracy[-1].mean() for each in seeds.values()])),
        layers={metric: results.layers("baseline", metric) for metric in SHOWN_METRICS},
        verdicts={each.number: decide_claim(each, results).verdict for each in BASELINE_CLAIMS},
    )


def _draw_verdicts(axes: Axes, choices: list[Choice]) -> None:
    for row, each in enumerate(choices):
        for column, verdict in enumerate(each.verdicts.values()):
            axes.add_patch(
                mpl.patches.Rectangle(
                    (column - 0.46, row - 0.42), 0.92, 0.84, color=_COLORS[verdict], linewidth=0
                )
            )
    axes.set_xticks(range(len(BASELINE_CLAIMS)), [str(each.number) for each in BASELINE_CLAIMS])
    axes.set_xlim(-0.6, len(BASELINE_CLAIMS) - 0.4)
    _name_rows(axes, choices)
    axes.set_title("claim", loc="left")
    handles = [mpl.patches.Patch(color=color, label=name) for name, color in _COLORS.items()]
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(0, -0.02), ncols=3)


def _draw_use(axes: Axes, choices: list[Choice]) -> None:
    count = max(len(each.layers["batch_use"]) for each in choices)
    grid = np.full((len(choices), count), np.nan)
    for row, each in enumerate(choices):
        values = each.layers["batch_use"]
        grid[row, : len(values)] = values
        for layer, value in enumerate(values):
            color = "white" if value < 55 else "black"
            axes.text(layer, row, f"{value:.0f}", ha="center", va="center", color=color, fontsize=7)
    axes.imshow(grid, cmap="viridis", vmin=0, vmax=100, aspect="auto")
    axes.set_xticks(range(count))
    _name_rows(axes, choices, named=False)
    axes.set_title("units used per batch (%), by layer", loc="left")


def _name_rows(axes: Axes, choices: list[Choice], named: bool = True) -> None:
    names = [each.name.replace("_", " ") for each in choices] if named else []
    axes.set_yticks(range(len(choices)), names or [""] * len(choices))
    axes.set_ylim(len(choices) - 0.5, -0.5)
    axes.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
