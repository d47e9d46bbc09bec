"""What a result depends on, as a hash, which tells both workflow tools what is stale.

A training run's fingerprint covers its resolved parameters, the identity of its data, its
parent's fingerprint, and the syntax trees of the modules that training uses. Formatting, comments
and docstrings change nothing; a changed meaning does.
"""

import ast
import functools
import hashlib
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from relu_sparsity.data import sources
from relu_sparsity.errors import UserError
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
    "claims": (*_COMMON, "paper/claims.py", "paper/evidence.py", "paper/rules.py"),
    "report": ("paper/report.py",),
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
def code(modules: tuple[str, ...]) -> str:
    """A hash of the meaning of some of this package's files.

    Raises:
      UserError: A file is not Python.
    """
    meanings = {}
    for name in modules:
        text = (PACKAGE / name).read_text(encoding="utf-8")
        try:
            meanings[name] = syntax(text) if name.endswith(".py") else text
        except SyntaxError as error:
            raise UserError(f"{name}, line {error.lineno}: not Python: {error.msg}") from None
    return digest(meanings)


def data(params: DataParams) -> str:
    """The fingerprint of a data set, without building it."""
    return _data(params)


@functools.cache
def _data(params: DataParams) -> str:
    identity = dict(sources.identity(params))
    # Where C4 lies says nothing about what it is.
    identity.pop("data_dir", None)
    return digest(
        {
            "identity": identity,
            "heldout_fraction": params.heldout_fraction,
            "code": code(DATA_MODULES),
        }
    )


@functools.cache
def tokenizer(params: TokenizerParams, data_params: DataParams) -> str:
    """The fingerprint of a tokenizer: of what it is trained from, or of the given file."""
    if params.model is None:
        return digest(
            {
                "vocab_size": params.vocab_size,
                "train_documents": params.train_documents,
                "data": data(data_params),
                "code": code(TOKENIZER_MODULES),
            }
        )
    path = Path(params.model)
    if "://" not in params.model and not path.is_file():
        raise UserError(
            f"tokenizer.model: {params.model}: no such file; allowed: a SentencePiece model, or "
            "null to train one"
        )
    content = params.model if "://" in params.model else path.read_bytes().hex()
    return digest({"model": hashlib.sha256(content.encode()).hexdigest()})


def text(params: Params) -> str:
    """The fingerprint of a scale's text and tokenizer together."""
    config = params.defaults
    return digest([data(config.data), tokenizer(config.tokenizer, config.data)])


def run(params: Params, name: str, seed: int) -> str:
    """The fingerprint of one training run."""
    chosen = params.run(name, seed)
    config = chosen.config.fingerprinted(chosen.intervention)
    num_shards = config.pop("data")["num_shards"]
    del config["tokenizer"]
    return digest(
        {
            "config": config,
            "seed": seed,
            "intervention": chosen.intervention,
            "num_shards": num_shards,
            "data": data(chosen.config.data),
            "tokenizer": tokenizer(chosen.config.tokenizer, chosen.config.data),
            "parent": None if chosen.parent is None else run(params, chosen.parent, seed),
            "code": code(TRAINING_MODULES),
        }
    )


def metrics(params: Params, name: str, seed: int) -> str:
    """The fingerprint of a run's extracted metrics."""
    window = params.runs[name].config.metrics.convergence_window
    return digest([code(EXTRACT_MODULES), window, run(params, name, seed)])


def paper(params: Params, name: str, runs: Collection[str]) -> str:
    """The fingerprint of a table, a figure or the claims: `name` of `PAPER_MODULES`.

    Args:
      params: The scale.
      name: A key of `PAPER_MODULES`.
      runs: The runs that are shown.
    """
    shown = [metrics(params, *job) for job in params.jobs() if job[0] in runs]
    marked = {
        run: [params.runs[run].config.metrics.early_steps, params.branch_steps(run)]
        for run in runs
        if run in params.runs
    }
    analysis = {"figures": marked, "claims": params.claims.model_dump(mode="json")}
    return digest([code(PAPER_MODULES[name]), analysis.get(name), shown])


def report(params: Params) -> str:
    """The fingerprint of the report, which shows all tables, claims and figures."""
    shown = [paper(params, name, params.runs) for name in ("tables", "figures", "claims")]
    return digest([code(PAPER_MODULES["report"]), shown])
