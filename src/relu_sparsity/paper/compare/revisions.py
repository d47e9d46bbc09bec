"""Reading the parameters and results of a revision where git or DVC keeps them.

Nothing has to be checked out.
"""

import contextlib
import hashlib
import io
import json
import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
from dvc.api import DVCFileSystem
from dvc.exceptions import DvcException
from dvc.scm import SCM, RevError, SCMError, resolve_rev
from dvc_data.index import DataIndexDirError

from relu_sparsity.errors import UserError
from relu_sparsity.layout import Layout
from relu_sparsity.paper.catalog import METRIC_TITLES, TABLES
from relu_sparsity.params import Params
from relu_sparsity.params_file import parse_params
from relu_sparsity.schema import parse_yaml

log = logging.getLogger(__name__)


# By layer in percent, but for the loss.
CURVES = {
    "batch_use": f"{METRIC_TITLES['batch_use']} (%)",
    "token_use": f"{METRIC_TITLES['token_use']} (%)",
    "loss": "Held-out loss (nats per token)",
}
SCORES = ("loss", "accuracy")
WORKING_TREE = "working tree"

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


def commit_revision(repository: Path, name: str, scale: str | None) -> Revision:
    """Reads a revision that git has.

    Raises:
      UserError: It is unknown, or its params.yaml is missing or not valid.
    """
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
    try:
        read = _CommitFiles(repository, commit).read
    except DvcException as error:
        raise UserError(f"{name}: DVC cannot read this revision: {error}") from None
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


def working_tree(repository: Path, scale: str | None, stale: Collection[Path] = ()) -> Revision:
    """Reads the working tree.

    Args:
      repository: The project's folder.
      scale: The scale; None takes that of params.yaml.
      stale: Files that are not results of its parameters: they count as not there.

    Raises:
      UserError: Its params.yaml is missing or not valid.
    """

    def read(path: Path) -> bytes:
        if path in stale:
            raise _AbsentError("not of the parameters, code and packages now: not made again yet")
        try:
            return (repository / path).read_bytes()
        except OSError:
            raise _AbsentError("not in the working tree") from None

    return _load(read, WORKING_TREE, WORKING_TREE, scale)


def _load(read: Reader, name: str, title: str, scale: str | None) -> Revision:
    source = Path(f"{name}:params.yaml")
    try:
        content = read(Path("params.yaml"))
    except _AbsentError as error:
        raise UserError(f"{source}: {error}; allowed: a revision with parameters") from None
    params = parse_params(parse_yaml(content, source), source, scale)
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

    folders = {
        (name, seed): layout.run(name, seed)
        for name, run in params.paper_runs.items()
        for seed in run.seeds
    }
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
            for run in params.paper_runs
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
