"""The report: Snakemake's self-contained HTML, made to depend on the results alone."""

import json
import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from relu_sparsity.errors import UserError
from relu_sparsity.files import atomic_write

if TYPE_CHECKING:
    from relu_sparsity.layout import Layout
    from relu_sparsity.params import Params

# The parts of Snakemake's report that are JSON; their order follows the scheduler's.
_DATA = re.compile(
    r'(<script id="(?P<name>results|categories|runtimes|timeline|rules|rulegraph)">\s*var \w+ = )'
    r"(?P<value>.*?)(;\s*</script>)",
    re.DOTALL,
)
_TITLE = "ReLU sparsity"


def write_report(params: "Params", layout: "Layout") -> None:
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
        temporary.write_text(without_times(html), encoding="utf-8")


def without_times(html: str) -> str:
    """Sorts a report's data and takes out when and how long each job ran.

    Times differ from run to run; they are in the benchmarks. Without them the same results give
    the same report.
    """
    found = {match["name"] for match in _DATA.finditer(html)}
    if found != {"results", "categories", "runtimes", "timeline", "rules", "rulegraph"}:
        raise UserError(f"Snakemake's report has another form than expected: found {found}")
    return _DATA.sub(_steady, html).replace("<title>Snakemake Report<", f"<title>{_TITLE}<")


def _steady(match: re.Match[str]) -> str:
    value = json.loads(match["value"])
    if match["name"] in ("runtimes", "timeline"):
        value["data"]["values"] = []
    elif match["name"] == "categories":
        value = {
            category: {name: sorted(paths) for name, paths in subcategories.items()}
            for category, subcategories in value.items()
        }
    elif match["name"] == "rulegraph":
        _draw_every_intervention(value)
    elif match["name"] == "rules":
        # The rule that makes the report is known to Snakemake only from the second time on, and
        # only jobs that ran here are counted.
        value.pop("report", None)
        for rule in value.values():
            rule.pop("n_jobs")
    # "</" would end the script element early.
    text = json.dumps(value, sort_keys=True).replace("</", "<\\/")
    return match[1] + text + match[4]


def _draw_every_intervention(graph: Any) -> None:
    """Snakemake draws what one training job reads, whichever: a mask, widths, or neither."""
    data = {each["name"]: each["values"] for each in graph["data"]}
    nodes = [node["rule"] for node in data["node-data"]]
    rules = [rule for rule in ("mask", "widths") if rule in nodes and "train" in nodes]
    for name in ("link-data", "link-data-direct"):
        data[name][:] = [
            link
            for link in data[name]
            if link["targetrule"] != "train" or link["sourcerule"] not in rules
        ]
    data["link-data"] += [
        {
            "target": nodes.index("train"),
            "source": nodes.index(rule),
            "sourcerule": rule,
            "targetrule": "train",
            "value": 1,
        }
        for rule in rules
    ]
    for name in ("link-data", "link-data-direct"):
        data[name].sort(key=lambda link: (link["source"], link["target"]))
