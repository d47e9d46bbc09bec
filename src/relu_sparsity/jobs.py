"""The table of jobs: a row for each, with its results, what it reads, what it means, who writes it.

Rules, command line, plan, status and fingerprints all read it.
"""

import functools
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from relu_sparsity import fingerprint
from relu_sparsity.data import sources
from relu_sparsity.data.tokenizer import tokenizer_identity
from relu_sparsity.errors import UserError
from relu_sparsity.fingerprint import Fingerprint
from relu_sparsity.layout import RUN_FILES, Layout
from relu_sparsity.paper.catalog import (
    OWN_RUNS,
    PRUNED_RUNS,
    PRUNING,
    TABLE_RUNS,
    figures,
    own_runs,
)  # fmt: skip
from relu_sparsity.params import MASKS, DataParams, Params, RunParams
from relu_sparsity.provenance import (
    Digests,
    changed_files,
    differences,
    read_record,
)

_PUBLISHED = fingerprint.PACKAGE / "paper" / "published.yaml"
_REPORT_FILES = Path("workflow/report")


@dataclass(frozen=True)
class Job:
    """One job of the workflow.

    Attributes:
      name: Its rule, and what of: `train/baseline/seed0`, `table/table1`.
      writer: The function that makes its results: `module:function` of this package.
      arguments: What the writer is called with, beside parameters and layout.
      outputs: Its result files, but for the record.
      after: The jobs whose results it reads.
      stage: The stage of dvc.yaml that it belongs to; none where DVC does not know it.
      parameters: What of params.yaml decides its results.
      modules: Modules beside the writer's that count though they usually do not.
      files: Files that decide its results beside the code.
      may_lack: Whether it shows what there is when the jobs before it have no results.
      reads_store: Whether it reads what the store has of the jobs before it, not their results.
      writes_record: Whether the writer writes the record itself, as run.json beside the results.
      on_request: Whether it is made only when asked for.
      takes_run: Whether the writer takes the run, resolved, instead of parameters and layout.
      fingerprint: What its results depend on.
    """

    name: str
    writer: str
    outputs: tuple[Path, ...]
    stage: str
    after: tuple[str, ...] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)
    modules: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()
    may_lack: bool = False
    reads_store: bool = False
    writes_record: bool = False
    takes_run: bool = False
    on_request: bool = False
    fingerprint: Fingerprint = field(default_factory=lambda: Fingerprint({}, {}, {}, {}))

    @property
    def rule(self) -> str:
        """The rule that runs it."""
        return self.name.partition("/")[0]

    @property
    def command(self) -> str:
        """The command that runs it."""
        words = [f"--{key} {value}" for key, value in self.arguments.items()]
        rule = {"table": "tables", "figure": "figures"}.get(self.rule, self.rule)
        return " ".join(["relu-sparsity", rule, *words])

    @property
    def record(self) -> Path:
        """The file that tells what its results were made from."""
        first = self.outputs[0]
        return first.with_name("run.json") if self.writes_record else Layout.record(first)

    @property
    def files_written(self) -> tuple[Path, ...]:
        """All that it writes."""
        return (*self.outputs, self.record)

    def has_results(self) -> bool:
        """Whether any of its results is there."""
        return any(path.is_file() for path in self.files_written)

    def problems(self, digests: Digests) -> list[str]:
        """Why its results are not those of the parameters now, in words; empty where they are."""
        missing = [path for path in self.files_written if not path.is_file()]
        if len(missing) == len(self.files_written):
            return ["has no results yet"]
        record = read_record(self.record)
        if record is not None and record.fingerprint != self.fingerprint.hash:
            return differences(record.made_from, self.fingerprint)
        if missing:
            return [f"{path}: is missing" for path in missing]
        if record is None:
            return [f"{self.record}: does not tell what its results were made from"]
        return [
            f"{path}: was changed after it was written (its SHA-256 is another one)"
            for path in changed_files(record, self.outputs, digests)
        ]


class JobTable(Mapping[str, Job]):
    """Every job of a scale by its name, each after those whose results it reads.

    The code that makes a job's results is read when the job, or one after it, is asked for: a
    process that trains has no need of what draws.
    """

    def __init__(self, rows: Iterable[Job]) -> None:
        self._rows = {row.name: row for row in rows}
        self._jobs: dict[str, Job] = {}

    def __getitem__(self, name: str) -> Job:
        if name not in self._jobs:
            row = self._rows[name]
            modules = (row.writer.partition(":")[0], *row.modules)
            made = Fingerprint(
                row.parameters,
                fingerprint.code(modules, row.files),
                fingerprint.packages(modules),
                {before: self[before].fingerprint.hash for before in row.after},
            )
            self._jobs[name] = replace(row, fingerprint=made)
        return self._jobs[name]

    def __contains__(self, name: object) -> bool:
        return name in self._rows

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)


