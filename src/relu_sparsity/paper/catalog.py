"""What the paper shows, as tables of rows: the tables and figures, and the runs each one needs.

The workflow's rules are made from this module, so it imports the standard library only.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

TABLES = {
    "table1": "Hidden units used per token, sequence and batch at convergence",
    "table2": "Hidden units turned on and off over training",
    "table3": "How often the used hidden units are used in a sequence",
    "table4": "Hidden units used in rounds 1 and 2",
    "table5": "Hidden units used per batch by peak learning rate",
}

# Not in the paper, which only supposes it (section 4.1.1): what leaving masked units out saves.
PRUNING = "pruning"
PRUNED_RUNS = ("masked", "random_masked")

# Neither: the runs of params.yaml that are not the paper's.
OWN_RUNS = "own_runs"

LOSS = "loss"
METRIC_TITLES = {
    "token_use": "Units used per token",
    "sequence_use": "Units used per sequence",
    "batch_use": "Units used per batch",
    "p50": "Use frequency, 50th percentile",
    "p65": "Use frequency, 65th percentile",
    "p75": "Use frequency, 75th percentile",
    "p90": "Use frequency, 90th percentile",
    LOSS: "Held-out loss",
}

RUN_TITLES = {
    "baseline": "the baseline",
    "lr_x1of3": "the model at 1/3 of the peak learning rate (paper: 1e-3)",
    "lr_x2of3": "the model at 2/3 of the peak learning rate (paper: 2e-3)",
    "lr_x5of3": "the model at 5/3 of the peak learning rate (paper: 5e-3)",
    "width_x1of2": "the model of half the hidden width (paper: 6 layers of 16384)",
    "width_x1of4": "the model of a quarter of the hidden width (paper: 8192)",
    "depth_10": "the 10-layer model of half the hidden width (paper: 16384)",
    "depth_14": "the 14-layer model of half the hidden width (paper: 16384)",
}

WIDTHS = ("baseline", "width_x1of2", "width_x1of4")
DEPTHS = ("width_x1of2", "depth_10", "depth_14")
LEARNING_RATES = ("baseline", "lr_x2of3", "lr_x1of3", "lr_x5of3")

# Sequences and tokens of the batch over which the paper takes its metrics (section 2.1).
PAPER_BATCH = (16, 512)

TABLE_RUNS = {
    "table1": ("baseline",),
    "table2": ("baseline",),
    "table3": ("baseline",),
    "table4": ("round1", "round2"),
    "table5": LEARNING_RATES,
}


# A line has at most so many points; neighbours in a longer history are averaged.
MAX_POINTS = 400


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes:
      metric: A key of `METRIC_TITLES`.
      runs: One run for a line per layer over steps; several for a line per run over layers.
      span: `early` ends at `metrics.early_steps`.
      compared_by: What several runs differ in.
      table: The number of the paper's table that has these values at convergence, to be drawn too.
    """

    metric: str
    runs: tuple[str, ...]
    span: Literal["early", "whole"] = "whole"
    compared_by: Literal["width", "depth"] | None = None
    table: int | None = None

    @property
    def title(self) -> str:
        """What the panel shows, in a few words."""
        if self.compared_by:
            return f"{METRIC_TITLES[self.metric]} by {self.compared_by}"
        return f"{METRIC_TITLES[self.metric]}, {_SPANS[self.span]}"


_SPANS = {"early": "early in training", "whole": "whole run"}


@dataclass(frozen=True)
class Figure:
    """One figure of the paper, or of a run that is not the paper's.

    Attributes:
      id: `fig01` to `fig34`, or `run_<run>`.
      category: The part of the paper that it belongs to.
      panels: Left to right.
      note: What the paper's numbering or caption does not make plain.
    """

    id: str
    category: str
    panels: tuple[Panel, ...]
    note: str = ""

    @property
    def number(self) -> str:
        """The paper's number, or the run's name."""
        if self.id.startswith("run_"):
            return self.id.removeprefix("run_")
        return self.id.removeprefix("fig").lstrip("0")

    @property
    def runs(self) -> tuple[str, ...]:
        """The runs that the figure shows."""
        return tuple(dict.fromkeys(run for panel in self.panels for run in panel.runs))

    @property
    def title(self) -> str:
        """What the figure shows, in a few words."""
        return "; ".join(panel.title for panel in self.panels)

    @property
    def caption(self) -> str:
        """The figure's caption, at whatever scale."""
        first = self.panels[0]
        if first.compared_by:
            shown = "one line per model over its layers, at convergence"
        else:
            run = first.runs[0]
            shown = f"one line per layer over the steps of {RUN_TITLES.get(run, f'the run {run}')}"
        tables = dict.fromkeys(f"Table {panel.table}" for panel in self.panels if panel.table)
        hollow = f" Hollow: the paper at convergence ({', '.join(tables)})." if tables else ""
        if tables and any(panel.span == "early" for panel in self.panels):
            hollow += " Filled: ours then."
        note = f" {self.note}" if self.note else ""
        return (
            f"{self.title}: {shown}, in percent. Mean over seeds, with a band of one standard "
            f"deviation where there are several.{hollow}{note}"
        )


