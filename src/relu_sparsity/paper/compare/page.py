"""The page that shows what differs between two revisions, as HTML and as Markdown."""

import io
from collections.abc import Collection
from pathlib import Path
from typing import Any

import jinja2
import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator

from relu_sparsity.errors import UserError
from relu_sparsity.files import write_text
from relu_sparsity.paper.catalog import TABLES
from relu_sparsity.paper.compare.differences import (
    Comparison,
    Curves,
    compare_revisions,
)
from relu_sparsity.paper.compare.revisions import CURVES, commit_revision, working_tree
from relu_sparsity.paper.figures import STYLE, average_neighbours, label_ends, layer_color


def write_comparison(
    repository: Path,
    first: str,
    second: str | None,
    target: Path,
    scale: str | None = None,
    stale: Collection[Path] = (),
) -> list[Path]:
    """Writes what differs between two revisions, as a self-contained HTML page and as Markdown.

    A revision's results come from git, from DVC's cache or remote, or from a file in the working
    tree that is still the recorded one. What is in none of these is named, the rest is shown.

    Args:
      repository: The project's folder.
      first: A git revision: a hash, a branch, a tag, `HEAD~1`.
      second: Another one; None is the working tree.
      target: The page, `.html`. The Markdown lies beside it.
      scale: The scale to compare; None takes `scale` of each revision's params.yaml.
      stale: Files of the working tree that are not results of its parameters.

    Returns:
      The page and the Markdown.

    Raises:
      UserError: `repository` is not in git, a revision is unknown or its params.yaml is missing or
        not valid, no scale is given and the two have different ones, or `target` is not `.html`.
    """
    if target.suffix != ".html":
        raise UserError(f"{target}: allowed: a name that ends in .html")
    revisions = [
        working_tree(repository, scale, stale)
        if name is None
        else commit_revision(repository, name, scale)
        for name in (first, second)
    ]
    comparison = compare_revisions(*revisions)
    page, markdown = target, target.with_suffix(".md")
    pictures = {run: _draw(run, *both) for run, both in comparison.curves.items()}
    write_text(page, _render("compare.html.jinja2", comparison, pictures))
    write_text(markdown, _render("compare.md.jinja2", comparison, {}, finalize=_markdown_cell))
    return [page, markdown]


def _draw(run: str, first: Curves, second: Curves) -> str:
    """The curves of a run, both revisions over each other, as an SVG element."""
    names = [name for name in CURVES if name in first]
    # Identifiers of the pictures on one page must not clash.
    with mpl.rc_context({**STYLE, "svg.hashsalt": f"relu-sparsity {run}"}):
        canvas = Canvas(figsize=(3.9 * len(names), 2.7), layout="constrained")
        for axes, name in zip(np.ravel(canvas.subplots(1, len(names))), names, strict=True):
            axes.set_title(CURVES[name], loc="left")
            _draw_curve(axes, first[name], by_layer=name != "loss", dashed=True)
            _draw_curve(axes, second[name], by_layer=name != "loss", dashed=False)
            _finish_axes(axes, name, first[name], second[name])
        file = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        canvas.savefig(file, format="svg", metadata=nothing)
    svg = file.getvalue()
    return svg[svg.index("<svg") :]


def _draw_curve(axes: Axes, curve: pd.DataFrame, *, by_layer: bool, dashed: bool) -> None:
    steps, values = average_neighbours(curve.index.to_numpy(), curve.to_numpy()[np.newaxis])
    style: dict[str, Any] = {"linewidth": 0.9, "linestyle": (0, (3, 1.5))} if dashed else {}
    for layer in range(values.shape[2]):
        color = layer_color(layer) if by_layer else "black"
        axes.plot(steps, values[0, :, layer], color=color, **style)


def _finish_axes(axes: Axes, name: str, first: pd.DataFrame, second: pd.DataFrame) -> None:
    axes.set_xlabel("training step")
    axes.set_xlim(0, max(first.index[-1], second.index[-1], 1))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    if name == "loss":
        lines = [Line2D([], [], color="black", linewidth=0.9, linestyle=(0, (3, 1.5)))]
        axes.legend([*lines, Line2D([], [], color="black")], ["A", "B"], loc="upper right")
        return
    axes.set_ylim(bottom=0, top=103 if name == "batch_use" else None)
    label_ends(axes, dict(enumerate(second.to_numpy()[-1])))


def _render(template: str, comparison: Comparison, pictures: dict[str, str], **options: Any) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=jinja2.select_autoescape(["html.jinja2"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        **options,
    )
    return environment.get_template(template).render(
        comparison=comparison, tables=TABLES, pictures=pictures
    )


def _markdown_cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("<", "\\<")