def job_table(params: Params, layout: Layout) -> JobTable:
    """The jobs of a scale.

    Raises:
      UserError: A file that the parameters name is missing.
    """
    return JobTable(_rows(params, layout))


def _rows(params: Params, layout: Layout) -> Iterator[Job]:
    text = {
        "data": _data_identity(params.defaults.data),
        # Of a given model the number of its tokens too: it is checked where the tokenizer is made.
        "tokenizer": {"vocab_size": params.defaults.tokenizer.vocab_size}
        | tokenizer_identity(params.defaults.tokenizer),
    }
    yield Job(
        "tokenizer",
        "data.prepare:write_tokenizer",
        (layout.tokenizer,),
        stage="text",
        parameters=text,
    )
    yield Job(
        "data",
        "data.prepare:write_manifest",
        (layout.manifest,),
        stage="text",
        after=("tokenizer",),
        # What decides which held-out tokens are predicted.
        parameters=text
        | {"training": params.defaults.training.model_dump(include={"seq_len", "eval_sequences"})},
    )
    for name, seed in params.jobs():
        yield from _run_rows(params, layout, params.runs[name], seed, text)
    yield from _paper_rows(params, layout)


def _run_rows(
    params: Params, layout: Layout, run: RunParams, seed: int, text: dict[str, Any]
) -> Iterator[Job]:
    folder = layout.run(run.name, seed)
    of_run: dict[str, Any] = {
        "stage": "" if run.sensitivity else f"{'branch' if run.parent else 'run'}@{run.name}",
        "on_request": run.sensitivity,
        "arguments": {"run": run.name, "seed": seed},
    }
    parent = f"train/{run.parent}/seed{seed}"
    before = ["tokenizer", "data"]
    if run.intervention in MASKS:
        before.append(f"mask/{run.name}/seed{seed}")
        decides = {"mask": run.config.mask_choice(run.intervention), "seed": seed}
        yield Job(
            before[-1], "training.run:write_mask", (layout.mask(run.name, seed),),
            after=(parent,), parameters=decides | {"intervention": run.intervention},
            reads_store=True, takes_run=True, **of_run,
        )  # fmt: skip
    elif run.intervention == "used_widths":
        before.append(f"widths/{run.name}/seed{seed}")
        decides = {"round2": run.config.round2.model_dump(mode="json")}
        yield Job(
            before[-1], "training.run:write_widths", (layout.widths(run.name, seed),),
            after=(parent,), parameters=decides, takes_run=True, **of_run,
        )  # fmt: skip
    config = run.config.fingerprinted(run.intervention)
    config["data"] = text["data"] | {"num_shards": run.config.data.num_shards}
    config["tokenizer"] = text["tokenizer"]
    train = f"train/{run.name}/seed{seed}"
    yield Job(
        train,
        "training.run:train",
        tuple(folder / name for name in RUN_FILES if name != "run.json"),
        after=tuple(before),
        parameters={**config, "seed": seed, "intervention": run.intervention},
        writes_record=True,
        takes_run=True,
        **of_run,
    )
    window = run.config.metrics.convergence_window
    yield Job(
        f"extract/{run.name}/seed{seed}", "paper.extract:write_metrics",
        (folder / "metrics.json",), after=(train,),
        parameters={"metrics": {"convergence_window": window}}, **of_run,
    )  # fmt: skip


