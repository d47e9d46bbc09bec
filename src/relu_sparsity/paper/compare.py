"""Two revisions of the project on one page: what was changed, and what that changed.

A revision's results are read where git or DVC keeps them, so nothing has to be checked out.
"""

import contextlib
import hashlib
import io
import json
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import jinja2
import matplotlib as mpl
import numpy as np
import pandas as pd
import yaml
from dvc.api import DVCFileSystem
from dvc.scm import SCM, RevError, SCMError, resolve_rev
from dvc_data.index import DataIndexDirError
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator

from relu_sparsity.errors import UserError
from relu_sparsity.files import write_text
from relu_sparsity.layout import Layout
from relu_sparsity.paper.catalog import METRIC_TITLES, TABLES
from relu_sparsity.paper.claims import _numbers
from relu_sparsity.paper.figures import _STYLE, _average_neighbours, _label_ends, layer_color
from relu_sparsity.params import Params, RunParams, parse_params

log = logging.getLogger(__name__)

# By layer in percent, but for the loss.
CURVES = {
    "batch_use": f"{METRIC_TITLES['batch_use']} (%)",
    "token_use": f"{METRIC_TITLES['token_use']} (%)",
    "loss": "Held-out loss (nats per token)",
}
SCORES = ("loss", "accuracy")
WORKING_TREE = "working tree"
NOTHING = "–"

_T = TypeVar("_T")
Reader = Callable[[Path], bytes]


class _AbsentError(Exception):
    """Says why a revision does not have a file."""


@dataclass(frozen=True)
class Revision:
    """The parameters and results of one revision.

    Attributes:
      name: What the user calls it.
      title: Its short hash and subject.
      params: Its resolved parameters.
      claims: Entries of claims.json, by number.
      tables: By name, the cells of the CSV as they are written.
      scores: By run, `SCORES` of each seed.
      curves: By run and key of `CURVES`, the mean over seeds: a row per step, a column per layer.
      absent: By reason, the files that it does not have.
    """

    name: str
    title: str
    params: Params
    claims: dict[int, dict[str, Any]]
    tables: dict[str, pd.DataFrame]
    scores: dict[str, list[dict[str, float]]]
    curves: dict[str, dict[str, pd.DataFrame]]
    absent: dict[str, list[Path]]

    @property
    def absent_by_folder(self) -> list[tuple[str, str, str]]:
        """Folder, names and reason of the files that it does not have."""
        names: dict[tuple[str, str], list[str]] = defaultdict(list)
        for reason, paths in self.absent.items():
            for path in paths:
                names[path.parent.as_posix(), reason].append(path.name)
        return [(folder, ", ".join(each), reason) for (folder, reason), each in names.items()]


@dataclass(frozen=True)
class Pair:
    """A value in both revisions, as texts.

    Attributes:
      first: The first revision's.
      second: The second revision's.
      change: Second minus first, where both are numbers.
      paper: The paper's, where it has one.
    """

    first: str
    second: str
    change: str = ""
    paper: str = NOTHING

    @property
    def differs(self) -> bool:
        """Whether the two are not the same."""
        return self.first != self.second


@dataclass(frozen=True)
class TableChanges:
    """The cells of a table that differ.

    Attributes:
      number: The paper's.
      title: What it shows.
      cells: By column, then by layer.
    """

    number: str
    title: str
    cells: dict[str, dict[str, Pair]]

    @property
    def layers(self) -> list[str]:
        """The rows with a cell that differs, from the first layer on."""
        layers = {layer for column in self.cells.values() for layer in column}
        return sorted(layers, key=lambda layer: (not layer.isdigit(), layer.zfill(4)))

    @property
    def num_cells(self) -> int:
        """How many cells differ."""
        return sum(map(len, self.cells.values()))


@dataclass(frozen=True)
class VerdictChange:
    """A claim whose verdict differs."""

    number: int
    statement: str
    verdict: Pair
    evidence: Pair


