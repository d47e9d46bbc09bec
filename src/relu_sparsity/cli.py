"""The command line. Every rule of the workflow calls it, and a user can too."""

import contextlib
import json
import logging
import platform
import sys
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer

from relu_sparsity.errors import (
    TRY_AGAIN_STATUS,
    USER_ERROR_STATUS,
    TryAgain,
    UserError,
)
from relu_sparsity.files import to_json
from relu_sparsity.options import (
    DEFAULT_PARAMS,
    AsJson,
    ParamsFile,
    Run,
    Scale,
    Seed,
    StopWithParent,
    Threads,
    chosen,
    threads_to_use,
)
from relu_sparsity.options import load as _load
from relu_sparsity.sharing import accept, adopt, compare, publish, tidy, verify
from relu_sparsity.tpu.commands import tpu
from relu_sparsity.training.process import OtherProcesses, training_process

log = logging.getLogger(__name__)
# Beside those that decide numbers.
_SHOWN_PACKAGES = (
    "orbax-checkpoint", "libtpu", "jax-cuda13-plugin", "tensorflow-datasets", "snakemake", "dvc",
)  # fmt: skip
app = typer.Typer(
    help="Reproduces 'Uncovering Layer-Dependent Activation Sparsity Patterns in ReLU "
    "Transformers'. Snakemake calls these commands in the right order: run 'make reproduce'.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

app.add_typer(tpu, name="tpu")
for command in (adopt, accept, publish, verify, compare, tidy):
    app.command()(command)

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
HangTimeout = Annotated[
    int,
    typer.Option(
        min=5, help="Seconds without a step after which one of several processes ends itself."
    ),
]


def _show_versions(wanted: bool) -> None:
    if not wanted:
        return
    from relu_sparsity.fingerprint import PACKAGES

    print(f"relu-sparsity {metadata.version('relu-sparsity')}")
    print(f"Python {platform.python_version()} on {platform.platform()}")
    for name in (*PACKAGES, *_SHOWN_PACKAGES):
        with contextlib.suppress(metadata.PackageNotFoundError):
            print(f"{name} {metadata.version(name)}")
    raise typer.Exit()


@app.callback()
def _of_all(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_show_versions,
            is_eager=True,
            help="Show the versions of this, and of the packages that matter.",
        ),
    ] = False,
) -> None:
    pass


@app.command("params")
def show_params(
    scale: Scale = None,
    params_file: ParamsFile = DEFAULT_PARAMS,
    run: Annotated[str | None, typer.Option(help="Only this run.")] = None,
    as_json: AsJson = False,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema of the file instead.")
    ] = False,
    reference: Annotated[
        bool, typer.Option("--reference", help="Print what every key means instead, as Markdown.")
    ] = False,
) -> None:
    """Check params.yaml and print it resolved, run by run."""
    if schema or reference:
        from relu_sparsity import reference as told

        print(to_json(told.schema()) if schema else "\n".join(told.reference()), end="")
        return
    params, _ = _load(params_file, scale)
    runs = [params.run(run)] if run else list(params.runs.values())
    of_the_scale = {name: getattr(params, name) for name in ("resources", "claims", "pruning")}
    resolved = {
        "scale": params.scale,
        **{name: section.resolved() for name, section in of_the_scale.items()},
        "runs": {each.name: each.resolved() for each in runs},
    }
    if as_json:
        print(json.dumps(resolved, indent=1))
        return
    import yaml

    print(yaml.safe_dump(resolved, sort_keys=False), end="")


