"""What a result depends on, and a hash of it, which tells both workflow tools what is stale.

A training run depends on its resolved parameters, the identity of its data among them, on its
parent, and on the syntax trees of the modules that training uses. Formatting, comments and
docstrings change nothing; a changed meaning does.
"""

import ast
import functools
import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relu_sparsity.data import sources
from relu_sparsity.errors import UserError
from relu_sparsity.paper.catalog import FIGURES, PRUNED_RUNS, PRUNING, TABLE_RUNS
from relu_sparsity.params import DataParams, Params, TokenizerParams

PACKAGE = Path(__file__).parent
DATA_MODULES = ("data/builders.py", "data/docs.py", "data/sources.py", "data/text.py")
TOKENIZER_MODULES = ("data/tokenizer.py",)
TRAINING_MODULES = (
    "data/pipeline.py",
    "data/tokenizer.py",
    "interventions.py",
    "model.py",
    "sparsity.py",
    "training/compaction.py",
    "training/history.py",
    "training/loop.py",
    "training/step.py",
)
EXTRACT_MODULES = ("paper/extract.py", "paper/history.py")
_COMMON = (
    "paper/catalog.py",
    "paper/extract.py",
    "paper/history.py",
    "paper/published.py",
    "paper/published.yaml",
)
PAPER_MODULES = {
    "tables": (*_COMMON, "paper/tables.py"),
    "figures": (*_COMMON, "paper/figures.py"),
    "pruning": (*_COMMON, "flops.py", "paper/pruning.py"),
    "claims": (*_COMMON, "paper/claims.py", "paper/evidence.py", "paper/rules.py"),
    "report": ("paper/report.py",),
}


@dataclass(frozen=True)
class Fingerprint:
    """What a result depends on.

    Attributes:
      parameters: The parameters that decide it, by section of params.yaml.
      code: For each of this package's files that make it, a hash of the file's meaning.
      made_from: The hashes of the results that it is made from, by job.
    """

    parameters: Mapping[str, Any]
    code: Mapping[str, str]
    made_from: Mapping[str, str]

    @functools.cached_property
    def hash(self) -> str:
        """The same for equal fingerprints only."""
        return digest(self.as_json())

    def as_json(self) -> dict[str, Any]:
        """As values that JSON knows."""
        return {
            "parameters": dict(self.parameters),
            "code": dict(self.code),
            "made_from": dict(self.made_from),
        }


def digest(value: Any) -> str:
    """A short hash of a JSON value, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def syntax(source: str) -> Any:
    """The syntax tree of Python source as JSON, without docstrings, comments and positions.

    Empty fields are left out, so that the fields which a newer Python adds change nothing.
    """

    def tree(node: Any) -> Any:
        if isinstance(node, list):
            return [tree(each) for each in node]
        if not isinstance(node, ast.AST):
            return repr(node)
        fields = {
            name: value
            for name, value in ast.iter_fields(node)
            if value is not None and value != []
        }
        has_docstring = isinstance(
            node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        ) and ast.get_docstring(node, clean=False)
        if has_docstring:
            fields["body"] = fields["body"][1:]
        return [type(node).__name__, {name: tree(value) for name, value in fields.items()}]

    return tree(ast.parse(source))


@functools.cache
def _meaning(module: str) -> str:
    text = (PACKAGE / module).read_text(encoding="utf-8")
    try:
        return digest(syntax(text) if module.endswith(".py") else text)
    except SyntaxError as error:
        raise UserError(f"{module}, line {error.lineno}: not Python: {error.msg}") from None


def code(*modules: str) -> dict[str, str]:
    """A hash of the meaning of each of some of this package's files.

    Raises:
      UserError: A file is not Python.
    """
    return {module: _meaning(module) for module in modules}


@functools.cache
def _data(params: DataParams) -> dict[str, Any]:
    identity = dict(sources.identity(params))
    # Where C4 lies says nothing about what it is.
    identity.pop("data_dir", None)
    return identity | {"heldout_fraction": params.heldout_fraction}


def _tokenizer(params: TokenizerParams) -> dict[str, Any]:
    if params.model is None:
        return {"vocab_size": params.vocab_size, "train_documents": params.train_documents}
    path = Path(params.model)
    if "://" not in params.model and not path.is_file():
        raise UserError(
            f"tokenizer.model: {params.model}: no such file; allowed: a SentencePiece model, or "
            "null to train one"
        )
    content = params.model.encode() if "://" in params.model else path.read_bytes()
    return {"model": hashlib.sha256(content).hexdigest()}


def text(params: Params) -> Fingerprint:
    """What a scale's text and tokenizer depend on, without building them."""
    config = params.defaults
    return Fingerprint(
        {"data": _data(config.data), "tokenizer": _tokenizer(config.tokenizer)},
        code(*DATA_MODULES, *TOKENIZER_MODULES),
        {},
    )


