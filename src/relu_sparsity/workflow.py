"""What the Snakefile and DVC need beyond rules: what is stale, locks, and what to record."""

import contextlib
import fcntl
import logging
import os
import re
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp
from typing import IO, TYPE_CHECKING, Any

import yaml

from relu_sparsity.errors import UserError
from relu_sparsity.files import write_text
from relu_sparsity.fingerprint import NAME
from relu_sparsity.jobs import Job, job_table
from relu_sparsity.layout import Layout
from relu_sparsity.params import MASKS, Params
from relu_sparsity.provenance import Digests
from relu_sparsity.runs import resolve_all

if TYPE_CHECKING:
    from snakemake.workflow import Workflow

log = logging.getLogger(__name__)

# Long ago: before any real result, after what archive formats can hold.
_SETTLED = 1_000_000_000
_STAGES = Path("dvc.yaml")
CONFIG_KEYS = ("scale", "slices")


def check_config(config: Collection[str]) -> None:
    """Checks the keys of Snakemake's `--config`.

    Raises:
      UserError: One of them says nothing here.
    """
    for key in config:
        if key not in CONFIG_KEYS:
            raise UserError(f"--config {key}: is no known key; allowed: {', '.join(CONFIG_KEYS)}")


def remembered_digests(layout: Layout) -> Digests:
    """The digests of result files that earlier processes have taken."""
    return Digests(layout.stamps / "digests.json")


def reasons_to_run(jobs: Mapping[str, Job], digests: Digests) -> dict[str, list[str]]:
    """Every job that has to run, and why: by itself, or because one before it has to."""
    reasons: dict[str, list[str]] = {}
    for job in jobs.values():
        first = [name for name in job.after if name in reasons]
        why = job.problems(digests) or ([f"after {', '.join(first)}"] if first else [])
        if why:
            reasons[job.name] = why
    return reasons


def stale_results(params: Params, layout: Layout) -> set[Path]:
    """The result files that are not those of the parameters, the code and the packages now."""
    jobs = job_table(params, layout)
    reasons = reasons_to_run(jobs, remembered_digests(layout))
    return {path for name in reasons for path in jobs[name].files_written}


def write_stamps(
    jobs: Mapping[str, Job], layout: Layout, *, is_dry: bool = False
) -> tuple[Layout, set[str]]:
    """Makes modification times tell what is stale, and nothing else.

    Results are not touched, but for those that another machine's clock has dated in the future,
    which Snakemake would refuse to work with: they are dated now. A dry run touches none.

    Snakemake compares modification times, which a clone or `dvc pull` sets at random. So every job
    has a stamp, and rules look at the times of no other input. Where a job's results are current,
    its stamp holds the fingerprint and has a time long ago; where they are not, it is new, and says
    why and since when: its content has to differ too, as Snakemake forgives a newer file that it
    knows, and a result can be damaged twice in the same way.

    Returns:
      The layout, with the stamps where they could be written, and the jobs that have to run.
    """
    digests = remembered_digests(layout)
    if not can_write(layout.stamps):
        # Somebody else's checkout can be looked at: `snakemake -n`.
        digests = Digests()
        layout = replace(layout, stamps=Path(mkdtemp(prefix="relu-sparsity-stamps-")))
    reasons = reasons_to_run(jobs, digests)
    now = time.time()
    for job in jobs.values():
        why = reasons.get(job.name, [])
        newest = now
        written = (path for path in job.files_written if path.is_file())
        for path in (path for path in written if path.stat().st_mtime > now):
            if is_dry:
                newest = max(newest, path.stat().st_mtime + 1)
            else:
                os.utime(path, (now - 1, now - 1))
        stamp = layout.stamp(job.name)
        since = [str(time.time_ns())] if why else []
        text = "\n".join([job.fingerprint.hash, *why, *since]) + "\n"
        moment = newest if why else _SETTLED
        is_written = stamp.is_file() and stamp.stat().st_mtime == moment
        if not is_written or stamp.read_text(encoding="utf-8") != text:
            # Made anew, it is one's own, whoever made the other one: only its owner may date it.
            write_text(stamp, text)
            os.utime(stamp, (moment, moment))
    digests.save()
    return layout, set(reasons)


def critical_paths(params: Params) -> dict[str, int]:
    """For each run, how long it and the longest chain of runs that waits for it take to train.

    In steps of one layer: that is what times of small models go with.
    """
    paths: dict[str, int] = {}
    for name, _ in reversed(params.jobs()):
        run = params.runs[name]
        first_step = run.config.mask.step if run.intervention in MASKS else 0
        steps = run.config.training.num_steps - first_step
        waiting = [paths[each.name] for each in params.runs.values() if each.parent == name]
        paths[name] = run.config.model.num_layers * steps + max(waiting, default=0)
    return paths


def training_slots(workflow: "Workflow") -> int:
    """How many training jobs Snakemake runs at a time: what there is, by what each asks for."""
    if workflow.nodes:
        return workflow.nodes
    training = (job for job in workflow.dag.needrun_jobs() if job.rule.name == "train")
    asked: Mapping[str, Any] = next((job.resources for job in training), {})
    there = {name: resource.value for name, resource in workflow.global_resources.items()}
    return min(
        (
            there[name] // each
            for name, each in asked.items()
            if isinstance(each, int) and each > 0 and isinstance(there.get(name), int)
        ),
        default=workflow.cores,
    )


