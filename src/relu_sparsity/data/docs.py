"""The `docs` text: the docstrings of installed packages."""

import ast
import importlib.metadata
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from relu_sparsity.errors import UserError

# Shorter docstrings are mostly signatures and one-line summaries.
MIN_CHARACTERS = 150

_TEST_FOLDERS = {"test", "tests", "testing", "_testing"}
_DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Returns the installed version of every package.

    Args:
      packages: Distribution names, as pip knows them (`orbax-checkpoint`).

    Raises:
      UserError: There is no package, or one is not installed.
    """
    if not packages:
        raise UserError("data.packages is empty; allowed: at least one installed package")
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except (importlib.metadata.PackageNotFoundError, ValueError):
            raise UserError(
                f"data.packages: {package!r} is not installed; allowed: names of installed "
                f"packages, as pip knows them (`pip install {package}`)"
            ) from None
    return found


def documents(packages: Sequence[str]) -> Iterator[str]:
    """Yields every long docstring once, in an order that only the packages decide.

    A document is the dedented docstring of a module, class or function, of `MIN_CHARACTERS`
    or more. Test modules are left out, as are files that this Python cannot parse.

    Args:
      packages: Distribution names, as pip knows them.

    Raises:
      UserError: A package is not installed, or comes without docstrings.
    """
    versions(packages)
    seen = set()
    for package in sorted(packages):
        empty = True
        for path in _modules(package):
            for docstring in _docstrings(path):
                empty = False
                if docstring not in seen:
                    seen.add(docstring)
                    yield docstring
        if empty:
            raise UserError(
                f"data.packages: {package!r} has no docstrings; allowed: packages installed "
                f"from a wheel, with docstrings of {MIN_CHARACTERS} characters or more"
            )


def _modules(package: str) -> list[Path]:
    distribution = importlib.metadata.distribution(package)
    names = sorted(file.as_posix() for file in distribution.files or ())
    return [Path(str(distribution.locate_file(name))) for name in names if _is_library(name)]


def _is_library(name: str) -> bool:
    path = PurePosixPath(name)
    return (
        path.suffix == ".py"
        and _TEST_FOLDERS.isdisjoint(path.parts)
        and not path.stem.startswith("test_")
        and not path.stem.endswith("_test")
        and path.stem != "conftest"
    )


def _docstrings(path: Path) -> Iterator[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Invalid escapes in other people's strings.
            tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, _DOCUMENTED):
            docstring = (ast.get_docstring(node) or "").strip()
            if len(docstring) >= MIN_CHARACTERS:
                yield docstring
