"""The commands `relu-sparsity tpu ...`."""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from relu_sparsity import processes
from relu_sparsity.errors import STOPPED_STATUS, USER_ERROR_STATUS, Interrupted, UserError
from relu_sparsity.options import (
    DEFAULT_PARAMS,
    AsJson,
    ParamsFile,
    Run,
    Scale,
    Seed,
    StopWithParent,
    Yes,
    load,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from relu_sparsity.tpu.slices import Slice

tpu = typer.Typer(
    help="Slices of Cloud TPU: run a job on one, see which there are, delete what is left over. "
    "docs/tpu.md tells how to set this up.",
    no_args_is_help=True,
)

AllStores = Annotated[
    bool, typer.Option("--all", help="Also those whose jobs write to another store.")
]
Slices = Annotated[Path, typer.Option(help="What the slices are.", metavar="FILE")]
DEFAULT_SLICES = Path("workflow/profiles/tpu/slices.yaml")


@tpu.command("run")
def tpu_run(
    command: Annotated[str, typer.Argument(help="train or mask", metavar="COMMAND")],
    run: Run,
    seed: Seed = 0,
    scale: Scale = None,
    params_file: ParamsFile = DEFAULT_PARAMS,
    slices: Slices = DEFAULT_SLICES,
    stop_with_parent: StopWithParent = False,
) -> None:
    """Run a job on a slice of its own, and delete the slice whatever happens.

    A slice that is preempted, or whose host dies, is replaced, and the job goes on from its
    checkpoint. Ctrl-C lets it save one first. Nothing runs where the store has the result already.
    """
    from relu_sparsity.tpu.launcher import launch
    from relu_sparsity.tpu.slices import load_slice_params

    if command not in ("train", "mask"):
        raise UserError(f"{command!r}: is no job for a slice; allowed: train, mask")
    if stop_with_parent:
        processes.stop_with_parent()
    params, layout = load(params_file, scale)
    params.run(run, seed)
    try:
        launch(params, layout, load_slice_params(slices), command, run, seed)
    except Interrupted as stopped:
        print(stopped, file=sys.stderr)
        raise typer.Exit(STOPPED_STATUS) from None


@tpu.command("host", hidden=True)
def tpu_host(
    attempt: Annotated[int, typer.Option(help="Which slice this is, of those for this job.")],
    worker: Annotated[int, typer.Option(help="This host, from 0.")],
    num_hosts: Annotated[int, typer.Option(help="The hosts of the slice.")],
) -> None:
    """Run this host's part of a slice's job. The start-up script of a slice calls this."""
    from relu_sparsity.layout import store_root
    from relu_sparsity.tpu.host import serve
    from relu_sparsity.tpu.slice_job import SliceJob

    job = SliceJob(store_root() / "jobs" / os.environ["RELU_SPARSITY_SLICE"])
    if serve(job, attempt=attempt, worker=worker, num_hosts=num_hosts) == "failed":
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
    as_json: AsJson = False,
) -> None:
    """Compile every model of a scale for a slice that need not be there, and tell if it fits.

    Needs the package libtpu: `make tpu-check` brings it and calls this for the tpu scale.
    """
    from relu_sparsity.tpu.check import check

    params, _ = load(params_file, scale)
    result = check(params, topology, runs=run)
    if as_json:
        print(json.dumps(result.as_json(), indent=1))
    else:
        print(*result.lines(), sep="\n")
    if problems := result.problems():
        raise UserError("\n".join(problems))


@tpu.command("infer")
def tpu_infer(
    params_file: ParamsFile = DEFAULT_PARAMS,
    emb_dim: Annotated[
        list[int] | None, typer.Option(help="A d_model to try; can be given again.", min=2)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Tell what the paper's memory and clock say of its d_model, which it does not tell.

    Needs the package libtpu: `make tpu-infer` brings it. Takes up to a minute per model.
    """
    from relu_sparsity.tpu.infer import as_json as to_json
    from relu_sparsity.tpu.infer import infer, lines

    params, _ = load(params_file, "tpu")
    topology = "v2:4x4"
    found = infer(params.runs["baseline"].config, topology, emb_dim or [64, 128, 192, 256, 512])
    if as_json:
        print(json.dumps(to_json(found), indent=1))
    else:
        print(*lines(found, topology), sep="\n")


@tpu.command("list")
def tpu_list(
    slices: Slices = DEFAULT_SLICES,
    all_stores: AllStores = False,
    as_json: AsJson = False,
) -> None:
    """Show the slices that jobs of this store asked for."""
    from relu_sparsity.tpu.setup import connect, owned_slices
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
    yes: Yes = False,
) -> None:
    """Delete the slices that jobs of this store asked for, also those at work."""
    from relu_sparsity.tpu.setup import connect, owned_slices
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
    kept = []
    for each in found:
        try:
            gcloud.delete(each.name)
            print(f"deleted {each.name}")
        except UserError as error:
            kept.append(f"{each.name} is still there: {error}")
    if kept:
        raise UserError("\n".join(kept))


def _print_slices(found: "Iterable[Slice]") -> None:
    from tabulate import tabulate

    rows = [
        (each.name, each.state, each.accelerator_type, "spot" if each.spot else "", each.created)
        for each in found
    ]
    print(tabulate(rows, ("slice", "state", "type", "", "asked for"), tablefmt="plain"))
