"""One training run, resolved once: what is trained, from what, and where it is kept."""

import logging
from dataclasses import dataclass
from pathlib import Path

from relu_sparsity import processes
from relu_sparsity.errors import UserError
from relu_sparsity.files import atomic_write, read_json, write_text
from relu_sparsity.jobs import Job, JobTable, job_table
from relu_sparsity.layout import Layout, store_root
from relu_sparsity.params import Intervention, Params, RunConfig
from relu_sparsity.provenance import differences, read_record
from relu_sparsity.store import RunStore

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """One run and seed.

    Attributes:
      name: The experiment.
      seed: Its seed.
      scale: The scale.
      config: Its parameters. The widths of a run that is as wide as what its parent used are not
        known before that is trained: `config.model.mlp_dim` is None.
      intervention: What is done to it.
      parent: The run that it branches off.
      branch_steps: The steps at which other runs branch off it.
      job: The job that trains it.
      intervention_job: The job that makes its mask or its widths.
      text_jobs: The jobs that make its text.
      tokenizer: The tokenizer's file.
      manifest: What its text is, and what n-grams make of it.
      folder: Its results.
      throughput: Its speed, as a result of this machine.
      benchmark: Time and memory of the process that made its results here.
    """

    name: str
    seed: int
    scale: str
    config: RunConfig
    intervention: Intervention | None
    parent: "Run | None"
    branch_steps: tuple[int, ...]
    job: Job
    intervention_job: Job | None
    text_jobs: tuple[Job, ...]
    tokenizer: Path
    manifest: Path
    folder: Path
    throughput: Path
    benchmark: Path

    @property
    def store(self) -> RunStore:
        """Where it is kept."""
        return self.store_of(self.job.fingerprint.hash)

    def store_of(self, fingerprint: str) -> RunStore:
        """Where it is kept, as trained from what has this fingerprint."""
        return RunStore(store_root(), self.scale, self.name, self.seed, fingerprint)

    @property
    def intervention_file(self) -> Path:
        """Its mask or its widths."""
        assert self.intervention_job is not None
        return self.intervention_job.outputs[0]

    def keep_results(self) -> None:
        """Puts its results, whatever they were trained from, into the store if it lacks them.

        They may have been pulled or copied from elsewhere. Kept, they are never trained again, and
        nothing is lost when the results of other parameters take their place.
        """
        record = read_record(self.folder / "run.json")
        if record is None:
            return
        try:
            self.store_of(record.fingerprint).adopt(self.folder)
        except UserError as error:
            log.warning("not kept: %s", error)

    def take_over(self, fingerprint: str) -> None:
        """Takes what the same run has told and its branches, from under another fingerprint."""
        before = self.store_of(fingerprint)
        for told, now in (
            (before.progress, self.store.progress),
            (before.throughput, self.store.throughput),
        ):
            if told.exists() and not now.exists():
                with atomic_write(now) as temporary:
                    told.copy(temporary)
        for branch in before.folder.glob("branches/*"):
            target = self.store.branch(int(branch.name))
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                branch.rename(target)

    def export(self) -> None:
        """Copies its result files, and its speed, from the store; tells what that has taken."""
        self.store.export(self.folder)
        if self.store.throughput.exists():
            with atomic_write(self.throughput) as temporary:
                self.store.throughput.copy(temporary)
        write_text(self.benchmark, processes.benchmark())


def resolve(params: Params, layout: Layout, name: str, seed: int) -> Run:
    """Resolves a run.

    Raises:
      UserError: There is no such run, or it has no such seed.
    """
    params.run(name, seed)
    return _resolve(params, layout, job_table(params, layout), name, seed)


def resolve_all(params: Params, layout: Layout) -> list[Run]:
    """Resolves every run and seed of a scale, parents first."""
    table = job_table(params, layout)
    return [_resolve(params, layout, table, name, seed) for name, seed in params.jobs()]


def removed_results(params: Params, layout: Layout) -> list[Path]:
    """The result folders of runs and seeds that the file of parameters does not have."""
    known = {layout.run(name, seed) for name, seed in params.jobs()}
    # Others, as a copy of one's own, are nobody's here.
    found = layout.results.glob("runs/*/seed*")
    of_runs = {
        each
        for each in found
        if each.is_dir()
        and each.name[len("seed") :].isdecimal()
        and each.parent.name not in params.same_as_baseline
    }
    return sorted(of_runs - known)


def _resolve(params: Params, layout: Layout, table: JobTable, name: str, seed: int) -> Run:
    chosen = params.runs[name]
    of_run = f"{name}/seed{seed}"
    parent = chosen.parent and _resolve(params, layout, table, chosen.parent, seed)
    return Run(
        name=name,
        seed=seed,
        scale=params.scale,
        config=chosen.config,
        intervention=chosen.intervention,
        parent=parent or None,
        branch_steps=tuple(params.branch_steps(name)),
        job=table[f"train/{of_run}"],
        intervention_job=table.get(f"mask/{of_run}") or table.get(f"widths/{of_run}"),
        text_jobs=(table["tokenizer"], table["data"]),
        tokenizer=layout.tokenizer,
        manifest=layout.manifest,
        folder=layout.run(name, seed),
        throughput=layout.throughput(name, seed),
        benchmark=layout.benchmark(f"train/{name}.seed{seed}"),
    )


def adopt(params: Params, layout: Layout, folder: Path) -> None:
    """Takes over a run that was trained elsewhere, as if it had been trained here.

    Args:
      params: The scale.
      layout: Where its results go.
      folder: The result files of one run and seed, as `train` writes them.

    Raises:
      UserError: It is no finished run, a file of it is missing or changed, or it was trained from
        something else than the parameters say. The message names what differs.
    """
    path = folder / "run.json"
    record = read_record(path)
    try:
        described = read_json(path)
        scale, name, seed = (described[key] for key in ("scale", "run", "seed"))
    except (OSError, ValueError, KeyError, TypeError):
        record = None
    if record is None:
        raise UserError(f"{path}: is not there, or not what 'relu-sparsity train' wrote")
    if scale != params.scale:
        raise UserError(f"{path}: is of scale {scale}; allowed: {params.scale} (or say --scale)")
    run = resolve(params, layout, name, seed)
    if record.fingerprint != run.job.fingerprint.hash:
        lines = differences(record.made_from, run.job.fingerprint)
        told = "".join(f"\n  {line}" for line in lines)
        raise UserError(f"{path}: was made from something else than params.yaml says{told}")
    taken = run.store.adopt(folder)
    run.export()
    if taken:
        log.info("%s: taken over from %s", run.store.name, folder)
    else:
        log.info("%s: the store has this run already, and keeps what it has", run.store.name)
