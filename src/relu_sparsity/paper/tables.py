"""Tables 1-5, each cell beside the paper's."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from relu_sparsity.counts import span
from relu_sparsity.files import write_text
from relu_sparsity.paper.catalog import LEARNING_RATES, PAPER_BATCH, TABLE_RUNS, TABLES
from relu_sparsity.paper.extract import LAYER_METRICS, over_all_units
from relu_sparsity.paper.history import RunHistory, load_runs
from relu_sparsity.paper.published import published

if TYPE_CHECKING:
    from relu_sparsity.layout import Layout
    from relu_sparsity.params import Params


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
      metric: A key of `LAYER_METRICS`.
      title: The header in Markdown and LaTeX.
      digits: Decimals in Markdown and LaTeX.
      run: The run that it shows.
      suffix: Tells columns of the same metric apart in the CSV.
      with_total: Whether a last row gives the share of all units of the model.
    """

    metric: str
    title: str
    digits: int = 1
    run: str = "baseline"
    suffix: str = ""
    with_total: bool = False

    @property
    def name(self) -> str:
        """The header in the CSV."""
        return self.metric + self.suffix


_COLUMNS: dict[str, tuple[Column, ...]] = {
    "table1": (
        Column("token_use", "Per token (%)"),
        Column("sequence_use", "Per sequence (%)"),
        Column("batch_use", "Per batch (%)"),
        Column("token_over_sequence", "Token / sequence", digits=3),
        Column("sequence_over_batch", "Sequence / batch", digits=3),
    ),
    "table2": (
        Column("on_at_start", "On at batch 0 (%)"),
        Column("turned_on", "Turned on (%)"),
        Column("turned_off", "Turned off (%)"),
        Column("final_use", "Final use (%)"),
    ),
    "table3": (
        Column("p50", "50th percentile (%)"),
        Column("p65", "65th percentile (%)"),
        Column("p75", "75th percentile (%)"),
        Column("p90", "90th percentile (%)"),
    ),
    "table4": (
        Column("units_used", "Units, round 1", 0, "round1", "_round1"),
        Column("units_used", "Units, round 2", 0, "round2", "_round2"),
        Column("final_use", "Used, round 1 (%)", 1, "round1", "_round1"),
        Column("final_use", "Used, round 2 (%)", 1, "round2", "_round2"),
    ),
}


def write_table(params: "Params", layout: "Layout", table: str) -> None:
    """Writes one of Tables 1-5 as CSV, Markdown and LaTeX.

    Every number is the mean over the run's seeds, with the standard deviation over seeds where
    there are several, and the paper's number where the run has as many layers as the paper's.

    Raises:
      UserError: The results of a run are incomplete or malformed.
    """
    shown = {run: params.runs[run].seeds for run in TABLE_RUNS[table] if run in params.runs}
    runs = load_runs(layout.results, shown)
    columns = _COLUMNS.get(table) or _learning_rate_columns(params)
    frame, display = _fill(table, columns, runs, params)
    texts = {
        "csv": frame.to_csv(index=False, lineterminator="\n", float_format="%.6g"),
        "md": f"**Table {table.removeprefix('table')}. {TABLES[table]}.** Ours, with the paper's "
        f"in parentheses. {note(table, params)}\n\n"
        + display.to_markdown(index=False, disable_numparse=True, stralign="right")
        + "\n",
        "tex": to_latex(display),
    }
    for path in layout.table(table):
        write_text(path, texts[path.suffix.removeprefix(".")])


def note(table: str, params: "Params") -> str:
    """What a reader has to know of a table's numbers: of how many seeds, and over which batches.

    Batch use grows with the batch, so it compares only with the paper's where that is as large.
    """
    shown = [params.runs[run] for run in TABLE_RUNS[table] if run in params.runs]
    seeds = [len(run.seeds) for run in shown] or [1]
    spread = f"Means ± standard deviations over {span(seeds)} seeds. " if max(seeds) > 1 else ""
    training = [run.config.training for run in shown] or [params.defaults.training]
    shapes = dict.fromkeys((each.per_device_batch_size, each.seq_len) for each in training)
    batches = " or ".join(f"{sequences} sequences of {tokens}" for sequences, tokens in shapes)
    return (
        f"{spread}A batch has {batches} tokens; the paper's {PAPER_BATCH[0]} of {PAPER_BATCH[1]}, "
        "and more tokens use more units."
    )