def run(params: Params, name: str, seed: int) -> Fingerprint:
    """What one training run depends on."""
    chosen = params.run(name, seed)
    config = chosen.config.fingerprinted(chosen.intervention)
    config["data"] = _data(chosen.config.data) | {"num_shards": chosen.config.data.num_shards}
    config["tokenizer"] = _tokenizer(chosen.config.tokenizer)
    parents = {}
    if chosen.parent is not None:
        parents[_job(chosen.parent, seed)] = run(params, chosen.parent, seed).hash
    return Fingerprint(
        {**config, "seed": seed, "intervention": chosen.intervention},
        code(*sorted({*DATA_MODULES, *TOKENIZER_MODULES, *TRAINING_MODULES})),
        parents,
    )


def metrics(params: Params, name: str, seed: int) -> Fingerprint:
    """What a run's extracted metrics depend on."""
    window = params.runs[name].config.metrics.convergence_window
    return Fingerprint(
        {"metrics": {"convergence_window": window}},
        code(*EXTRACT_MODULES),
        {_job(name, seed): run(params, name, seed).hash},
    )


def table(params: Params, name: str) -> Fingerprint:
    """What one of the paper's tables depends on."""
    return _paper(params, "tables", TABLE_RUNS[name])


def figure(params: Params, name: str) -> Fingerprint:
    """What one of the paper's figures depends on."""
    return _paper(params, "figures", FIGURES[name].runs)


def claims(params: Params) -> Fingerprint:
    """What the verdicts depend on."""
    return _paper(params, "claims", params.runs)


def pruning(params: Params) -> Fingerprint:
    """What the table of what masks save depends on."""
    return _paper(params, PRUNING, pruning_runs(params))


def pruning_runs(params: Params) -> list[str]:
    """The masked runs whose saving is told, and the runs that they branch off."""
    pruned = [run for run in PRUNED_RUNS if run in params.runs]
    return sorted({*pruned, *(str(params.runs[run].parent) for run in pruned)})


def _paper(params: Params, name: str, runs: Collection[str]) -> Fingerprint:
    shown = {_job(*job): metrics(params, *job).hash for job in params.jobs() if job[0] in runs}
    parameters: dict[str, Any] = {}
    if name == "figures":
        parameters["early_steps"] = {
            run: params.runs[run].config.metrics.early_steps for run in runs if run in params.runs
        }
        parameters["mask_steps"] = {
            run: params.branch_steps(run) for run in runs if run in params.runs
        }
    if name == PRUNING:
        parameters["pruning"] = params.pruning.model_dump(mode="json")
    if name == "claims":
        parameters["claims"] = params.claims.model_dump(mode="json")
    return Fingerprint(parameters, code(*PAPER_MODULES[name]), shown)


def report(params: Params) -> Fingerprint:
    """What the report depends on, which shows all tables, claims and figures."""
    shown = {name: table(params, name).hash for name in TABLE_RUNS}
    shown |= {name: figure(params, name).hash for name in FIGURES}
    shown |= {PRUNING: pruning(params).hash, "claims": claims(params).hash}
    return Fingerprint({}, code(*PAPER_MODULES["report"]), shown)


def _job(run: str, seed: int) -> str:
    return f"{run} seed {seed}"
