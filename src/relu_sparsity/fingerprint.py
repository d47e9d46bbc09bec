"""What a result depends on, and a hash of it, which tells both workflow tools what is stale.

That is its parameters, the meaning of the code that makes it, the versions of the packages that
decide its numbers, and the results that it is made from. Which code and packages these are follows
from the imports of the module that makes the result. Formatting, comments and docstrings change
nothing; a changed meaning does.
"""

import ast
import functools
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from relu_sparsity.errors import UserError

NAME = "relu_sparsity"
PACKAGE = Path(__file__).parent

# What a module imports belongs to its meaning, but for these: they change no number in a result.
WITHOUT_MEANING = {
    "distributed": "how processes find each other; results do not depend on their number",
    "durations": "how messages write a length of time",
    "errors": "messages",
    "files": "how files are written",
    "fingerprint": "this module",
    "flops": "for progress; the table that shows FLOPs names it in its row",
    "hardware": "for progress: peaks",
    "jobs": "the table of jobs: what it says is in the fingerprints, value by value",
    "layout": "where files are",
    "params": "the parameters are in the fingerprints, value by value",
    "params_file": "how parameters are read",
    "processes": "signals and memory pages",
    "provenance": "how results tell what made them",
    "runs": "resolves parameters, which are in the fingerprints, value by value",
    "schema": "messages of the parameters",
    "store": "where trained runs are kept",
    "training.checkpoints": "how a checkpoint is stored",
    "training.process": "threads and signals of a process",
    "training.progress": "what is told of a run",
    "training.watchdog": "ends a process that hangs",
}
# Their versions count wherever a module imports them.
PACKAGES = (
    "flax",
    "grain",
    "jax",
    "jaxlib",
    "matplotlib",
    "numpy",
    "optax",
    "pandas",
    "scipy",
    "sentencepiece",
)
_COMES_WITH = {"jax": ("jaxlib",)}


@dataclass(frozen=True)
class Fingerprint:
    """What a result depends on.

    Attributes:
      parameters: The parameters that decide it, by section of params.yaml.
      code: For each file of this project that makes it, a hash of the file's meaning.
      packages: The versions of the packages that decide its numbers.
      made_from: The hashes of the results that it is made from, by job.
    """

    parameters: Mapping[str, Any]
    code: Mapping[str, str]
    packages: Mapping[str, str]
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
            "packages": dict(self.packages),
            "made_from": dict(self.made_from),
        }


def digest(value: Any) -> str:
    """A short hash of a JSON value, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def code(modules: Iterable[str], files: Iterable[Path] = ()) -> dict[str, str]:
    """A hash of the meaning of some modules, of all that they import, and of some other files.

    Args:
      modules: Modules of this package: `training.run`.
      files: Files that the modules read: numbers, templates, captions.

    Raises:
      UserError: A module is not Python.
    """
    hashes = {_name(_path(name)): _Module.read(name).meaning for name in closure(*modules)}
    for file in files:
        hashes[_name(file)] = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    return dict(sorted(hashes.items()))


def packages(modules: Iterable[str]) -> dict[str, str]:
    """The versions of those of `PACKAGES` that some modules, or what they import, import."""
    imported = {name for module in closure(*modules) for name in _Module.read(module).packages}
    imported |= {other for name in imported for other in _COMES_WITH.get(name, ())}
    return {name: _version(name) for name in PACKAGES if name in imported}


def read_all() -> None:
    """Reads the code and the versions now, for the processes that are forked from this one."""
    for path in PACKAGE.rglob("*.py"):
        _Module.read(".".join(path.relative_to(PACKAGE).with_suffix("").parts))
    for name in PACKAGES:
        _version(name)


@functools.cache
def closure(*modules: str) -> tuple[str, ...]:
    """Some modules, and all of this package that they import, less `WITHOUT_MEANING`."""
    found: set[str] = set()
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name in found or (name in WITHOUT_MEANING and name not in modules):
            continue
        found.add(name)
        waiting += _Module.read(name).imports
    return tuple(sorted(found))


@dataclass(frozen=True)
class _Module:
    """A module of this package: a hash of its meaning, and what it imports."""

    meaning: str
    imports: tuple[str, ...]
    packages: tuple[str, ...]

    @staticmethod
    @functools.cache
    def read(name: str) -> "_Module":
        path = _path(name)
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except SyntaxError as error:
            raise UserError(f"{path}, line {error.lineno}: not Python: {error.msg}") from None
        imported = set(_imports(tree))
        own = {each.removeprefix(f"{NAME}.") for each in imported if each.startswith(f"{NAME}.")}
        others = {each.partition(".")[0] for each in imported}
        return _Module(
            digest(_without_docstrings(tree)),
            tuple(sorted(each for each in own if _path(each).is_file())),
            tuple(sorted(others & set(PACKAGES))),
        )


def _path(name: str) -> Path:
    # A package's own __init__.py is empty.
    return PACKAGE.joinpath(*name.split(".")).with_suffix(".py")


def _name(file: Path) -> str:
    path = file.absolute()
    return str(path.relative_to(PACKAGE)) if path.is_relative_to(PACKAGE) else file.as_posix()


def _imports(tree: ast.AST) -> Iterator[str]:
    """Every module that is imported, anywhere, but for those that only type checkers see."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            # `from package import module` and `from module import name` look the same.
            yield str(node.module)
            yield from (f"{node.module}.{each.name}" for each in node.names)
        elif not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            yield from _imports(node)


@functools.cache
def _version(package: str) -> str:
    return metadata.version(package)


def syntax(source: str) -> Any:
    """The syntax tree of Python source as JSON, without docstrings, comments and positions.

    Empty fields are left out, so that the fields which a newer Python adds change nothing.
    """
    return _without_docstrings(ast.parse(source))


def _without_docstrings(node: Any) -> Any:
    if isinstance(node, list):
        return [_without_docstrings(each) for each in node]
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = {
        name: value for name, value in ast.iter_fields(node) if value is not None and value != []
    }
    has_docstring = isinstance(
        node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    ) and ast.get_docstring(node, clean=False)
    if has_docstring:
        fields["body"] = fields["body"][1:]
    return [
        type(node).__name__,
        {name: _without_docstrings(value) for name, value in fields.items()},
    ]