def can_write(folder: Path) -> bool:
    """Whether files can be made in a folder, made if it is not there, and in those below it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return all(os.access(each, os.W_OK) for each, _, _ in os.walk(folder))


def look_only() -> None:
    """Lets a dry run look at a checkout that cannot be written.

    Snakemake keeps notes on files also where it only looks, below .snakemake; they decide nothing
    here, as stamps tell what is stale. And it refuses to plan what it could not write.
    """
    from snakemake.jobs import Job as SnakemakeJob
    from snakemake.persistence.file import FilePersistence

    begin = FilePersistence.__init__
    elsewhere = {"path": Path(mkdtemp(prefix="relu-sparsity-notes-"))}
    FilePersistence.__init__ = lambda notes, **settings: begin(notes, **(settings | elsewhere))

    async def may_be_protected(job: SnakemakeJob) -> None:
        pass

    SnakemakeJob.check_protected_output = may_be_protected


def keep_trained_runs(params: Params, layout: Layout) -> None:
    """Keeps all trained runs among the results in the store, before Snakemake removes stale ones.

    Tells on standard error which of them are not those of the parameters, and why.
    """
    digests = remembered_digests(layout)
    runs_by_reason: dict[str, list[str]] = defaultdict(list)
    for run in resolve_all(params, layout):
        run.keep_results()
        if run.job.record.is_file() and (problems := run.job.problems(digests)):
            runs_by_reason["; ".join(problems)].append(os.fspath(run.folder))
    for reason, folders in runs_by_reason.items():
        print(f"{', '.join(folders)}: {reason}", file=sys.stderr)


def current_stages(jobs: Mapping[str, Job], digests: Digests) -> Iterator[str]:
    """The stages of dvc.yaml all of whose jobs have current results, in order."""
    by_stage: dict[str, list[Job]] = defaultdict(list)
    for job in jobs.values():
        if job.stage:
            by_stage[job.stage].append(job)
    for stage, members in by_stage.items():
        if not any(job.problems(digests) for job in members):
            yield stage


def record_in_dvc(params: Params, layout: Layout) -> None:
    """Tells DVC which stages are current, so that `dvc status` says so after Snakemake.

    A stage with a job whose results are not those of the parameters is left as it was: DVC knows
    by itself that it is stale. Does nothing where DVC itself called Snakemake, or outside a Git
    repository with DVC.
    """
    if "DVC_ROOT" in os.environ or not (Path(".dvc").is_dir() and Path(".git").exists()):
        return
    jobs = job_table(params, layout)
    stages = list(current_stages(jobs, remembered_digests(layout)))
    if not stages:
        return
    # DVC writes its lock anew for each stage that is named, but once for all of a file.
    targets = [str(_STAGES)] if _are_all_stages(stages, jobs) else stages
    command = [sys.executable, "-m", "dvc", "commit", "--force", *targets]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"not recorded in DVC: {done.stderr.strip()}", file=sys.stderr)


def _are_all_stages(stages: Collection[str], jobs: Mapping[str, Job]) -> bool:
    """Whether they are those of every job, and dvc.yaml has no other ones, such as a user's."""
    written = yaml.safe_load(_STAGES.read_text(encoding="utf-8"))["stages"]
    return {stage.partition("@")[0] for stage in stages} == set(written) and set(stages) == {
        job.stage for job in jobs.values() if job.stage
    }


def record_in_dvc_now() -> None:
    """Records what is current by params.yaml and the code as they are now, in a new process.

    Both may have been edited since the workflow began.
    """
    command = [sys.executable, "-m", NAME, "record"]
    subprocess.run(command, check=False)


def call_this_environment() -> None:
    """Lets rules find the command line of the environment that Snakemake itself runs in."""
    folders = [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
    os.environ["PATH"] = os.pathsep.join(folders)


def is_dry_run(arguments: Sequence[str]) -> bool:
    """Whether Snakemake was called with `-n`. It does not say so while it reads the rules."""
    dry = re.compile(r"--dry-?run|-[Ffknpq]*n[Ffknpq]*")
    return any(dry.fullmatch(argument) for argument in arguments)


def hold_workflow_lock(folder: Path = Path(".snakemake")) -> IO[str] | None:
    """Removes the locks that a killed Snakemake left behind.

    Every Snakemake process of this folder holds a shared lock, which the system frees however it
    ends. Whoever gets the exclusive lock is alone, so Snakemake's own lock files are left-overs.

    Returns:
      The open lock file: keep it as long as the process lives. None where nothing can be written.
    """
    try:
        folder.mkdir(exist_ok=True)
        file = (folder / "relu-sparsity.lock").open("a+")
    except OSError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for leftover in folder.glob("locks/*"):
            leftover.unlink()
    except OSError:
        pass
    # Some file systems of clusters have no locks: there left-overs are removed by hand.
    with contextlib.suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_SH)
    return file


def note_jobs_that_ended_unseen(workflow: "Workflow") -> None:
    """Lets Snakemake note the jobs that need not run and that it did not see end.

    It was killed before them, or their results come from elsewhere. Its report shows only jobs that
    it has notes of.
    """
    notes = workflow.persistence
    for job in workflow.dag.jobs:
        if workflow.dag.needrun(job):
            continue
        if not notes.has_metadata(job) or workflow.async_run(notes.incomplete(job)):
            workflow.async_run(notes.finished(job))
