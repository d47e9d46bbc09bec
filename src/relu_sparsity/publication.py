"""Results that are kept in Git for readers, and the check of somebody's own against them."""

import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import yaml
from jaxtyping import Float

from relu_sparsity.errors import UserError
from relu_sparsity.files import read_json, write_json, write_text
from relu_sparsity.jobs import job_table, require_results
from relu_sparsity.paper.catalog import FIGURES, MAIN_TEXT, OWN_RUNS, PRUNING
from relu_sparsity.provenance import Digests
from relu_sparsity.schema import flat

if TYPE_CHECKING:
    from relu_sparsity.layout import Layout
    from relu_sparsity.params import Params

PUBLISHED_METRICS = (
    "token_use", "sequence_use", "batch_use", "p50", "p65", "p75", "p90",
    "on_at_start", "turned_on", "turned_off", "final_use",
)  # fmt: skip
# Of these, which are shares of a layer's units: whole numbers of units, often none or all.
_SHARES_OF_UNITS = ("batch_use", "on_at_start", "turned_on", "turned_off", "final_use")
STANDARD_ERRORS = 4.0
"""A number may differ from the published one by so many standard errors of their difference."""
_NUMBERS, _MADE_FROM, _PARAMETERS = "metrics.csv", "made_from.json", "params.yaml"
_EARLIER = "This table is of an earlier run than the other results here."
# What `publish` writes, today and before; anything else in its folder is a reader's own.
_WRITTEN = re.compile(
    r"claims\.(json|md)|metrics\.(csv|yaml)|sensitivity\.(csv|md|svg)|figures/fig\d+\.svg"
    rf"|tables/(table\d+|{PRUNING}|{OWN_RUNS})\.(csv|md|tex)"
    rf"|{re.escape(_MADE_FROM)}|{re.escape(_PARAMETERS)}"
)
_PUBLISHED_RULES = ("train", "extract", "table", PRUNING, "own", "claims", "summary")
_COMPARED_RULES = ("train", "extract", "claims")
_KEYS = ["run", "layer", "metric"]


@dataclass(frozen=True)
class Publication:
    """What a folder of published results holds.

    Attributes:
      files: All of it.
      kept: Of these, the sensitivity of earlier results: the new ones have none.
    """

    files: list[Path]
    kept: list[Path]


@dataclass(frozen=True)
class Deviation:
    """A number that is farther from the published one than seeds are from each other.

    Attributes:
      run: The run.
      layer: The layer; "all" for the whole model.
      metric: Which number.
      own: The mean over one's own seeds.
      published: The mean over the published seeds.
      allowed: How far apart they may be.
    """

    run: str
    layer: str
    metric: str
    own: float
    published: float
    allowed: float

    def __str__(self) -> str:
        where = "" if self.layer == "all" else f", layer {self.layer}"
        return (
            f"{self.run}{where}: {self.metric} is {self.own:.4g}, published {self.published:.4g} "
            f"± {self.allowed:.2g}"
        )


@dataclass(frozen=True)
class Verification:
    """How one's own results compare with published ones.

    Attributes:
      numbers: How many numbers were compared.
      deviations: Those that are too far apart, the farthest first.
      verdicts: By claim, one's own verdict and the published one, where they differ.
      missing: Published runs of which there are no results here, and of others single numbers.
      parameters: What differs in the parameters, a line for each.
    """

    numbers: int
    deviations: list[Deviation]
    verdicts: dict[int, tuple[str, str]]
    missing: list[str]
    parameters: list[str]

    @property
    def passed(self) -> bool:
        """Whether every published number and verdict came out here too."""
        return not (self.deviations or self.verdicts or self.missing)

    def lines(self) -> Iterator[str]:
        """The result in words."""
        if self.parameters:
            yield "The parameters are not the published ones:"
            yield from (f"  {line}" for line in self.parameters)
        if self.missing:
            more = f" and {len(self.missing) - 20} more" if len(self.missing) > 20 else ""
            yield f"There are no results of {'; '.join(self.missing[:20])}{more}."
        apart = len(self.deviations)
        yield (
            f"{self.numbers - apart} of {self.numbers} numbers are within {STANDARD_ERRORS:g} "
            "standard errors of the published ones."
        )
        yield from (f"  {each}" for each in self.deviations[:20])
        if apart > 20:
            yield f"  and {apart - 20} more"
        for number, (own, published) in self.verdicts.items():
            yield f"Claim {number}: {own}; published: {published}."
        if not self.verdicts:
            yield "Every verdict is the published one."

    def as_json(self) -> dict[str, Any]:
        """As values that JSON knows."""
        return asdict(self) | {"passed": self.passed}


