"""The commands with which results are taken over, kept, published, compared and freed."""

import json
import logging
from pathlib import Path
from typing import Annotated

import typer

from relu_sparsity.counts import counted
from relu_sparsity.errors import UserError
from relu_sparsity.options import DEFAULT_PARAMS, AsJson, ParamsFile, Scale, Yes, load

log = logging.getLogger(__name__)


def adopt(
    folder: Annotated[
        Path, typer.Argument(help="Result files of one run and seed: .../runs/<run>/seed<k>")
    ],
    scale: Scale = None,
    params_file: ParamsFile = DEFAULT_PARAMS,
) -> None:
    """Take over a run that was trained elsewhere, if it is the one that params.yaml describes."""
    from relu_sparsity import runs

    runs.adopt(*load(params_file, scale), folder)


def accept(
    scale: Scale = None,
    params_file: ParamsFile = DEFAULT_PARAMS,
    as_json: AsJson = False,
) -> None:
    """Keep results that only other versions of packages made, and record that in them.

    Nothing is trained or drawn again. Results that anything else made stale stay stale.
    """
    from relu_sparsity.accept import accept_other_versions, still_stale

    params, layout = load(params_file, scale)
    accepted = accept_other_versions(params, layout)
    stale = still_stale(params, layout)
    if as_json:
        print(json.dumps({"accepted": accepted, "stale": stale}, indent=1))
        return
    for name, versions in accepted.items():
        told = ", ".join(f"{package} {version}" for package, version in versions.items())
        print(f"{name}: kept as made with {told or 'the results before it'}")
    for reason, names in stale.items():
        print(f"{', '.join(names)}: stale: {reason}")
    print(f"{counted(len(accepted), 'result')} accepted")


def publish(
    scale: Scale = None,
    params_file: ParamsFile = DEFAULT_PARAMS,
    folder: Annotated[Path | None, typer.Argument(help="[default: published/<scale>]")] = None,
) -> None:
    """Copy what is small of a scale's results into a folder for Git, with what made them."""
    from relu_sparsity.publication import publish

    params, layout = load(params_file, scale)
    folder = folder or Path("published") / params.scale
    published = publish(params, layout, folder)
    size = sum(path.stat().st_size for path in published.files)
    log.info("%s holds %d files, %.1f MB", folder, len(published.files), size / 1e6)
    if published.kept:
        log.info(
            "kept of what was published before: %s. To make it of today's results: "
            "snakemake sensitivity --cores 2 --config scale=%s",
            ", ".join(path.name for path in published.kept), params.scale,
        )  # fmt: skip


def verify(
    folder: Annotated[Path, typer.Argument(help="Published results: published/mini.")],
    scale: Annotated[str | None, typer.Option(help="[default: the folder's name]")] = None,
    params_file: ParamsFile = DEFAULT_PARAMS,
    as_json: AsJson = False,
) -> None:
    """Compare your results with published ones: every number, every verdict.

    Ends with status 1 if a number is farther away than seeds are from each other, a verdict is
    another, or a run is missing.
    """
    from relu_sparsity.publication import verify

    found = verify(*load(params_file, scale or folder.name), folder)
    if as_json:
        print(json.dumps(found.as_json(), indent=1))
    else:
        print(*found.lines(), sep="\n")
    if not found.passed:
        raise UserError(f"these are not the results of {folder}")


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
    from relu_sparsity.paper.compare.page import write_comparison
    from relu_sparsity.workflow import stale_results

    # What nobody has made yet of edited parameters is not there; a commit is as it was recorded.
    stale = set() if second else stale_results(*load(DEFAULT_PARAMS, scale))
    for path in write_comparison(Path(), first, second, output, scale, stale):
        log.info("wrote %s", path)


def tidy(
    scale: Scale = None,
    params_file: ParamsFile = DEFAULT_PARAMS,
    run: Annotated[
        list[str] | None, typer.Option(help="Only this run; can be given again.")
    ] = None,
    free: Annotated[
        bool, typer.Option("--free", help="Delete what is stale or removed, after a question.")
    ] = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Tell what the store holds: what is current, stale, or no longer in params.yaml; free it.

    Stale runs are those of other parameters, code or packages: another commit may want them. What
    is current, or being trained, is never deleted.
    """
    from relu_sparsity import tidy

    params, layout = load(params_file, scale)
    found = list(tidy.entries(params, layout))
    there = {*params.runs, *(each.run for each in found)}
    for name in run or ():
        if name not in there:
            raise UserError(f"--run {name}: no such run; allowed: {', '.join(sorted(there))}")
    found = [each for each in found if not run or each.run in run]
    others = tidy.others(params.scale)
    if not as_json:
        print(*tidy.as_lines(found, others), sep="\n")
    chosen = [each for each in found if free and each.state != "current"]
    if chosen and not yes:
        what = tidy.folders([each.size for each in chosen])
        typer.confirm(f"Delete {what}?", abort=True, err=True)
    kept: dict[str, str] = {}
    for each, why in tidy.free(chosen):
        kept |= {str(each.folder): why} if why else {}
        log.info("%s: %s", each.folder, why or "deleted")
    if as_json:
        told = {"scale": params.scale, "folders": [each.as_json() for each in found]}
        deleted = [str(each.folder) for each in chosen if str(each.folder) not in kept]
        print(json.dumps(told | {"others": others, "deleted": deleted, "kept": kept}, indent=1))
