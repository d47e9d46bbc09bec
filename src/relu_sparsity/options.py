"""The options that commands share."""

from pathlib import Path
from typing import Annotated

import typer

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
StopWithParent = Annotated[
    bool, typer.Option(help="Save and stop when the calling process dies, as a job of Snakemake.")
]
DEFAULT_PARAMS = Path("params.yaml")


def load(params_file: Path, scale: str | None) -> tuple[Params, Layout]:
    """The parameters of a scale, and where its files are."""
    params = load_params(params_file, scale)
    return params, Layout(params.scale)
