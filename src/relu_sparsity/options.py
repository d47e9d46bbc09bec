"""The options that commands share."""

import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from relu_sparsity.errors import UserError
from relu_sparsity.layout import Layout
from relu_sparsity.params import Params
from relu_sparsity.params_file import load_params

Scale = Annotated[
    str | None,
    typer.Option(help="A scale of params.yaml: smoke, mini, gpu, tpu. [default: its 'scale']"),
]
ParamsFile = Annotated[Path, typer.Option("--params", help="The parameter file.")]
Run = Annotated[str, typer.Option(help="A run of params.yaml.")]
Seed = Annotated[int, typer.Option(help="One of the run's seeds.")]
Threads = Annotated[
    int | None, typer.Option(min=1, help="CPU threads. [default: resources.threads of the scale]")
]
StopWithParent = Annotated[
    bool, typer.Option(help="Save and stop when the calling process dies, as a job of Snakemake.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
DEFAULT_PARAMS = Path("params.yaml")


def threads_to_use(threads: int | None, params_file: Path, scale: str | None) -> int | None:
    """As many as the parameters say, also where --cores of Snakemake leaves fewer.

    Another number gives other last bits.
    A host of a slice, whose device does the work, uses all that it has.
    """
    if threads is not None or "RELU_SPARSITY_SLICE" in os.environ:
        return threads
    return load(params_file, scale)[0].resources.threads


def load(params_file: Path, scale: str | None) -> tuple[Params, Layout]:
    """The parameters of a scale, and where its files are."""
    params = load_params(params_file, scale)
    return params, Layout(params.scale)


def chosen(rule: str, names: Iterable[str] | None, allowed: Collection[str]) -> Iterator[str]:
    """The jobs of a rule that were asked for by name, or all of them.

    Raises:
      UserError: A name is none of them.
    """
    for each in allowed if names is None else names:
        if each not in allowed:
            raise UserError(
                f"{rule} {each!r} is not one of this scale's; allowed: {', '.join(allowed)}"
            )
        yield f"{rule}/{each}"
