"""What differs between two revisions."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from relu_sparsity.errors import UserError
from relu_sparsity.paper.catalog import TABLES
from relu_sparsity.paper.compare.revisions import SCORES, Revision
from relu_sparsity.paper.verdicts import numbers_text
from relu_sparsity.params import Params, RunParams
from relu_sparsity.schema import flat

NOTHING = "–"
Curves = dict[str, pd.DataFrame]


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
      curves: By run with a curve that differs, the curves of both, by name.
    """

    scale: str
    revisions: dict[str, Revision]
    parameters: dict[str, Pair]
    only_in: dict[str, str]
    tables: list[TableChanges]
    verdicts: list[VerdictChange]
    scores: dict[str, dict[str, Pair]]
    curves: dict[str, tuple[Curves, Curves]]

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
    of_first, of_second = (each.params.paper_runs for each in (first, second))
    runs = list(dict.fromkeys([*of_first, *of_second]))
    shared = [run for run in runs if run in of_first and run in of_second]
    return Comparison(
        scale=first.params.scale,
        revisions={"A": first, "B": second},
        parameters=_parameter_changes(first.params, second.params, shared),
        only_in={run: "A" if run in of_first else "B" for run in runs if run not in shared},
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
            run: pair
            for run in shared
            if (pair := _differing(first.curves.get(run, {}), second.curves.get(run, {})))
        },
    )


def _differing(first: Curves, second: Curves) -> tuple[Curves, Curves] | None:
    """The curves that both have, where any of them differs."""
    names = [name for name in first if name in second]
    if all(first[name].equals(second[name]) for name in names):
        return None
    return {name: first[name] for name in names}, {name: second[name] for name in names}


def _parameter_changes(first: Params, second: Params, shared: Iterable[str]) -> dict[str, Pair]:
    """Differing parameters by key path; `runs.*` is every run that both revisions have."""
    general = [
        flat(
            {
                name: getattr(params, name).model_dump(mode="json")
                for name in ("claims", "pruning", "resources")
            }
        )
        for params in (first, second)
    ]
    changes = _changes(*general)
    by_run = {
        run: _changes(_run_parameters(first.runs[run]), _run_parameters(second.runs[run]))
        for run in shared
    }
    found = Counter(change for differing in by_run.values() for change in differing.items())
    common = dict(change for change, count in found.items() if count == len(by_run) > 1)
    changes |= {f"runs.*.{key}": pair for key, pair in common.items()}
    for run, differing in by_run.items():
        changes |= {
            f"runs.{run}.{key}": pair for key, pair in differing.items() if key not in common
        }
    return changes


def _run_parameters(run: RunParams) -> dict[str, Any]:
    document = run.model_dump(mode="json", exclude={"name"})
    return flat(document.pop("config") | document)


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
                for name in map(str, dict.fromkeys([*first[table], *second[table]]))
                if not name.endswith(("_std", "_paper"))
                and (differing := _cell_changes(first[table], second[table], name))
            }
            changes.append(TableChanges(table.removeprefix("table"), title, cells))
    return [each for each in changes if each.cells]


def _cell_changes(first: pd.DataFrame, second: pd.DataFrame, name: str) -> dict[str, Pair]:
    pairs = {}
    for layer in dict.fromkeys([*first.index, *second.index]):
        before, after = _cell(first, layer, name), _cell(second, layer, name)
        change = f"{float(after) - float(before):+.3g}" if before and after else ""
        paper = _cell(second, layer, f"{name}_paper") or _cell(first, layer, f"{name}_paper")
        pair = Pair(
            _with_spread(before, _cell(first, layer, f"{name}_std")),
            _with_spread(after, _cell(second, layer, f"{name}_std")),
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
    return ". ".join(filter(None, (claim["reason"], numbers_text(claim["evidence"])))) or NOTHING