@app.command()
def plan(
    scale: Scale = None,
    params_file: ParamsFile = DEFAULT_PARAMS,
    sensitivity: Annotated[
        bool, typer.Option("--sensitivity", help="Also what 'snakemake sensitivity' would run.")
    ] = False,
    summary: Annotated[
        bool, typer.Option("--summary", help="Only how much would run, and how long it takes.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Tell what would run, why, and what it would cost. Nothing is deleted or started."""
    from relu_sparsity.plan import make_plan
    from relu_sparsity.tpu import usage
    from relu_sparsity.tpu.slices import load_slice_params

    params, layout = _load(params_file, scale)
    planned = make_plan(params, layout, sensitivity=sensitivity)
    profile = Path("workflow/profiles") / params.scale / "slices.yaml"
    slices = load_slice_params(profile) if profile.exists() else None
    if as_json:
        on_slices = slices and usage.planned_json(planned, slices)
        print(json.dumps(planned.as_json() | {"slices": on_slices}, indent=1))
        return
    print(*(planned.summary() if summary else planned.lines()), sep="\n")
    if slices is not None:
        print(*usage.planned_lines(planned, slices), sep="\n")


@app.command()
def status(
    scale: Scale = None,
    params_file: ParamsFile = DEFAULT_PARAMS,
    use: Annotated[
        bool, typer.Option("--use", help="Show the units that each layer uses, not the speed.")
    ] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show it in the terminal until Ctrl-C.")
    ] = False,
    every: Annotated[float, typer.Option(min=1, metavar="SECONDS", help="With --watch.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Tell how far every run is: step, loss, tokens/s, input, MFU, time left, where it runs."""
    from relu_sparsity import runs, status

    params, layout = _load(params_file, scale)
    if watch and not as_json and sys.stdout.isatty():
        status.watch(params, every, use=use)
        return
    if watch:
        log.warning("--watch wants a terminal, and no --json: this is how far the runs are now")
    found = status.all_status(params)
    removed = list(map(str, runs.removed_results(params, layout)))
    if as_json:
        told = {"scale": params.scale, "runs": list(map(asdict, found)), "removed": removed}
        print(json.dumps(told, indent=1))
        return
    print(*status.as_lines(found, use=use), sep="\n")
    if removed:
        print("params.yaml no longer has, see 'relu-sparsity tidy':", *removed)


def _job(name: str, told: str) -> None:
    """Adds the command of a job that takes no other options."""

    @app.command(name, help=told)
    def make(scale: Scale = None, params_file: ParamsFile = DEFAULT_PARAMS) -> None:
        _perform(params_file, scale, name)


_job("tokenizer", "Build the data set; train the tokenizer on it, or copy the given one.")
_job("data", "Describe the data set and the tokenizer by their content, in manifest.json.")


def _training_job(name: str, told: str) -> None:
    """Adds the command of a job that trains, in one process or in several."""

    @app.command(name, help=told)
    def make(
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
        hang_timeout: HangTimeout = 600,
    ) -> None:
        others = OtherProcesses(
            distributed, coordinator_address, num_processes, process_id, heartbeat_timeout,
            hang_timeout,
        )  # fmt: skip
        threads = threads_to_use(threads, params_file, scale)
        with training_process(threads, stop_with_parent, others):
            _perform_for_run(params_file, scale, name, run, seed)


def _run_job(name: str, told: str) -> None:
    """Adds the command of a job that one run and seed has."""

    @app.command(name, help=told)
    def make(
        run: Run, seed: Seed = 0, scale: Scale = None, params_file: ParamsFile = DEFAULT_PARAMS
    ) -> None:
        _perform_for_run(params_file, scale, name, run, seed)


_training_job(
    "train",
    """Train a run to the end, or go on where it stopped, and export its results.

    SIGTERM or Ctrl-C saves a checkpoint; the same command goes on from there, on any number of
    hosts and devices that share the global batch evenly.
    """,
)
_training_job("mask", "Write the units that a masked run keeps (section 4.1.1).")
_run_job("widths", "Write the layers' widths of round 2 (section 4.4, Table 4).")
_run_job("extract", "Extract a trained run's metrics at convergence, to metrics.json.")


@app.command()
def tables(
    scale: Scale = None,
    params_file: ParamsFile = DEFAULT_PARAMS,
    table: Annotated[
        list[str] | None, typer.Option(help="Only this one, e.g. table1; can be given again.")
    ] = None,
) -> None:
    """Write Tables 1-5, or some of them: CSV, Markdown, LaTeX, each cell beside the paper's."""
    from relu_sparsity.paper.catalog import TABLES

    _perform(params_file, scale, *chosen("table", table, TABLES))


_job("pruning", "Write what leaving masked units out of the model saves, in FLOPs and in time.")
_job("own", "Write the table of your own runs: those of params.yaml that are not the paper's.")


@app.command()
def figures(
    scale: Scale = None,
    params_file: ParamsFile = DEFAULT_PARAMS,
    figure: Annotated[
        list[str] | None, typer.Option(help="Only this one, e.g. fig01; can be given again.")
    ] = None,
) -> None:
    """Draw Figures 1-34 and one of each of your own runs, or some of them."""
    from relu_sparsity.paper import catalog

    allowed = catalog.figures(_load(params_file, scale)[0].paper_runs)
    _perform(params_file, scale, *chosen("figure", figure, allowed))


_job("claims", "Decide the paper's 27 claims.")
_job("summary", "Sum up every run's loss and batch use, and the verdicts, for `dvc metrics`.")
_job("sensitivity", "Tell which of the baseline's claims hang on what the paper leaves open.")
_job("report", "Write the self-contained HTML report of everything. The workflow's last job.")


@app.command(hidden=True)
def record(scale: Scale = None, params_file: ParamsFile = DEFAULT_PARAMS) -> None:
    """Tell DVC which stages are current. The workflow calls this when it ends."""
    from relu_sparsity.workflow import record_in_dvc

    record_in_dvc(*_load(params_file, scale))


@app.command(hidden=True)
def fork_server(address: str, parent: int) -> None:
    """Run each job of a workflow in a fork of this process. The workflow starts it."""
    from relu_sparsity.forkserver import Server

    Server(address, parent).serve(main)


def _perform(params_file: Path, scale: str | None, *names: str) -> None:
    from relu_sparsity.perform import perform

    params, layout = _load(params_file, scale)
    for name in names:
        perform(params, layout, name)


def _perform_for_run(params_file: Path, scale: str | None, rule: str, run: str, seed: int) -> None:
    from relu_sparsity.perform import perform

    params, layout = _load(params_file, scale)
    params.run(run, seed)
    perform(params, layout, f"{rule}/{run}/seed{seed}")


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
        sys.exit(TRY_AGAIN_STATUS if isinstance(error, TryAgain) else USER_ERROR_STATUS)
    except OSError as error:
        # A full disk, a folder of somebody else, a bucket that is not to be reached.
        print(f"error: {type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(USER_ERROR_STATUS)


if __name__ == "__main__":
    main()