def publish(params: "Params", layout: "Layout", folder: Path) -> Publication:
    """Copies what is small of a scale's results, and tells what made them.

    Of the figures, those of the paper's main text. The sensitivity, which is made only when asked
    for, stays as it was published before where the results have none that is of today.

    Args:
      params: The scale.
      layout: Where its results are. All of them have to be there.
      folder: Where to; what was published there before is replaced. Other files in it stay.

    Returns:
      All that is published now, and what of it was published before.

    Raises:
      UserError: A result is missing or not of the parameters now, or `folder` is there and is not
        one of published results.
    """
    folder = Path(os.path.abspath(folder))
    partial = folder.with_name(f".{folder.name}.partial")
    if not folder.exists() and (partial / _MADE_FROM).is_file():
        # One that was killed just before its last step: what it kept is nowhere else.
        partial.rename(folder)
    is_ours = (folder / _MADE_FROM).is_file() or (folder.is_dir() and not any(folder.iterdir()))
    if folder.exists() and not is_ours:
        raise UserError(
            f"{folder}: is not a folder of published results; allowed: one that has {_MADE_FROM}, "
            "whose content is replaced, an empty one, or one that is not there yet"
        )
    table = job_table(params, layout)
    figures = [f"figure/{each.id}" for each in FIGURES.values() if each.category == MAIN_TEXT]
    shown = [
        job
        for job in table.values()
        if not job.on_request and (job.rule in _PUBLISHED_RULES or job.name in figures)
    ]
    require_results(shown, params.scale)
    copied = [
        *layout.claims,
        layout.summary,
        *(path for job in shown if job.stage in ("tables", "figures") for path in job.outputs),
    ]
    sensitivity = [folder / path.relative_to(layout.results) for path in layout.sensitivity]
    if "sensitivity" in table and not table["sensitivity"].problems(Digests()):
        copied += layout.sensitivity
        sensitivity = []
    kept = [path for path in sensitivity if path.is_file()]
    shutil.rmtree(partial, ignore_errors=True)
    for path in copied:
        target = partial / path.relative_to(layout.results)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    for path in (*kept, *_not_written_here(folder)):
        target = partial / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)
    for path in kept:
        if path.suffix == ".md" and _EARLIER not in (text := path.read_text(encoding="utf-8")):
            write_text(partial / path.relative_to(folder), f"{text}\n{_EARLIER}\n")
    write_text(partial / _NUMBERS, read_numbers(params, layout).to_csv(index=False))
    write_text(partial / _PARAMETERS, yaml.safe_dump(_parameters(params), sort_keys=False))
    made_from = {}
    for job in shown:
        if job.rule == "train":
            told = read_json(job.record)
            # Which other versions made it, where `accept` has kept it, belongs to what made it.
            made_from[job.name.removeprefix("train/")] = {
                "fingerprint": job.fingerprint.hash,
                "packages": job.fingerprint.packages,
                **{key: told[key] for key in ("environment", "accepted") if key in told},
            }
    write_json(partial / _MADE_FROM, made_from)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return Publication(sorted(path for path in folder.rglob("*") if path.is_file()), kept)


def _not_written_here(folder: Path) -> list[Path]:
    """The files of a folder that `publish` did not write: somebody's notes."""
    names = ((path, path.relative_to(folder).as_posix()) for path in folder.rglob("*"))
    return [path for path, name in names if path.is_file() and not _WRITTEN.fullmatch(name)]


def read_numbers(params: "Params", layout: "Layout") -> pd.DataFrame:
    """The numbers of all runs that are there: columns run, seed, layer, metric and value."""
    rows = []
    for name, run in params.paper_runs.items():
        for seed in run.seeds:
            path = layout.run(name, seed) / "metrics.json"
            if not path.is_file():
                continue
            metrics = read_json(path)
            for key, value in metrics.items():
                if not isinstance(value, Mapping):
                    rows.append((name, seed, "all", key, value))
                    continue
                layer = key.removeprefix("layer")
                rows += [(name, seed, layer, each, value[each]) for each in PUBLISHED_METRICS]
    return pd.DataFrame(rows, columns=["run", "seed", "layer", "metric", "value"])


