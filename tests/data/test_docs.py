import inspect
import textwrap
from pathlib import Path

import numpy as np
import pytest

from relu_sparsity.data import docs
from relu_sparsity.errors import UserError

LONG = "A sentence of plain English that is here to be long enough. " * 4


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Installs a package of the given files, as a wheel's files lie on the path."""

    def _install(name: str, files: dict[str, str]) -> None:
        for path, source in files.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(source)
        info = tmp_path / f"{name.replace('-', '_')}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
        (info / "RECORD").write_text("".join(f"{path},,\n" for path in files))
        monkeypatch.syspath_prepend(str(tmp_path))

    return _install


def test_documents_of_a_real_package():
    found = list(docs.documents(["numpy"]))
    assert inspect.getdoc(np.linspace).strip() in found
    assert len(found) > 1000
    assert len(set(found)) == len(found)
    assert min(map(len, found)) >= docs.MIN_CHARACTERS
    assert found == list(docs.documents(["numpy"]))


def test_module_class_and_function_docstrings_are_dedented_and_unique(install):
    install(
        "some-package",
        {
            "some/b.py": f'"""{LONG}"""\n',
            "some/a.py": textwrap.dedent(f'''
                """Module. {LONG}"""
                class Thing:
                    """Class. {LONG}

                        indented
                    not indented
                    """
                    async def act(self):
                        """{LONG}"""
                    def short(self):
                        """Too short."""
                text = """{LONG} not a docstring"""
            '''),
        },
    )
    text = LONG.strip()
    assert list(docs.documents(["some-package"])) == [
        f"Module. {text}",
        f"Class. {LONG}\n\n    indented\nnot indented",
        text,
    ]


def test_tests_and_files_that_do_not_parse_are_left_out(install):
    source = f'"""{LONG}"""'
    names = ["test_x.py", "x_test.py", "conftest.py", "tests/x.py", "testing/x.py", "x.pyi"]
    files = {f"some/{name}": f'"""{name} {LONG}"""' for name in names}
    install("some-package", files | {"some/bad.py": source + "\nprint 1", "some/good.py": source})
    assert list(docs.documents(["some-package"])) == [LONG.strip()]


def test_the_order_of_packages_does_not_matter():
    assert list(docs.documents(["typer", "optax"])) == list(docs.documents(["optax", "typer"]))


def test_versions(install):
    install("some-package", {})
    assert docs.versions(["some-package"]) == {"some-package": "1.2"}


@pytest.mark.parametrize("package", ["no-such-package", ""])
def test_a_package_that_is_not_installed(package: str):
    with pytest.raises(UserError, match=rf"data\.packages: '{package}' is not installed; allowed"):
        list(docs.documents(["optax", package]))


def test_no_packages():
    with pytest.raises(UserError, match=r"data\.packages is empty"):
        docs.versions([])


def test_a_package_without_docstrings(install):
    install("some-package", {"some/a.py": "x = 1"})
    with pytest.raises(UserError, match=r"data\.packages: 'some-package' has no docstrings"):
        list(docs.documents(["some-package"]))
