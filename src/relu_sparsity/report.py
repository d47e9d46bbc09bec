"""The report: Snakemake's self-contained HTML, made to depend on the results alone."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from relu_sparsity.errors import UserError
from relu_sparsity.files import atomic_write
from relu_sparsity.jobs import Job, job_table
from relu_sparsity.layout import Layout
from relu_sparsity.params import Params

# The parts of Snakemake's report that are JSON; their order follows the scheduler's.
_DATA = re.compile(
    r'(<script id="(?P<name>results|categories|runtimes|timeline|rules|rulegraph)">\s*var \w+ = )'
    r"(?P<value>.*?)(;\s*</script>)",
    re.DOTALL,
)
_TITLE = "ReLU sparsity"


def write_report(params: Params, layout: Layout) -> None:
    """Writes the HTML report of a scale whose other results are there.

    Raises:
      UserError: Snakemake cannot make it; the message is Snakemake's.
    """
    with atomic_write(layout.report) as temporary:
        # The workflow that calls this holds the lock; the report only reads.
        command = [sys.executable, "-m", "snakemake", "--cores", "1", "--nolock"]
        command += ["--config", f"scale={params.scale}", "--report", str(temporary)]
        command += ["--report-stylesheet", "workflow/report/style.css"]
        # Snakemake lays out its graph of rules in the order of sets.
        environment = os.environ | {"PYTHONHASHSEED": "0"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        if done.returncode:
            raise UserError(f"the report could not be made:\n{done.stderr.strip()}")
        html = temporary.read_text(encoding="utf-8")
        graph = rule_graph(job_table(params, layout).values())
        temporary.write_text(steady_report(html, graph), encoding="utf-8")


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
    straight = [link["target"] == link["source"] + 1 for link in links]
    return {
        "node-data": [{"rule": rule, "fx": 10, "fy": 50 * row} for row, rule in enumerate(rules)],
        "link-data": [
            link for link, is_straight in zip(links, straight, strict=True) if not is_straight
        ],
        "link-data-direct": [
            link for link, is_straight in zip(links, straight, strict=True) if is_straight
        ],
    }