@dataclass(frozen=True)
class Comparison:
    """What differs between two revisions.

    Attributes:
      scale: The scale of both.
      revisions: `A` and `B`.
      parameters: By key path.
      only_in: By run, which of the two alone has it.
      tables: Those with a cell that differs.
      verdicts: Of the claims that both have decided.
      scores: By run, then by `SCORES`, whether they differ or not.
      curves: By run with a curve that differs, an SVG element.
    """

    scale: str
    revisions: dict[str, Revision]
    parameters: dict[str, Pair]
    only_in: dict[str, str]
    tables: list[TableChanges]
    verdicts: list[VerdictChange]
    scores: dict[str, dict[str, Pair]]
    curves: dict[str, str]

    @property
    def differing_scores(self) -> list[str]:
        """The runs that end with another loss or accuracy."""
        return [
            run
            for run, scores in self.scores.items()
            if any(pair.differs for pair in scores.values())
        ]

    @property
    def differs(self) -> bool:
        """Whether anything differs in what there is."""
        return any(
            (
                self.parameters,
                self.only_in,
                self.tables,
                self.verdicts,
                self.differing_scores,
                self.curves,
            )
        )


def write_comparison(
    repository: Path, first: str, second: str | None, target: Path, scale: str | None = None
) -> list[Path]:
    """Writes what differs between two revisions, as a self-contained HTML page and as Markdown.

    A revision's results come from git, from DVC's cache or remote, or from a file in the working
    tree that is still the recorded one. What is in none of these is named, the rest is shown.

    Args:
      repository: The project's folder.
      first: A git revision: a hash, a branch, a tag, `HEAD~1`.
      second: Another one; None is the working tree.
      target: The page, `.html`. The Markdown lies beside it.
      scale: The scale to compare; None takes `scale` of each revision's params.yaml.

    Returns:
      The page and the Markdown.

    Raises:
      UserError: `repository` is not in git, a revision is unknown or its params.yaml is missing or
        not valid, no scale is given and the two have different ones, or `target` is not `.html`.
    """
    if target.suffix != ".html":
        raise UserError(f"{target}: allowed: a name that ends in .html")
    revisions = [
        _working_tree(repository, scale) if name is None else _commit(repository, name, scale)
        for name in (first, second)
    ]
    comparison = compare_revisions(*revisions)
    page, markdown = target, target.with_suffix(".md")
    write_text(page, _render("compare.html.jinja2", comparison))
    write_text(markdown, _render("compare.md.jinja2", comparison, finalize=_markdown_cell))
    return [page, markdown]


def compare_revisions(first: Revision, second: Revision) -> Comparison:
    """Finds what differs between two revisions.

    Raises:
      UserError: They have different scales.
    """
    if first.params.scale != second.params.scale:
        raise UserError(
            f"the scale of {first.name} is {first.params.scale!r}, that of {second.name} is "
            f"{second.params.scale!r}; allowed: revisions of one scale, or a scale given for both"
        )
    runs = list(dict.fromkeys([*first.params.runs, *second.params.runs]))
    shared = [run for run in runs if run in first.params.runs and run in second.params.runs]
    return Comparison(
        scale=first.params.scale,
        revisions={"A": first, "B": second},
        parameters=_parameter_changes(first.params, second.params, shared),
        only_in={
            run: "A" if run in first.params.runs else "B" for run in runs if run not in shared
        },
        tables=_table_changes(first.tables, second.tables),
        verdicts=_verdict_changes(first.claims, second.claims),
        scores={
            run: {
                key: _pair_of_means(
                    *([seed[key] for seed in each.scores.get(run, [])] for each in (first, second))
                )
                for key in SCORES
            }
            for run in runs
            if run in first.scores or run in second.scores
        },
        curves={
            run: svg
            for run in shared
            if (svg := _draw_changed(run, first.curves.get(run, {}), second.curves.get(run, {})))
        },
    )


def _commit(repository: Path, name: str, scale: str | None) -> Revision:
    try:
        scm = SCM(str(repository))
        commit = resolve_rev(scm, name)
    except RevError:
        raise UserError(
            f"revision {name!r} is unknown; allowed: a hash, a branch, a tag, or one like HEAD~1"
        ) from None
    except SCMError:
        raise UserError(
            f"{repository}: is not a git repository; allowed: one with commits"
        ) from None
    subject = scm.resolve_commit(commit).message.strip().partition("\n")[0]
    read = _CommitFiles(repository, commit).read
    return _load(read, name, f"{commit[:7]} {subject}", scale)