def _paper_rows(params: Params, layout: Layout) -> Iterator[Job]:
    def extracted(runs: Collection[str]) -> tuple[str, ...]:
        return tuple(f"extract/{run}/seed{seed}" for run, seed in params.jobs() if run in runs)

    for table, runs in TABLE_RUNS.items():
        yield Job(
            f"table/{table}", "paper.tables:write_table", tuple(layout.table(table)),
            stage="tables", after=extracted(runs), arguments={"table": table},
            files=(_PUBLISHED,), may_lack=True,
        )  # fmt: skip
    masks = [
        (run, f"mask/{run}/seed{seed}")
        for run, seed in params.jobs()
        if params.runs[run].intervention in MASKS
    ]
    pruned = pruning_runs(params)
    compared = (*extracted(pruned), *(mask for run, mask in masks if run in pruned))
    yield Job(
        PRUNING, "paper.pruning:write_pruning", tuple(layout.table(PRUNING)),
        stage="tables", after=compared, modules=("flops",),
        parameters={"pruning": params.pruning.model_dump(mode="json")}, may_lack=True,
    )  # fmt: skip
    own = {name: params.runs[name] for name in own_runs(params.paper_runs)}
    if own:
        compared_runs = {"baseline": params.runs.get("baseline"), **own}
        yield Job(
            "own", "paper.own_runs:write_own_runs", tuple(layout.table(OWN_RUNS)),
            stage="tables", after=extracted(compared_runs), may_lack=True,
            parameters={"runs": {name: run and run.model_dump(mode="json")
                                 for name, run in compared_runs.items()}},
        )  # fmt: skip
    drawn = figures(params.paper_runs)
    for figure, row in drawn.items():
        shown = {run: params.runs[run] for run in row.runs if run in params.runs}
        decides = {
            "early_steps": {name: run.config.metrics.early_steps for name, run in shown.items()},
            "mask_steps": {name: params.branch_steps(name) for name in shown},
        }
        yield Job(
            f"figure/{figure}", "paper.figures:write_figure", (layout.figure(figure),),
            stage="figures", after=extracted(row.runs), arguments={"figure": figure},
            parameters=decides, files=(_PUBLISHED,), may_lack=True,
        )  # fmt: skip
    yield Job(
        "claims", "paper.verdicts:write_claims", tuple(layout.claims),
        stage="claims", after=(*extracted(params.paper_runs), *(mask for _, mask in masks)),
        files=(_PUBLISHED,),
        parameters={"claims": params.claims.model_dump(mode="json")}, may_lack=True,
    )  # fmt: skip
    yield Job(
        "summary", "paper.summary:write_summary", (layout.summary, *layout.curves),
        stage="claims", after=("claims", *extracted(params.paper_runs)),
    )  # fmt: skip
    shown_jobs = [f"table/{table}" for table in TABLE_RUNS]
    shown_jobs += [PRUNING, *(["own"] if own else []), *(f"figure/{figure}" for figure in drawn)]
    yield Job(
        "report", "report:write_report", (layout.report,),
        stage="report", after=("claims", *shown_jobs),
        files=tuple(sorted(path for path in _REPORT_FILES.glob("*") if path.is_file())),
    )  # fmt: skip
    if not (params.choices and "baseline" in params.runs):
        return
    choices = {name: run.config.model_dump(mode="json") for name, run in params.choices.items()}
    yield Job(
        "sensitivity", "paper.sensitivity:write_sensitivity", tuple(layout.sensitivity),
        stage="", after=extracted(["baseline", *choices]), on_request=True,
        files=(_PUBLISHED,), may_lack=True,
        parameters={"claims": params.claims.model_dump(mode="json"), "choices": choices},
    )  # fmt: skip


def pruning_runs(params: Params) -> list[str]:
    """The masked runs whose saving is told, and the runs that they branch off."""
    pruned = [run for run in PRUNED_RUNS if run in params.runs]
    return sorted({*pruned, *(str(params.runs[run].parent) for run in pruned)})


@functools.cache
def _data_identity(params: DataParams) -> dict[str, Any]:
    identity = dict(sources.identity(params))
    # Where C4 lies says nothing about what it is.
    identity.pop("data_dir", None)
    return identity | {"heldout_fraction": params.heldout_fraction}


def require_current(job: Job, table: Mapping[str, Job], scale: str) -> set[str]:
    """Checks that the results that a job reads are those of the parameters.

    Returns:
      The jobs before it that have no results, where it `may_lack` some.

    Raises:
      UserError: Results are missing, were made for other parameters, or were changed.
    """
    digests = Digests()
    # A run's metrics are read with its history. What the store lacks is trained again, on the text.
    read = {
        name
        for before in job.after
        for name in (
            table[before].after
            if job.reads_store
            else (before, before.replace("extract/", "train/", 1))
        )
        if name in table
    }
    missing = (
        {name for name in job.after if not table[name].has_results()} if job.may_lack else set()
    )
    for name in sorted(read, key=list(table).index):
        problems = table[name].problems(digests)
        if problems and not (job.may_lack and not table[name].has_results()):
            command = f"{table[name].command} --scale {scale}"
            raise UserError(_not_current(table[name], problems, command))
    if missing and missing == set(job.after):
        names = ", ".join(sorted({name.split("/")[1] for name in missing if "/" in name}))
        raise UserError(f"{job.name}: there are no results of {names}; train them first")
    return missing


def require_results(jobs: Iterable[Job], scale: str) -> None:
    """Checks that results are there, and are those of the parameters.

    Raises:
      UserError: Results are missing, were made for other parameters, or were changed.
    """
    digests = Digests()
    for job in jobs:
        if problems := job.problems(digests):
            raise UserError(_not_current(job, problems, f"make reproduce SCALE={scale}"))


def _not_current(job: Job, problems: list[str], command: str) -> str:
    if not job.has_results():
        return f"{job.outputs[0]}: is missing; run '{command}' first"
    told = "".join(f"\n  {problem}" for problem in problems)
    return f"{job.record}: is not of the parameters now; run '{command}' first{told}"
