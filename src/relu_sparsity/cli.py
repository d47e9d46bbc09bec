"""The command line. Every rule of the workflow calls it, and a user can too."""

import contextlib
import json
import logging
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from relu_sparsity import processes
from relu_sparsity.errors import (
    TRY_AGAIN_STATUS,
    USER_ERROR_STATUS,
    Interrupted,
    NotConnected,
    UserError,
)
from relu_sparsity.layout import Layout
from relu_sparsity.params import Params, load_params

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from relu_sparsity.fingerprint import Fingerprint
    from relu_sparsity.tpu.slices import Slice

log = logging.getLogger(__name__)
app = typer.Typer(
    help="Reproduces 'Uncovering Layer-Dependent Activation Sparsity Patterns in ReLU "
    "Transformers'. Snakemake calls these commands in the right order: run 'make reproduce'.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

tpu = typer.Typer(
    help="Slices of Cloud TPU: run a job on one, see which there are, delete what is left over. "
    "docs/tpu.md tells how to set this up.",
    no_args_is_help=True,
)
app.add_typer(tpu, name="tpu")

Scale = Annotated[
    str | None,
    typer.Option(help="A scale of params.yaml: smoke, mini, gpu, tpu. [default: its 'scale']"),
]
ParamsFile = Annotated[Path, typer.Option("--params", help="The parameter file.")]
Run = Annotated[str, typer.Option(help="A run of params.yaml.")]
Seed = Annotated[int, typer.Option(help="One of the run's seeds.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads to use. [default: all]")]
StopWithParent = Annotated[
    bool, typer.Option(help="Save and stop when the calling process dies, as a job of Snakemake.")
]
Distributed = Annotated[
    bool | None,
    typer.Option(
        help="This is one of several processes, one per host, that train together: on a TPU pod, "
        "or as --coordinator-address says. [default: as srun started it]"
    ),
]
CoordinatorAddress = Annotated[
    str | None,
    typer.Option(
        envvar="JAX_COORDINATOR_ADDRESS",
        help="host:port of the first process, where neither a TPU pod nor SLURM tells.",
    ),
]
NumProcesses = Annotated[
    int | None, typer.Option(min=1, envvar="JAX_NUM_PROCESSES", help="How many processes.")
]
ProcessId = Annotated[
    int | None, typer.Option(min=0, envvar="JAX_PROCESS_ID", help="Which one this is, from 0.")
]
HeartbeatTimeout = Annotated[
    int, typer.Option(min=5, help="Seconds after which a silent process ends the others.")
]
AllStores = Annotated[
    bool, typer.Option("--all", help="Also those whose jobs write to another store.")
]
Slices = Annotated[Path, typer.Option(help="What the slices are.", metavar="FILE")]
DEFAULT_PARAMS = Path("params.yaml")
DEFAULT_SLICES = Path("workflow/profiles/tpu/slices.yaml")


def _load(params_file: Path, scale: str | None) -> tuple[Params, Layout]:
    params = load_params(params_file, scale)
    return params, Layout(params.scale)


@app.command("params")
def show_params(
    scale: Scale = None,
    params_file: ParamsFile = DEFAULT_PARAMS,
    run: Annotated[str | None, typer.Option(help="Only this run.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check params.yaml and print it resolved, run by run."""
    params, _ = _load(params_file, scale)
    runs = [params.run(run)] if run else list(params.runs.values())
    resolved = {each.name: each.model_dump(mode="json", exclude={"name"}) for each in runs}
    if as_json:
        print(json.dumps({"scale": params.scale, "runs": resolved}, indent=1))
        return
    import yaml

    print(yaml.safe_dump({"scale": params.scale, "runs": resolved}, sort_keys=False), end="")


@app.command()
def plan(
    scale: Scale = None,
    params_file: ParamsFile = DEFAULT_PARAMS,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Tell what would run, why, and what it would cost. Nothing is deleted or started."""
    from relu_sparsity.plan import make_plan

    planned = make_plan(*_load(params_file, scale))
    if as_json:
        print(json.dumps(planned.as_json(), indent=1))
        return
    print(*planned.lines(), sep="\n")


@app.command()
def status(
    scale: Scale = None,
    params_file: ParamsFile = DEFAULT_PARAMS,
    watch: Annotated[
        float | None, typer.Option(min=1, metavar="SECONDS", help="Show it again and again.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Tell how far every run is: step, loss, tokens/s, MFU, time left, where it runs."""
    from relu_sparsity import status

    params, _ = _load(params_file, scale)
    while True:
        found = status.all_status(params)
        if as_json:
            print(json.dumps({"scale": params.scale, "runs": status.as_json(found)}, indent=1))
        else:
            if watch is not None:
                print("\033[2J\033[H", end="")
            print(*status.as_lines(found), sep="\n", flush=True)
        if watch is None:
            return
        time.sleep(watch)


@app.command()
def tokenizer(scale: Scale = None, params_file: ParamsFile = DEFAULT_PARAMS) -> None:
    """Build the data set; train the tokenizer on it, or copy the given one."""
    from relu_sparsity import jobs

    jobs.prepare_tokenizer(*_load(params_file, scale))


@app.command()
def data(scale: Scale = None, params_file: ParamsFile = DEFAULT_PARAMS) -> None:
    """Describe the data set and the tokenizer by their content, in manifest.json."""
    from relu_sparsity import jobs

    jobs.write_manifest(*_load(params_file, scale))


@app.command()
def train(
    run: Run,
    seed: Seed = 0,
    scale: Scale = None,
    params_file: ParamsFile = DEFAULT_PARAMS,
    threads: Threads = None,
    stop_with_parent: StopWithParent = False,
    distributed: Distributed = None,
    coordinator_address: CoordinatorAddress = None,
    num_processes: NumProcesses = None,
    process_id: ProcessId = None,
    heartbeat_timeout: HeartbeatTimeout = 100,
) -> None:
    """Train a run to the end, or go on where it stopped, and export its results.

    SIGTERM or Ctrl-C saves a checkpoint; the same command goes on from there, on any number of
    hosts and devices that share the global batch evenly.
    """
    from relu_sparsity import jobs

    params, layout = _load(params_file, scale)
    params.run(run, seed)
    others = _Others(distributed, coordinator_address, num_processes, process_id, heartbeat_timeout)
    with _training_process(threads, stop_with_parent, others):
        jobs.train_run(params, layout, run, seed)


@app.command()
def mask(
    run: Run,
    seed: Seed = 0,
    scale: Scale = None,
    params_file: ParamsFile = DEFAULT_PARAMS,
    threads: Threads = None,
    stop_with_parent: StopWithParent = False,
    distributed: Distributed = None,
    coordinator_address: CoordinatorAddress = None,
    num_processes: NumProcesses = None,
    process_id: ProcessId = None,
    heartbeat_timeout: HeartbeatTimeout = 100,
) -> None:
    """Write the units that a masked run keeps (section 4.1.1)."""
    from relu_sparsity import jobs

    params, layout = _load(params_file, scale)
    params.run(run, seed)
    others = _Others(distributed, coordinator_address, num_processes, process_id, heartbeat_timeout)
    with _training_process(threads, stop_with_parent, others):
        jobs.write_mask(params, layout, run, seed)


@app.command()
def widths(
    run: Run, seed: Seed = 0, scale: Scale = None, params_file: ParamsFile = DEFAULT_PARAMS
) -> None:
    """Write the layers' widths of round 2 (section 4.4, Table 4)."""
    from relu_sparsity import jobs

    jobs.write_widths(*_load(params_file, scale), run, seed)


@app.command()
def extract(
    run: Run, seed: Seed = 0, scale: Scale = None, params_file: ParamsFile = DEFAULT_PARAMS
) -> None:
    """Extract a trained run's metrics at convergence, to metrics.json."""
    from relu_sparsity import fingerprint, jobs
    from relu_sparsity.paper.extract import write_metrics

    params, layout = _load(params_file, scale)
    window = params.run(run, seed).config.metrics.convergence_window
    jobs.require_current(params, layout, [run])
    written = write_metrics(layout.run(run, seed), window)
    _sign([written], fingerprint.metrics(params, run, seed))


@app.command()
def adopt(
    folder: Annotated[
        Path, typer.Argument(help="Result files of one run and seed: .../runs/<run>/seed<k>")
    ],
    scale: Scale = None,
    params_file: ParamsFile = DEFAULT_PARAMS,
) -> None:
    """Take over a run that was trained elsewhere, if it is the one that params.yaml describes."""
    from relu_sparsity import jobs

    jobs.adopt_run(*_load(params_file, scale), folder)


@app.command()
def tables(
    scale: Scale = None,
    params_file: ParamsFile = DEFAULT_PARAMS,
    table: Annotated[
        list[str] | None, typer.Option(help="Only this one, e.g. table1; can be given again.")
    ] = None,
) -> None:
    """Write Tables 1-5, or some of them: CSV, Markdown, LaTeX, each cell beside the paper's."""
    from relu_sparsity import fingerprint, jobs
    from relu_sparsity.paper.tables import write_tables

    params, layout = _load(params_file, scale)
    jobs.require_current(params, layout, params.runs)
    for path in write_tables(layout.results, params, table):
        _sign([path], fingerprint.table(params, path.stem))


@app.command()
def pruning(scale: Scale = None, params_file: ParamsFile = DEFAULT_PARAMS) -> None:
    """Write what leaving masked units out of the model saves, in FLOPs and in time."""
    from relu_sparsity import fingerprint, jobs
    from relu_sparsity.paper.pruning import write_pruning

    params, layout = _load(params_file, scale)
    jobs.require_current(params, layout, fingerprint.pruning_runs(params))
    _sign(write_pruning(layout, params), fingerprint.pruning(params))


@app.command()
def figures(
    scale: Scale = None,
    params_file: ParamsFile = DEFAULT_PARAMS,
    figure: Annotated[
        list[str] | None, typer.Option(help="Only this one, e.g. fig01; can be given again.")
    ] = None,
) -> None:
    """Draw Figures 1-34, or some of them."""
    from relu_sparsity import fingerprint, jobs
    from relu_sparsity.paper.figures import write_figures

    params, layout = _load(params_file, scale)
    jobs.require_current(params, layout, params.runs)
    for path in write_figures(layout.results, params, figure):
        _sign([path], fingerprint.figure(params, path.stem))


@app.command()
def claims(scale: Scale = None, params_file: ParamsFile = DEFAULT_PARAMS) -> None:
    """Decide the paper's 27 claims."""
    from relu_sparsity import fingerprint, jobs
    from relu_sparsity.paper.claims import write_claims

    params, layout = _load(params_file, scale)
    jobs.require_current(params, layout, params.runs)
    written = write_claims(layout.results, params)
    _sign(written, fingerprint.claims(params))


@app.command()
def summary(scale: Scale = None, params_file: ParamsFile = DEFAULT_PARAMS) -> None:
    """Sum up every run's loss and batch use, and the verdicts, for `dvc metrics`."""
    from relu_sparsity import fingerprint, jobs
    from relu_sparsity.paper.claims import write_summary

    params, layout = _load(params_file, scale)
    jobs.require_current(params, layout, params.runs)
    written = write_summary(layout.results, layout.summary, params)
    _sign([written], fingerprint.claims(params))


@app.command()
def compare(
    first: Annotated[str, typer.Argument(help="A Git revision: HEAD~1, a branch, a tag, a hash.")],
    second: Annotated[
        str | None, typer.Argument(help="Another one. [default: the working tree]")
    ] = None,
    output: Annotated[
        Path, typer.Option(help="The HTML page; the Markdown version lies beside it.")
    ] = Path("comparison.html"),
    scale: Scale = None,
) -> None:
    """Compare two revisions on one page: parameters, tables, verdicts, curves."""
    from relu_sparsity.paper.compare import write_comparison

    for path in write_comparison(Path(), first, second, output, scale):
        log.info("wrote %s", path)


@app.command()
def report(scale: Scale = None, params_file: ParamsFile = DEFAULT_PARAMS) -> None:
    """Write the self-contained HTML report of everything. The workflow's last job."""
    from relu_sparsity import fingerprint
    from relu_sparsity.paper.report import write_report

    params, layout = _load(params_file, scale)
    _sign([write_report(layout.report, params.scale)], fingerprint.report(params))


@tpu.command("run")
def tpu_run(
    command: Annotated[str, typer.Argument(help="train or mask", metavar="COMMAND")],
    run: Run,
    seed: Seed = 0,
    scale: Scale = None,
    params_file: ParamsFile = DEFAULT_PARAMS,
    slices: Slices = DEFAULT_SLICES,
    threads: Annotated[int | None, typer.Option(hidden=True)] = None,
    stop_with_parent: StopWithParent = False,
) -> None:
    """Run a job on a slice of its own, and delete the slice whatever happens.

    A slice that is preempted, or whose host dies, is replaced, and the job goes on from its
    checkpoint. Ctrl-C lets it save one first. Nothing runs where the store has the result already.
    """
    from relu_sparsity.tpu.launcher import launch
    from relu_sparsity.tpu.slices import load_slice_params

    del threads  # They are the hosts' business.
    if command not in ("train", "mask"):
        raise UserError(f"{command!r}: is no job for a slice; allowed: train, mask")
    if stop_with_parent:
        processes.stop_with_parent()
    params, layout = _load(params_file, scale)
    params.run(run, seed)
    try:
        launch(params, layout, load_slice_params(slices), command, run, seed)
    except Interrupted as stopped:
        print(stopped, file=sys.stderr)
        raise typer.Exit(143) from None


@tpu.command("host", hidden=True)
def tpu_host(
    attempt: Annotated[int, typer.Option(help="Which slice this is, of those for this job.")],
    worker: Annotated[int, typer.Option(help="This host, from 0.")],
) -> None:
    """Run this host's part of a slice's job. The start-up script of a slice calls this."""
    from relu_sparsity.layout import store_root
    from relu_sparsity.tpu.host import serve
    from relu_sparsity.tpu.slice_job import SliceJob

    job = SliceJob(store_root() / "jobs" / os.environ["RELU_SPARSITY_SLICE"])
    if serve(job, attempt=attempt, worker=worker) == "failed":
        raise typer.Exit(USER_ERROR_STATUS)


@tpu.command("check")
def tpu_check(
    scale: Scale = None,
    params_file: ParamsFile = DEFAULT_PARAMS,
    topology: Annotated[
        str, typer.Option(help="The slice: v2:4x4, v4:2x2x4, v5e:4x8, ...")
    ] = "v2:4x4",
    run: Annotated[
        list[str] | None, typer.Option(help="Only this one; can be given again.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compile every model of a scale for a slice that need not be there, and tell if it fits.

    Needs the package libtpu: `make tpu-check` brings it and calls this for the tpu scale.
    """
    from relu_sparsity.tpu.check import check

    params, _ = _load(params_file, scale)
    result = check(params, topology, runs=run)
    if as_json:
        print(json.dumps(result.as_json(), indent=1))
    else:
        print(*result.lines(), sep="\n")
    if problems := result.problems():
        raise UserError("\n".join(problems))


@tpu.command("list")
def tpu_list(
    slices: Slices = DEFAULT_SLICES,
    all_stores: AllStores = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the slices that jobs of this store asked for."""
    from relu_sparsity.tpu.launcher import connect, owned_slices
    from relu_sparsity.tpu.slices import load_slice_params

    found = owned_slices(connect(load_slice_params(slices)), all_stores=all_stores)
    if as_json:
        print(json.dumps([asdict(each) for each in found], indent=1))
    elif not found:
        print("There are no slices.")
    else:
        _print_slices(found)


@tpu.command("cleanup")
def tpu_cleanup(
    slices: Slices = DEFAULT_SLICES,
    all_stores: AllStores = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete the slices that jobs of this store asked for, also those at work."""
    from relu_sparsity.tpu.launcher import connect, owned_slices
    from relu_sparsity.tpu.slices import load_slice_params

    gcloud = connect(load_slice_params(slices))
    found = owned_slices(gcloud, all_stores=all_stores)
    if not found:
        print("There are no slices.")
        return
    _print_slices(found)
    if not yes and not sys.stdin.isatty():
        raise UserError("there is nobody to ask; say --yes to delete these slices")
    if not yes:
        typer.confirm(f"Delete {len(found)} slice(s)?", abort=True)
    for each in found:
        gcloud.delete(each.name)
        print(f"deleted {each.name}")


def _print_slices(found: "Iterable[Slice]") -> None:
    from tabulate import tabulate

    rows = [
        (each.name, each.state, each.accelerator_type, "spot" if each.spot else "", each.created)
        for each in found
    ]
    print(tabulate(rows, ("slice", "state", "type", "", "asked for"), tablefmt="plain"))


def _sign(paths: "Iterable[Path]", fingerprint: "Fingerprint") -> None:
    """Writes what they were made from into the results that have room for it."""
    from relu_sparsity.provenance import can_sign, sign

    for path in paths:
        if can_sign(path):
            sign(path, fingerprint)
        log.info("wrote %s", path)


@dataclass(frozen=True)
class _Others:
    """How a process finds the others of its run."""

    distributed: bool | None
    coordinator_address: str | None
    num_processes: int | None
    process_id: int | None
    heartbeat_timeout: int

    def connect(self) -> None:
        from relu_sparsity import distributed

        wanted = self.distributed
        if wanted is None:
            wanted = self.coordinator_address is not None or distributed.started_by_srun()
        if not wanted:
            return
        distributed.initialize(
            self.coordinator_address,
            self.num_processes,
            self.process_id,
            heartbeat_timeout_seconds=self.heartbeat_timeout,
        )
        if not distributed.is_leader():
            # All say the same.
            logging.getLogger().setLevel(logging.WARNING)


@contextlib.contextmanager
def _training_process(
    threads: int | None, stop_with_parent: bool, others: _Others
) -> "Iterator[None]":
    """Sets up a process that may train; a run that was asked to stop ends with status 143."""
    if stop_with_parent:
        processes.stop_with_parent()
    _configure_jax(threads)
    others.connect()
    from relu_sparsity import distributed

    try:
        with distributed.fail_together():
            yield
    except Interrupted as stopped:
        print(stopped, file=sys.stderr)
        raise typer.Exit(143) from None


def _configure_jax(threads: int | None) -> None:
    """Bounds XLA's threads and shares compiled programs between runs; call before JAX starts."""
    from relu_sparsity.files import absolute
    from relu_sparsity.layout import store_root

    if threads is not None:
        # XLA sizes its thread pools by NPROC.
        os.environ["NPROC"] = str(threads)
    cache = absolute(store_root() / "compiled")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.fspath(cache))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")


def main() -> None:
    """Runs the command line; errors that a user can mend end with status 1 and no traceback."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    # Libraries tell every checkpoint and every cache entry at this level.
    for name in ("absl", "jax", "orbax", "etils", "matplotlib", "fsspec", "gcsfs", "google"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(TRY_AGAIN_STATUS if isinstance(error, NotConnected) else USER_ERROR_STATUS)


if __name__ == "__main__":
    main()