class _CommitFiles:
    """The files of a commit, in git or recorded by DVC."""

    def __init__(self, repository: Path, commit: str) -> None:
        self._repository = repository
        self._commit = commit
        self._files = DVCFileSystem(str(repository), rev=commit)
        self._remote_works = True
        outputs = self._files.repo.index.outs
        self._recorded = {out.index_key[1]: out.hash_info.value for out in outputs}

    def read(self, path: Path) -> bytes:
        """Returns a file's content, or raises `_AbsentError`."""
        file = f"/{path.as_posix()}"
        try:
            return self._files.read_bytes(file)
        except FileNotFoundError:
            in_dvc = path.parts in self._recorded or self._files.exists(file)
        except DataIndexDirError:
            in_dvc = True
        # Every kind of remote fails with errors of its own; the cache may still have the file.
        except Exception as error:
            if not self._remote_works:
                raise
            log.warning("DVC's remote cannot be read, only its cache is: %s", error)
            self._remote_works = False
            self._files = self._cached_files()
            return self.read(path)
        content = self._unchanged_output(path)
        if content is not None:
            return content
        if not in_dvc:
            raise _AbsentError("neither in git nor in DVC")
        if not self._remote_works:
            raise _AbsentError("not in DVC's cache, and its remote cannot be read")
        raise _AbsentError("neither in DVC's cache nor in its remote")

    def _cached_files(self) -> DVCFileSystem:
        cache = {"url": self._files.repo.cache.local_cache_dir}
        config = {"core": {"remote": "cache"}, "remote": {"cache": cache}}
        return DVCFileSystem(str(self._repository), rev=self._commit, config=config)

    def _unchanged_output(self, path: Path) -> bytes | None:
        """The working tree's file, if it is the one that the commit recorded."""
        recorded = self._recorded.get(path.parts)
        with contextlib.suppress(OSError):
            content = (self._repository / path).read_bytes()
            if hashlib.md5(content).hexdigest() == recorded:
                return content
        return None


def _working_tree(repository: Path, scale: str | None) -> Revision:
    def read(path: Path) -> bytes:
        try:
            return (repository / path).read_bytes()
        except OSError:
            raise _AbsentError("not in the working tree") from None

    return _load(read, WORKING_TREE, WORKING_TREE, scale)


def _load(read: Reader, name: str, title: str, scale: str | None) -> Revision:
    source = Path(f"{name}:params.yaml")
    try:
        document = yaml.safe_load(read(Path("params.yaml")))
    except _AbsentError as error:
        raise UserError(f"{source}: {error}; allowed: a revision with parameters") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{source}: not a YAML file: {error}") from None
    params = parse_params(document, source, scale)
    layout = Layout(params.scale)
    absent: dict[str, list[Path]] = defaultdict(list)

    def parsed(parse: Callable[[io.BytesIO], _T], paths: Mapping[Any, Path]) -> dict[Any, _T]:
        found = {}
        for key, path in paths.items():
            try:
                found[key] = parse(io.BytesIO(read(path)))
            except _AbsentError as error:
                absent[str(error)].append(path)
            except (ValueError, KeyError, TypeError) as error:
                log.warning("%s: %s: %r", name, path, error)
                absent["not in the form that is written now"].append(path)
        return found

    folders = {job: layout.run(*job) for job in params.jobs()}
    claims = parsed(_parse_claims, {"": layout.results / "claims.json"})
    tables = parsed(
        _parse_table, {table: layout.results / "tables" / f"{table}.csv" for table in TABLES}
    )
    scores = parsed(
        _parse_scores, {job: folder / "metrics.json" for job, folder in folders.items()}
    )
    unit_use = parsed(
        _parse_unit_use, {job: folder / "unit_use.csv" for job, folder in folders.items()}
    )
    losses = parsed(
        _parse_loss, {job: folder / "evaluation.csv" for job, folder in folders.items()}
    )
    return Revision(
        name=name,
        title=title,
        params=params,
        claims=claims.get("", {}),
        tables=tables,
        scores={run: list(seeds) for run, seeds in _by_run(scores).items()},
        curves={
            run: _mean_over_seeds([*_by_run(unit_use).get(run, []), *_by_run(losses).get(run, [])])
            for run in params.runs
        },
        absent=dict(absent),
    )


def _parse_claims(file: io.BytesIO) -> dict[int, dict[str, Any]]:
    keys = ("statement", "verdict", "reason", "evidence")
    return {
        claim["number"]: {key: claim[key] for key in keys} for claim in json.load(file)["claims"]
    }


def _parse_table(file: io.BytesIO) -> pd.DataFrame:
    return pd.read_csv(file, dtype=str, keep_default_na=False).set_index("layer")


