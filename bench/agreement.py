"""Do the tools agree on what an edit makes stale? A table of edits, one row each.

    python bench/agreement.py                # about four minutes an edit, on one core
    python bench/agreement.py --edit caption # one of them; the other rows of the table stay

Each edit is made in a copy of a finished project of tiny models, recorded in Git and DVC. The table
is results/bench/agreement.md.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "workflow")]

from projects import TINY, Project, copy_checkout  # type: ignore[import-not-found]  # noqa: E402

from relu_sparsity.files import write_text  # noqa: E402

TABLE = Path("results/bench/agreement.md")
PARTIAL = "results/smoke/tables/table1.csv"
COLUMNS = ("after the edit", "after `snakemake .../table1.csv`", "after `dvc repro`")


@dataclass(frozen=True)
class Edit:
    """Something that a user may change."""

    what: str
    make: Callable[[Project], object]


def parameter(*keys: str, value: object) -> Edit:
    """A value of params.yaml."""

    def make(project: Project) -> None:
        def put(document):
            for key in keys[:-1]:
                document = document.setdefault(key, {})
            document[keys[-1]] = value

        project.edit(put)

    shown = keys[1:] if keys[0] == "runs" else keys[2:]
    return Edit(f"{'.'.join(shown)}: {value}", make)


def replaced(path: str, old: str, new: str) -> Edit:
    """A line of a file."""

    def make(project: Project) -> None:
        file = project.folder / path
        text = file.read_text()
        assert old in text, (path, old)
        file.write_text(text.replace(old, new, 1))

    return Edit(f"{path}: {new.strip().splitlines()[0][:40]}", make)


def taken_away(run: str) -> Callable[[Project], object]:
    """A run that params.yaml no longer has. Its results stay."""
    return lambda project: project.edit(lambda document: document["runs"].pop(run))


def other_version(project: Project) -> None:
    """Makes a package look as if another version of it were locked and installed."""
    lock = project.folder / "requirements.txt"
    lock.write_text(re.sub("(?m)^flax==[^ ]+", "flax==0.0.1", lock.read_text()))
    folder = project.folder / "src" / "flax-0.0.1.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: flax\nVersion: 0.0.1\n")


def of_scale(*keys: str, value: object) -> Edit:
    """A parameter of the scale."""
    return parameter("scales", "smoke", *keys, value=value)


EDITS = {
    "optimizer": parameter("runs", "lr_x1of3", "optimizer", "peak_lr", value="x1/4"),
    "model": parameter("runs", "width_x1of4", "model", "mlp_dim", value="x1/8"),
    "training": of_scale("training", "eval_every_steps", value=12),
    "metrics": of_scale("metrics", "early_steps", value=10),
    "mask": of_scale("mask", "step", value=8),
    "round2": of_scale("round2", "width_multiple_of", value=8),
    "runs": Edit("depth_14: taken away", taken_away("depth_14")),
    "claims": of_scale("claims", "equivalence_margin", value=0.006),
    "tokenizer": of_scale("tokenizer", "vocab_size", value=410),
    "data": of_scale("data", "heldout_fraction", value=0.25),
    "comment": replaced("src/relu_sparsity/model.py", "\nimport ", "\n# A comment.\nimport "),
    "module": replaced(
        "src/relu_sparsity/paper/figures.py", '"lines.linewidth": 1.2', '"lines.linewidth": 1.3'
    ),
    "caption": replaced("workflow/report/figure.rst", "\n", "\nAnother caption.\n"),
    "package": Edit("flax: another version", other_version),
}


def main() -> None:
    """Makes the edits and writes the table."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--edit", action="append", choices=EDITS, help="only this one")
    chosen = parser.parse_args().edit or list(EDITS)
    rows = _rows() if len(chosen) < len(EDITS) else {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        print("builds the project", flush=True)
        finished = _build(folder / "finished")
        for number, name in enumerate(chosen, 1):
            print(f"{number} of {len(chosen)}: {name}", flush=True)
            project = finished.copy(folder / name)
            EDITS[name].make(project)
            rows[name] = {"edit": f"{name}: {EDITS[name].what}", **_row(project)}
            print(json.dumps(rows[name]), flush=True)
            shutil.rmtree(project.folder)
            write_text(TABLE, _text([rows[each] for each in EDITS if each in rows]))


def _build(folder: Path) -> Project:
    project = copy_checkout(folder)
    project.edit(lambda document: document["scales"].update(smoke=TINY))
    git = ["git", "-c", "user.name=bench", "-c", "user.email=bench@example.org"]
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    project.snakemake()
    project.run("dvc", "commit", "--force")
    for words in (["add", "."], ["commit", "--quiet", "-m", "finished"]):
        subprocess.run([*git, *words], cwd=folder, check=True)
    return project


def _row(project: Project) -> dict[str, str]:
    def plan() -> int:
        return len(json.loads(project.run("relu_sparsity.cli", "plan", "--json"))["jobs"])

    def snakemake() -> int:
        return sum(count for rule, count in project.planned().items() if rule != "all")

    def dvc() -> int:
        return len(json.loads(project.run("dvc", "status", "--json")))

    before = [plan(), snakemake(), dvc()]
    project.snakemake(PARTIAL)
    partly = [plan(), snakemake(), dvc()]
    project.run("dvc", "repro", "--quiet", status=None)
    after = [plan(), snakemake(), dvc()]
    return {
        column: ", ".join(map(str, counts))
        for column, counts in zip(COLUMNS, (before, partly, after), strict=True)
    }


def _rows() -> dict[str, dict[str, str]]:
    """The rows of the table that is there, by the name of the edit."""
    rows = {}
    for line in TABLE.read_text(encoding="utf-8").splitlines() if TABLE.exists() else []:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        name = cells[0].partition(":")[0]
        if name in EDITS:
            rows[name] = dict(zip(("edit", *COLUMNS), cells, strict=True))
    return rows


def _text(rows: list[dict[str, str]]) -> str:
    head = (
        "What is to do after an edit, in a project whose results are all there: jobs by `plan`, "
        "jobs by `snakemake -n`, and stages whose own inputs changed by `dvc status`. "
        "`bench/agreement.py` writes this table.\n\n"
    )
    return head + pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True) + "\n"


if __name__ == "__main__":
    main()