def _over_steps(
    metric: str, run: str, *spans: Literal["early", "whole"], table: int | None = None
) -> tuple[Panel, ...]:
    return tuple(Panel(metric, (run,), span, table=table) for span in spans)


MAIN_TEXT = "Main text"
_BASE = (MAIN_TEXT, "Full training plots (A.1)", "Percentiles (A.2)")
_DEPTH, _WIDTH, _RATE = "Depth (A.3)", "Hidden width (A.4)", "Learning rate (A.5)"
_TWIN = "The paper numbers this plot twice, as {} and as {}."

_ROWS = (
    Figure("fig01", _BASE[0], _over_steps("batch_use", "baseline", "early", table=1)),
    Figure(
        "fig02",
        _BASE[0],
        _over_steps("token_use", "baseline", "early", table=1)
        + _over_steps("p50", "baseline", "early", table=3),
    ),
    Figure(
        "fig03",
        _BASE[0],
        tuple(Panel(each, WIDTHS, "whole", "width", 1) for each in ("token_use", "batch_use")),
    ),
    Figure("fig04", _BASE[0], (Panel("batch_use", DEPTHS, compared_by="depth"),)),
    Figure("fig05", _BASE[1], _over_steps("token_use", "baseline", "whole", table=1)),
    *(
        Figure(
            f"fig0{number}",
            _BASE[1],
            _over_steps(metric, "baseline", "whole", table=1),
            _TWIN.format(*twins),
        )
        for metric, twins in (("sequence_use", (6, 7)), ("batch_use", (8, 9)))
        for number in twins
    ),
    Figure("fig10", _BASE[2], _over_steps("p50", "baseline", "early", "whole", table=3)),
    Figure("fig11", _BASE[2], _over_steps("p65", "baseline", "early", "whole", table=3)),
    Figure("fig12", _BASE[2], _over_steps("p75", "baseline", "early", "whole", table=3)),
    Figure("fig13", _BASE[2], _over_steps("p90", "baseline", "early", "whole", table=3)),
    Figure("fig14", _DEPTH, _over_steps("token_use", "width_x1of2", "whole")),
    Figure("fig15", _DEPTH, _over_steps("sequence_use", "width_x1of2", "whole")),
    Figure("fig16", _DEPTH, _over_steps("batch_use", "width_x1of2", "whole")),
    Figure("fig17", _DEPTH, _over_steps("token_use", "depth_10", "whole")),
    Figure("fig18", _DEPTH, _over_steps("sequence_use", "depth_10", "whole")),
    Figure("fig19", _DEPTH, _over_steps("batch_use", "depth_10", "whole")),
    Figure("fig20", _DEPTH, _over_steps("token_use", "depth_14", "whole")),
    Figure("fig21", _DEPTH, _over_steps("sequence_use", "depth_14", "whole")),
    Figure("fig22", _DEPTH, _over_steps("batch_use", "depth_14", "whole")),
    Figure(
        "fig23",
        _WIDTH,
        _over_steps("token_use", "width_x1of2", "whole"),
        "The paper's caption says per batch, as that of Figure 25; by the order of A.4 it is "
        "per token.",
    ),
    Figure("fig24", _WIDTH, _over_steps("sequence_use", "width_x1of2", "whole")),
    Figure("fig25", _WIDTH, _over_steps("batch_use", "width_x1of2", "whole")),
    Figure("fig26", _WIDTH, _over_steps("token_use", "width_x1of4", "whole")),
    Figure("fig27", _WIDTH, _over_steps("sequence_use", "width_x1of4", "whole")),
    Figure("fig28", _WIDTH, _over_steps("batch_use", "width_x1of4", "whole")),
    Figure("fig29", _RATE, _over_steps("token_use", "lr_x1of3", "whole")),
    Figure("fig30", _RATE, _over_steps("sequence_use", "lr_x1of3", "whole")),
    Figure("fig31", _RATE, _over_steps("batch_use", "lr_x1of3", "whole", table=5)),
    Figure("fig32", _RATE, _over_steps("token_use", "lr_x2of3", "whole")),
    Figure("fig33", _RATE, _over_steps("sequence_use", "lr_x2of3", "whole")),
    Figure("fig34", _RATE, _over_steps("batch_use", "lr_x2of3", "whole", table=5)),
)

FIGURES = {figure.id: figure for figure in _ROWS}
_PAPER_RUNS = {*RUN_TITLES, *PRUNED_RUNS, "round1", "round2"}


def own_runs(runs: Iterable[str]) -> list[str]:
    """Those of a scale's runs that are not the paper's."""
    return [run for run in runs if run not in _PAPER_RUNS]


def figures(runs: Iterable[str]) -> dict[str, Figure]:
    """The paper's figures, and one for each of the runs that is not the paper's."""
    own = [
        Figure(
            f"run_{run}",
            "Your own runs",
            (*_over_steps("batch_use", run, "whole"), Panel(LOSS, ("baseline", run))),
            "The held-out loss is in nats per token, beside the baseline's and what the "
            "frequencies of tokens and of token pairs give.",
        )
        for run in own_runs(runs)
    ]
    return FIGURES | {figure.id: figure for figure in own}