def _parse_scores(file: io.BytesIO) -> dict[str, float]:
    metrics = json.load(file)
    return {key: float(metrics[key]) for key in SCORES}


def _parse_unit_use(file: io.BytesIO) -> dict[str, pd.DataFrame]:
    rows = pd.read_csv(file)
    return {
        metric: 100 * rows.pivot(index="step", columns="layer", values=metric)
        for metric in CURVES
        if metric != "loss"
    }


def _parse_loss(file: io.BytesIO) -> dict[str, pd.DataFrame]:
    return {"loss": pd.read_csv(file).set_index("step")[["loss"]]}


def _by_run(jobs: Mapping[tuple[str, int], _T]) -> dict[str, list[_T]]:
    seeds: dict[str, list[_T]] = defaultdict(list)
    for (run, _), value in jobs.items():
        seeds[run].append(value)
    return seeds


def _mean_over_seeds(seeds: Iterable[dict[str, pd.DataFrame]]) -> dict[str, pd.DataFrame]:
    curves: dict[str, list[pd.DataFrame]] = defaultdict(list)
    for each in seeds:
        for name, curve in each.items():
            curves[name].append(curve)
    return {name: pd.concat(each).groupby(level=0).mean() for name, each in curves.items()}


def _parameter_changes(first: Params, second: Params, shared: Iterable[str]) -> dict[str, Pair]:
    """Differing parameters by key path; `runs.*` is every run that both revisions have."""
    general = [
        _flat(
            {
                name: getattr(params, name).model_dump(mode="json")
                for name in ("claims", "resources")
            }
        )
        for params in (first, second)
    ]
    changes = _changes(*general)
    by_run = {
        run: _changes(_run_parameters(first.runs[run]), _run_parameters(second.runs[run]))
        for run in shared
    }
    runs = list(by_run)
    common = (
        [
            key
            for key in by_run[runs[0]]
            if len(runs) > 1 and all(by_run[run].get(key) == by_run[runs[0]][key] for run in runs)
        ]
        if runs
        else []
    )
    changes |= {f"runs.*.{key}": by_run[runs[0]][key] for key in common}
    for run, differing in by_run.items():
        changes |= {
            f"runs.{run}.{key}": pair for key, pair in differing.items() if key not in common
        }
    return changes


def _run_parameters(run: RunParams) -> dict[str, Any]:
    document = run.model_dump(mode="json", exclude={"name"})
    return _flat(document.pop("config") | document)


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {path: value}
    return {
        key: leaf
        for name, part in value.items()
        for key, leaf in _flat(part, f"{path}.{name}" if path else name).items()
    }


def _changes(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Pair]:
    return {
        key: _pair_of_values(value, second[key])
        for key, value in first.items()
        if value != second[key]
    }


def _pair_of_values(first: Any, second: Any) -> Pair:
    """Floats with six digits, as long as that tells them apart."""
    values = (first, second)
    short = [f"{each:.6g}" if isinstance(each, float) else json.dumps(each) for each in values]
    return Pair(*(short if short[0] != short[1] else map(json.dumps, values)))


def _pair_of_means(first: list[float], second: list[float]) -> Pair:
    change = ""
    if first and second and first != second:
        change = f"{np.mean(second) - np.mean(first):+.3g}"
    return Pair(_mean_text(first), _mean_text(second), change)


def _mean_text(values: list[float]) -> str:
    if not values:
        return NOTHING
    spread = f" ± {np.std(values, ddof=1):.2g}" if len(values) > 1 else ""
    return f"{np.mean(values):.6g}{spread}"


def _table_changes(
    first: dict[str, pd.DataFrame], second: dict[str, pd.DataFrame]
) -> list[TableChanges]:
    changes = []
    for table, title in TABLES.items():
        if table in first and table in second:
            cells = {
                name: differing
                for name, old, new in _same_columns(first[table], second[table])
                if (differing := _cell_changes(first[table], second[table], old, new))
            }
            changes.append(TableChanges(table.removeprefix("table"), title, cells))
    return [each for each in changes if each.cells]


def _same_columns(first: pd.DataFrame, second: pd.DataFrame) -> list[tuple[str, str, str]]:
    """What to call a column, and its name in both; some names hold a learning rate."""
    names = [
        [name for name in map(str, table) if not name.endswith(("_std", "_paper"))]
        for table in (first, second)
    ]
    if len(names[0]) != len(names[1]):
        union = dict.fromkeys([*names[0], *names[1]])
        return [(name, name, name) for name in union]
    return [
        (old if old == new else f"{old} → {new}", old, new) for old, new in zip(*names, strict=True)
    ]