def verify(params: "Params", layout: "Layout", folder: Path) -> Verification:
    """Compares a scale's results with published ones.

    A number is the mean over seeds. It may differ by `STANDARD_ERRORS` standard errors of the
    difference of two such means. The standard deviation over seeds is the larger one of the
    number's own, as published, and of the metric's in all runs and layers: that of three seeds
    alone is too small by chance too often. Of a share of a layer's units it is at least what as
    many independent units would have: that of three seeds without a single unit is 0.

    Raises:
      UserError: `folder` has no published results, or they are of one seed only; or one's own are
        not of the parameters now.
    """
    if not (folder / _NUMBERS).is_file():
        raise UserError(f"{folder / _NUMBERS}: is missing; allowed: a folder made by 'publish'")
    published = _by_number(pd.read_csv(folder / _NUMBERS, dtype={"layer": str}))
    if published["count"].min() < 2:
        raise UserError(f"{folder}: has one seed of a run; two are needed to know their spread")
    jobs = job_table(params, layout).values()
    shown = [job for job in jobs if not job.on_request and job.rule in _COMPARED_RULES]
    require_results((job for job in shown if job.has_results()), params.scale)
    own = _by_number(read_numbers(params, layout))
    variance = published["std"] ** 2
    of_metric = np.sqrt(variance.groupby("metric").transform("mean"))
    spread = np.maximum(published["std"], of_metric)
    both = published.join(own, how="inner", rsuffix="_own")
    spread = np.maximum(spread[both.index], _spread_of_independent_units(both, params, layout))
    allowed = STANDARD_ERRORS * spread * np.sqrt(1 / both["count"] + 1 / both["count_own"])
    distance = (both["mean_own"] - both["mean"]).abs()
    # Numbers are written with six digits.
    apart = distance[distance > allowed + 1e-5 * both["mean"].abs()]
    farthest_first = (apart / spread[apart.index].clip(lower=1e-12)).sort_values(ascending=False)
    deviations = [
        Deviation(
            run=key[0],
            layer=key[1],
            metric=key[2],
            own=float(both.loc[key, "mean_own"]),
            published=float(both.loc[key, "mean"]),
            allowed=float(allowed[key]),
        )
        for key in farthest_first.index
    ]
    lacking = published.index.difference(own.index)
    missing = sorted(set(lacking.unique("run")) - set(own.index.unique("run")))
    missing += [
        f"{run}, {'the whole model' if layer == 'all' else f'layer {layer}'}: {metric}"
        for run, layer, metric in lacking
        if run not in missing
    ]
    return Verification(
        numbers=len(both),
        deviations=deviations,
        verdicts=_other_verdicts(layout, folder),
        missing=missing,
        parameters=_other_parameters(params, folder),
    )


def _spread_of_independent_units(
    both: pd.DataFrame, params: "Params", layout: "Layout"
) -> Float[np.ndarray, " numbers"]:
    """The standard deviation over seeds, in percent, of shares of units; 0 of other numbers."""
    widths = {
        name: read_json(layout.run(name, seed) / "run.json")["config"]["model"]["mlp_dims"]
        for name, run in params.paper_runs.items()
        for seed in run.seeds
        if name in both.index.unique("run") and (layout.run(name, seed) / "run.json").is_file()
    }
    units = [
        widths[run][int(layer)] if metric in _SHARES_OF_UNITS else math.inf
        for run, layer, metric in both.index
    ]
    sums = both["mean"] * both["count"] + both["mean_own"] * both["count_own"]
    share = sums / (both["count"] + both["count_own"])
    return np.sqrt((share * (100 - share)).clip(lower=0) / np.array(units)).to_numpy()


def _by_number(numbers: pd.DataFrame) -> pd.DataFrame:
    return numbers.groupby(_KEYS, sort=False)["value"].agg(["mean", "std", "count"])


def _other_verdicts(layout: "Layout", folder: Path) -> dict[int, tuple[str, str]]:
    def read(path: Path, how_to_make_it: str) -> dict[int, str]:
        if not path.is_file():
            raise UserError(f"{path}: is missing; {how_to_make_it}")
        claims = read_json(path)["claims"]
        return {claim["number"]: claim["verdict"] for claim in claims}

    own = read(
        layout.results / "claims.json",
        f"make the results of the scale first: make reproduce SCALE={layout.scale}",
    )
    published = read(folder / "claims.json", "a folder that `relu-sparsity publish` wrote has it")
    return {
        number: (own[number], verdict)
        for number, verdict in published.items()
        if own[number] != verdict
    }


def _parameters(params: "Params") -> dict[str, Any]:
    return {
        name: run.model_dump(mode="json", exclude={"name", "sensitivity"})
        for name, run in params.paper_runs.items()
    }


def _other_parameters(params: "Params", folder: Path) -> list[str]:
    published = flat(yaml.safe_load((folder / _PARAMETERS).read_text(encoding="utf-8")))
    own = flat(_parameters(params))
    runs: dict[str, list[str]] = {}
    for key in dict.fromkeys([*published, *own]):
        run, _, name = key.partition(".")
        # Other seeds are what a second look at the same experiment has.
        if own.get(key) != published.get(key) and name != "seeds":
            told = f"{name.removeprefix('config.')}: {own.get(key)}, published {published.get(key)}"
            runs.setdefault(told, []).append(run)
    return [f"{', '.join(names)}: {told}" for told, names in runs.items()]
