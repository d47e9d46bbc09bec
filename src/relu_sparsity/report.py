"""The report: Snakemake's self-contained HTML, made to depend on the results alone."""

import base64
import json
import logging
import re
import sys
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl

from relu_sparsity.counts import span
from relu_sparsity.errors import UserError
from relu_sparsity.files import atomic_write, read_json
from relu_sparsity.jobs import Job, job_table
from relu_sparsity.layout import Layout
from relu_sparsity.paper.catalog import FIGURES, TABLES
from relu_sparsity.paper.figures import STYLE, draw_evidence, to_svg
from relu_sparsity.paper.tables import note
from relu_sparsity.paper.verdicts import VERDICTS, numbers_text
from relu_sparsity.params import Params

# The parts of Snakemake's report that are JSON; their order follows the scheduler's.
_DATA = re.compile(
    r'(<script id="(?P<name>results|categories|runtimes|timeline|rules|rulegraph)">\s*var \w+ = )'
    r"(?P<value>.*?)(;\s*</script>)",
    re.DOTALL,
)
_TITLE = "ReLU sparsity"
_SHOWN_FIGURES = ("fig01", "fig02")
_FIGURE_OR_TABLE = re.compile(r"(Figure|Table) (\d+)[ab]?")


def write_report(params: Params, layout: Layout) -> None:
    """Writes the HTML report of a scale whose other results are there.

    Raises:
      UserError: Snakemake cannot make it, and has said why.
    """
    with atomic_write(layout.report) as temporary:
        # The workflow that calls this holds the lock; the report only reads.
        arguments = ["--cores", "1", "--nolock", "--config", f"scale={params.scale}"]
        arguments += ["--report", str(temporary)]
        _call_snakemake([*arguments, "--report-stylesheet", "workflow/report/style.css"])
        html = temporary.read_text(encoding="utf-8")
        graph = rule_graph(job_table(params, layout).values())
        temporary.write_text(steady_report(html, graph), encoding="utf-8")


def _call_snakemake(arguments: list[str]) -> None:
    """Runs Snakemake in this process, which a fork of the server has imported it for.

    It leaves its settings and its loggers behind: for a process that then ends.

    Raises:
      UserError: It ends with an error, which it has printed.
    """
    from snakemake.cli import main
    from snakemake.logging import logger

    # Not a line for each figure.
    logger.addFilter(lambda record: record.levelno > logging.INFO)
    # The Snakefile looks there for what Snakemake is asked for.
    sys.argv[1:] = arguments
    try:
        main(arguments)
    except SystemExit as end:
        if end.code:
            raise UserError("the report could not be made; Snakemake tells why, above") from None


def overview(params: Params, layout: Layout) -> dict[str, Any]:
    """What the report's first page shows, as overview.rst has it: text, HTML and pictures.

    Raises:
      UserError: The claims, a table or a figure is missing.
    """
    baseline = params.runs.get("baseline")
    shown = baseline.config if baseline else params.defaults
    try:
        told = read_json(layout.results / "claims.json")
        claims = [_shown(claim, layout) for claim in told["claims"]]
        return {
            "scale": params.scale,
            "purpose": params.claims.purpose,
            "num_layers": shown.model.num_layers,
            "widths": span(shown.model.mlp_dims),
            "num_steps": shown.training.num_steps,
            "summary": told["summary"],
            "groups": {
                verdict: [claim for claim in claims if claim["verdict"] == verdict]
                for verdict in VERDICTS
            },
            "tables": [
                {
                    "name": name,
                    "title": title,
                    "note": note(name, params),
                    "rows": _rows(layout.table(name)[1]),
                }
                for name, title in TABLES.items()
            ],
            "figures": [
                {
                    "number": FIGURES[figure].number,
                    "caption": FIGURES[figure].caption,
                    "link": _link(layout.figure(figure)),
                    "picture": _picture(layout.figure(figure).read_text(encoding="utf-8")),
                }
                for figure in _SHOWN_FIGURES
            ],
        }
    except FileNotFoundError as error:
        raise UserError(f"{error.filename}: is missing; make all results first") from None


