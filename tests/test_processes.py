import subprocess
import sys

import pytest

from relu_sparsity.processes import use_huge_pages

PRINT = [sys.executable, "-c", "import os; print(os.environ['GLIBC_TUNABLES'])"]


@pytest.mark.parametrize(
    ("users", "wanted"),
    [(None, "glibc.malloc.hugetlb=1"), ("glibc.malloc.check=0", "glibc.malloc.check=0")],
)
def test_processes_get_huge_pages_unless_the_user_says_otherwise(monkeypatch, users, wanted):
    if users is None:
        monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    else:
        monkeypatch.setenv("GLIBC_TUNABLES", users)
    use_huge_pages()
    assert subprocess.check_output(PRINT, text=True).strip() == wanted