def _cell_changes(first: pd.DataFrame, second: pd.DataFrame, old: str, new: str) -> dict[str, Pair]:
    pairs = {}
    for layer in dict.fromkeys([*first.index, *second.index]):
        before, after = _cell(first, layer, old), _cell(second, layer, new)
        change = f"{float(after) - float(before):+.3g}" if before and after else ""
        paper = _cell(second, layer, f"{new}_paper") or _cell(first, layer, f"{old}_paper")
        pair = Pair(
            _with_spread(before, _cell(first, layer, f"{old}_std")),
            _with_spread(after, _cell(second, layer, f"{new}_std")),
            change,
            paper or NOTHING,
        )
        if pair.differs:
            pairs[layer] = pair
    return pairs


def _cell(table: pd.DataFrame, layer: str, column: str) -> str:
    if layer not in table.index or column not in table:
        return ""
    return str(table.loc[layer, column])


def _with_spread(value: str, std: str) -> str:
    return (f"{value} ± {std}" if std else value) or NOTHING


def _verdict_changes(
    first: dict[int, dict[str, Any]], second: dict[int, dict[str, Any]]
) -> list[VerdictChange]:
    changes = []
    for number in sorted(first.keys() & second.keys()):
        claims = (first[number], second[number])
        verdict = Pair(*(claim["verdict"] for claim in claims))
        if verdict.differs:
            evidence = Pair(*map(_evidence_text, claims))
            changes.append(VerdictChange(number, claims[1]["statement"], verdict, evidence))
    return changes


def _evidence_text(claim: dict[str, Any]) -> str:
    return ". ".join(filter(None, (claim["reason"], _numbers(claim["evidence"])))) or NOTHING


def _draw_changed(
    run: str, first: dict[str, pd.DataFrame], second: dict[str, pd.DataFrame]
) -> str | None:
    """The curves of a run, both revisions over each other, where any of them differs."""
    names = [name for name in CURVES if name in first and name in second]
    if all(first[name].equals(second[name]) for name in names):
        return None
    # Identifiers of the pictures on one page must not clash.
    with mpl.rc_context({**_STYLE, "svg.hashsalt": f"relu-sparsity {run}"}):
        canvas = Canvas(figsize=(3.9 * len(names), 2.7), layout="constrained")
        for axes, name in zip(np.ravel(canvas.subplots(1, len(names))), names, strict=True):
            axes.set_title(CURVES[name], loc="left")
            _draw_curve(axes, first[name], by_layer=name != "loss", dashed=True)
            _draw_curve(axes, second[name], by_layer=name != "loss", dashed=False)
            _finish_axes(axes, name, first[name], second[name])
        file = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        canvas.savefig(file, format="svg", metadata=nothing)
    svg = file.getvalue()
    return svg[svg.index("<svg") :]


def _draw_curve(axes: Axes, curve: pd.DataFrame, *, by_layer: bool, dashed: bool) -> None:
    steps, values = _average_neighbours(curve.index.to_numpy(), curve.to_numpy()[np.newaxis])
    style: dict[str, Any] = {"linewidth": 0.9, "linestyle": (0, (3, 1.5))} if dashed else {}
    for layer in range(values.shape[2]):
        color = layer_color(layer) if by_layer else "black"
        axes.plot(steps, values[0, :, layer], color=color, **style)


def _finish_axes(axes: Axes, name: str, first: pd.DataFrame, second: pd.DataFrame) -> None:
    axes.set_xlabel("training step")
    axes.set_xlim(0, max(first.index[-1], second.index[-1], 1))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    if name == "loss":
        lines = [Line2D([], [], color="black", linewidth=0.9, linestyle=(0, (3, 1.5)))]
        axes.legend([*lines, Line2D([], [], color="black")], ["A", "B"], loc="upper right")
        return
    axes.set_ylim(bottom=0, top=103 if name == "batch_use" else None)
    _label_ends(axes, dict(enumerate(second.to_numpy()[-1])))


def _render(template: str, comparison: Comparison, **options: Any) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=jinja2.select_autoescape(["html.jinja2"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        **options,
    )
    return environment.get_template(template).render(comparison=comparison, tables=TABLES)


def _markdown_cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("<", "\\<")