def _shown(claim: dict[str, Any], layout: Layout) -> dict[str, Any]:
    """A claim with a picture of its numbers, or else of the figure that it speaks of."""
    with mpl.rc_context(STYLE):
        drawn = draw_evidence(claim["evidence"], claim["paper"])
        pictures = [to_svg(drawn)] if drawn else []

    def link(match: re.Match[str]) -> str:
        there = f"#table{match[2]}"
        if match[1] == "Figure":
            figure = layout.figure(f"fig{int(match[2]):02d}")
            pictures.append(figure.read_text(encoding="utf-8"))
            there = _link(figure)
        return f'<a href="{there}">{match[0]}</a>'

    return claim | {
        "source": _FIGURE_OR_TABLE.sub(link, claim["source"]),
        "picture": _picture(pictures[0]) if pictures else "",
        "here": numbers_text(claim["evidence"]),
        "in_paper": numbers_text(claim["paper"]),
    }


def _link(result: Path) -> str:
    """Opens a result of the report: its picture, and what it is in the bar."""
    view = "navbarMode: 'resultinfo', content: 'img'"
    path = f"resultPath: '{result}', contentPath: results['{result}'].data_uri"
    return f"javascript:app.setView({{{view}, {path}}})"


def _picture(svg: str) -> str:
    # In lines, as docutils takes no longer ones than 10,000.
    return f"data:image/svg+xml;base64,{base64.encodebytes(svg.encode()).decode().strip()}"


def _rows(table: Path) -> list[list[str]]:
    """The cells of a Markdown table, its header first."""
    lines = [line for line in table.read_text(encoding="utf-8").splitlines() if line[:1] == "|"]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [rows[0], *rows[2:]]


def steady_report(html: str, graph: Mapping[str, list[dict[str, Any]]]) -> str:
    """Sorts a report's data, draws its graph of rules, and takes out when and how long jobs ran.

    Times differ from run to run; they are in the benchmarks. Without them the same results give
    the same report.
    """
    found = {match["name"] for match in _DATA.finditer(html)}
    if found != {"results", "categories", "runtimes", "timeline", "rules", "rulegraph"}:
        raise UserError(f"Snakemake's report has another form than expected: found {found}")
    return _DATA.sub(partial(_steady, graph=graph), html).replace(
        "<title>Snakemake Report<", f"<title>{_TITLE}<"
    )


def _steady(match: re.Match[str], graph: Mapping[str, list[dict[str, Any]]]) -> str:
    value = json.loads(match["value"])
    if match["name"] in ("runtimes", "timeline"):
        value["data"]["values"] = []
    elif match["name"] == "categories":
        value = {
            category: {name: sorted(paths) for name, paths in subcategories.items()}
            for category, subcategories in value.items()
        }
    elif match["name"] == "rulegraph":
        for each in value["data"]:
            each["values"] = graph[each["name"]]
    elif match["name"] == "rules":
        # The rule that makes the report is known to Snakemake only from the second time on, and
        # only jobs that ran here are counted.
        value.pop("report", None)
        for rule in value.values():
            rule.pop("n_jobs")
    # "</" would end the script element early.
    text = json.dumps(value, sort_keys=True).replace("</", "<\\/")
    return match[1] + text + match[4]


def rule_graph(jobs: Iterable[Job]) -> dict[str, list[dict[str, Any]]]:
    """The graph of rules as the report's picture of it has it: nodes, and links in two groups.

    Snakemake's own shows what some of the jobs read, whichever it meets first.
    """
    jobs = [job for job in jobs if not job.on_request]
    rules = list(dict.fromkeys(job.rule for job in jobs))
    pairs = {
        (rules.index(before.partition("/")[0]), rules.index(job.rule))
        for job in jobs
        for before in job.after
    }
    links: list[dict[str, Any]] = [
        {
            "source": source,
            "target": target,
            "sourcerule": rules[source],
            "targetrule": rules[target],
            "value": 1,
        }
        for source, target in sorted(pairs)
    ]
    return {
        "node-data": [{"rule": rule, "fx": 10, "fy": 50 * row} for row, rule in enumerate(rules)],
        "link-data": [link for link in links if link["target"] != link["source"] + 1],
        "link-data-direct": [link for link in links if link["target"] == link["source"] + 1],
    }