def _learning_rate_columns(params: "Params") -> tuple[Column, ...]:
    def rate(run: str) -> str:
        here = params.runs.get(run)
        return f"{here.config.optimizer.peak_lr if here else published()['peak_lr'][run]:.3g}"

    rates = [rate(run) for run in LEARNING_RATES]
    return tuple(
        Column(
            "batch_use",
            # Two runs may be given the same rate.
            f"LR {own} (%)" if rates.count(own) == 1 else f"LR {own}, {run} (%)",
            1,
            run,
            f"_{run}",
            with_total=True,
        )
        for run, own in zip(LEARNING_RATES, rates, strict=True)
    )


def _fill(
    table: str,
    columns: Iterable[Column],
    runs: dict[str, dict[int, RunHistory]],
    params: "Params",
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The table with a column for every number, and the one with a text for every cell."""
    cells = {
        column: _cells(table, column, list(runs.get(column.run, {}).values()), params)
        for column in columns
    }
    rows = max((list(each.index) for each in cells.values()), key=lambda labels: len(labels))
    frame, display = pd.DataFrame({"layer": rows}), pd.DataFrame({"Layer": rows})
    for column, values in cells.items():
        aligned = values.reindex(rows)
        for part in ("mean", "std", "paper"):
            name = column.name if part == "mean" else f"{column.name}_{part}"
            frame[name] = aligned[part].to_numpy()
        display[column.title] = [
            _text(mean, std, paper, column.digits) for mean, std, paper in aligned.to_numpy()
        ]
    return frame, display


def _cells(table: str, column: Column, seeds: list[RunHistory], params: "Params") -> pd.DataFrame:
    """Mean, standard deviation and the paper's number, for every layer and perhaps the total."""
    published_columns = published()["tables"][table][column.run]
    paper = np.array(published_columns[column.metric], float)
    if column.with_total:
        paper = np.append(paper, published_columns["total_batch_use"])
    values = []
    for history in seeds:
        window = params.runs[history.run].config.metrics.convergence_window
        layers = LAYER_METRICS[column.metric](history, window)
        total = [over_all_units(layers, history)] if column.with_total else []
        values.append(np.append(layers, total))
    mean = np.mean(values, axis=0) if values else np.full_like(paper, np.nan)
    std = np.std(values, axis=0, ddof=1) if len(values) > 1 else np.full_like(mean, np.nan)
    if len(paper) != len(mean):
        paper = np.full_like(mean, np.nan)
    rows = [str(layer) for layer in range(len(mean) - column.with_total)]
    return pd.DataFrame(
        {"mean": mean, "std": std, "paper": paper},
        index=rows + ["total"] * column.with_total,
    )


def _text(mean: float, std: float, paper: float, digits: int) -> str:
    ours = "–" if np.isnan(mean) else f"{mean:.{digits}f}"
    spread = "" if np.isnan(std) else f" ± {std:.{digits}f}"
    if np.isnan(paper):
        return ours + spread
    theirs = f"{paper:.{digits}f}"
    return f"{ours}{spread} ({theirs if float(theirs) == paper else f'{paper:g}'})"


def to_latex(display: pd.DataFrame) -> str:
    """A table of texts as a plain tabular of the booktabs package."""
    latex = str.maketrans({"%": r"\%", "_": r"\_", "±": r"$\pm$", "–": "--"})

    def escape(text: str) -> str:
        return text.translate(latex)

    escaped = display.map(escape).rename(columns=escape)
    return escaped.to_latex(index=False, column_format="l" + "r" * (escaped.shape[1] - 1))
